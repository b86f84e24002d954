"""The golden trace is read for ever, with the same answers; and plain xarray reads it without our code."""

import json

import numpy as np
import pytest
import xarray as xr
from golden import BRIGHT_PATCH, BRIGHT_TOKEN, EXPECTED, GOLDEN, GRIDS, REFERENCE

from i2am.analyzer import g2r, open_trace, r2g, sram
from i2am.analyzer.inspection.verify import verify

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in json.loads(EXPECTED.read_text()).items()}


def test_the_answers_are_the_old_ones(expected: dict[str, np.ndarray]) -> None:
    trace = open_trace(GOLDEN)
    for layer in range(len(GRIDS)):
        for name, answer in {"g2r": g2r(trace, layers=layer), "sram": sram(trace, at=BRIGHT_PATCH, layers=layer)}.items():
            want = expected[f"{name} {layer}"]
            np.testing.assert_allclose(answer.to_numpy(), want, atol=1e-3 * want.max())
    np.testing.assert_allclose(r2g(trace, layers=0).to_numpy(), expected["r2g 0"], atol=1e-3 * expected["r2g 0"].max())


def test_nothing_is_flipped(expected: dict[str, np.ndarray]) -> None:
    trace = open_trace(GOLDEN)
    for layer in range(len(GRIDS)):
        for answer, corner in ((r2g(trace, layers=layer), BRIGHT_PATCH), (sram(trace, at=BRIGHT_PATCH, layers=layer), BRIGHT_TOKEN)):
            assert np.unravel_index(answer.to_numpy().argmax(), answer.shape) == corner


def test_absent_is_not_zero() -> None:
    trace = open_trace(GOLDEN)
    assert trace.present.tolist() == [[True, True], [True, True], [True, False]]
    last = trace.probabilities(1).isel(step=2).compute()
    assert np.isnan(last).all()


def test_plain_xarray_reads_it_without_our_code() -> None:
    layer = xr.open_zarr(GOLDEN, group="layers/000")
    assert layer.probability.dims == ("sample", "branch", "step", "head", "y", "x", "token")
    assert layer.probability.shape == (1, 2, 3, 2, *GRIDS[0], 1 + REFERENCE[0] * REFERENCE[1])
    assert set(layer.coords) == {"step", "timestep", "branch", "y", "x"}
    assert layer.step.to_numpy().tolist() == [0, 2, 4]
    assert layer.timestep.to_numpy().tolist() == [900, 600, 300]
    # The scale factor is a JSON number, which xarray takes as a double; the values are float32 exactly.
    decoded = layer.probability.astype(np.float32)
    np.testing.assert_array_equal(decoded, layer.probability)
    np.testing.assert_allclose(decoded.sum("token"), 1, atol=1e-3)
    np.testing.assert_array_equal(decoded.compute(), open_trace(GOLDEN).probabilities(0).compute())


def test_verify_knows_what_the_first_release_wrote() -> None:
    assert verify(GOLDEN).ok
