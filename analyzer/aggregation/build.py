"""The tasks under a map, and the lazy map over them.

A layer's part of a map comes from scans where sums of its calls suffice, from one row of each call for a single patch, and from exact
maps where tokens or positions have to be kept apart until they are resampled.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import xarray as xr

from ...schema.arrays.sums import token_segments
from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.trace import Softmax
from ..influence.calls import weigh_calls
from ..trace.calls import Calls, Kind, own_tokens, require_attention
from ..trace.images import masks
from ..trace.scan import scan
from .exact import Exact, exact_maps
from .reduction import Graph, Lift, Piece, Resampling, Source, reduce_maps
from .request import AXES, MapRequest
from .selection import cell
from .weights import query_weights

ALL: Final = slice(None)


def build_map(request: MapRequest, **more: Any) -> xr.DataArray:
    """The lazy map; `more` are attributes beside its facts.

    Dims     kept axes in the order of `AXES`, token where each has a map, then the request's places
    """
    chosen, row, axes = request.chosen, request.row, request.axes
    sources = [plan_layer(request, i) for i in range(len(chosen.layers))]
    slots = [tuple(chosen.heads.index(number) for number in numbers) for numbers in chosen.pairs]
    sizes = [math.prod(request.trace.layers[i].places) if request.pools else 1 for i in chosen.layers]
    by_time = row.time_groups if "time" in axes else row.time
    heads = [_shares(request, own) for own in chosen.head_weights]
    groups = []
    for g in range(len(request.times)):
        calls = [len(called[g]) if by_time == "mean" else 1 for called in request.called]
        shares = [tuple(count * size * n for n in own) for count, size, own in zip(calls, sizes, heads, strict=True)]
        groups.append([Piece(s.tasks[g] if slots[i] else (), s.lift, slots[i], shares[i]) for i, s in enumerate(sources)])
    tokens = (len(request.columns[0].tokens),) if request.each else ()
    facts = repr((request.trace.token, request.direction, row, chosen, axes, request.times, groups, tokens, request.target))
    name = f"i2am-{request.direction}-{hashlib.sha256(facts.encode()).hexdigest()[:32]}"
    graphs = {source.name: source.graph for source in sources}
    array = reduce_maps(name, graphs, groups, len(chosen.heads), frozenset(axes), (*tokens, *request.target), row.layers)
    # An image has no axis of frames, and tokens without a place have no rows.
    missing = len(request.target) - len(request.places)
    array = array[(*(ALL if axis in axes else 0 for axis in AXES), *(ALL for _ in tokens), *(0 for _ in range(missing)))]
    dims = (*axes, *("token" for _ in tokens), *request.places)
    return xr.DataArray(array, request.coordinates(), dims, request.direction, request.facts().to_attrs() | request.labels() | more)


def _shares(request: MapRequest, weights: tuple[float, ...]) -> tuple[float, ...]:
    """What a layer's heads add to the divisor of a mean, each by itself if heads are kept."""
    each = weights if request.row.heads == "mean" else tuple(1.0 for _ in weights)
    if "head" in request.axes:
        return each
    return (sum(each) if request.row.heads == "mean" else 1.0,)


def plan_layer(request: MapRequest, i: int) -> Source:
    """The tasks that give the i-th selected layer's part of a map, and how they reach the common grid."""
    if request.at is not None:
        return _plan_row(request, i)
    row, to = request.row, _resampling(request, i)
    on_generated = request.direction != "g2r"
    axis, reduction = ("token", row.tokens) if on_generated else ("query", "sum" if request.pools else row.queries)
    first = axis in row.before
    if request.direction != "tokens" and request.columns[i].among is None and (first or not to.clamps):
        return _plan_scan(request, i, to)
    _require_columns(request, i)
    over: Any = "tokens" if on_generated else "positions"
    exact = Exact(request.columns[i], over, "keep" if request.each else reduction, first and not request.each, to)
    return _plan_exact(request, i, exact)


def _resampling(request: MapRequest, i: int) -> Resampling:
    """How the layer's maps reach the common grid."""
    row, layer, tokens = request.row, request.trace.layers[request.chosen.layers[i]], request.chosen.groups[i]
    grid = (max(layer.frames, 1), *layer.grid)
    if request.direction in ("g2r", "sram"):
        grid = (1, *tokens.grid) if tokens.grid else request.target
    adds = "head" not in request.axes
    return Resampling(
        heads=request.heads(i),
        head_weights=request.chosen.head_weights[i],
        grid=grid,
        target=request.target,
        resize=row.resize,
        clamp=row.clamp,
        add_heads=adds,
        heads_first=adds and "head" in row.before,
        steps_first="time" in row.before and grid != request.target,
    )


