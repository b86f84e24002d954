"""The plan of an overview: what is kept so that it fits a budget of bytes, in steps from everything to maps alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .views import LayerView, View

Rows: TypeAlias = Literal["full", "marginal", "none"]

BUDGET: Final = 8_000_000
TIMES: Final = 5
FEW_TIMES: Final = 3
FEW_HEADS: Final = 32
SPARE: Final = 1.05
"""How much more rows of means may take than rows of single calls, which are packed before the plan is made."""
MAPS_PACKED: Final = 0.9
MEASURED_SIDE: Final = 16
"""Most patches a side that are measured where no rows are kept."""
ARRAYS: Final = 12
MEASURED: Final = 6
"""Arrays of a layer and numbers of a call."""
ARRAY_BYTES: Final = 900
"""Metadata of one array, which stands in the group twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an overview keeps."""

    budget: int
    rows: Rows
    """`full`: rows of each head at each time; `marginal`: of each head, and at each time; `none`."""
    patches: int | None
    """Most patches a side whose rows are kept; None is all."""
    keys: int | None
    """Most cells a side that keys are summed to; None leaves the keys as they are."""
    heads: int | None
    """Most heads whose rows are kept; None is all."""
    times: int
    """Time groups."""
    asked: int
    """Time groups that were asked for."""
    single: bool
    """Whether each head has R2G and G2R of its own."""
    words: bool = True
    """Whether words have maps."""

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON."""
        names = ("budget", "rows", "patches", "keys", "heads", "times")
        return {**{name: getattr(self, name) for name in names}, "dropped": list(self.dropped)}

    @property
    def dropped(self) -> tuple[str, ...]:
        """What was left out, in words."""
        rows = self.rows != "none"
        said = {
            "no rows of attention, only maps": not rows,
            "which head looked where at which time: rows are of each head over all of time, and of each time over all heads": (
                self.rows == "marginal"
            ),
            f"patches between every n-th, of which rows have at most {self.patches} a side": rows and self.patches is not None,
            f"places on the reference finer than {self.keys} x {self.keys} cells, in rows; maps have them": rows and self.keys is not None,
            f"rows of single heads but for the {self.heads} with the highest scores": rows and self.heads is not None,
            "maps of single heads; there is one of each layer": not self.single,
            "maps of words": not self.words,
            f"time groups: {self.times} in place of {self.asked}": self.times < self.asked,
        }
        return tuple(sentence for sentence, holds in said.items() if holds)


def ladder(budget: int, times: int) -> list[Plan]:
    """Plans from the richest to the poorest."""
    full = Plan(budget=budget, rows="full", patches=None, keys=None, heads=None, times=times, asked=times, single=True)
    marginal, none = replace(full, rows="marginal"), replace(full, rows="none")
    few = min(times, FEW_TIMES)
    summed = replace(marginal, patches=16, keys=16)
    sparse = replace(summed, times=few)
    layers = replace(sparse, single=False)
    found = [
        *(full, marginal, replace(marginal, patches=32), replace(marginal, patches=16), summed),
        *(sparse, replace(sparse, patches=12), layers, replace(layers, patches=12)),
        *(replace(layers, heads=FEW_HEADS), replace(layers, heads=FEW_HEADS, patches=8, keys=8)),
        *(none, replace(none, times=few), replace(none, times=few, single=False)),
        *(replace(none, times=few, single=False, words=False), replace(none, times=1, single=False, words=False)),
    ]
    return found


