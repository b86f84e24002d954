"""From head relevance, or any score of each head, to a ranking, and to the heads that a map is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import xarray as xr

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import listed, option
from ...schema.selection import Selector
from ..aggregation.selection import whole
from ..trace.heads import require_same_heads
from ..trace.reader import Trace
from .averages import head_accuracy, head_contribution
from .scores import Sources, head_relevance

By: TypeAlias = Literal["relevance", "truth", "contribution"]
"""What a head is scored by: the concept it looks for, how often it finds the true place, or how much it takes of the reference."""
SCORES: Final[dict[By, Callable[..., xr.DataArray]]] = {
    "relevance": head_relevance,
    "truth": head_accuracy,
    "contribution": head_contribution,
}
HeadMap: TypeAlias = dict[Selector, list[int]]
"""Head numbers by layer name, as `heads=` of every map takes them."""

WeightMap: TypeAlias = dict[Selector, dict[int, float]]
"""The same with a weight for each head."""


def rank_heads(scores: xr.DataArray, concept: str | None = None) -> list[tuple[str, int]]:
    """All heads by their score, greatest first; equals stay in the published order (down, mid, up; heads within).

    Dims     scores (concept, layer, head) or (layer, head) -> [(layer, head)]
    Raises   UnknownSelection for a concept there is not, InvalidInput if heads of several concepts or times would be mixed
    """
    row = _row(scores, concept)
    layers, numbers = row["layer"].values.tolist(), row["head"].values.tolist()
    flat = {int(p): at for at, p in np.ndenumerate(row["position"].values) if p >= 0}
    values = row.values
    known = [flat[p] for p in sorted(flat) if np.isfinite(values[flat[p]])]
    ranked = sorted(known, key=lambda at: -float(values[at]))  # sorted keeps the order of equals
    return [(str(layers[i]), int(numbers[j])) for i, j in ranked]


def select_heads(
    scores: xr.DataArray | Sources,
    concept: str | None = None,
    *,
    top: int | None = None,
    bottom: int | None = None,
    by: By | None = None,
    trace: Trace | None = None,
) -> HeadMap:
    """The heads that rank first, or last, by layer: what `r2g(trace, heads=...)` and every other map takes.

    `scores` are head relevance vectors (`head_relevance`) with the name of a concept, or one score for each head, such as the
    share of patches that it sends to their true place (`head_accuracy`) or how much it takes of the reference (`head_contribution`);
    or traces, and `by` says what they are scored by. With a trace, it is first made sure that the scores are of its model.

    Raises   UnknownSelection for a concept or a number of heads there is not, InvalidInput unless just one of `top` and `bottom` is given
    Source   Park et al. 2026 (arXiv 2604.05906): about 30 of the 128 heads of Stable Diffusion 1.4
    """
    if (top is None) == (bottom is None):
        raise InvalidInput(f"say how many heads: just one of {option('top')} and {option('bottom')}, such as {option('top', '30')}")
    scores = _scores(scores, by)
    if trace is not None:
        require_same_heads(scores, trace)
    ranked = rank_heads(scores, concept)
    count = whole(top if bottom is None else bottom, "a number of heads")
    if not 1 <= count <= len(ranked):
        raise UnknownSelection(f"cannot take {count} heads; the scores rank {len(ranked)}")
    return by_layer(ranked[:count] if bottom is None else ranked[-count:], scores)


def weigh_heads(
    scores: xr.DataArray | Sources,
    concept: str | None = None,
    *,
    top: int | None = None,
    by: By | None = None,
    trace: Trace | None = None,
) -> WeightMap:
    """Each head's score as its weight, by layer, of all heads or of the best: what `r2g(trace, heads=...)` and every other map takes.

    `top`  how many of the best; None is all

    What else it takes is as for `select_heads`. Heads whose score is 0 do not count.

    Raises   as `select_heads`; a map refuses weights below 0
    """
    scores = _scores(scores, by)
    if trace is not None:
        require_same_heads(scores, trace)
    taken = select_heads(scores, concept, top=len(rank_heads(scores, concept)) if top is None else top)
    row = _row(scores, concept)
    return {layer: {head: float(row.sel(layer=layer, head=head)) for head in heads} for layer, heads in taken.items()}


def by_layer(chosen: list[tuple[str, int]], scores: xr.DataArray) -> HeadMap:
    """(layer, head) pairs as head numbers by layer, layers in the order of the scores."""
    found: HeadMap = {}
    for layer in scores["layer"].values.tolist():
        if mine := sorted(head for name, head in chosen if name == layer):
            found[str(layer)] = mine
    return found


def published_vector(relevance: xr.DataArray) -> xr.DataArray:
    """Relevance with layers and heads as one axis, in the published order: the shape of the released vectors, (34, 128) for SD 1.4.

    Dims     (..., layer, head) -> (..., position)
    """
    there = relevance["position"].values >= 0
    lead = relevance.dims[:-2]
    rows, columns = (relevance[name].values[index] for name, index in zip(("layer", "head"), np.nonzero(there), strict=True))
    coords = {name: axis for name, axis in relevance.coords.items() if set(axis.dims) <= set(lead)}
    more = {"position": np.arange(there.sum()), "layer": ("position", rows), "head": ("position", columns)}
    return xr.DataArray(relevance.values[..., there], dims=(*lead, "position"), coords={**coords, **more}, attrs=relevance.attrs)


def _scores(given: xr.DataArray | Sources, by: By | None) -> xr.DataArray:
    if by is not None and by not in get_args(By):
        raise InvalidInput(f"heads cannot be chosen by {by!r}; they are by {', '.join(get_args(By))}")
    if not isinstance(given, xr.DataArray):
        return SCORES[by or "relevance"](given)
    if by is not None and given.attrs.get("kind", by) != by:
        raise InvalidInput(f"these scores are of {given.attrs['kind']}, not of {by}; leave out {option('by', by)}, or give traces")
    return given


def _row(scores: xr.DataArray, concept: str | None) -> xr.DataArray:
    """The scores of one concept.

    Dims     -> (layer, head)
    """
    if missing := {"layer", "head", "position"} - set(scores.coords):
        raise InvalidInput(f"these are no scores of heads: they lack {', '.join(sorted(missing))}; they come from `heads` or `load_heads`")
    if "time" in scores.dims:
        raise InvalidInput("the heads were counted for each time apart; select one with isel(time=...), or count them without keeping time")
    if "concept" not in scores.dims:
        if concept is not None:
            raise InvalidInput(f"these scores are of heads alone, not of concepts; leave out {option('concept', concept)}")
        return scores.transpose("layer", "head")
    known = scores["concept"].values.tolist()
    if concept is None:
        raise InvalidInput(f"say which concept, with {option('concept')}: {listed(known)}")
    if concept not in known:
        raise UnknownSelection(f"there is no concept {concept!r}; there are {', '.join(known)}")
    return scores.sel(concept=concept).transpose("layer", "head")
