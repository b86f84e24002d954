"""Maps that need each token or each position by itself: of chosen tokens, of probes, or resampled and clamped before they are averaged.

What `scan` adds up while it reads is kept apart here until the recipe's order of operations has been followed. A task holds one
layer's chosen columns, in float32, and gives finished maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..methods.recipes import Reduction
from ..trace.calls import Calls
from ..trace.softmax import Columns
from .reduction import Resampling

Values: TypeAlias = NDArray[Any]

LIFT_BYTES: Final = 2**25
"""Maps that are resampled at once, in bytes of their result."""


@dataclass(frozen=True, slots=True)
class Exact:
    """How one layer's columns become maps on the common grid: a row of what tasks need."""

    columns: Columns
    over: Literal["tokens", "positions"]
    """What is averaged: tokens, so that maps lie on the generated image, or generated positions, so that they lie on the reference."""
    reduction: Reduction | Literal["keep"]
    """How; `keep` leaves a map to each."""
    first: bool
    """Whether they are reduced before resampling, and not kept."""
    to: Resampling


def exact_maps(calls: Calls, exact: Exact, sample: int, branch: int, steps: tuple[int, ...], weights: Values | None) -> Values:
    """Task: one layer's maps, summed over steps; the weights are those of generated positions, all alike if None.

    Dims     weights ([frame,] y, x) -> (head or 1, *map), or (head or 1, token, *map) where tokens are kept; float64
    """
    counts = np.ones(math.prod(calls.layer.places)) if weights is None else np.ravel(weights)
    factors = counts if exact.over == "positions" else np.ones(len(exact.columns.tokens))
    total = _collect(calls, exact, (sample, branch), steps, factors)
    divisor = len(factors) if exact.reduction == "mean" else 1
    if exact.first:
        return _lift(exact.to, total[:, None])[:, 0] / divisor
    columns = total.swapaxes(1, 2) if exact.over == "tokens" else total  # (head, token or position, place)
    count = max(1, LIFT_BYTES // (8 * len(columns) * math.prod(exact.to.target)))
    parts = []
    for part in (slice(start, start + count) for start in range(0, columns.shape[1], count)):
        maps = _lift(exact.to, columns[:, part])
        parts.append(maps if exact.reduction == "keep" else np.tensordot(maps, factors[part], ((1,), (0,))))
    return np.concatenate(parts, 1) if exact.reduction == "keep" else np.sum(parts, 0) / divisor


def _collect(calls: Calls, exact: Exact, at: tuple[int, int], steps: tuple[int, ...], factors: Values) -> Values:
    """Columns summed over steps, and already over tokens or positions if these come first.

    Dims     -> (head or 1, position, token), or without the axis that is reduced
    """
    positions, tokens = math.prod(calls.layer.places), len(exact.columns.tokens)
    reduced = (tokens,) if exact.over == "positions" else (positions,)
    shape = reduced if exact.first else (positions, tokens)
    rows = {head: 0 if exact.to.heads_first else i for i, head in enumerate(exact.to.heads)}
    weights = dict(zip(exact.to.heads, exact.to.head_weights, strict=True))
    total = np.zeros((max(rows.values()) + 1, *shape), np.float64 if exact.first else np.float32)
    for group in calls.groups(at, steps):
        for _, head, part, values in calls.softmax_rows(at, group, exact.columns, exact.to.heads):
            if weights[head] != 1:
                values = values * values.dtype.type(weights[head])
            if not exact.first:
                total[rows[head], part] += values
            elif exact.over == "tokens":
                total[rows[head], part] += values.sum(1, dtype=np.float64)
            else:
                total[rows[head]] += factors[part] @ values.astype(np.float64)
    return total


def _lift(to: Resampling, values: Values) -> Values:
    """To the common grid, and added over heads unless they are kept.

    Dims     (head, n, place) -> (head or 1, n, *target); float64
    """
    maps = to(values.astype(np.float64).reshape(*values.shape[:2], *to.grid))
    return maps.sum(0, keepdims=True) if to.add_heads else maps
