"""Which heads can be trusted: the share of patches that each head, alone, sends to where they truly come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import xarray as xr
from tqdm import tqdm

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.selection import Selector
from ..aggregation.selection import Select, choose
from ..inspection.truth import require_truth
from ..maps.looks import looks
from ..metrics.pointing import RADIUS, pck
from ..progress import hidden
from ..trace.heads import head_coordinates, published_order, require_same_heads
from ..trace.reader import Trace
from .sources import Sources, open_all


def head_accuracy(
    traces: Sources,
    *,
    layers: Selector | Iterable[Selector] | None = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
    radius: float = RADIUS,
) -> xr.DataArray:
    """Pointing accuracy of every head by itself (PCK of its SRAM, summed over steps), mean over traces whose truth is known.

    Dims     (layer, head), layers in published order: down, mid, up
    Range    [0, 1]; NaN where a layer has no such head
    Raises   InvalidInput for a trace without truth, or of another model than the first; as `sram`
    """
    opened = open_all(traces)
    each = []
    for trace in tqdm(opened, desc="heads", unit="trace", leave=False, disable=hidden()):
        each.append(_of_trace(trace, radius, Select(layers=layers, sample=sample, branch=branch, group=group)))
        require_same_heads(each[0], trace)
        if each[-1]["layer"].values.tolist() != each[0]["layer"].values.tolist():
            which = f"select with {option('layers')} those that both have"
            raise InvalidInput(f"{trace.path} and {opened[0].path} have different layers; {which}")
    in_order = [found.values for _, found in sorted(zip((trace.id for trace in opened), each, strict=True), key=lambda pair: pair[0])]
    mean = each[0].copy(data=np.mean(in_order, axis=0))  # sorted first: sums of floats depend on their order
    facts = {"kind": "truth", "model": str(opened[0].record.model.get("pipeline", "")), "traces": sorted(trace.id for trace in opened)}
    mean.attrs = {**facts, "branch": branch or "", "radius": float(radius)}
    return mean


def _of_trace(trace: Trace, radius: float, select: Select) -> xr.DataArray:
    truth, chosen = require_truth(trace), choose(trace, select)
    order = [chosen.layers[i] for i in published_order(trace.layers[index].name for index in chosen.layers)]
    coords = head_coordinates([trace.layers[index] for index in order])
    scores = np.full((len(order), len(coords["head"])), np.nan)
    for row, index in enumerate(order):  # layer by layer: a look is as large as the attention of one call
        found = pck(looks(trace, keep="head", **replace(select, layers=index).options()), truth, radius)
        scores[row, np.searchsorted(coords["head"], found["head"].values)] = found.values
    return xr.DataArray(scores, dims=("layer", "head"), coords=coords, name="truth")
