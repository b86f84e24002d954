"""Where patches look: every patch at once is SRAM patch by patch, and what is made of it agrees with plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import attribution_trace

from i2am.analyzer import open_trace, sram
from i2am.analyzer.inspection.truth import find_truth, require_truth
from i2am.analyzer.maps.looks import looks
from i2am.analyzer.metrics.pointing import Truth, attention_variation, distances, pck, peaks, pointing_error
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

OPTIONS = (
    {},
    {"keep": ("layer", "head"), "branch": "uncond", "sample": 1},
    {"keep": ("time", "head"), "time_groups": 2, "heads": [0, 2]},
    {"steps": [1, 3], "layers": [0, 2]},
    {"recipe": "i2am-v1", "keep": "layer"},
)


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    made = attribution_trace(tmp_path_factory.mktemp(request.param) / "run.zarr", request.param)
    return open_trace(made.path)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_patch_at_once_is_sram_patch_by_patch(trace: Trace, options: dict[str, object]) -> None:
    every = looks(trace, **options).compute()
    for at in ((0, 0), (5, 4), (7, 5)):
        one = sram(trace, at, **options).compute()
        assert every.dims == (*one.dims[:-2], "y", "x", "ref_y", "ref_x")
        found = every.isel(y=at[0], x=at[1])
        np.testing.assert_allclose(found.values, one.values, rtol=2e-5, atol=1e-6 * float(np.nanmax(one.values)))
        for name in one.dims[:-2]:
            np.testing.assert_array_equal(found[name].values, one[name].values)


def test_absent_calls_are_left_out(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "run.zarr", absent={(0, 0), (1, 0), (2, 0), (3, 0), (1, 2)})
    trace = open_trace(made.path)
    every = looks(trace, keep="layer").compute()
    np.testing.assert_allclose(every.isel(y=3, x=2).values, sram(trace, (3, 2), keep="layer").compute().values, rtol=2e-5, equal_nan=True)
    assert np.isnan(every.values[0]).all()
    truth = Truth(np.full((8, 6, 2), 0.5))
    scores = pck(every, truth).values
    assert np.isnan(scores[0]) and np.isfinite(scores[1:]).all()
    assert np.isnan(pointing_error(every, truth).values[0])


def pointing_at(cells: np.ndarray, grid: tuple[int, int]) -> xr.DataArray:
    """Looks of patches that see one cell each. cells (y, x, 2)."""
    values = np.zeros((*cells.shape[:2], *grid))
    for y, x in np.ndindex(cells.shape[:2]):
        values[(y, x, *cells[y, x])] = 1
    return xr.DataArray(values, dims=("y", "x", "ref_y", "ref_x"))


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1))
@settings(max_examples=40, deadline=None)
def test_pck_counts_patches_near_their_place(seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    grid, height, width = (4, 5), 40, 50
    cells = np.stack([rng.integers(0, n, (3, 4)) for n in grid], axis=-1)
    position = rng.random((3, 4, 2))
    position[rng.random((3, 4)) < 0.3] = np.nan
    position[0, 0] = 0.5
    map = pointing_at(cells, grid).assign_attrs(image_shape=(height, width), window=(10.0, 0.0, 30.0, 50.0))
    far = []
    for y, x in np.ndindex(3, 4):
        if np.isfinite(position[y, x]).all():
            row = 10 + (cells[y, x, 0] + 0.5) / grid[0] * 20 - position[y, x, 0] * height
            column = (cells[y, x, 1] + 0.5) / grid[1] * 50 - position[y, x, 1] * width
            far.append((row**2 + column**2) ** 0.5 / 50)
    truth = Truth(position)
    np.testing.assert_allclose(np.sort(distances(map, truth)), np.sort(far))
    assert float(pck(map, truth, radius)) == pytest.approx(np.mean([f <= radius for f in far]))
    assert float(pointing_error(map, truth)) == pytest.approx(np.mean(far))


def test_attention_at_the_truth_is_correct_everywhere() -> None:
    cells = np.stack(np.meshgrid(range(4), range(5), indexing="ij"), axis=-1)
    truth = Truth((cells + 0.5) / (4, 5))
    map = pointing_at(cells, (4, 5))
    assert float(pck(map, truth, 1e-6)) == 1
    assert float(pointing_error(map, truth)) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(peaks(map).values, truth.position)
    assert float(pck(map[:, ::-1], truth, 0.1)) == pytest.approx(1 / 5)  # only the middle column looks where it comes from


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_variation_is_that_of_the_centres(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, mask = rng.random((2, 3, 4, 5, 2)), rng.random((3, 4)) > 0.3
    mask[0, :2] = mask[:2, 0] = True
    mask[2, 3] = False
    map = xr.DataArray(values, dims=("head", "y", "x", "ref_y", "ref_x"))
    for h in range(2):
        sums, counts = [0.0, 0.0], [0, 0]
        for (y, x), axis in ((at, axis) for at in np.ndindex(3, 4) for axis in (0, 1)):
            there = (y + 1, x) if axis == 0 else (y, x + 1)
            if there[0] < 3 and there[1] < 4 and mask[y, x] and mask[there]:
                sums[axis] += float(np.abs(centre(values[h][there]) - centre(values[h, y, x])).sum())
                counts[axis] += 1
        assert attention_variation(map, mask).values[h] == pytest.approx(sum(s / n for s, n in zip(sums, counts, strict=True)))


def centre(picture: np.ndarray) -> np.ndarray:
    rows, columns = ((np.arange(n) + 0.5) / n for n in picture.shape)
    return np.array([(picture.sum(1) * rows).sum(), (picture.sum(0) * columns).sum()]) / picture.sum()


def test_patches_that_look_at_one_place_do_not_vary() -> None:
    rng = np.random.default_rng(0)
    map = xr.DataArray(np.broadcast_to(rng.random((4, 5)), (3, 3, 4, 5)), dims=("y", "x", "ref_y", "ref_x"))
    assert float(attention_variation(map)) == pytest.approx(0, abs=1e-12)


def test_the_truth_comes_from_the_recording(tmp_path: Path) -> None:
    trace = open_trace(synthetic_trace(tmp_path / "run.zarr").path)
    assert find_truth(trace) is None
    with pytest.raises(InvalidInput, match="does not say where its patches truly come from"):
        require_truth(trace)
    position = np.full((8, 6, 2), 0.25).tolist()
    position[0][0] = [None, None]
    trace.record.provenance["facts"] = {"demo": {"position": position}}
    truth = require_truth(trace)
    assert truth.known.sum() == 47 and not truth.known[0, 0]
    trace.record.provenance["facts"] = {"demo": {"position": np.full((8, 6, 2), np.nan).tolist()}}
    with pytest.raises(InvalidInput, match="does not say"):
        require_truth(trace)


def test_a_traces_truth_and_one_that_is_given(tmp_path: Path) -> None:
    position = np.random.default_rng(0).random((8, 6, 2)).round(4)
    trace = open_trace(synthetic_trace(tmp_path / "run.zarr", provenance={"truth": position.tolist()}).path)
    np.testing.assert_array_equal(require_truth(trace).position, position)
    given = require_truth(trace, [[0.1, 0.9, 0.25, 0.5]])
    assert np.argwhere(given.known).tolist() == [[0, 5]] and given.position[0, 5].tolist() == [0.25, 0.5]
    sparse = np.full((80, 60, 2), np.nan)
    sparse[::10, ::10] = 0.5
    with pytest.raises(InvalidInput, match="knows half of no patch of the latent grid of 8 x 6"):
        require_truth(trace, sparse)
    for odd in ("abc", [[1]], {"a": 1}, 3):
        trace.record.provenance["truth"] = odd
        assert find_truth(trace) is None


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    map, truth = pointing_at(np.zeros((2, 2, 2), int), (3, 3)), Truth(np.full((2, 2, 2), 0.5))
    with pytest.raises(InvalidInput, match="radius is 0"):
        pck(map, truth, 0)
    with pytest.raises(InvalidInput, match="expected known places of 2 x 2"):
        pck(map, Truth(np.full((3, 2, 2), 0.5)))
    mask = np.zeros((2, 2), bool)
    mask[0, 0] = True
    with pytest.raises(InvalidInput, match="no two neighbouring patches"):
        attention_variation(map, mask)
    text = synthetic_trace(tmp_path / "text.zarr", layers=[reference_layer(text=4, reference=None)])
    with pytest.raises(InvalidInput, match="text tokens have no place"):
        looks(open_trace(text.path), group="text")
