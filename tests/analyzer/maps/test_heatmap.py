"""The picture of each method: masked, scaled, brought to the image's size, scaled, inverted and cut as its row says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from methods import method_trace, resample

from i2am.analyzer import g2r, get_recipe, open_trace, r2g
from i2am.analyzer.cli.main import run
from i2am.analyzer.maps.heatmap import heatmap
from i2am.analyzer.methods.recipes import RECIPES
from i2am.analyzer.metrics.placement import place
from i2am.schema.errors import InvalidInput
from traces import Synthetic

pytestmark = pytest.mark.analyzer

IMAGE, REFERENCE = (32, 24), (12, 20)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return method_trace(tmp_path_factory.mktemp("pictures") / "run.zarr", "factors", absent=())


def minmax(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min() + 1e-8)


def expected(name: str, m: np.ndarray) -> np.ndarray:
    """The picture of R2G, as each method's code makes it."""
    if name in ("i2am-official", "i2am-official-pbe"):
        m = minmax(resample(minmax(m), IMAGE, "bicubic"))
        m = np.where(m >= 0.6, 1.0, m)  # the paper thresholds at 0.4, the code cuts the complement
        return 1 - m
    if name == "i2am-custom":
        m = 1 - minmax(resample(minmax(m), IMAGE, "bicubic"))
        return 1 - np.where(m >= 0.6, 1.0, m)
    if name in ("i2am", "i2am-v1"):
        m = minmax(resample(m, IMAGE, "bicubic"))
        return m * (m > 0.4)
    if name in ("daam", "hrv-selective"):
        return minmax(resample(m, IMAGE, "bicubic"))
    if name == "attention-map-diffusers":
        return resample(m, IMAGE, "bilinear")
    if name == "ovam":
        return minmax(resample(m, IMAGE, "bilinear"))
    return resample(m / (m.max() + 1e-8), IMAGE, "bicubic")  # prompt-to-prompt


@pytest.mark.parametrize("name", RECIPES)
def test_a_picture_of_r2g_is_the_method_s(made: Synthetic, name: str) -> None:
    map = r2g(open_trace(made.path), recipe=name, heads=0 if RECIPES[name].choose_heads else None)
    found = heatmap(map)
    assert found.shape == IMAGE
    assert found.attrs["recipe"] == name
    np.testing.assert_allclose(found, expected(name, map.values), rtol=1e-6, atol=1e-9)


def test_the_released_code_masks_the_reference_first(made: Synthetic) -> None:
    trace = open_trace(made.path)
    map, mask = g2r(trace, recipe="i2am-official"), trace.masks()["reference_mask"]
    m = map.values * resample(mask / 255, map.shape, "bicubic")  # type: ignore[arg-type]
    m = minmax(resample(minmax(m), REFERENCE, "bicubic"))
    np.testing.assert_allclose(heatmap(map, mask=mask), m * (m > 0.4), rtol=1e-6, atol=1e-9)
    plain = minmax(resample(minmax(map.values), REFERENCE, "bicubic"))
    np.testing.assert_allclose(heatmap(map), plain * (plain > 0.4), rtol=1e-6, atol=1e-9)
    custom = g2r(trace, recipe="i2am-custom")
    np.testing.assert_array_equal(heatmap(custom, mask=mask), heatmap(custom))
    np.testing.assert_allclose(
        heatmap(custom, recipe=get_recipe("i2am-custom", pre_mask=True), mask=mask[..., None] > 0).max(), 1, atol=1e-6
    )


def test_each_map_of_a_kept_axis_is_scaled_by_itself(made: Synthetic) -> None:
    trace = open_trace(made.path)
    kept = r2g(trace, keep="layer", recipe="daam")
    found = heatmap(kept, (20, 20))
    assert found.shape == (len(kept), 20, 20)
    for i in range(len(kept)):
        np.testing.assert_allclose(found[i], heatmap(kept[i], (20, 20)), rtol=1e-9)


def test_a_changed_row_travels_with_its_map(made: Synthetic) -> None:
    map = r2g(open_trace(made.path), recipe=get_recipe("daam", threshold=0.5, upsample="nearest"))
    found = heatmap(map)
    scaled = minmax(resample(map.values, IMAGE, "nearest"))
    np.testing.assert_allclose(found, np.where(scaled > 0.5, scaled, 0), rtol=1e-6)


def test_what_has_no_picture_is_said(made: Synthetic, tmp_path: Path) -> None:
    trace = open_trace(made.path)
    with pytest.raises(InvalidInput, match="say which size its picture shall have"):
        heatmap(r2g(trace).assign_attrs(image_shape=None))
    with pytest.raises(InvalidInput, match=r"the reference's mask has shape \(3,\)"):
        heatmap(g2r(trace, recipe="i2am-official"), mask=np.ones(3))
    with pytest.raises(InvalidInput, match="no rows and columns"):
        heatmap(xr.DataArray(np.ones(3), dims="token"), (4, 4))
    with pytest.raises(InvalidInput, match="there is no recipe 'mine'"):
        heatmap(r2g(trace).assign_attrs(recipe="mine"))


def test_a_picture_covers_what_its_map_covers(made: Synthetic) -> None:
    """A processor may have cropped the image before it cut it into tokens: the picture is of the crop, and so is the mask."""
    trace = open_trace(made.path)
    map = g2r(trace, recipe="i2am-official").assign_attrs(window=(2, 0, 12, 15))
    mask = np.zeros(REFERENCE)
    mask[4:, :9] = 1
    found = heatmap(map, mask=mask)
    assert found.shape == (10, 15)
    seen = minmax(resample(minmax(map.values * resample(mask[2:, :15], map.shape, "bicubic")), (10, 15), "bicubic"))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, seen * (seen > 0.4), rtol=1e-6, atol=1e-9)
    laid = place(found, REFERENCE)
    np.testing.assert_allclose(laid[2:, :15], found, atol=1e-6)
    assert not laid[:2].any()
    assert not laid[:, 15:].any()


@pytest.mark.parametrize("direction", ["--r2g", "--g2r"])
def test_the_command_gives_it(made: Synthetic, tmp_path: Path, direction: str, capsys: pytest.CaptureFixture[str]) -> None:
    trace, out = open_trace(made.path), tmp_path / "picture.npy"
    assert run(["map", str(made.path), direction, "--recipe", "i2am-official", "--as-published", "-o", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    map = (g2r if direction == "--g2r" else r2g)(trace, recipe="i2am-official")
    mask = trace.masks()["reference_mask"]
    np.testing.assert_allclose(np.load(out), heatmap(map, mask=mask), rtol=1e-9)
    assert facts["pre_mask"] == ("reference_mask" if direction == "--g2r" else None)
    assert run(["map", str(made.path), direction, "--recipe", "daam(g2r=keys)", "--as-published", "-o", str(tmp_path / "p.png")]) == 0
