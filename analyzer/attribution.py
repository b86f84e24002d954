"""R2G, G2R and SRAM: what came from where, over whatever axes are kept.

    R2G   m(x)  = mean over reference tokens r of G[x,r]      which parts of the generated image came from the reference
    G2R   m(r)  = mean over generated positions x of P[x,r]   which parts of the reference were used
    SRAM  m(r)  = P[x0,r]                                     where one patch looked

Maps of calls are summed over time and averaged over (layer, head) pairs. Everything is lazy; maps that are computed together
(`dask.compute(r2g(trace), g2r(trace))`) read each file once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..schema.errors import InvalidInput
from ..schema.layout import image_layout
from ..schema.trace import Image, TokenGroup
from .attention import Calls, Kind, centres
from .precision import column_mass_lost
from .reader import Selector, Trace, head_numbers
from .recipes import Recipe
from .recipes import recipe as named
from .reduction import Graph, Keys, Lift, Piece, pick_generated, pick_patch, pick_token, reduce_maps
from .released import tasks_by_token
from .scan import scan, segments
from .selection import Positions, Selection, cell, choose, split, used
from .weighting import Mask, masks, query_weights, weighting
from .wording import option

AXES: Final = ("time", "layer", "head")
LEVELS: Final = {"time": "TLAM", "layer": "LLAM", "head": "HLAM"}
REFERENCE_DIMS: Final = ("ref_y", "ref_x")


def r2g(
    trace: Trace,
    *,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    steps: Positions = None,
    layers: Selector | Iterable[Selector] | None = None,
    heads: Positions = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
    specials: bool = True,
    recipe: str = "i2am",
) -> xr.DataArray:
    """Reference to generated: which parts of the generated image came from the reference.

    `specials` says whether tokens without a place (CLS) count among the reference's.

    Dims     kept axes in the order time, layer, head, then (y, x) on the latent grid; lazy, float64
    Range    >= 0; NaN where no call is left to average; attribute `column_mass_lost`: what the encoding took from one column at worst
    Raises   UnknownSelection, InvalidInput
    Source   Park et al., I2AM, ICLR 2025; v1 prints the other softmax axis (Eq. 4)
    """
    row = named(recipe)
    chosen = choose(trace, layers=used(trace, layers, row), steps=steps, heads=heads, sample=sample, branch=branch, group=group)
    target = trace.latent_grid
    lifts = []
    for index, tokens in zip(chosen.layers, chosen.groups, strict=True):
        first = tokens.start if specials else tokens.start + tokens.specials
        if first == tokens.stop:
            raise InvalidInput(
                f"token group {tokens.name} has nothing but specials in layer {trace.layers[index].name}; take specials=True"
            )
        parts = tuple(i for i, part in enumerate(segments(Calls.of(trace, index))) if first <= part.start < tokens.stop)
        grid = trace.layers[index].grid
        lifts.append(
            Lift(pick_generated, parts, _heads(trace, chosen, index), tokens.stop - first, None, grid, target, row.resize, row.clamp)
        )
    scans = _scans(trace, chosen, row, None)
    more: dict[str, Any] = {}
    if row.by_token:
        more["calls"] = sum(len(steps) for steps in scans[1].values())
        scans, lifts = tasks_by_token(trace, chosen, row, _times(chosen, keep, time_groups), scans[1], lifts, specials)
    image = _image(trace, f"generated_{chosen.sample}", "generated")
    # Columns of G are what the encoding may lose; with the softmax over keys R2G is made of rows.
    every = column_mass_lost(trace) if row.r2g == "generated" else [0.0] * len(trace.layers)
    lost = max(every[index] for index in chosen.layers)
    return _map(trace, "r2g", row, chosen, keep, time_groups, scans, lifts, ("y", "x"), target, image, column_mass_lost=lost, **more)


def g2r(
    trace: Trace,
    *,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    steps: Positions = None,
    layers: Selector | Iterable[Selector] | None = None,
    heads: Positions = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
    query_mask: Mask = None,
    recipe: str = "i2am",
) -> xr.DataArray:
    """Generated to reference: which parts of the reference were used.

    Specials (CLS) have no place on the reference and are left out. `query_mask` weighs the generated positions: the name of a mask
    in the trace, or an array (y, x) of the generated image's size. As published, the sum is divided by all positions.

    Dims     kept axes in the order time, layer, head, then (ref_y, ref_x), or (token,) if the tokens have no grid; lazy, float64
    Range    >= 0; NaN where no call is left to average
    Raises   UnknownSelection, InvalidInput
    Source   Park et al., I2AM, ICLR 2025; the mask: v1, Eq. 17
    """
    row = named(recipe)
    chosen = choose(trace, layers=used(trace, layers, row), steps=steps, heads=heads, sample=sample, branch=branch, group=group)
    which, extra = weighting(trace, query_mask)
    target = _reference_shape(trace, chosen)
    lifts = []
    for index, tokens in zip(chosen.layers, chosen.groups, strict=True):
        positions = trace.layers[index].grid[0] * trace.layers[index].grid[1]
        lifts.append(_token_lift(pick_token, (which,), trace, chosen, index, tokens, positions, target, row))
    scans = _scans(trace, chosen, row, extra)
    attrs = {"query_mask": query_mask if isinstance(query_mask, str) else "array"} if query_mask is not None else {}
    image = _image(trace, chosen.groups[0].image, "reference")
    return _map(trace, "g2r", row, chosen, keep, time_groups, scans, lifts, _reference_dims(target), target, image, **attrs)


def sram(
    trace: Trace,
    at: tuple[int, int],
    *,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    steps: Positions = None,
    layers: Selector | Iterable[Selector] | None = None,
    heads: Positions = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
    recipe: str = "i2am",
) -> xr.DataArray:
    """Specific-reference attention: where in the reference the patch `at` (row, column on the latent grid) looked.

    In a coarser layer it is the cell that contains the patch. Reads one inner chunk of each file.

    Dims     kept axes in the order time, layer, head, then (ref_y, ref_x), or (token,) if the tokens have no grid; lazy, float64
    Range    >= 0; NaN where no call is left to average
    Raises   UnknownSelection, InvalidInput
    Source   Park et al., I2AM, ICLR 2025 (v1: Eq. 16)
    """
    row = named(recipe)
    chosen = choose(trace, layers=used(trace, layers, row), steps=steps, heads=heads, sample=sample, branch=branch, group=group)
    target = _reference_shape(trace, chosen)
    kind: Kind = "probability" if row.g2r == "keys" else "generated"
    lifts: list[Lift] = []
    graphs: dict[str, Graph] = {}
    calls: Keys = {}
    for index, tokens in zip(chosen.layers, chosen.groups, strict=True):
        y, x = cell(at, trace.latent_grid, trace.layers[index].grid)
        name = f"i2am-patch-{trace.token}-{kind}-{index}-{chosen.sample}-{chosen.branch}-{y}-{x}"
        found = Calls.of(trace, index)
        calls[index] = {step: (name, step) for step in _called(found, chosen)}
        graphs[name] = {key: (patch, found, chosen.sample, chosen.branch, step, y, x, kind) for step, key in calls[index].items()}
        lifts.append(_token_lift(pick_patch, (), trace, chosen, index, tokens, 1, target, row))
    image = _image(trace, chosen.groups[0].image, "reference")
    where = (int(at[0]), int(at[1]))
    return _map(trace, "sram", row, chosen, keep, time_groups, (graphs, calls), lifts, _reference_dims(target), target, image, at=where)


def patch(calls: Calls, sample: int, branch: int, step: int, y: int, x: int, kind: Kind) -> NDArray[Any]:
    """Task: one generated position's attention in one call.

    Dims     (head, token)
    """
    return calls.patch((sample, branch, step), y, x, kind)


def _scans(trace: Trace, chosen: Selection, row: Recipe, extra: NDArray[Any] | None) -> tuple[dict[str, Graph], Keys]:
    """Tasks that scan each selected call, by name of graph layer, and their keys by layer and step."""
    plans = tuple(image_layout(image) for image in masks(trace))
    token = hashlib.sha256(b"" if extra is None else extra.tobytes() + repr(extra.shape).encode()).hexdigest()[:16]
    graphs: dict[str, Graph] = {}
    keys: Keys = {}
    for index in chosen.layers:
        calls = Calls.of(trace, index)
        name = f"i2am-scan-{trace.token}-{row.r2g}-{row.g2r}-{token}-{index}-{chosen.sample}-{chosen.branch}"
        at = (chosen.sample, chosen.branch)
        graph: Graph = {(name, "weights"): (query_weights, str(trace.path), plans, extra, calls.layer.grid)}
        # The graph holds every call, selected or not, so that it is the same for all maps; dask drops what is not needed.
        for step in np.flatnonzero(calls.where[at] >= 0).tolist():
            graph[name, step] = (scan, calls, *at, step, row.r2g, row.g2r, (name, "weights"))
        graphs[name] = graph
        keys[index] = {step: (name, step) for step in _called(calls, chosen)}
    return graphs, keys


def _map(
    trace: Trace,
    direction: str,
    row: Recipe,
    chosen: Selection,
    keep: Iterable[str] | str,
    time_groups: int | None,
    tasks: tuple[dict[str, Graph], Keys],
    lifts: list[Lift],
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    image: Image | None,
    **more: Any,
) -> xr.DataArray:
    kept = kept_axes(keep, time_groups)
    graphs, keys = tasks
    times = _times(chosen, keep, time_groups)
    groups = [
        [
            Piece(
                tuple(keys[index][s] for s in steps if s in keys[index] and lift.heads),
                lift,
                tuple(chosen.heads.index(head_numbers(trace.layers[index])[h]) for h in lift.heads),
            )
            for index, lift in zip(chosen.layers, lifts, strict=True)
        ]
        for steps in times
    ]
    facts = repr((trace.token, direction, row, chosen, sorted(kept), times, lifts, sorted(graphs)))
    name = f"i2am-{direction}-{hashlib.sha256(facts.encode()).hexdigest()[:32]}"
    array, pairs = reduce_maps(name, graphs, groups, len(chosen.heads), frozenset(kept), shape)
    axes = tuple(axis for axis in AXES if axis in kept)
    calls = sum(len(piece.calls) for group in groups for piece in group)
    attrs = {
        "direction": direction,
        "levels": "+".join(LEVELS[axis] for axis in axes) or "ULAM",
        "recipe": row.name,
        "trace": trace.id,
        "group": chosen.groups[0].name,
        "sample": chosen.sample,
        "branch": trace.record.branches[chosen.branch],
        "calls": calls,
        "image": image.name if image else None,
        "image_shape": (image.height, image.width) if image else None,
        "window": image.window if image else None,
        **more,
    }
    coords = _coordinates(trace, chosen, axes, times, dims, shape) | ({"pairs": (axes, pairs)} if axes else {"pairs": int(pairs)})
    return xr.DataArray(array, dims=(*axes, *dims), coords=coords, attrs=attrs, name=direction)


def _coordinates(
    trace: Trace,
    chosen: Selection,
    axes: tuple[str, ...],
    times: tuple[tuple[int, ...], ...],
    dims: tuple[str, ...],
    shape: tuple[int, ...],
) -> dict[str, Any]:
    coords: dict[str, Any] = {dim: centres(n) for dim, n in zip(dims, shape, strict=True) if dim != "token"}
    if "time" in axes:
        coords |= {
            "time": np.arange(len(times)),
            "first_step": ("time", [t[0] for t in times]),
            "last_step": ("time", [t[-1] for t in times]),
        }
        coords["timestep"] = ("time", [float(np.mean(trace.steps["timestep"][list(t)])) for t in times])
    if "layer" in axes:
        coords |= {"layer": list(chosen.layers), "layer_name": ("layer", [trace.layers[i].name for i in chosen.layers])}
    if "head" in axes:
        coords["head"] = list(chosen.heads)
    return coords


def _times(chosen: Selection, keep: Iterable[str] | str, time_groups: int | None) -> tuple[tuple[int, ...], ...]:
    return split(chosen.steps, time_groups) if "time" in kept_axes(keep, time_groups) else (chosen.steps,)


def kept_axes(keep: Iterable[str] | str, time_groups: int | None) -> tuple[str, ...]:
    """The axes that are kept.

    Raises   InvalidInput for an axis that maps do not have, or time groups without a time axis
    """
    if not isinstance(keep, Iterable):
        raise InvalidInput(f"cannot keep {keep!r}; a map keeps any of {', '.join(AXES)}, or () for none")
    kept = (keep,) if isinstance(keep, str) else tuple(keep)
    unknown = [axis for axis in kept if axis not in AXES]
    if unknown:
        raise InvalidInput(f"cannot keep {unknown[0]!r}; a map keeps any of {', '.join(AXES)}")
    if time_groups is not None and "time" not in kept:
        raise InvalidInput(f"{option('time_groups')} splits the time axis, which is not kept; add {option('keep', 'time')}")
    return kept


def _called(calls: Calls, chosen: Selection) -> list[int]:
    present = calls.where[chosen.sample, chosen.branch] >= 0
    return [step for step in chosen.steps if present[step]]


def _heads(trace: Trace, chosen: Selection, index: int) -> tuple[int, ...]:
    """Where the selected heads stand on the layer's head axis."""
    return tuple(position for position, number in enumerate(head_numbers(trace.layers[index])) if number in chosen.heads)


