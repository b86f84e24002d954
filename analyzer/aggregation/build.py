"""The tasks under a map, layer by layer: scans where sums suffice, exact maps where each token or position counts by itself."""

from __future__ import annotations

import hashlib
import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ...schema.layout import image_layout
from ...schema.messages import option
from ...schema.trace import Layer, Softmax, TokenGroup
from ..methods.recipes import Recipe
from ..trace.calls import Calls, Kind
from ..trace.images import find_image, masks
from ..trace.scan import scan, segments
from ..trace.softmax import Columns
from .exact import Exact, exact_maps
from .reduction import Graph, Lift, pick_generated
from .request import Question, Sources
from .selection import cell
from .weights import query_weights

REFERENCE_DIMS: Final = ("ref_y", "ref_x")
Cells = tuple[int, ...]
"""(rows, columns); frames before them on the generated side of a video."""


def apart(row: Recipe, axis: str, grid: Cells | None, target: Cells | None) -> bool:
    """Whether a layer's tokens or positions have to be kept apart until they are resampled: only a clamp can tell."""
    return row.clamp and grid is not None and grid != target and axis not in row.before


def add_scans(asked: Question, sources: Sources, index: int, weights: NDArray[Any] | None, lift: Lift) -> None:
    """One layer from scans, which are named by what they read and by nothing else, so that maps share them."""
    row, chosen, trace = asked.row, asked.chosen, asked.trace
    other: Softmax = "keys" if row.g2r == "none" else row.g2r
    plans = tuple(image_layout(image) for image in masks(trace))
    token = hashlib.sha256(b"" if weights is None else weights.tobytes() + repr(weights.shape).encode()).hexdigest()[:16]
    calls = Calls.of(trace, index)
    name = f"i2am-scan-{trace.token}-{row.r2g}-{other}-{token}-{index}-{chosen.sample}-{chosen.branch}"
    graph: Graph = {(name, "weights"): (query_weights, str(trace.path), plans, weights, calls.layer.places)}
    # The graph holds every call, selected or not, so that it is the same for all maps; dask drops what is not needed.
    for step in np.flatnonzero(calls.where[chosen.sample, chosen.branch] >= 0):
        graph[name, int(step)] = (scan, calls, chosen.sample, chosen.branch, int(step), row.r2g, other, (name, "weights"))
    sources.graphs[name] = graph
    tasks = tuple(tuple((name, step) for step in steps) for steps in asked.called(index))
    sources.add(index, tasks, lift, _late(row, lift))


def add_patches(asked: Question, sources: Sources, index: int, at: Cells, among: tuple[int, ...] | None, lift: Lift) -> None:
    """One layer from the attention of one position a call."""
    row, chosen, trace = asked.row, asked.chosen, asked.trace
    kind: Kind = "probability" if row.g2r == "keys" else "generated"
    layer = trace.layers[index]
    *frame, row_there, x = cell(at, trace.latent_places, places_like(layer, trace.latent_places))
    y = row_there + (frame[0] * layer.grid[0] if frame else 0)  # rows are counted through the frames
    only = "" if among is None else f"-{min(among)}-{max(among)}"
    name = f"i2am-patch-{trace.token}-{kind}-{index}-{chosen.sample}-{chosen.branch}-{y}-{x}{only}"
    called, calls = asked.called(index), Calls.of(trace, index)
    where = (chosen.sample, chosen.branch)
    sources.graphs[name] = {(name, s): (patch, calls, *where, s, y, x, kind, among) for steps in called for s in steps}
    sources.add(index, tuple(tuple((name, step) for step in steps) for steps in called), lift, _late(row, lift))


def patch(
    calls: Calls, sample: int, branch: int, step: int, y: int, x: int, kind: Kind, among: tuple[int, ...] | None = None
) -> NDArray[Any]:
    """Task: one generated position's attention in one call, as if its softmax ran `among` some tokens alone if these are given.

    Dims     (head, token)
    """
    values = calls.patch((sample, branch, step), y, x, kind)
    return values if among is None else values / values[:, list(among)].sum(1, dtype=np.float64, keepdims=True)


def add_exact(asked: Question, sources: Sources, index: int, exact: Exact, which: int = 0, weights: NDArray[Any] | None = None) -> None:
    """One layer from exact maps; `which` is a row of `query_weights`, 0 being all alike."""
    trace, chosen = asked.trace, asked.chosen
    calls, called = Calls.of(trace, index), asked.called(index)
    # A group of steps is one task where it is added before a clamp; else each call is one, which leaves more to do at a time.
    together = "time" in asked.row.before and exact.clamp and exact.grid != exact.target
    groups = tuple((steps,) if together and steps else tuple((s,) for s in steps) for steps in called)
    facts = repr((exact, which, None if weights is None else weights.tobytes()))
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    name = f"i2am-exact-{trace.token}-{digest}-{index}-{chosen.sample}-{chosen.branch}"
    graph: Graph = {}
    given: Any = None
    if which:
        plans = tuple(image_layout(image) for image in masks(trace))
        given = (name, "weights")
        graph[given] = (_one_weighting, str(trace.path), plans, weights, calls.layer.places, which)
    if exact.heads:
        for part in (part for group in groups for part in group):
            graph[name, part] = (exact_maps, calls, exact, chosen.sample, chosen.branch, part, given)
    sources.graphs[name] = graph
    sources.add(index, tuple(tuple((name, part) for part in group) for group in groups), None)


