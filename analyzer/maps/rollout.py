"""Attention rollout over the layers of a denoiser: what each patch holds of the reference once all of them have passed it on.

At one step a state A (position, reference place) begins at 0 and goes through the layers in the order in which they run:

    reference keys       A <- residual A + (1 - residual) P_ref
    self-attention       A <- residual A + (1 - residual) P_self A
    joint attention      A <- residual A + (1 - residual) (P_ref + P_self A)

P is the mean over heads. A lies on the largest of the layers' grids: a coarser layer gathers it by the adjoint of bilinear resampling,
its rows made to sum to 1, and what it gives is spread by bilinear resampling, while the residual stays fine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Final

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import delayed

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.selection import Selector
from ...schema.trace import TokenGroup
from ..aggregation.request import request_map
from ..aggregation.selection import Positions, Select
from ..metrics.pointing import PLACES, Grid, Values
from ..numerics.products import product
from ..numerics.resize import bring, matrix, middle, resize
from ..trace.calls import At, Calls
from ..trace.reader import Trace
from ..trace.views import centres
from .resampler import RESIDUAL

MODE: Final = "bilinear"


@dataclass(frozen=True, slots=True)
class Passage:
    """What one layer passes on: its calls, and which of their keys are the reference's and the image's own."""

    calls: Calls
    reference: TokenGroup | None
    own: TokenGroup | None


def rollout(
    trace: Trace,
    *,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    steps: Positions = None,
    layers: Selector | Iterable[Selector] | None = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
    residual: float = RESIDUAL,
) -> xr.DataArray:
    """What each patch holds of each place of the reference once the layers have run: `looks`, with self-attention followed.

        found = rollout(open_trace("run.zarr"))  # recorded with keys="all"
        found[6, 7], found.mean(("y", "x"))  # in the place of sram(trace, (6, 7)) and g2r(trace)

    Heads are averaged before layers are composed, and steps are summed. `residual` is the share of what it holds that a patch keeps at
    each layer. `keep` takes time alone. `layers` are all if None, and then a trace that lacks some is refused. Texts, other references and
    feed-forward layers give nothing, and skip connections are not followed.

    Dims     (time, if it is kept, y, x, ref_y, ref_x); lazy
    Range    >= 0; a patch holds at most 1 of the reference in each step
    Raises   UnknownSelection; InvalidInput where self-attention or layers were not recorded, or a layer was not called
    Source   Abnar and Zuidema 2020, arXiv 2005.00928, there with a residual of 0.5
    """
    if not 0 <= residual < 1:
        raise InvalidInput(f"{option('residual', residual)}; expected a share from 0 to below 1")
    if trace.latent_frames:
        raise InvalidInput(f"{trace.path} is of a video, and a rollout goes through the places of one image")
    if layers is None and (gap := _gap(trace)):
        raise InvalidInput(f"a rollout goes through all layers, but {gap}; record all, or name those that count with {option('layers')}")
    select = Select(layers=layers, steps=steps, sample=sample, branch=branch, group=group)
    request = request_map(trace, "sram", select, recipe="i2am", keep=keep, time_groups=time_groups)
    if set(request.axes) - {"time"}:
        raise InvalidInput(f"a rollout passes through all layers with their heads averaged; {option('keep')} takes time alone")
    if "ref_x" not in request.places:
        raise InvalidInput(f"the {request.chosen.groups[0].name} tokens have no place on a picture, so no patch can hold one")
    passages = _passages(trace, trace.select(layers), dict(zip(request.chosen.layers, request.chosen.groups, strict=True)))
    at, to = (request.chosen.sample, request.chosen.branch), (request.target[1], request.target[2])
    _check_called(passages, at, request.chosen.steps)
    grids = [passage.calls.layer.grid for passage in passages]
    grid = max(rows for rows, _ in grids), max(columns for _, columns in grids)
    run = delayed(partial(_follow, passages, at, grid, to, residual), pure=False)
    shape = (math.prod(to), *grid)
    states = {step: da.from_delayed(run(step), shape, np.float64) for step in request.chosen.steps}  # type: ignore[no-untyped-call]
    sums = [reduce(add, [states[step] for step in times]) for times in request.times]
    rows, columns = (middle(n, m) for n, m in zip(grid, trace.latent_grid, strict=True))
    laid = [each[:, rows][:, :, columns].transpose(1, 2, 0).reshape((*trace.latent_grid, *to)) for each in sums]
    latent = dict(zip(("y", "x"), map(centres, trace.latent_grid), strict=True))
    facts = request.facts().to_attrs() | {"residual": residual}
    values = da.stack(laid) if request.axes else laid[0]  # type: ignore[no-untyped-call]
    return xr.DataArray(values, request.coordinates() | latent, (*request.axes, *PLACES), "rollout", facts)


def _gap(trace: Trace) -> str:
    """What the trace says that it lacks of the run's layers; empty if nothing."""
    said = trace.record.provenance
    if left_out := said.get("self_left_out"):
        why = next(iter(left_out)) if isinstance(left_out, dict) else left_out
        return f"self-attention of some was left out: each {why}"
    derived = said.get("derived")
    asked = [said, *(derived if isinstance(derived, list) else [])]
    options = [each.get("options") for each in asked if isinstance(each, dict)]
    return "only some were recorded" if any(isinstance(each, dict) and each.get("layers") for each in options) else ""


