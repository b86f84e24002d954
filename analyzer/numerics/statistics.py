"""Statistics: intervals of means, by seeded bootstrap or as values come, evenness (normalised entropy), and correlation of maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, stdtrit

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
    # The draws are those of scipy.stats.bootstrap, which takes half a second to load.
    batch, rng = max(1, BATCH_BYTES // found.nbytes), np.random.default_rng(seed)
    sizes = [min(batch, resamples - start) for start in range(0, resamples, batch)]
    means = np.concatenate([found[rng.integers(0, len(found), (size, len(found)))].mean(1) for size in sizes])
    tail = (1 - level) / 2
    ends = np.quantile(means, [tail, 1 - tail])
    low, high = np.clip(ends, found.min(), found.max())  # quantiles of equal means differ in the last digit
    return Interval(float(found.mean()), float(low), float(high), len(found))


class RunningMean:
    """Mean and variance of arrays of one shape that are added one by one and not kept; where one is NaN it does not count.

    Source   Welford 1962
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = np.zeros(shape, np.int64)
        self._mean, self._squares = np.zeros(shape), np.zeros(shape)

    def add(self, values: NDArray[Any]) -> None:
        """Add one array."""
        there = ~np.isnan(values)
        self.count += there
        off = np.where(there, values - self._mean, 0.0)
        self._mean += off / np.maximum(self.count, 1)
        self._squares += off * np.where(there, values - self._mean, 0.0)

    def interval(self, level: float = LEVEL) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Mean, and lower and upper end of Student's interval around it.

        Range    low <= mean <= high; NaN where there are too few values to say
        """
        count = np.where(self.count < FEWEST, np.nan, self.count)
        half = stdtrit(count - 1, (1 + level) / 2) * np.sqrt(self._squares / (count - 1) / count)
        mean = np.where(self.count > 0, self._mean, np.nan)
        return mean, mean - half, mean + half


def row_evenness(rows: NDArray[Any]) -> NDArray[np.float64]:
    """How evenly each row is spread over its columns, in the precision of the rows: H = log Z - sum p log p / Z, over log n.

    Dims     (..., column) -> (...)
    Range    [0, 1]; 1 is even, 0 is one column; 1 for a row that is 0 everywhere, NaN for one with NaN
    """
    count = rows.shape[-1]
    if count < FEWEST:
        return np.ones(rows.shape[:-1])
    # Far below any p that is not 0, and its logarithm is finite.
    logs = rows + np.finfo(rows.dtype).tiny
    np.log(logs, out=logs)
    total, weighted = rows.sum(-1).astype(np.float64), np.vecdot(rows, logs).astype(np.float64)
    # A row that the model turned away from these tokens altogether prefers none of them.
    there = total != 0
    total[~there] = 1
    return np.asarray(np.where(there, np.clip((np.log(total) - weighted / total) / np.log(count), 0, 1), 1.0))


def evenness(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    if shares.shape[-1] < 2:
        return np.ones(shares.shape[:-1])
    return np.asarray(np.clip(entr(shares).sum(-1) / np.log(shares.shape[-1]), 0, 1))


def correlations(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation of every pair of rows.

    Dims     (row, value) -> (row, row)
    Range    [-1, 1]; NaN with a row that is constant or holds NaN
    """
    if rows.shape[1] < FEWEST:
        return np.full((len(rows), len(rows)), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.atleast_2d(np.corrcoef(rows))


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson correlation of two maps of one shape; NaN if one of them is constant."""
    return float(correlations(np.stack([np.ravel(first), np.ravel(second)]).astype(np.float64))[0, 1])
