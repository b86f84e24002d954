"""The task graph under every map: calls are scanned once, brought to the common grid, and summed as a tree.

    scan (layer, step) --lift--> (head, row, column) --add--> over the steps of a time group --finish--> over (layer, head) pairs

Where a recipe says so, a layer's calls are added before they are lifted. Scans are named by what they read and by nothing else, so
maps that are computed together share them. Every task returns maps, never attention, and adds at most `FAN_IN` of them, so that memory
does not grow with steps or layers.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from ..methods.recipes import Reduction
from ..numerics.resize import bring

FAN_IN: Final = 8

Values: TypeAlias = NDArray[Any]
Graph: TypeAlias = dict[Any, Any]
"""Task by key."""
Cells: TypeAlias = tuple[int, int, int]
"""Frames, rows and columns of a map. An image is one frame; tokens without a place are one row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How one layer's maps are brought to the common grid. A row of numbers, so that tasks stay small."""

    heads: tuple[int, ...]
    """Positions on the layer's head axis."""
    head_weights: tuple[float, ...]
    """How much each of them counts: not below 0, so that it makes no difference whether a clamp comes before or after."""
    grid: Cells
    """Of one head's map before it is resampled."""
    target: Cells
    resize: str
    clamp: bool
    add_heads: bool
    """Whether heads are added, as they are not kept."""
    heads_first: bool
    """Whether they are added before resampling."""
    steps_first: bool
    """Whether steps are added before resampling."""

    def __call__(self, maps: Values) -> Values:
        """To the common grid.

        Dims     (..., frame, row, column) -> (..., *target)
        """
        return bring(maps, self.target, self.resize, self.clamp)

    def weigh(self, values: Values) -> Values:
        """Each head as much as it counts.

        Dims     (head, ...) -> the same
        """
        if set(self.head_weights) == {1.0}:
            return values
        weighed: Values = (values.T * np.array(self.head_weights, values.dtype)).T
        return weighed

    @property
    def clamps(self) -> bool:
        """Whether the order of sums and resampling matters, which is linear but for the clamp."""
        return self.clamp and self.grid != self.target


@dataclass(frozen=True, slots=True)
class Lift:
    """How one call's sums become its maps on the common grid."""

    part: Literal["generated", "token"] | None
    """Which of the call's `Sums`; None where the call gave (head, token) itself."""
    index: tuple[int, ...]
    """Which segments of the tokens, or weightings of the positions, are added."""
    divisor: float
    tokens: tuple[int, int] | None
    """Stretch of the last axis that counts; None is all of it."""
    to: Resampling

    def select(self, given: Any) -> Values:
        """What counts of one call's sums, on the layer's own grid and in float32 as they are.

        Dims     -> (head, ...)
        """
        added: Values = given if self.part is None else getattr(given, self.part)[list(self.index)].sum(0)
        values = self.to.weigh(added[list(self.to.heads)] / np.float32(self.divisor))
        return values if self.tokens is None else values[..., slice(*self.tokens)]

    def resample(self, values: Values) -> Values:
        """To the common grid.

        Dims     (head, ...) -> (head or 1, *target)
        """
        if self.to.heads_first:
            values = values.sum(0, dtype=np.float64, keepdims=True)
        return self.to(values.reshape(len(values), *self.to.grid))


@dataclass(frozen=True, slots=True)
class Source:
    """Where one layer's numbers come from."""

    name: str
    graph: Graph
    tasks: tuple[tuple[Hashable, ...], ...]
    """Of each time group."""
    lift: Lift | None
    """None where the tasks give maps that are on the common grid already."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The calls of one layer in one time group."""

    calls: tuple[Hashable, ...]
    """Tasks that give what `lift` takes."""
    lift: Lift | None
    """None where the tasks give maps that are on the common grid already."""
    slots: tuple[int, ...]
    """Where the layer's heads stand among the selected ones."""
    shares: tuple[float, ...]
    """What each of these adds to the divisor of the mean it takes part in, or all of them together."""


