"""Maps of concepts, words that attended to the image beside the run: at each position, the share of each among all that were recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import xarray as xr

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import guess, listed, option, plain
from ...schema.selection import Selector, whole
from ..aggregation.selection import Positions, find_branch, pick_positions
from ..facts import MapFacts, picture_facts
from ..trace.images import find_image
from ..trace.reader import Trace

AXES: Final = ("time", "layer")


def concept_map(
    trace: Trace,
    concept: str | None = None,
    *,
    keep: Iterable[str] | str = (),
    steps: Positions = None,
    layers: Selector | Iterable[Selector] | None = None,
    sample: int = 0,
    branch: str | None = None,
) -> xr.DataArray:
    """Where on the generated image a concept lies, among all that were recorded with it.

        concept_map(open_trace("run.zarr"), "cat", layers="re:transformer_blocks.1[5-8]\\.")

    In each step and layer the softmax over concepts of their products with a position, heads summed; then the mean over steps and layers.
    Without `concept`, each has a map. `keep` takes time and layer; `layers` are all that have concepts if None. What else `r2g` takes
    means the same here.

    Dims     kept axes in the order time, layer, concept where none is named, then (y, x); lazy, float64
    Range    [0, 1], sums to 1 over concepts; NaN where no call is left to average
    Raises   UnknownSelection, InvalidInput
    Source   Helbling et al., ConceptAttention, ICML 2025; its pictures scale all concepts together by their least and greatest value
    """
    kept = (keep,) if isinstance(keep, str) else tuple(keep)
    if unknown := [axis for axis in kept if axis not in AXES]:
        raise InvalidInput(f"cannot keep {unknown[0]!r}; a map of a concept keeps any of {', '.join(AXES)}")
    chosen = _with_concepts(trace, layers)
    names = trace.layers[chosen[0]].concepts
    if concept is not None and concept not in names:
        raise UnknownSelection(f"{trace.path} has no concept {plain(str(concept))!r}; {guess(str(concept), names)}it has {listed(names)}")
    at, place = find_branch(trace, branch, "cond"), whole(sample, "a sample")
    if not 0 <= place < trace.record.samples:
        raise UnknownSelection(f"there is no sample {place}; the trace has {trace.record.samples}, counted from 0")
    positions = list(pick_positions(steps, len(trace.present), "step"))
    shares = _shares(trace, chosen, {"sample": place, "branch": at, "step": positions})
    means = shares.mean([axis for axis in AXES if axis not in kept], skipna=True)
    picked: xr.DataArray = means if concept is None else means.sel(concept=concept, drop=True)
    image = find_image(trace, f"generated_{place}", "generated")
    facts = MapFacts(direction="concept", trace=trace.record.id, sample=place, branch=trace.record.branches[at], group=concept).to_attrs()
    what = "share of each concept" if concept is None else f"share of the concept {plain(concept)!r}"
    attrs = {**facts, **picture_facts(image), "long_name": what, "units": "share among concepts", "concepts": list(names)}
    ordered: xr.DataArray = picked.transpose(*(axis for axis in (*AXES, "concept") if axis in picked.dims), ...)
    return ordered.rename("concept").assign_attrs(attrs)


def _shares(trace: Trace, chosen: tuple[int, ...], at: dict[str, Any]) -> xr.DataArray:
    """The softmax over concepts of each call.

    Dims     (layer, time, concept, [frame,] y, x)
    """
    scores = [trace.concept_scores(index).isel(at, drop=True) for index in chosen]
    found = xr.concat(scores, "layer", coords="minimal", compat="override", join="override", combine_attrs="drop").astype(np.float64)
    powers: xr.DataArray = xr.apply_ufunc(np.exp, found - found.max("concept"), dask="allowed")
    shares: xr.DataArray = powers / powers.sum("concept", skipna=False)
    return shares.rename(step="time").assign_coords(layer=("layer", [trace.layers[index].name for index in chosen]))


def _with_concepts(trace: Trace, layers: Selector | Iterable[Selector] | None) -> tuple[int, ...]:
    """The layers that are selected and have concepts.

    Raises   UnknownSelection if none has, InvalidInput if they have not one grid
    """
    chosen = tuple(index for index in trace.select(layers) if trace.layers[index].concepts)
    if not chosen:
        selected = "no layer" if layers is None else "no selected layer"
        raise UnknownSelection(f"{selected} of {trace.path} has concepts; record double blocks of Flux with {option('concepts', '...')}")
    if len({(trace.layers[index].places, trace.layers[index].concepts) for index in chosen}) > 1:
        raise InvalidInput(f"layers with concepts lie on different grids; choose some of one grid with {option('layers')}")
    return chosen