def distinct(plans: Sequence[Plan], views: Sequence[View]) -> list[Plan]:
    """The plans that differ for these views, without what leaves nothing out of them."""
    layers = [one for view in views for one in view.layers]
    heads = max(sum(one.layer.heads for one in view.layers) for view in views)
    sides = [(one.layer.grid, one.group.grid or (1, one.keys)) for one in layers]
    patches, keys = (max(max(grid) for grid in grids) for grids in zip(*sides, strict=True))
    found = [
        replace(
            plan,
            patches=None if plan.patches is None or plan.patches >= patches else plan.patches,
            keys=None if plan.keys is None or plan.keys >= keys else plan.keys,
            heads=None if plan.heads is None or plan.heads >= heads else plan.heads,
            words=plan.words or not any(view.words for view in views),
        )
        for plan in plans
    ]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which patches and keys of one layer a plan keeps in rows."""

    rows: tuple[int, int]
    """Rows and columns of patches."""
    keys: tuple[int, int] | None
    """Rows and columns of cells of keys; None where the tokens have no place."""
    count: int
    """Keys in a row."""

    @staticmethod
    def of(plan: Plan, one: LayerView) -> Sampling | None:
        """None where no rows are kept: by the plan, or of more tokens without a place than there may be cells."""
        most = math.inf if plan.keys is None else plan.keys**2
        if plan.rows == "none" or (one.group.grid is None and one.keys > most):
            return None
        grid = measured_grid(plan, one)
        if one.group.grid is None:
            return Sampling(grid, None, one.keys)
        keys = one.group.grid if plan.keys is None else (summed(one.group.grid[0], plan.keys), summed(one.group.grid[1], plan.keys))
        return Sampling(grid, keys, keys[0] * keys[1])

    @property
    def patches(self) -> int:
        """How many patches of a frame have rows."""
        return self.rows[0] * self.rows[1]


def measured_grid(plan: Plan, one: LayerView) -> tuple[int, int]:
    """Rows and columns of the patches of a layer that are measured, and that words are mapped on: those with rows, or as many as would."""
    most = MEASURED_SIDE if plan.rows == "none" and plan.patches is None else plan.patches
    rows, columns = one.layer.grid
    return (rows, columns) if most is None else (sampled(rows, most), sampled(columns, most))


def sampled(length: int, most: int) -> int:
    """How many of a grid's rows or columns are kept: every n-th, so that there are at most so many."""
    return length // -(-length // most)


def summed(length: int, most: int) -> int:
    """How many cells a grid's rows or columns are summed to, at most so many."""
    return -(-length // -(-length // most))


def sampled_places(grid: int, kept: int) -> NDArray[np.intp]:
    """Which of a grid's rows or columns are kept.

    Dims     (kept,)
    """
    stride = grid // kept
    return np.arange(kept) * stride + stride // 2


def cell_starts(grid: int, cells: int) -> NDArray[np.intp]:
    """The first of a grid's rows or columns in each cell.

    Dims     (cells,)
    """
    return np.arange(cells) * grid // cells


class Packed(NamedTuple):
    """Bytes of packed rows over bytes of rows."""

    single: float
    """Of single heads."""
    mean: float
    """Of means over heads."""


def expect_bytes(plan: Plan, views: Sequence[View], steps: int, other: int, packed: Packed) -> int:
    """About how many bytes an overview of this plan has, from shapes and from how rows pack; `other` are those of pictures."""
    times, total = min(plan.times, steps), float(other)
    for view in views:
        heads = sum(one.layer.heads for one in view.layers)
        kept = 1.0 if plan.heads is None else min(1.0, plan.heads / heads)
        total += sum(_layer_bytes(plan, one, steps, times) + _row_bytes(plan, one, times, kept, packed) for one in view.layers)
        words = len(view.words) if plan.words else 0
        total += sum(times * words * len(one.frames) * math.prod(measured_grid(plan, one)) * MAPS_PACKED for one in view.layers)
    return int(total)


def _layer_bytes(plan: Plan, one: LayerView, steps: int, times: int) -> float:
    """Maps and statistics."""
    maps = 2 * times * (one.layer.heads if plan.single else 1) * (len(one.frames) * math.prod(one.layer.grid) + 2 * one.keys)
    return (maps + 4 * steps * one.layer.heads * MEASURED) * MAPS_PACKED + ARRAYS * ARRAY_BYTES


def _row_bytes(plan: Plan, one: LayerView, times: int, kept: float, packed: Packed) -> float:
    """Rows of a share of the heads, and what goes to the specials."""
    sampling, heads = Sampling.of(plan, one), one.layer.heads
    if sampling is None:
        return 0
    single, mean = (ratio * sampling.count * SPARE + 4 for ratio in packed)
    rows = times * heads * single if plan.rows == "full" else heads * kept * single + times * mean
    return len(one.frames) * sampling.patches * (rows + (4 * times * heads if one.keys < one.group.tokens else 0))
