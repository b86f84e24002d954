"""Agreement of maps with effects, on numbers whose correlation is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from i2am.analyzer.intervention.agreement import Drawing, agree, agree_by_patch

pytestmark = pytest.mark.analyzer

DRAWING = Drawing(300, 0)


def test_a_map_that_is_the_effect_agrees_wholly_and_a_shuffled_one_as_chance_does() -> None:
    rng = np.random.default_rng(0)
    effects = rng.random((30, 40))
    same = agree_by_patch(effects, effects, DRAWING)
    assert (same.spearman.mean, same.spearman.low, same.spearman.high, same.pearson) == pytest.approx((1, 1, 1, 1))
    chance = agree_by_patch(effects[:, rng.permutation(40)], effects, DRAWING)
    assert abs(chance.spearman.mean) < 0.1 and chance.random[0] < chance.spearman.mean < chance.random[1]
    assert agree(effects[0], np.exp(effects[0]), DRAWING).spearman.mean == pytest.approx(1)


def test_numbers_are_those_of_scipy_patch_by_patch() -> None:
    rng = np.random.default_rng(1)
    maps = rng.random((9, 20))
    effects = maps + rng.random((9, 20))
    effects[3] = 0.5  # nothing changes there
    found = agree_by_patch(maps, effects, DRAWING)
    known = [i for i in range(9) if i != 3]
    by_rank = [spearmanr(maps[i], effects[i]).statistic for i in known]
    assert found.spearman.mean == pytest.approx(np.mean(by_rank)) and found.spearman.count == 8
    assert found.pearson == pytest.approx(np.mean([pearsonr(maps[i], effects[i])[0] for i in known]))
    assert min(by_rank) <= found.spearman.low <= found.spearman.mean <= found.spearman.high <= max(by_rank)
    strongest = {i: int(maps[i].argmax()) for i in known}
    own = np.mean([effects[i, strongest[i]] for i in known])
    others = np.mean([np.mean([effects[k, strongest[i]] for k in known if k != i]) for i in known])
    assert found.own_other == pytest.approx(own / others)


def test_intervals_hold_the_true_correlation_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    true = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of two normals with Pearson's 0.6
    held = 0
    for _ in range(100):
        x, noise = rng.standard_normal((2, 60))
        found = agree(x, 0.6 * x + 0.8 * noise, DRAWING).spearman
        held += found.low <= true <= found.high
    assert 88 <= held <= 100


def test_shuffled_cells_reach_what_chance_does() -> None:
    """Rank correlations of n independent numbers have a standard deviation of 1 / sqrt(n - 1)."""
    rng = np.random.default_rng(3)
    low, high = agree(*rng.random((2, 50)), Drawing(3000, 0)).random
    assert (low, high) == pytest.approx((-1.96 / 7, 1.96 / 7), abs=0.02)


def test_what_is_constant_has_no_correlation() -> None:
    found = agree_by_patch(np.ones((4, 10)), np.arange(40.0).reshape(4, 10), DRAWING)
    assert np.isnan(found.spearman.mean) and found.spearman.count == 0
    assert np.isnan(agree(np.ones(10), np.arange(10.0), DRAWING).spearman.low)
