"""The expected place of where each patch looks, its spread, and the reference warped by it, against plain loops in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted import GRID, planted_trace

from i2am.analyzer import attention_variation, flow, looks, open_trace, warp_reference
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput, UnknownSelection
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LATENT, KEYS, SIZE = (8, 6), (3, 5), (30, 50)
WINDOW = (6.0, 0.0, 24.0, 40.0)


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, Trace]:
    layers = [reference_layer("a", LATENT, reference=KEYS), reference_layer("b", (4, 3), heads=3, reference=KEYS)]
    path = tmp_path_factory.mktemp("flow") / "run.zarr"
    found = synthetic_trace(path, layers=layers, steps=2, encoding=request.param, window=WINDOW)
    return found, open_trace(found.path)


def expected(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the places of a row (ref_y, ref_x), in shares of the picture of which the tokens cover a window."""
    weights, places = [], []
    for y, x in np.ndindex(KEYS):
        top, left, bottom, right = WINDOW
        weights.append(row[y, x])
        down = (top + (y + 0.5) * (bottom - top) / KEYS[0]) / SIZE[0]
        places.append((down, (left + (x + 0.5) * (right - left) / KEYS[1]) / SIZE[1]))
    share, where = np.array(weights) / sum(weights), np.array(places)
    mean = sum(s * p for s, p in zip(share, where, strict=True))
    return mean, np.sqrt(sum(s * (p - mean) ** 2 for s, p in zip(share, where, strict=True)))


def test_flow_is_the_mean_place_and_spread_its_deviation(made: tuple[Synthetic, Trace]) -> None:
    found, trace = made
    each, mean = flow(trace, keep=("layer", "head")), flow(trace, steps=[1])
    assert each["flow"].dims == ("layer", "head", "y", "x", "axis") and hasattr(each["flow"].data, "dask")
    assert mean["axis"].values.tolist() == ["ref_y", "ref_x"]
    for at in ((0, 0), (3, 4), (7, 5)):
        rows = []
        for layer, heads in ((0, 2), (1, 3)):
            y, x = (i * m // n for i, n, m in zip(at, LATENT, found.trace.layers[layer].grid, strict=True))
            for head in range(heads):
                calls = found.probabilities[layer][0, 0, :, head, y, x, 1:].reshape(-1, *KEYS)
                rows.append(calls[1])
                for name, value in zip(("flow", "spread"), expected(calls.sum(0)), strict=True):
                    np.testing.assert_allclose(each[name].values[(layer, head, *at)], value, rtol=1e-3)
        for name, value in zip(("flow", "spread"), expected(np.mean(rows, 0)), strict=True):
            np.testing.assert_allclose(mean[name].values[at], value, rtol=1e-3)
    assert np.isnan(each["flow"].values[0, 2]).all() and np.isnan(each["spread"].values[0, 2]).all()


def exactly(scores: np.ndarray) -> None:
    """Each patch looks at the place that lies across the middle from its own, and at nothing else."""
    scores[:] = -60
    for y, x in np.ndindex(GRID):
        scores[:, :, y, x, 1 + (GRID[0] - 1 - y) * GRID[1] + GRID[1] - 1 - x] = 0


def evenly(scores: np.ndarray) -> None:
    scores[:] = 0


def centres() -> np.ndarray:
    return np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in GRID), indexing="ij"), -1)


def test_exact_pointing_gives_the_planted_places(tmp_path: Path) -> None:
    trace = open_trace(planted_trace(tmp_path / "run.zarr", exactly))
    found = flow(trace).compute()
    np.testing.assert_allclose(found["flow"], 1 - centres(), atol=1e-6)
    assert float(found["spread"].max()) < 1e-3
    turned = warp_reference(trace, found)
    inner = slice(4, -4)  # half a patch from the edge places no longer change
    np.testing.assert_allclose(turned[inner, inner], trace.image("reference")[::-1, ::-1][inner, inner], atol=1)
    np.testing.assert_array_equal(warp_reference(trace, found, fade=True)[inner, inner], turned[inner, inner])


def test_even_attention_gives_the_middle_and_the_spread_of_a_uniform(tmp_path: Path) -> None:
    trace = open_trace(planted_trace(tmp_path / "run.zarr", evenly))
    found = flow(trace).compute()
    np.testing.assert_allclose(found["flow"], 0.5, atol=1e-6)
    for axis, count in zip(("ref_y", "ref_x"), GRID, strict=True):
        np.testing.assert_allclose(found["spread"].sel(axis=axis), np.sqrt((1 - count**-2) / 12), atol=1e-6)
    assert (warp_reference(trace, found, fade=True) > 250).all()


def test_pixels_are_bilinear_between_patches_and_between_pixels(made: tuple[Synthetic, Trace]) -> None:
    _, trace = made
    found, pixels = flow(trace).compute(), trace.image("reference").astype(np.float64)
    values, (height, width) = found["flow"].values, trace.image("generated_0").shape[:2]
    warped = warp_reference(trace, found)
    assert warped.shape == (height, width, 3) and warped.dtype == np.uint8
    for y, x in ((0, 0), (31, 17), (63, 47), (5, 40)):
        place = bilinear(values, (y + 0.5) / height * LATENT[0] - 0.5, (x + 0.5) / width * LATENT[1] - 0.5)
        np.testing.assert_allclose(warped[y, x], bilinear(pixels, *(place * SIZE - 0.5)), atol=0.51)


def bilinear(values: np.ndarray, y: float, x: float) -> np.ndarray:
    y, x = (min(max(place, 0), n - 1) for place, n in zip((y, x), values.shape, strict=False))
    (top, left), total = (int(y), int(x)), np.zeros(values.shape[-1])
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
        total += weight * values[min(row, values.shape[0] - 1), min(column, values.shape[1] - 1)]
    return total


def test_attention_variation_is_that_of_the_flow(made: tuple[Synthetic, Trace]) -> None:
    _, trace = made
    centre = flow(trace)["flow"].values
    varies = sum(np.abs(np.diff(centre, axis=axis)).sum(-1).mean() for axis in (0, 1))
    assert float(attention_variation(looks(trace))) == pytest.approx(varies)


def test_bad_input(made: tuple[Synthetic, Trace], tmp_path: Path) -> None:
    _, trace = made
    with pytest.raises(InvalidInput, match=r"flow of each layer was given.*leave out keep="):
        warp_reference(trace, flow(trace, keep="layer"))
    with pytest.raises(UnknownSelection):
        flow(trace, layers="nowhere")
    absent = open_trace(synthetic_trace(tmp_path / "a.zarr", absent={(0, 0), (0, 1), (0, 2)}).path)
    with pytest.raises(InvalidInput, match="the flow holds NaN"):
        warp_reference(absent, flow(absent, steps=0))
    cut = open_trace(synthetic_trace(tmp_path / "cut.zarr", status="interrupted").path, partial=True)
    with pytest.raises(InvalidInput, match="holds no picture of the reference"):
        warp_reference(cut, flow(cut))
