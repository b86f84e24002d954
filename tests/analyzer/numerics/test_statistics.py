"""The bootstrap: its laws, and an oracle that draws one resample after another in float64. Correlations by their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from i2am.analyzer.numerics import statistics
from i2am.analyzer.numerics.statistics import RunningMean, bootstrap_mean, correlation, correlations

pytestmark = pytest.mark.analyzer

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40)


@given(VALUES)
@settings(max_examples=30, deadline=None)
def test_an_interval_holds_its_mean_and_lies_within_the_values(values: list[float]) -> None:
    found = bootstrap_mean(values, resamples=500)
    slack = 1e-9 * max(map(abs, values), default=1)
    assert found.mean == pytest.approx(np.mean(values))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack


@given(VALUES, st.floats(-10, 10), st.floats(0.5, 4))
@settings(max_examples=30, deadline=None)
def test_it_moves_and_stretches_as_the_values_do(values: list[float], shift: float, factor: float) -> None:
    here = bootstrap_mean(values, resamples=200)
    there = bootstrap_mean(np.asarray(values) * factor + shift, resamples=200)
    np.testing.assert_allclose([there.low, there.high], [here.low * factor + shift, here.high * factor + shift], atol=1e-8)


def drawn_one_by_one(values: np.ndarray, seed: int, level: float, resamples: int) -> np.ndarray:
    """Ends of the percentile interval: each resample takes as many values as there are, any of them any number of times."""
    rng = np.random.default_rng(seed)
    means = sorted(float(values[rng.integers(0, len(values), len(values))].mean()) for _ in range(resamples))
    return np.interp([(1 - level) / 2 * (resamples - 1), (1 + level) / 2 * (resamples - 1)], np.arange(resamples), means)


@pytest.mark.parametrize(("level", "resamples"), [(0.95, 9_999), (0.5, 9_999), (0.9, 40)])
def test_it_is_that_of_resamples_drawn_one_by_one(level: float, resamples: int) -> None:
    values = np.random.default_rng(3).gamma(2.0, size=60)
    found = bootstrap_mean(values, seed=1, level=level, resamples=resamples)
    np.testing.assert_allclose([found.low, found.high], drawn_one_by_one(values, 1, level, resamples), rtol=1e-12)


def test_other_draws_tell_of_the_same_interval() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=60)
    low, high = drawn_one_by_one(values, 1, statistics.LEVEL, statistics.RESAMPLES)
    found = bootstrap_mean(values)
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=0.05 * (high - low))


def test_the_seed_decides_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(20)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_more_traces_narrow_it() -> None:
    values = np.random.default_rng(0).random(400)
    few, many = bootstrap_mean(values[:40]), bootstrap_mean(values)
    assert (many.high - many.low) < 0.5 * (few.high - few.low)


def test_batches_cover_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(10.0)
    monkeypatch.setattr(statistics, "BATCH_BYTES", 10 * 8 * 7)
    found = bootstrap_mean(values, resamples=100)
    assert 0 <= found.low < found.mean < found.high <= 9


def test_too_few_values_have_no_interval() -> None:
    one, none = bootstrap_mean([2.0, np.nan]), bootstrap_mean([])
    assert (one.mean, one.count, none.count) == (2.0, 1, 0)
    assert np.isnan([one.low, one.high, none.mean, none.low]).all()


def test_values_that_are_all_alike_have_an_interval_of_no_width() -> None:
    found = bootstrap_mean([0.25] * 9)
    assert (found.low, found.mean, found.high) == (0.25, 0.25, 0.25)


@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_correlations_are_those_of_their_definition(count: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(3, count))
    centred = rows - rows.mean(1, keepdims=True)
    expected = [[(a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()) for b in centred] for a in centred]
    np.testing.assert_allclose(correlations(rows), expected, atol=1e-12)
    assert correlation(rows[0].reshape(1, -1), rows[1].reshape(1, -1)) == pytest.approx(expected[0][1], abs=1e-12)


def test_what_does_not_vary_correlates_with_nothing() -> None:
    rows = np.array([[1.0, 2.0, 4.0], [3.0, 3.0, 3.0], [1.0, np.nan, 0.0], [2.0, 4.0, 8.0]])
    found = correlations(rows)
    assert np.isnan(found[1]).all() and np.isnan(found[2]).all() and np.isnan(found[:, 1:3]).all()
    assert found[0, 3] == pytest.approx(1)
    assert np.isnan(correlations(np.ones((2, 1)))).all()


@given(st.lists(st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(np.nan)), min_size=3, max_size=3), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_a_running_mean_is_that_of_all_at_once(rows: list[list[float]]) -> None:
    running, values = RunningMean((3,)), np.array(rows)
    for row in values:
        running.add(row)
    for cell, (mean, low, high) in enumerate(zip(*running.interval(), strict=True)):
        there = values[~np.isnan(values[:, cell]), cell]
        assert running.count[cell] == len(there)
        assert mean == pytest.approx(there.mean() if len(there) else np.nan, abs=1e-9, nan_ok=True)
        if len(there) < 2:
            assert np.isnan(low) and np.isnan(high)
            continue
        half = stats.t.ppf(0.975, len(there) - 1) * there.std(ddof=1) / len(there) ** 0.5
        np.testing.assert_allclose([low, high], [there.mean() - half, there.mean() + half], rtol=1e-9, atol=1e-8)


def test_small_differences_of_large_values_are_kept() -> None:
    running = RunningMean(())
    for value in (1e9 + 1, 1e9 + 2, 1e9 + 3):
        running.add(np.array(value))
    mean, low, high = running.interval()
    half = stats.t.ppf(0.975, 2) / 3**0.5
    np.testing.assert_allclose([mean - 1e9, low - 1e9, high - 1e9], [2, 2 - half, 2 + half], rtol=1e-6)
