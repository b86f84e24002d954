"""Rank correlation equals scipy's, ties and drawn samples included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from i2am.analyzer.numerics.ranks import drawn_correlations, ranks, shuffled_correlations, standardized

pytestmark = pytest.mark.analyzer


def test_ranks_are_scipys_with_ties_along_any_number_of_rows() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 6, (3, 4, 20)), rng.random((5, 9)), np.zeros((2, 4)), rng.random(1)):
        np.testing.assert_array_equal(ranks(values), rankdata(values, axis=-1))


def test_products_of_standardized_rows_are_correlations_and_constants_have_none() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 6, 30))
    found = (standardized(a) * standardized(b)).sum(-1)
    np.testing.assert_allclose(found, [np.corrcoef(*pair)[0, 1] for pair in zip(a, b, strict=True)], atol=1e-12)
    assert np.isnan(standardized(np.full((2, 7), 0.1))).all()


def test_drawn_samples_are_correlated_as_if_their_pairs_were_written_out() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 7, 25).astype(float), rng.random(25)
    counts = rng.multinomial(25, np.full(25, 1 / 25), 40)
    written = [spearmanr(np.repeat(a, drawn), np.repeat(b, drawn)).statistic for drawn in counts]
    np.testing.assert_allclose(drawn_correlations(a, b, counts), written, atol=1e-12)
    assert np.isnan(drawn_correlations(a, b, np.eye(25)[:2])).all()


def test_shuffled_rows_are_correlated_as_if_each_was_put_into_that_order() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 5, 12))
    orders = rng.permuted(np.tile(np.arange(12), (30, 1)), axis=1)
    one, two = standardized(ranks(a)), standardized(ranks(b))
    slow = [np.mean([spearmanr(x[order], y).statistic for x, y in zip(a, b, strict=True)]) for order in orders]
    np.testing.assert_allclose(shuffled_correlations(one, two, orders), slow, atol=1e-12)
