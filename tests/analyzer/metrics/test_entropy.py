"""How spread out attention is: laws, an oracle in float64, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import attribution_trace, softmaxes

from i2am.analyzer import open_trace
from i2am.analyzer.maps.looks import row_entropy
from i2am.analyzer.metrics.entropy import concentration, entropy
from i2am.schema.errors import InvalidInput
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

maps = arrays(np.float64, st.tuples(st.integers(2, 8), st.integers(2, 8)), elements=st.integers(0, 100).map(float))


@given(maps)
@settings(max_examples=60, deadline=None)
def test_entropy_and_concentration_are_those_of_a_distribution(values: np.ndarray) -> None:
    shares = values.ravel() / values.sum() if values.any() else np.full(values.size, 1 / values.size)
    expected = -sum(float(s) * np.log(float(s)) for s in shares if s) / np.log(values.size)
    assert float(entropy(values)) == pytest.approx(expected, abs=1e-12)
    count = max(1, round(0.25 * values.size))
    assert float(concentration(values, 0.25)) == pytest.approx(sum(sorted(shares)[-count:]))


@given(maps, st.floats(0.5, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_gain_and_order_change_nothing(values: np.ndarray, gain: float, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(values.ravel()).reshape(values.shape) * gain
    assert float(entropy(shuffled)) == pytest.approx(float(entropy(values)))
    assert float(concentration(shuffled)) == pytest.approx(float(concentration(values)))


def test_the_extremes() -> None:
    one = np.zeros((5, 4))
    one[2, 3] = 7
    assert (float(entropy(one)), float(concentration(one))) == (0, 1)
    assert float(entropy(np.ones((5, 4)))) == pytest.approx(1)
    assert float(concentration(np.ones((5, 4)), 0.5)) == pytest.approx(0.5)
    assert float(entropy(np.zeros((5, 4)))) == pytest.approx(1)


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
@pytest.mark.parametrize("specials", [False, True])
def test_row_entropy_is_that_of_the_rows(tmp_path: Path, encoding: str, specials: bool) -> None:
    made = attribution_trace(tmp_path / "run.zarr", encoding)
    found = row_entropy(open_trace(made.path), keep=("time", "layer", "head"), sample=1, branch="uncond", specials=specials).compute()
    assert found.dims == ("time", "layer", "head")
    for layer in range(3):
        group = next(g for g in made.trace.layers[layer].groups if g.name == "reference")
        rows = softmaxes(made, layer)[0][1, 1, ..., group.start + (0 if specials else group.specials) : group.stop]
        rows = rows / rows.sum(-1, keepdims=True)
        expected = (-(rows * np.log(np.where(rows, rows, 1))).sum(-1) / np.log(rows.shape[-1])).mean((2, 3))
        np.testing.assert_allclose(found.values[:, layer, : expected.shape[1]], expected, rtol=1e-5)
        assert np.isnan(found.values[:, layer, expected.shape[1] :]).all()


def test_row_entropy_averages_what_is_not_kept_and_leaves_out_what_is_absent(tmp_path: Path) -> None:
    trace = open_trace(synthetic_trace(tmp_path / "run.zarr", layers=[reference_layer()], absent={(1, 0)}).path)
    every = row_entropy(trace, keep=("time", "head")).compute()
    assert np.isnan(every.values[1]).all()
    assert float(row_entropy(trace).compute()) == pytest.approx(float(np.nanmean(every.values)))
    halves = row_entropy(trace, keep="time", time_groups=2).compute()
    np.testing.assert_allclose(halves.values, [np.nanmean(every.values[:2]), np.nanmean(every.values[2:])])


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    for bad, reason in (
        (np.array([[1.0, -1.0]]), "no distribution"),
        (np.array([[1.0, np.nan]]), "no distribution"),
        (np.ones(3), "shape"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            entropy(bad)
    with pytest.raises(InvalidInput, match="share of cells is 0"):
        concentration(np.ones((2, 2)), 0)
    trace = open_trace(synthetic_trace(tmp_path / "run.zarr", layers=[reference_layer(reference=(1, 1))]).path)
    with pytest.raises(InvalidInput, match="has 1 tokens of reference"):
        row_entropy(trace)
    with pytest.raises(InvalidInput, match="cannot keep 'token'"):
        row_entropy(trace, keep="token")
