"""The task graph under every map: calls are scanned once, brought to the common grid, and summed as a tree.

    scan (layer, step) --lift--> (head, row, column) --add--> over the steps of a time group --finish--> mean over (layer, head) pairs

Scans are named by what they read and by nothing else, so maps that are computed together share them. Every task returns maps,
never attention, and adds at most `FAN_IN` of them, so that memory does not grow with steps or layers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from .resize import resize
from .scan import Sums

FAN_IN: Final = 8

Values: TypeAlias = NDArray[Any]
Graph: TypeAlias = dict[Any, Any]
"""Task by key."""
Keys: TypeAlias = dict[int, dict[int, Hashable]]
"""Layer -> step -> task."""


@dataclass(frozen=True, slots=True)
class Lift:
    """How one call's sums become its maps on the common grid. A row of numbers, so that tasks stay small."""

    pick: Callable[[Any, tuple[int, ...]], Values]
    """(what the call gave, which of its segments or weightings) -> (head, ...)."""
    index: tuple[int, ...]
    heads: tuple[int, ...]
    divisor: float
    tokens: tuple[int, int] | None
    """Stretch of the last axis that counts; None is all of it."""
    grid: tuple[int, int] | None
    """Shape of one head's map before it is resampled; None leaves it a row of tokens."""
    target: tuple[int, int] | None
    resize: str
    clamp: bool

    def __call__(self, given: Any) -> Values:
        """One call's maps, in float32 as its sums were.

        Dims     -> (head, row, column) or (head, token)
        """
        values: Values = self.pick(given, self.index)[list(self.heads)] / np.float32(self.divisor)
        if self.tokens is not None:
            values = values[..., slice(*self.tokens)]
        if self.grid is None or self.target is None:
            return values
        values = values.reshape(len(values), *self.grid)
        if self.grid == self.target:
            return values
        values = resize(values, self.target, self.resize)
        return np.maximum(values, 0, out=values) if self.clamp else values


def pick_generated(sums: Sums, index: tuple[int, ...]) -> Values:
    """R2G: the segments of the token group, added.

    Dims     -> (head, y, x)
    """
    picked: Values = sums.generated[list(index)].sum(0)
    return picked


def pick_token(sums: Sums, index: tuple[int, ...]) -> Values:
    """G2R: one weighting of the generated positions.

    Dims     -> (head, token)
    """
    picked: Values = sums.token[index[0]]
    return picked


def pick_patch(values: Values, index: tuple[int, ...]) -> Values:
    """SRAM: what the patch gave is already (head, token)."""
    return values


@dataclass(frozen=True, slots=True)
class Piece:
    """The calls of one layer in one time group."""

    calls: tuple[Hashable, ...]
    """Tasks that give what `lift` takes."""
    lift: Lift
    slots: tuple[int, ...]
    """Where the layer's heads stand among the selected ones."""


def reduce_maps(
    name: str, dependencies: dict[str, Graph], groups: Sequence[Sequence[Piece]], heads: int, keep: frozenset[str], cell: tuple[int, ...]
) -> tuple[da.Array, Values]:
    """Maps over the kept axes, and how many (layer, head) pairs each is the mean of.

    Dims     groups (time, layer) -> (time?, layer?, head?, *cell), (time?, layer?, head?)
    """
    graph: Graph = {}
    rows = [[[piece] for piece in group] if "layer" in keep else [list(group)] for group in groups]
    pairs = np.zeros((len(rows), len(rows[0]), heads), np.int64)
    for g, group in enumerate(rows):
        for i, pieces in enumerate(group):
            entries: list[tuple[Hashable, list[int]]] = []
            for piece in (p for p in pieces if p.calls):
                pairs[g, i, list(piece.slots)] += 1
                entries.append((_tree(graph, (name, "sum", g, i, len(entries)), piece, "head" in keep), list(piece.slots)))
            counts = pairs[g, i] if "head" in keep else pairs[g, i].sum(keepdims=True)
            key = (name, g, i, 0, *(0 for _ in cell))
            graph[key] = (finish, [k for k, _ in entries], [s for _, s in entries], heads, counts, "head" in keep, cell)
    counts = pairs if "head" in keep else pairs.sum(-1, keepdims=True)
    shape = (*counts.shape, *cell)
    layers = {**dependencies, name: graph}
    array = da.Array(  # type: ignore[no-untyped-call]
        HighLevelGraph(layers, {**{k: set() for k in dependencies}, name: set(dependencies)}),
        name,
        chunks=((1,) * shape[0], (1,) * shape[1], *((n,) for n in shape[2:])),
        dtype=np.float64,
    )
    kept = tuple(slice(None) if axis in keep else 0 for axis in ("time", "layer", "head"))
    return array[kept], counts[kept]


def _tree(graph: Graph, key: tuple[Hashable, ...], piece: Piece, by_head: bool) -> Hashable:
    """Tasks that lift and add the calls of one piece; returns the last one's key."""
    level: list[Hashable] = []
    for i in range(0, len(piece.calls), FAN_IN):
        level.append((*key, 0, i))
        graph[level[-1]] = (lift_and_add, piece.lift, by_head, list(piece.calls[i : i + FAN_IN]))
    depth = 0
    while len(level) > 1:
        depth += 1
        above: list[Hashable] = []
        for i in range(0, len(level), FAN_IN):
            above.append((*key, depth, i))
            graph[above[-1]] = (add, level[i : i + FAN_IN])
        level = above
    return level[0]


def lift_and_add(lift: Lift, by_head: bool, given: Sequence[Any]) -> Values:
    """Sum over calls of their lifted maps, and over heads unless they are kept.

    Dims     -> (head or 1, *cell), float64
    """
    total: Values | None = None
    for item in given:
        values = lift(item)
        values = values if by_head else values.sum(0, dtype=np.float64, keepdims=True)
        total = values.astype(np.float64) if total is None else np.add(total, values, out=total)
    assert total is not None  # every piece has calls
    return total


def add(maps: Sequence[Values]) -> Values:
    """Sum of maps."""
    total = maps[0]
    for item in maps[1:]:
        total = total + item
    return total


def finish(
    maps: Sequence[Values], slots: Sequence[Sequence[int]], heads: int, counts: Values, by_head: bool, cell: tuple[int, ...]
) -> Values:
    """Mean over pairs; NaN where there is none.

    Dims     maps (head of the layer or 1, *cell) each -> (1, 1, head or 1, *cell)
    """
    total = np.zeros((heads if by_head else 1, *cell))
    for values, places in zip(maps, slots, strict=True):
        if by_head:
            total[list(places)] += values
        else:
            total += values
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Values = np.where(counts > 0, total.T / counts, np.nan).T
    return mean[None, None]