def generated_lift(asked: Question, index: int, tokens: range, heads: tuple[int, ...], target: Cells) -> Lift:
    """How scans of a layer become R2G of a stretch of tokens that holds whole segments."""
    row, grid = asked.row, places_like(asked.trace.layers[index], target)
    parts = tuple(i for i, part in enumerate(segments(Calls.of(asked.trace, index))) if part.start in tokens)
    divisor = len(tokens) if row.tokens == "mean" else 1
    return Lift(pick_generated, parts, heads, divisor, None, grid, target, row.resize, row.clamp, _adds_first(asked))


def token_lift(
    asked: Question, pick: Any, which: tuple[int, ...], tokens: TokenGroup, heads: tuple[int, ...], divisor: int, target: tuple[int, ...]
) -> Lift:
    """How what a layer gives for each token becomes a map on the reference, or a row of tokens without a place."""
    stretch = placed_tokens(tokens)
    to = (target[0], target[1]) if tokens.grid else None
    row = asked.row
    return Lift(pick, which, heads, divisor, (stretch.start, stretch.stop), tokens.grid, to, row.resize, row.clamp, _adds_first(asked))


def exact_lift(asked: Question, columns: Columns, heads: tuple[int, ...], over: str, grid: Cells | None, target: tuple[int, ...]) -> Exact:
    """How a layer's columns become maps, as the recipe says."""
    row = asked.row
    axis, reduction = ("token", row.tokens) if over == "tokens" else ("query", row.queries)
    to = target if grid is not None else None
    first, head_first = axis in row.before, "head" in row.before
    # mypy does not carry the literal through a conditional.
    return Exact(columns, heads, over, reduction, first, asked.adds_heads, head_first, grid, to, row.resize, row.clamp)  # type: ignore[arg-type]


def placed_tokens(tokens: TokenGroup) -> range:
    """The tokens that maps on the reference show: those with a place, or all where none has one."""
    return range(tokens.start + tokens.specials if tokens.grid else tokens.start, tokens.stop)


def generated_grid(asked: Question) -> Cells:
    """The grid that the recipe brings maps on the generated image to, with as many frames as the layer that has most.

    Raises   InvalidInput for the picture's size where the trace holds none
    """
    target, trace = asked.row.target, asked.trace
    grids = [trace.layers[i].grid for i in asked.chosen.layers]
    if isinstance(target, tuple):
        grid = target
    elif target == "image":
        image = find_image(trace, f"generated_{asked.chosen.sample}", "generated")
        if image is None:
            raise InvalidInput("the trace holds no generated image whose size maps could have; set target to (rows, columns)")
        grid = (image.height, image.width)
    else:
        grid = {"latent": trace.latent_grid, "first": grids[0], "largest": max(grids, key=lambda grid: (math.prod(grid), grid))}[target]
    return (trace.latent_frames, *grid) if trace.latent_frames else grid


def places_like(layer: Layer, target: Cells) -> Cells:
    """The places of a layer's queries with frames if the target has them: an image is one frame that all show."""
    return (max(layer.frames, 1), *layer.grid) if len(target) > 2 else layer.grid


def reference_shape(asked: Question) -> tuple[int, ...]:
    """The grid that the recipe brings maps on the reference to, or how many tokens there are where they have no place.

    Raises   InvalidInput for layers whose tokens cannot be laid over each other
    """
    trace, chosen, target = asked.trace, asked.chosen, asked.row.reference_target
    grids = {group.grid for group in chosen.groups}
    places = [grid for grid in grids if grid]
    if places and len(places) == len(grids):
        if isinstance(target, tuple):
            return target
        if target == "image":
            image = find_image(trace, chosen.groups[0].image, "reference")
            if image is None:
                raise InvalidInput("the trace holds no reference image whose size maps could have; set reference_target to (rows, columns)")
            return image.height, image.width
        largest = max(places, key=lambda grid: (grid[0] * grid[1], grid))
        return {"latent": trace.latent_grid, "first": chosen.groups[0].grid or largest, "largest": largest}[target]
    counts = {group.tokens for group in chosen.groups}
    if places or len(counts) > 1:
        what = ", ".join(f"{trace.layers[i].name}: {g.tokens} tokens" for i, g in list(zip(chosen.layers, chosen.groups, strict=True))[:4])
        raise InvalidInput(
            f"the layers' {chosen.groups[0].name} tokens cannot be laid over each other ({what}); "
            f"select layers that agree with {option('layers')}"
        )
    return (counts.pop(),)


def _late(row: Recipe, lift: Lift) -> bool:
    return "time" in row.before and lift.grid is not None and lift.grid != lift.target


def _adds_first(asked: Question) -> bool:
    return "head" in asked.row.before and asked.adds_heads


def _one_weighting(root: str, plans: Any, extra: NDArray[Any] | None, grid: Cells, which: int) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = query_weights(root, plans, extra, grid)[which]
    return weights