def _passages(trace: Trace, selected: Iterable[int], references: dict[int, TokenGroup]) -> tuple[Passage, ...]:
    """The selected layers that pass something on, in the order in which they run: calls of one module stand together."""
    first: dict[str, int] = {}
    for index, layer in enumerate(trace.layers):
        first.setdefault(layer.path, index)
    order = sorted(selected, key=lambda index: (first[trace.layers[index].path], trace.layers[index].call))
    found = []
    for index in (index for index in order if not trace.layers[index].is_resampler):
        own = next((group for group in trace.layers[index].groups if group.role == "self"), None)
        if own is not None or index in references:
            found.append(Passage(Calls.of(trace, index), references.get(index), own))
    if not any(passage.own for passage in found):
        raise InvalidInput(
            f"a rollout goes through self-attention, of which {trace.path} holds none in these layers; record with {option('keys', 'all')}"
        )
    return tuple(found)


def _check_called(passages: Sequence[Passage], at: At, steps: Iterable[int]) -> None:
    for step in steps:
        for passage in passages:
            if passage.calls.where[*at, step] < 0:
                raise InvalidInput(
                    f"{passage.calls.layer.name} was not called in step {step}, and a rollout goes through all layers; choose other steps "
                    f"with {option('steps')}, or layers with {option('layers')}"
                )


def _follow(passages: Sequence[Passage], at: At, grid: Grid, to: Grid, residual: float, step: int) -> Values:
    """Task: the state after all layers of one step.

    Dims     -> (reference place, row, column)
    """
    state: Values = np.zeros((math.prod(to), *grid))
    for passage in passages:
        given = _given(passage, mean_attention(passage.calls, at, step), state, to)
        state = residual * state + (1 - residual) * resize(given, grid, MODE)
    return state


def mean_attention(calls: Calls, at: At, step: int) -> Values:
    """P of one call, averaged over heads.

    Dims     (position, token), float64
    """
    total = np.zeros((math.prod(calls.layer.places), calls.layer.tokens))
    for _, _, positions, block, factor in calls.sweep(at, (step,))[2]:
        total[positions] += np.multiply(block, factor, dtype=np.float64)
    return total / calls.layer.heads


def _given(passage: Passage, attention: Values, state: Values, to: Grid) -> Values:
    """What a layer gives its positions of the reference.

    Dims     (position, token), (reference place, row, column) -> (reference place, row, column) on the layer's grid
    """
    grid, cells = passage.calls.layer.grid, len(state)
    given = np.zeros((len(attention), cells))
    if passage.reference is not None and passage.reference.grid is not None:
        group, places = passage.reference, passage.reference.grid
        placed = attention[:, group.start + group.specials : group.stop].reshape(-1, *places)
        given += bring(placed, to, MODE).reshape(-1, cells) * (math.prod(places) / cells)
    if passage.own is not None:
        held = gather(state, grid).reshape(cells, -1).T
        given += product(attention[:, passage.own.start : passage.own.stop], np.ascontiguousarray(held))
    return np.ascontiguousarray(given.T).reshape(cells, *grid)


def gather(fine: Values, grid: Grid) -> Values:
    """Weighted means over the last two axes: the adjoint of what spreads a coarser grid over them.

    Dims     (..., y, x) -> (..., *grid)
    """
    if fine.shape[-2:] == grid:
        return fine
    down, across = (_means(matrix(few, many, MODE)) for few, many in zip(grid, fine.shape[-2:], strict=True))
    wide = product(fine.reshape(-1, fine.shape[-1]), across.T).reshape(*fine.shape[:-1], grid[1])
    return product(down, wide)


def _means(spread: Values) -> Values:
    """Dims     (many, few) -> (few, many), rows summing to 1"""
    means: Values = spread.T / spread.sum(0)[:, None]
    return means
