"""Maps that need each token or each position by itself: of chosen tokens, of probes, or resampled and clamped before they are averaged.

What `scan` adds up while it reads is kept apart here until the recipe's order of operations has been followed. A task holds one
layer's chosen columns, in float32, and gives finished maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..methods.recipes import Reduction
from ..trace.calls import Calls
from ..trace.softmax import Columns
from .reduction import bring

Values: TypeAlias = NDArray[Any]

LIFT_BYTES: Final = 2**25
"""Maps that are resampled at once, in bytes of their result."""


@dataclass(frozen=True, slots=True)
class Exact:
    """How one layer's columns become maps on the common grid: a row of what tasks need."""

    columns: Columns
    heads: tuple[int, ...]
    """Positions on the layer's head axis."""
    over: Literal["tokens", "positions"]
    """What is averaged: tokens, so that maps lie on the generated image, or generated positions, so that they lie on the reference."""
    reduction: Reduction | Literal["keep"]
    """How; `keep` leaves a map to each."""
    first: bool
    """Whether they are reduced before resampling."""
    add_heads: bool
    """Whether heads are added, as they are not kept."""
    heads_first: bool
    """Whether heads are added before resampling."""
    grid: tuple[int, ...] | None
    """Of one map before it is resampled, frames first in a video; None leaves it a row of tokens."""
    target: tuple[int, ...] | None
    resize: str
    clamp: bool


def exact_maps(calls: Calls, exact: Exact, sample: int, branch: int, steps: tuple[int, ...], weights: Values | None) -> Values:
    """Task: one layer's maps, summed over steps; the weights are those of generated positions, all alike if None.

    Dims     weights ([frame,] y, x) -> (head or 1, *map), or (head or 1, token, *map) where tokens are kept; float64
    """
    counts = np.ones(math.prod(calls.layer.places)) if weights is None else np.ravel(weights)
    factors = counts if exact.over == "positions" else np.ones(len(exact.columns.tokens))
    total = _collect(calls, exact, (sample, branch), steps, factors)
    divisor = len(factors) if exact.reduction == "mean" else 1
    if exact.first and exact.reduction != "keep":
        return _lift(exact, total[:, None])[:, 0] / divisor
    parts = [
        maps if exact.reduction == "keep" else np.tensordot(maps, factors[part], ((1,), (0,)))
        for part, maps in ((part, _lift(exact, columns)) for part, columns in _parts(exact, total))
    ]
    return np.concatenate(parts, 1) if exact.reduction == "keep" else np.sum(parts, 0) / divisor


def _collect(calls: Calls, exact: Exact, at: tuple[int, int], steps: tuple[int, ...], factors: Values) -> Values:
    """Columns summed over steps, and already over tokens or positions if these come first.

    Dims     -> (head or 1, position, token), or without the axis that is reduced
    """
    positions, tokens = math.prod(calls.layer.places), len(exact.columns.tokens)
    early = exact.first and exact.reduction != "keep"
    shape = (tokens,) if early and exact.over == "positions" else (positions,) if early else (positions, tokens)
    rows = {head: 0 if exact.heads_first and exact.add_heads else i for i, head in enumerate(exact.heads)}
    total = np.zeros((max(rows.values()) + 1, *shape), np.float64 if early else np.float32)
    for step in steps:
        for head, part, values in calls.softmax_rows((*at, step), exact.columns, exact.heads):
            if not early:
                total[rows[head], part] += values
            elif exact.over == "tokens":
                total[rows[head], part] += values.sum(1, dtype=np.float64)
            else:
                total[rows[head]] += factors[part] @ values.astype(np.float64)
    return total


def _parts(exact: Exact, total: Values) -> Iterator[tuple[slice, Values]]:
    """Some tokens' or positions' maps at a time.

    Dims     (head, position, token) -> (head, token or position, map)
    """
    columns = total.swapaxes(1, 2) if exact.over == "tokens" else total
    places = math.prod(exact.target or (columns.shape[2],))
    count = max(1, LIFT_BYTES // (8 * len(columns) * places))
    for start in range(0, columns.shape[1], count):
        part = slice(start, start + count)
        yield part, columns[:, part]


def _lift(exact: Exact, values: Values) -> Values:
    """To the common grid, and added over heads unless they are kept.

    Dims     (head, n, map) -> (head or 1, n, [frame,] row, column), or as it is without a grid; float64
    """
    values = values.astype(np.float64)
    if exact.grid is not None and exact.target is not None:
        values = bring(values.reshape(*values.shape[:2], *exact.grid), exact.target, exact.resize, exact.clamp)
    return values.sum(0, keepdims=True) if exact.add_heads else values
