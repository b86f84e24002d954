"""Scores of single heads that are means over traces: how well each points, and how much it takes of the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed
from tqdm import tqdm

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.selection import Selector
from ..aggregation.selection import Select, Selection, choose
from ..influence.lengths import mean_lengths
from ..inspection.truth import require_truth
from ..maps.looks import looks
from ..metrics.pointing import RADIUS, pck
from ..progress import hidden
from ..trace.heads import head_coordinates, published_order, require_same_heads
from ..trace.reader import Trace
from .scores import Sources, open_all


def head_accuracy(
    traces: Sources,
    *,
    layers: Selector | Iterable[Selector] | None = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
    truth: Any = None,
    radius: float = RADIUS,
) -> xr.DataArray:
    """Pointing accuracy of every head by itself (PCK of its SRAM, summed over steps), mean over traces.

    `truth` is a file or an array of known truth that holds for all of them; None is each trace's own.

    Dims     (layer, head), layers in published order: down, mid, up
    Range    [0, 1]; NaN where a layer has no such head
    Raises   InvalidInput for a trace without truth, or of another model than the first; as `sram`
    """
    select = Select(layers=layers, sample=sample, branch=branch, group=group)
    return _mean(traces, "truth", partial(_accuracies, given=truth, radius=radius), select).assign_attrs(radius=float(radius))


def head_contribution(
    traces: Sources,
    *,
    layers: Selector | Iterable[Selector] | None = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
) -> xr.DataArray:
    """How much every head takes of the reference, or of another group: |sum over its tokens of P v W|, mean over positions, steps, traces.

    It is what the head adds to its layer's output on account of these tokens: their sum first, then its length.

    Dims     (layer, head), layers in published order: down, mid, up
    Range    >= 0, in units of the layers' outputs; NaN where a layer has no such head, or no call was recorded
    Raises   UnknownSelection for a layer without values in full; InvalidInput for a trace of another model than the first
    """
    return _mean(traces, "contribution", _contributions, Select(layers=layers, sample=sample, branch=branch, group=group))


def _mean(traces: Sources, kind: str, score: Callable[[Trace, Select, Selection], list[Any]], select: Select) -> xr.DataArray:
    """The mean over traces of what each layer's heads score, which is given layer by layer as they are selected."""
    opened = open_all(traces)
    each: list[xr.DataArray] = []
    for trace in tqdm(opened, desc="heads", unit="trace", leave=False, disable=hidden()):
        chosen = choose(trace, select)
        order = published_order(trace.layers[index].name for index in chosen.layers)
        coords = head_coordinates([trace.layers[chosen.layers[i]] for i in order])
        scores = np.full((len(order), len(coords["head"])), np.nan)
        for i, found in enumerate(score(trace, select, chosen)):
            scores[order.index(i), np.searchsorted(coords["head"], trace.layers[chosen.layers[i]].heads_kept)] = found
        each.append(xr.DataArray(scores, dims=("layer", "head"), coords=coords, name=kind))
        require_same_heads(each[0], trace)
        if each[-1]["layer"].values.tolist() != each[0]["layer"].values.tolist():
            which = f"select with {option('layers')} those that both have"
            raise InvalidInput(f"{trace.path} and {opened[0].path} have different layers; {which}")
    in_order = [found.values for _, found in sorted(zip((trace.id for trace in opened), each, strict=True), key=lambda pair: pair[0])]
    facts = {"kind": kind, "model": str(opened[0].record.model.get("pipeline", "")), "traces": sorted(trace.id for trace in opened)}
    # Sorted first: sums of floats depend on their order.
    return each[0].copy(data=np.mean(in_order, axis=0)).assign_attrs(facts, branch=select.branch or "")


def _accuracies(trace: Trace, select: Select, chosen: Selection, given: Any, radius: float) -> list[Any]:
    truth = require_truth(trace, given)
    # Layer by layer: a look is as large as the attention of one call.
    return [pck(looks(trace, keep="head", **replace(select, layers=i).options()), truth, radius).values for i in chosen.layers]


def _contributions(trace: Trace, select: Select, chosen: Selection) -> list[Any]:
    at = chosen.sample, chosen.branch
    tasks = [partial(mean_lengths, trace, i, at, slice(g.start, g.stop)) for i, g in zip(chosen.layers, chosen.groups, strict=True)]
    return list(compute(*(delayed(task, pure=False, traverse=False)() for task in tasks)))  # type: ignore[no-untyped-call]