def _plan_scan(request: MapRequest, i: int, to: Resampling) -> Source:
    """One layer from scans, which are named by what they read and by nothing else, so that maps share them."""
    row, chosen, trace, weights = request.row, request.chosen, request.trace, request.weights
    other: Softmax = "keys" if row.g2r == "none" else row.g2r
    index, counted = chosen.layers[i], request.columns[i].tokens
    calls = weigh_calls(trace, index, row.weight)
    if (kept := calls.layer.sums) is not None and weights.which:
        names = tuple(image.name for image in masks(trace))[: len(kept.masks)]
        if kept.masks != names or weights.which > len(names):
            there = ", ".join(kept.masks) or "none"
            require_attention([calls.layer], f"G2R of positions by a weight that was not recorded (masks: {there})")
    name = f"i2am-scan-{trace.token}-{row.weight}-{row.r2g}-{other}-{weights.token}-{index}-{chosen.sample}-{chosen.branch}"
    plans = tuple(trace.arrays[f"images/{image.name}"] for image in masks(trace))
    graph: Graph = {(name, "weights"): (query_weights, trace.storage, plans, weights.extra, calls.layer.places)}
    for steps in _present(request, calls):
        _unfold(graph, name, steps, (scan, calls, (chosen.sample, chosen.branch), steps, row.r2g, other, (name, "weights")))
    tasks = tuple(tuple((name, step) for step in steps) for steps in request.called[i])
    if request.direction == "r2g":
        parts = tuple(n for n, part in enumerate(token_segments(calls.layer.groups)) if part.start in counted)
        return Source(name, graph, tasks, Lift("generated", parts, len(counted) if row.tokens == "mean" else 1, None, to))
    divisor = math.prod(calls.layer.places) if row.queries == "mean" and not request.pools else 1
    return Source(name, graph, tasks, Lift("token", (weights.which,), divisor, (counted[0], counted[-1] + 1), to))


def _require_columns(request: MapRequest, i: int) -> None:
    """Refuse a layer that keeps the sum of what has to be resampled, or renormalized, token by token or position by position."""
    layer, columns = request.trace.layers[request.chosen.layers[i]], request.columns[i]
    kept, needed = own_tokens(layer), {*columns.tokens, *(columns.among or ())}
    if layer.encoding != "sums" or (request.direction != "g2r" and needed <= set(kept)):
        return
    way = "take another recipe, or change this one's fields before, clamp or renormalize"
    if request.direction == "tokens":
        way = f"record more of them with {option('token_maps')}"
    raise InvalidInput(
        f"the trace holds maps only: recipe {request.row.label} needs the map of each "
        f"{'position' if request.direction == 'g2r' else 'token'} that counts, and layer {layer.name} keeps those of {len(kept)} of its "
        f"{layer.tokens} tokens, and sums; {way}, or record with {option('keep', 'attention')}"
    )


def _plan_row(request: MapRequest, i: int) -> Source:
    """One layer from the attention of one position a call."""
    chosen, trace, columns = request.chosen, request.trace, request.columns[i]
    index = chosen.layers[i]
    require_attention([trace.layers[index]], "SRAM")
    calls, to = weigh_calls(trace, index, request.row.weight), _resampling(request, i)
    frame, row, x = cell(request.at, trace.latent_places, (max(calls.layer.frames, 1), *calls.layer.grid))
    y = row + frame * calls.layer.grid[0]  # rows are counted through the frames
    kind: Kind = "probability" if columns.softmax == "keys" else "generated"
    only = "" if columns.among is None else f"-{min(columns.among)}-{max(columns.among)}"
    name = f"i2am-patch-{trace.token}-{request.row.weight}-{kind}-{index}-{chosen.sample}-{chosen.branch}-{y}-{x}{only}"
    graph: Graph = {}
    for steps in _present(request, calls):
        _unfold(graph, name, steps, (calls.patch, (chosen.sample, chosen.branch), steps, y, x, kind, columns.among))
    tasks = tuple(tuple((name, step) for step in steps) for steps in request.called[i])
    return Source(name, graph, tasks, Lift(None, (), 1, (columns.tokens[0], columns.tokens[-1] + 1), to))


def _plan_exact(request: MapRequest, i: int, exact: Exact) -> Source:
    """One layer from exact maps."""
    trace, chosen, weights = request.trace, request.chosen, request.weights
    index, called = chosen.layers[i], request.called[i]
    calls = weigh_calls(trace, index, request.row.weight)
    # A group of steps is one task where it is added before a clamp; else those that share files are, which leaves more to do at a time.
    together, at = exact.to.steps_first and exact.to.clamp, (chosen.sample, chosen.branch)
    groups = tuple((steps,) if together and steps else tuple(calls.groups(at, steps)) for steps in called)
    facts = repr((exact, request.row.weight, weights.which, weights.token, groups))
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    name = f"i2am-exact-{trace.token}-{digest}-{index}-{chosen.sample}-{chosen.branch}"
    graph: Graph = {}
    given: Any = None
    if weights.which:
        plans = tuple(trace.arrays[f"images/{image.name}"] for image in masks(trace))
        given = (name, "weights")
        stacked = (query_weights, trace.storage, plans, weights.extra, calls.layer.places)
        graph[given] = (operator.getitem, stacked, weights.which)
    for part in (part for group in groups for part in group):
        graph[name, part] = (exact_maps, calls, exact, chosen.sample, chosen.branch, part, given)
    return Source(name, graph, tuple(tuple((name, part) for part in group) for group in groups), None)


def _present(request: MapRequest, calls: Calls) -> list[tuple[int, ...]]:
    """Every call of a layer, selected or not, those that share files together: a graph of one name holds them all, and dask drops what is
    not needed."""
    at = (request.chosen.sample, request.chosen.branch)
    return calls.groups(at, range(calls.where.shape[2]))


def _unfold(graph: Graph, name: str, steps: tuple[int, ...], task: tuple[Any, ...]) -> None:
    """Add a task that answers for several steps, and the answer of each under its own name."""
    if len(steps) == 1:
        graph[name, steps[0]] = (_only, *task)
        return
    graph[name, steps] = task
    for i, step in enumerate(steps):
        graph[name, step] = (operator.getitem, (name, steps), i)


def _only(function: Callable[..., Sequence[Any]], *given: Any) -> Any:
    """Task: the answer of a function that gives one a step."""
    (answer,) = function(*given)
    return answer
