"""Maps go into xarray's own files and come back from them as what they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from i2am.analyzer import Trace, box_iou, compare, find_boxes, g2r, imacs, iou, looks, open_trace, r2g, sram, token_map
from i2am.analyzer.cli.main import run
from i2am.analyzer.facts import MapFacts
from i2am.analyzer.maps.heatmap import published
from i2am.analyzer.output.illustration import illustrate
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

MAPS: dict[str, Callable[[Trace], Any]] = {
    "r2g": lambda t: r2g(t, keep=("time", "layer", "head")),
    "g2r": lambda t: g2r(t, query_mask=t.image("mask")[..., 0]),
    "sram": lambda t: sram(t, (1, 2)),
    "tokens": lambda t: token_map(t, [0, 1], keep="token"),
    "looks": lambda t: looks(t, keep="layer"),
    "published": lambda t: published(t, g2r(t, recipe="i2am-official").compute()),
    "compare": lambda t: compare(t, ["i2am", "daam"])["map"],
}
WINDOW = (5.0, 5.0, 30.0, 45.0)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    layers = [reference_layer("a", (8, 6), text=3), reference_layer("b", (4, 3), text=3)]
    return open_trace(synthetic_trace(tmp_path_factory.mktemp("files") / "run.zarr", layers=layers, steps=2, window=WINDOW).path)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_a_map_writes_and_reads_as_xarray_does_it(trace: Trace, name: str, suffix: str, tmp_path: Path) -> None:
    map, path = MAPS[name](trace).compute(), tmp_path / f"m.{suffix}"
    if suffix == "nc":
        pytest.importorskip("h5netcdf")
        map.to_netcdf(path, engine="h5netcdf")
    else:
        map.to_zarr(path, consolidated=False)
    again = xr.open_dataarray(path, engine="h5netcdf" if suffix == "nc" else "zarr", **({} if suffix == "nc" else {"consolidated": False}))
    np.testing.assert_array_equal(map.values, again.values)
    assert MapFacts.of(again) == MapFacts.of(map)
    again.close()


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_a_map_that_the_command_wrote_is_scored_as_the_fresh_one(trace: Trace, suffix: str, tmp_path: Path) -> None:
    if suffix == "nc":
        pytest.importorskip("h5netcdf")
    path, fresh, mask = tmp_path / f"g.{suffix}", g2r(trace).compute(), trace.image("reference_mask")
    assert run(["map", str(trace.path), "--g2r", "-o", str(path)]) == 0
    with xr.open_dataset(
        path, engine="h5netcdf" if suffix == "nc" else "zarr", **({} if suffix == "nc" else {"consolidated": False})
    ) as kept:
        again = kept["g2r"].load()
    assert MapFacts.of(fresh).window == WINDOW
    assert float(imacs(again, mask)) == float(imacs(fresh, mask))
    assert float(iou(again, mask)) == float(iou(fresh, mask))
    assert float(box_iou(again, mask)) == float(box_iou(fresh, mask))
    np.testing.assert_array_equal(find_boxes(again), find_boxes(fresh))
    assert illustrate(trace, again).tobytes() == illustrate(trace, fresh).tobytes()
