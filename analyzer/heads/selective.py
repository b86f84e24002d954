"""Selective aggregation against a mask: does a map of the best heads agree with it more than one of all heads, or of the worst?

Heads are never chosen on a trace that they are judged on: either their scores come from other traces, or the traces are dealt into two
halves, and those chosen on one are judged on the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeAlias, get_args

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import option
from ...schema.selection import Layers, read_positions
from ..aggregation.selection import Positions, Select
from ..maps.attribution import r2g
from ..maps.heatmap import scored_picture
from ..maps.words import word_map
from ..methods.recipes import Recipe
from ..metrics.overlap import THRESHOLDS, iou
from ..trace.heads import require_same_heads
from ..trace.images import load_mask, own_mask
from ..trace.reader import Trace
from .probes import PROBE
from .ranking import SCORES, By, by_layer, rank_heads, select_heads
from .scores import Sources, head_relevance, open_all

Given: TypeAlias = Mapping[str, Iterable[str]] | str | None
KINDS: Final = ("all", "top", "bottom")
PUBLISHED: Final = 30 / 128
"""Share of heads that the paper selects: 30 of the 128 of Stable Diffusion 1.4."""


def selective_iou(
    traces: Sources,
    scores: xr.DataArray | None = None,
    *,
    by: By = "truth",
    concept: str | None = None,
    concepts: Given = None,
    probe: str = PROBE,
    count: Positions = None,
    thresholds: Sequence[float] = THRESHOLDS,
    mask: str | None = None,
    word: str | None = None,
    recipe: str | Recipe | None = None,
    layers: Layers = None,
    steps: Positions = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
) -> xr.DataArray:
    """IoU of a map's picture and the mask, for maps of all heads, of the `count` best and of the `count` worst.

    The map is R2G or, with a `word` of the prompt, that word's (recipe `hrv-selective` where none is named). Without scores,
    heads are chosen by truth, relevance or contribution on half of the traces and judged on the other half, and the other way round.
    Without a count it is the paper's share of all heads, 30 of 128; several counts, such as [1, 2, 4] or slice(1, None), make a curve.

    Dims     (heads, [count,] threshold, trace): heads are all, top, bottom
    Range    [0, 1]
    Raises   InvalidInput if the scores were made of a trace that is judged, or there are too few traces to deal; as `r2g`, `select_heads`
    Source   Park et al. 2026 (arXiv 2604.05906), table of thresholds
    """
    opened = sorted(open_all(traces), key=lambda trace: trace.id)
    if by not in get_args(By):
        raise InvalidInput(f"heads cannot be chosen by {by!r}; they are by {', '.join(get_args(By))}")
    if scores is not None:
        _require_others(scores, opened)
        dealt = [(scores, opened)]
    else:
        where = Select(layers=layers, sample=sample, branch=branch, group=group)
        dealt = [(_score(chosen, by, concept, concepts, probe, where), judged) for chosen, judged in deal(opened)]
    select = Select(steps=steps, sample=sample, branch=branch, group=group)
    maps_of = partial(r2g, recipe=recipe or "i2am") if word is None else partial(word_map, word=word, recipe=recipe or "hrv-selective")
    found, counts = [], set()
    for chosen, judged in dealt:
        ranked = rank_heads(chosen, concept)
        taken = _counts(count, len(ranked))
        counts.add(taken)
        kinds = [by_layer(ranked, chosen), *(select_heads(chosen, concept, top=n) for n in taken)]
        kinds += [select_heads(chosen, concept, bottom=n) for n in taken]
        # Of each of `KINDS`, the map of every count; all heads have one for all counts.
        rows = [[0] * len(taken), *np.arange(1, len(kinds)).reshape(2, -1)]
        for trace in judged:
            require_same_heads(chosen, trace)
            pixels = _load_mask(trace, mask, sample)
            maps = compute(*(maps_of(trace, **replace(select, heads=heads).options()) for heads in kinds))  # type: ignore[no-untyped-call]
            pictures = [scored_picture(map, pixels) for map in maps]
            each = np.array([[float(iou(picture, pixels, threshold)) for threshold in thresholds] for picture in pictures])
            found.append(each[rows])
    (taken,) = counts
    how = (by, "the other half of the traces")
    if scores is not None:
        how = (scores.attrs.get("kind", ""), f"{len(scores.attrs['traces'])} other traces")
    facts = {"by": how[0], "word": word or "", "of": len(rank_heads(dealt[0][0], concept)), "chosen_on": how[1]}
    coords = {"heads": list(KINDS), "count": list(taken), "threshold": list(thresholds)}
    coords["trace"] = [trace.id for _, judged in dealt for trace in judged]
    table = xr.DataArray(np.stack(found, axis=-1), dims=tuple(coords), coords=coords, attrs=facts, name="iou").sortby("trace")
    several = isinstance(count, (slice, Iterable))
    return table if several else table.isel(count=0, drop=True).assign_attrs(count=taken[0])


def deal(opened: list[Trace]) -> list[tuple[list[Trace], list[Trace]]]:
    """The traces in two halves, each once to choose on and once to judge.

    Raises   InvalidInput for a single trace
    """
    if len(opened) < 2:
        raise InvalidInput("heads are not judged on the trace they were chosen on: give two traces or more, or scores made of others")
    halves = opened[::2], opened[1::2]
    return [(halves[0], halves[1]), (halves[1], halves[0])]


def published_count(total: int) -> int:
    """As many heads of a model as 30 are of 128, and one at least.

    Range    [1, total / 2], so that the best and the worst are different heads
    """
    return max(1, min(round(total * PUBLISHED), total // 2))


def _counts(count: Positions, total: int) -> tuple[int, ...]:
    """The numbers of heads that are asked for, of a model with so many."""
    if count is None:
        return (published_count(total),)
    asked = read_positions(count, "count")
    return tuple(n for n in range(total + 1)[asked] if n) if isinstance(asked, slice) else tuple(asked)


def flat_note(table: xr.DataArray) -> str | None:
    """What to say where no map tells any place from another."""
    if table.sel(heads="all").values.any():
        return None
    return (
        "every map of all heads is flat, so no IoU can be told: the mean over all keys of a softmax over keys is the same everywhere. "
        "Name a word of the prompt, or take a recipe whose R2G is a softmax over the generated positions, such as i2am"
    )


def _require_others(scores: xr.DataArray, judged: list[Trace]) -> None:
    used = set(scores.attrs.get("traces", ()))
    if both := [trace for trace in judged if trace.id in used]:
        raise InvalidInput(
            f"{both[0].path} is one of the {len(used)} traces that the heads were scored on, so judging them on it would flatter them "
            f"({len(both)} such traces); leave it out, or leave out the scores: then they are chosen on one half and judged on the other"
        )


def _score(traces: list[Trace], by: By, concept: str | None, concepts: Given, probe: str, where: Select) -> xr.DataArray:
    if by == "relevance":
        return head_relevance(traces, concepts=concepts, probe=probe, layers=where.layers, branch=where.branch)
    if concept is not None:
        raise InvalidInput(f"{by} knows no concepts; leave out {option('concept', concept)}, or choose heads by relevance")
    return SCORES[by](traces, layers=where.layers, sample=where.sample, branch=where.branch, group=where.group)


def _load_mask(trace: Trace, mask: str | None, sample: int) -> NDArray[np.uint8]:
    name = mask or own_mask(trace, sample)
    if name is None:
        raise UnknownSelection(f"{trace.path} holds no mask of the generated image; give one with {option('mask')}")
    return load_mask(trace, name)