def _token_lift(
    pick: Any,
    which: tuple[int, ...],
    trace: Trace,
    chosen: Selection,
    index: int,
    tokens: TokenGroup,
    divisor: int,
    target: tuple[int, ...],
    row: Recipe,
) -> Lift:
    grid = tokens.grid
    first = tokens.start + tokens.specials if grid else tokens.start
    to = (target[0], target[1]) if grid else None
    return Lift(pick, which, _heads(trace, chosen, index), divisor, (first, tokens.stop), grid, to, row.resize, row.clamp)


def _reference_shape(trace: Trace, chosen: Selection) -> tuple[int, ...]:
    grids = {group.grid for group in chosen.groups}
    places = [grid for grid in grids if grid]
    if places and len(places) == len(grids):
        return max(places, key=lambda grid: (grid[0] * grid[1], grid))
    counts = {group.tokens for group in chosen.groups}
    if places or len(counts) > 1:
        what = ", ".join(f"{trace.layers[i].name}: {g.tokens} tokens" for i, g in list(zip(chosen.layers, chosen.groups, strict=True))[:4])
        raise InvalidInput(
            f"the layers' {chosen.groups[0].name} tokens cannot be laid over each other ({what}); "
            f"select layers that agree with {option('layers')}"
        )
    return (counts.pop(),)


def _reference_dims(shape: tuple[int, ...]) -> tuple[str, ...]:
    return REFERENCE_DIMS if len(shape) == 2 else ("token",)


def _image(trace: Trace, name: str | None, role: str) -> Image | None:
    found = [image for image in trace.images if image.name == name]
    only = [image for image in trace.images if image.role == role]
    return found[0] if found else only[0] if len(only) == 1 and name is None else None