def reduce_maps(
    name: str,
    dependencies: dict[str, Graph],
    groups: Sequence[Sequence[Piece]],
    heads: int,
    keep: frozenset[str],
    cell: tuple[int, ...],
    layers: Reduction,
) -> da.Array:
    """Maps over time, layer and head; an axis that is not kept has length 1.

    Dims     groups (time, layer) -> (time, layer, head, *cell)
    """
    graph: Graph = {}
    rows = [[[piece] for piece in group] if "layer" in keep else [list(group)] for group in groups]
    by_head = "head" in keep
    shape = (len(rows), len(rows[0]), heads if by_head else 1, *cell)
    for g, group in enumerate(rows):
        for i, pieces in enumerate(group):
            used = [piece for piece in pieces if piece.calls]
            keys = [_tree(graph, (name, "sum", g, i, n), piece, by_head) for n, piece in enumerate(used)]
            slots, shares = [list(p.slots) if by_head else [0] for p in used], [p.shares for p in used]
            key = (name, g, i, 0, *(0 for _ in cell))
            graph[key] = (finish, keys, slots, shares, layers, shape[2:])
    array: da.Array = da.Array(  # type: ignore[no-untyped-call]
        HighLevelGraph({**dependencies, name: graph}, {**{k: set() for k in dependencies}, name: set(dependencies)}),
        name,
        chunks=((1,) * shape[0], (1,) * shape[1], *((n,) for n in shape[2:])),
        dtype=np.float64,
    )
    return array


def _tree(graph: Graph, key: tuple[Hashable, ...], piece: Piece, by_head: bool) -> Hashable:
    """Tasks that lift and add the calls of one piece; returns the last one's key."""
    level: list[Hashable] = []
    late = piece.lift is not None and piece.lift.to.steps_first
    for i in range(0, len(piece.calls), FAN_IN):
        level.append((*key, 0, i))
        calls = list(piece.calls[i : i + FAN_IN])
        graph[level[-1]] = (select_and_add, piece.lift, calls) if late else (lift_and_add, piece.lift, by_head, calls)
    depth = 0
    while len(level) > 1:
        depth += 1
        above: list[Hashable] = []
        for i in range(0, len(level), FAN_IN):
            above.append((*key, depth, i))
            graph[above[-1]] = (add, level[i : i + FAN_IN])
        level = above
    if not late:
        return level[0]
    graph[(*key, "lift")] = (lift_sum, piece.lift, by_head, level[0])
    return (*key, "lift")


def lift_and_add(lift: Lift | None, by_head: bool, given: Sequence[Any]) -> Values:
    """Sum over calls of their lifted maps, and over heads unless they are kept.

    Dims     -> (head or 1, *cell), float64
    """
    total: Values | None = None
    for item in given:
        values = item if lift is None else lift.resample(lift.select(item))
        values = values if by_head else values.sum(0, dtype=np.float64, keepdims=True)
        total = values.astype(np.float64) if total is None else np.add(total, values, out=total)
    assert total is not None  # every piece has calls
    return total


def select_and_add(lift: Lift, given: Sequence[Any]) -> Values:
    """Sum over calls of what counts of each, on the layer's own grid, in float64."""
    return add([lift.select(item).astype(np.float64) for item in given])


def lift_sum(lift: Lift, by_head: bool, values: Values) -> Values:
    """What was added, brought to the common grid, and added over heads unless they are kept.

    Dims     -> (head or 1, *cell)
    """
    lifted = lift.resample(values)
    return lifted if by_head else np.asarray(lifted.sum(0, keepdims=True))


def add(maps: Sequence[Values]) -> Values:
    """Sum of maps."""
    return functools.reduce(operator.add, maps)


def finish(
    maps: Sequence[Values], slots: Sequence[Sequence[int]], shares: Sequence[Sequence[float]], layers: Reduction, shape: tuple[int, ...]
) -> Values:
    """The layers' maps together: one mean of all, or the sum of each one's mean; NaN where there is none.

    Dims     maps (head of the layer or 1, *cell) each -> (1, 1, head or 1, *cell)
    """
    total, parts = np.zeros(shape), np.zeros(shape[0])
    for values, places, share in zip(maps, slots, shares, strict=True):
        total[list(places)] += values if layers == "mean" else (values.T / np.array(share)).T
        parts[list(places)] += share if layers == "mean" else 1
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Values = np.where(parts > 0, total.T / (parts if layers == "mean" else 1), np.nan).T
    return mean[None, None]
