"""The plan of an overview: what is kept so that it fits a budget of bytes, in steps from everything to maps alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .views import LayerView, View

Rows: TypeAlias = Literal["full", "marginal", "none"]

BUDGET: Final = 8_000_000
TIMES: Final = 5
FEW_TIMES: Final = 3
FEW_HEADS: Final = 32
ROWS_PACKED: Final = 0.6
"""Bytes of packed rows over bytes of rows, before any are packed."""
MAPS_PACKED: Final = 0.9
ARRAY_BYTES: Final = 600
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
    single: bool
    """Whether each head has R2G and G2R of its own."""

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON."""
        names = ("budget", "rows", "patches", "keys", "heads", "times")
        return {**{name: getattr(self, name) for name in names}, "dropped": list(self.dropped)}

    @property
    def dropped(self) -> tuple[str, ...]:
        """What was left out, in words."""
        said = {
            "which head looked where at which time; where each head looked over all of time, and where all did at each time, are kept": (
                self.rows == "marginal"
            ),
            "where single patches looked; only maps are kept": self.rows == "none",
            f"rows of patches beyond {self.patches} x {self.patches} of a layer: they are those of every n-th patch": (
                self.patches is not None and self.rows != "none"
            ),
            f"places finer than {self.keys} x {self.keys} cells of the reference, in rows; maps keep them": (
                self.keys is not None and self.rows != "none"
            ),
            f"rows of all heads but {self.heads}, those with the highest scores": self.heads is not None and self.rows != "none",
            "maps of single heads; those of layers are kept": not self.single,
        }
        return tuple(sentence for sentence, holds in said.items() if holds)


def ladder(budget: int, times: int) -> list[Plan]:
    """Plans from the richest to the poorest."""
    full = Plan(budget=budget, rows="full", patches=None, keys=None, heads=None, times=times, single=True)
    few = min(times, FEW_TIMES)
    marginal = replace(full, rows="marginal")
    sampled = replace(marginal, patches=16)
    summed = replace(sampled, keys=16)
    chosen = replace(summed, times=few, single=False, heads=FEW_HEADS)
    found = [
        full, marginal, replace(marginal, patches=32), sampled, replace(sampled, times=few), summed, replace(summed, times=few),
        replace(summed, times=few, single=False), chosen, replace(chosen, keys=8, patches=8), replace(full, rows="none"),
        replace(full, rows="none", times=few), replace(full, rows="none", times=few, single=False),
        replace(full, rows="none", times=1, single=False),
    ]  # fmt: skip
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
        (rows, columns), patches = one.layer.grid, plan.patches
        grid = (rows, columns) if patches is None else (sampled(rows, patches), sampled(columns, patches))
        if one.group.grid is None:
            return Sampling(grid, None, one.keys)
        keys = one.group.grid if plan.keys is None else (summed(one.group.grid[0], plan.keys), summed(one.group.grid[1], plan.keys))
        return Sampling(grid, keys, keys[0] * keys[1])

    @property
    def patches(self) -> int:
        """How many patches of a frame have rows."""
        return self.rows[0] * self.rows[1]


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


def expect_bytes(plan: Plan, views: Sequence[View], steps: int, other: int, packed: float = ROWS_PACKED) -> int:
    """About how many bytes an overview of this plan has, from shapes alone; `other` are those of pictures, which are known."""
    times = min(plan.times, steps)
    return other + int(sum(_layer_bytes(plan, one, steps, times, packed) for view in views for one in view.layers))


def _layer_bytes(plan: Plan, one: LayerView, steps: int, times: int, packed: float) -> float:
    sampling, heads, shown = Sampling.of(plan, one), one.layer.heads, len(one.frames)
    maps = 2 * times * (heads if plan.single else 1) * (shown * math.prod(one.layer.grid) + 2 * one.keys)
    total = maps * MAPS_PACKED + 4 * steps * heads * 5 * MAPS_PACKED + 8 * ARRAY_BYTES
    if sampling is None:
        return total
    row = shown * sampling.patches * (sampling.count * packed + 4)
    own = heads if plan.heads is None else min(heads, plan.heads / 8)
    copies = times * heads if plan.rows == "full" else own + times
    return total + row * copies + (4 * times * heads * shown * sampling.patches if one.group.specials and one.group.grid else 0)


def choose_plan(plans: Iterable[Plan], views: Sequence[View], steps: int, other: int, packed: float = ROWS_PACKED) -> Plan | None:
    """The first plan that should fit its budget."""
    return next((plan for plan in plans if expect_bytes(plan, views, steps, other, packed) <= plan.budget), None)
