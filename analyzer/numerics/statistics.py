"""How far a mean over traces can be trusted: the percentile bootstrap, with a seed, so that it is the same each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.95
RESAMPLES: Final = 9_999
BATCH_BYTES: Final = 2**25
"""Drawn values that are held at once."""
FEWEST: Final = 2
"""One trace says nothing about how much traces differ."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and where it lies."""

    mean: float
    low: float
    """Lower end of the interval; NaN of fewer than two values."""
    high: float
    count: int
    """Values it is the mean of; NaN is none."""


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES) -> Interval:
    """Mean of the values that are not NaN, and its percentile bootstrap interval.

    Range    low <= high, both within the values; NaN where there are too few to say
    Source   Efron and Tibshirani 1993, chapter 13
    """
    found = np.asarray(values, np.float64)
    found = found[~np.isnan(found)]
    if len(found) < FEWEST:
        return Interval(float(found.mean()) if len(found) else np.nan, np.nan, np.nan, len(found))
    rng, means = np.random.default_rng(seed), np.empty(resamples)
    # The size of a batch decides the order of draws, and with it the interval: it hangs on the number of values alone.
    batch = max(1, BATCH_BYTES // found.nbytes)
    for start in range(0, resamples, batch):
        part = means[start : start + batch]
        part[:] = rng.choice(found, (len(part), len(found))).mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(found.mean()), float(low), float(high), len(found))


def row_evenness(rows: NDArray[Any]) -> NDArray[np.float64]:
    values = rows.astype(np.float64)
    total = values.sum(-1, keepdims=True)
    # A row that the model turned away from these tokens altogether prefers none of them.
    even = np.where(np.isnan(total), np.nan, 1 / values.shape[-1])
    return evenness(np.divide(values, total, out=np.broadcast_to(even, values.shape).copy(), where=total > 0))


def correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Pearson correlation of two maps; NaN if one of them is constant."""
    a, b = (each.ravel() - each.mean() for each in (np.asarray(first, np.float64), np.asarray(second, np.float64)))
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else np.nan


def evenness(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    if shares.shape[-1] < 2:
        return np.ones(shares.shape[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares == 0, 0.0, shares * np.log(shares))
    return np.asarray(np.clip(-terms.sum(-1) / np.log(shares.shape[-1]), 0, 1))
