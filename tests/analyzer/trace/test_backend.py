"""The xarray backend: its groups are what the trace answers, read late, checked, and found by xarray."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repository import ROOT
from xarray.backends import plugins
from zips import zip_trace

from i2am.analyzer import open_trace
from i2am.analyzer.store.chunks import Blocks
from i2am.analyzer.trace.backend import TraceBackend
from i2am.schema.errors import CorruptTrace, IncompleteTrace, InvalidInput, NotATrace, UnknownSelection
from traces import Synthetic, default_layers, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LAYERS = (*default_layers()[:2], reference_layer("b.attn2", (3, 2), heads=3, hidden=5, text=2))


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    path = tmp_path_factory.mktemp("backend") / "run.zarr"
    layers, branches = LAYERS, ("cond", "uncond")
    return synthetic_trace(path, layers=layers, encoding=request.param, steps=3, samples=2, branches=branches, absent={(1, 0)})


def opened(made: Synthetic, group: str | None = None, **options: Any) -> xr.Dataset:
    return xr.open_dataset(made.path, engine=TraceBackend, group=group, **options)


def test_xarray_finds_it_by_the_name_in_pyproject() -> None:
    announced = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["xarray.backends"]
    entries = EntryPoints(EntryPoint(name, value, "xarray.backends") for name, value in announced.items())
    assert list(announced) == ["i2am"]
    assert type(plugins.build_engines(entries)["i2am"]) is TraceBackend


@pytest.mark.torch
def test_what_every_session_of_xarray_loads_is_light() -> None:
    code = "import sys, xarray; before = set(sys.modules); import i2am.analyzer.trace.backend; print(*set(sys.modules) - before)"
    shown = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.partition(".")[0] for name in shown} & {"dask", "zarr", "numcodecs", "PIL", "scipy", "tqdm", "torch"}
    assert not [name for name in shown if name.startswith("i2am.analyzer.store")]


def test_attention_equals_the_oracle_and_is_labelled(made: Synthetic) -> None:
    trace, tree = open_trace(made.path), xr.open_datatree(made.path, engine=TraceBackend, chunks={})
    for index, truth in enumerate(made.probabilities):
        found = tree[f"layers/{index:03d}"]["probability"]
        assert found.dtype == np.float32 and found.chunks is not None
        np.testing.assert_array_equal(np.isnan(found.values), np.isnan(truth))
        np.testing.assert_allclose(found.values, truth, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(found.values, trace.probabilities(index).values)
        assert found.sel(branch="uncond", step=2).sel(y=0, method="nearest").dims == ("sample", "head", "x", "token")
    assert found.timestep.values.tolist() == [1000.0, 990.0, 980.0]
    assert found.group.values.tolist() == ["text"] * 2 + ["reference"] * 16
    assert found.sel(group="text").sizes["token"] == 2
    np.testing.assert_array_equal(found.sel(group="reference").values, found.values[..., 2:])
    layer = tree["layers/002"]
    assert layer.attrs["layer"] == "b.attn2" and layer.attrs["grid"] == [3, 2] and layer.attrs["call_tokens"] == 23
    assert [group["name"] for group in json.loads(layer.attrs["groups"])] == ["text", "reference"]


def test_the_root_says_what_the_record_says(made: Synthetic) -> None:
    root = opened(made)
    np.testing.assert_array_equal(root["present"], open_trace(made.path).present)
    assert root["sigma"].values.tolist() == pytest.approx([14, 7, 14 / 3]) and root["scheduler_step"].values.tolist() == [0, 1, 2]
    assert root["layer_name"].values.tolist() == [layer.name for layer in LAYERS]
    assert root.attrs["id"] == made.trace.id and root.attrs["latent_grid"] == [8, 6] and root.attrs["status"] == "complete"
    assert json.loads(root.attrs["model"]) == {"pipeline": "synthetic"} and json.loads(root.attrs["inputs"]) == {"seed": 0}
    assert all(isinstance(value, (str, int, float, list)) for value in root.attrs.values())


def test_pictures_are_those_of_the_trace(made: Synthetic) -> None:
    images = opened(made, "images")
    for name, pixels in made.images.items():
        np.testing.assert_array_equal(images[name].values, pixels)
        np.testing.assert_array_equal(opened(made, "/images/")[name][1, 2:7, [0]].values, pixels[1, 2:7, :1])
    assert images["reference"].attrs == {"role": "reference"} and images["mask"].dims == ("mask_y", "mask_x", "grey")


def test_the_tree_of_a_trace_is_the_one_that_xarray_opens(made: Synthetic) -> None:
    tree = open_trace(made.path).to_datatree()
    xr.testing.assert_identical(tree, xr.open_datatree(made.path, engine=TraceBackend))
    xr.testing.assert_identical(tree, xr.open_datatree(made.path, engine=TraceBackend, chunks={}))
    for path, group in xr.open_groups(made.path, engine=TraceBackend).items():
        xr.testing.assert_identical(group, tree[path].to_dataset(inherit=True) if path == "/" else opened(made, path))
    assert tree["layers/001/probability"].chunks == open_trace(made.path).probabilities(1).chunks


def test_nothing_is_read_before_it_is_needed(made: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blocks, "part", lambda *_: pytest.fail("attention was read"))
    monkeypatch.setattr("i2am.analyzer.trace.reader.Trace.image", lambda *_: pytest.fail("a picture was read"))
    trees = [xr.open_datatree(made.path, engine=TraceBackend, chunks=chunks) for chunks in ({}, None)]
    for tree in (*trees, open_trace(made.path).to_datatree()):
        repr(tree), tree._repr_html_(), tree["layers/000/probability"].isel(step=0).mean("head") if tree is not trees[1] else None


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_slicing_before_reading_equals_slicing_after(made: Synthetic, data: st.DataObject) -> None:
    index, chunks = data.draw(st.integers(0, 2)), data.draw(st.sampled_from([None, {}, {"step": 2}]))
    found = opened(made, f"layers/{index:03d}", chunks=chunks)["probability"]
    picked: dict[str, Any] = {}
    for dim, n in found.sizes.items():
        lists = st.lists(st.integers(0, n - 1), min_size=1, max_size=3)
        if data.draw(st.booleans()):
            # Of a lazy array xarray 2025.11 cannot take an empty slice backwards, whatever the backend.
            slices = st.slices(n).filter(lambda each, n=n: len(range(*each.indices(n))) > 0)
            picked[dim] = data.draw(st.one_of(slices, st.integers(-n, n - 1), lists))
    if data.draw(st.booleans()):  # point by point
        picked |= {dim: xr.DataArray([0, 1, 0], dims="point") for dim in ("step", "token")}
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(found.isel(picked).values, open_trace(made.path).probabilities(index).compute().isel(picked).values)


def test_what_a_group_is_not(made: Synthetic) -> None:
    with pytest.raises(UnknownSelection, match=r"no group 'layers/7'; it has /, /images, /layers/000, /layers/001"):
        opened(made, "layers/7")
    with pytest.raises(NotATrace):
        xr.open_datatree(made.path.parent / "none.zarr", engine=TraceBackend)
    with pytest.raises(InvalidInput, match="opened by its path, got BytesIO"):
        xr.open_dataset(io.BytesIO(), engine=TraceBackend)
    assert "present" not in opened(made, drop_variables="present") and "timestep" in opened(made, drop_variables=["present", "x"])


def test_unfinished_traces_are_opened_when_asked_for(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "cut.zarr", steps=2, planned=7, status="interrupted")
    with pytest.raises(IncompleteTrace, match="partial=True"):
        xr.open_datatree(made.path, engine=TraceBackend)
    tree = xr.open_datatree(made.path, engine=TraceBackend, partial=True, chunks={})
    assert tree.sizes["step"] == 2 and tree.attrs["status"] == "interrupted"
    np.testing.assert_allclose(tree["layers/000/probability"].values, made.probabilities[0], rtol=1e-3, atol=1e-5)
    none = synthetic_trace(tmp_path / "none.zarr", steps=0, planned=7, status="interrupted")
    assert xr.open_dataset(none.path, engine=TraceBackend, group="layers/000", partial=True, chunks={})["probability"].values.size == 0


def test_a_trace_in_a_zip_file_is_the_same_tree(made: Synthetic, tmp_path: Path) -> None:
    packed = zip_trace(made.path, tmp_path / "run.zarr.zip")
    xr.testing.assert_identical(xr.open_datatree(packed, engine=TraceBackend), open_trace(made.path).to_datatree())


def test_a_changed_byte_is_an_error(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", steps=2)
    file = next(made.path.glob("layers/001/probability/c.0.0.1*"))
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(bytes(data))
    layer = opened(made, "layers/001")["probability"]
    assert np.isfinite(layer.isel(step=0).values).all()
    with pytest.raises(CorruptTrace, match=file.name):
        layer.isel(step=1).load()


def test_videos_and_kept_heads_have_their_axes(tmp_path: Path) -> None:
    layer = reference_layer("v.attn2", frames=2, heads=2, head_numbers=(1, 4), call_heads=6)
    made = synthetic_trace(tmp_path / "v.zarr", layers=[layer], steps=1, frames=2)
    tree = open_trace(made.path).to_datatree()
    assert tree["layers/000/probability"].dims == ("sample", "branch", "step", "head", "frame", "y", "x", "token")
    assert tree["layers/000/head"].values.tolist() == [1, 4] and tree["layers/000"].attrs["call_heads"] == 6
    np.testing.assert_array_equal(tree["images/generated_0"].isel(generated_0_frame=1).values, made.images["generated_0"][1])


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_tree_can_be_saved_as_it_is(made: Synthetic, tmp_path: Path, suffix: str) -> None:
    tree, path = open_trace(made.path).to_datatree(), tmp_path / f"tree{suffix}"
    kind: dict[str, Any] = {"engine": "h5netcdf"} if suffix == ".nc" else {"engine": "zarr", "consolidated": False}
    if suffix == ".nc":
        pytest.importorskip("h5netcdf")
        tree.to_netcdf(path, engine="h5netcdf")
    else:
        tree.to_zarr(path, consolidated=False, zarr_format=3)
    with xr.open_datatree(path, **kind) as again:
        assert again.attrs["id"] == tree.attrs["id"] and again["layers/002"].attrs["layer"] == "b.attn2"
        for name in ("present", "layers/000/probability", "images/reference"):
            np.testing.assert_array_equal(again[name].values, tree[name].values)


def test_only_traces_are_taken_for_traces(made: Synthetic, tmp_path: Path) -> None:
    takes = TraceBackend().guess_can_open
    assert takes(made.path) and takes(str(made.path)) and takes(f"{made.path}/")
    assert takes(zip_trace(made.path, tmp_path / "run.zarr.zip")) and takes(str(zip_trace(made.path, tmp_path / "in.zip", "run.zarr/")))
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(tmp_path / "plain.zarr", zarr_format=3, consolidated=False)
    (tmp_path / "text.zarr").write_text("no folder")
    (tmp_path / "pipe.zarr").mkdir()
    os.mkfifo(tmp_path / "pipe.zarr" / "zarr.json")
    (tmp_path / "text.zip").write_text("no archive")
    zip_trace(tmp_path / "plain.zarr", tmp_path / "plain.zip")
    for name in ("plain.zarr", "text.zarr", "pipe.zarr", "none.zarr", "text.zip", "plain.zip", ""):
        assert not takes(tmp_path / name)
    for other in ("https://example.org/run.zarr", "s3://bucket/run.zarr", "a\0b", "x" * 5000, b"run.zarr", io.BytesIO(), {}, None):
        assert not takes(other)
