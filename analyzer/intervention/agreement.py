"""How well a map agrees with measured effects: rank correlation with its bootstrap interval, and what shuffled cells reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..numerics.ranks import drawn_correlations, ranks, shuffled_correlations, standardized
from ..numerics.statistics import LEVEL, Interval

Values: TypeAlias = NDArray[np.float64]
ENDS: Final = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


@dataclass(frozen=True, slots=True)
class Drawing:
    """How samples are drawn; maps that are compared share their samples."""

    count: int
    seed: int

    def counts(self, size: int) -> NDArray[np.int64]:
        """How often each of some units is drawn.

        Dims     (sample, unit)
        """
        rng = np.random.default_rng(self.seed)
        return rng.multinomial(size, np.full(size, 1 / size), self.count)

    def orders(self, size: int) -> NDArray[np.intp]:
        """Random orders of some cells.

        Dims     (sample, cell)
        """
        rng = np.random.default_rng(self.seed)
        return rng.permuted(np.tile(np.arange(size), (self.count, 1)), axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One map, or a map of each patch, against effects."""

    spearman: Interval
    """Of cells; of maps of patches the mean over patches, which are then what is drawn."""
    pearson: float
    random: tuple[float, float]
    """Where rank correlations of shuffled cells lie."""
    draws: Values = field(repr=False, compare=False)
    """The rank correlation of each bootstrap sample."""
    own_other: float = np.nan
    """What leaving out the strongest cell of a patch changes there, over what it changes in the other patches."""


def agree(map: Values, effects: Values, drawing: Drawing) -> Agreement:
    """Of one number for each cell, layer or head.

    Dims     (cell,) twice
    Range    NaN where one of them is constant
    """
    value, linear = _correlate(map[None], effects[None])
    draws = drawn_correlations(map, effects, drawing.counts(map.size))
    return Agreement(
        spearman=_interval(value[0], draws, map.size),
        pearson=float(linear[0]),
        random=_shuffled(map[None], effects[None], drawing),
        draws=draws,
    )


def agree_by_patch(maps: Values, effects: Values, drawing: Drawing) -> Agreement:
    """Of the map of each patch against what each cell changed in that patch: correlated over cells, averaged over patches.

    Dims     (patch, cell) twice
    Range    NaN where no patch has a map and effects that vary
    """
    values, linear = _correlate(maps, effects)
    known = ~np.isnan(values)
    if not known.any():
        blank = np.full(drawing.count, np.nan)
        return Agreement(spearman=Interval(np.nan, np.nan, np.nan, 0), pearson=np.nan, random=(np.nan, np.nan), draws=blank)
    values, maps, effects = values[known], maps[known], effects[known]
    draws = drawing.counts(values.size) @ values / values.size
    moved = effects[:, maps.argmax(1)]  # in each patch, by the strongest cell of each
    own, others = np.trace(moved), (moved.sum() - np.trace(moved)) / max(len(moved) - 1, 1)
    return Agreement(
        spearman=_interval(values.mean(), draws, values.size),
        pearson=float(linear[known].mean()),
        random=_shuffled(maps, effects, drawing),
        draws=draws,
        own_other=float(own / others) if others > 0 else np.nan,
    )


def _correlate(maps: Values, effects: Values) -> tuple[Values, Values]:
    """Rank correlation and Pearson's, row by row."""
    by_rank, plain = ((standardized(way(maps)) * standardized(way(effects))).sum(-1) for way in (ranks, np.asarray))
    return by_rank, plain


def _shuffled(maps: Values, effects: Values, drawing: Drawing) -> tuple[float, float]:
    found = shuffled_correlations(standardized(ranks(maps)), standardized(ranks(effects)), drawing.orders(maps.shape[-1]))
    low, high = np.quantile(found, ENDS)
    return float(low), float(high)


def _interval(value: float, draws: Values, count: int) -> Interval:
    known = draws[~np.isnan(draws)]
    low, high = np.quantile(known, ENDS) if known.size and not np.isnan(value) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high), count)
