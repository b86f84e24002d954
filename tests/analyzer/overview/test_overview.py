"""An overview against the float64 oracle of synthetic traces, and against the analyzer's own maps and scores."""

import dask
import numpy as np
import pytest
import xarray as xr
import zarr

from i2am.analyzer import judge, make_overview, open_trace, pack
from i2am.analyzer.overview.group import GroupReader, Overview, decode_maps, decode_rows
from traces import Synthetic, synthetic_trace

pytestmark = pytest.mark.analyzer

HALF_LEVEL = 1 / 131_000


def maps(reader: GroupReader, path: str, name: str, i: int) -> np.ndarray:
    return decode_maps(reader.read(f"{path}/{name}_{i:03d}"), reader.read(f"{path}/{name}_{i:03d}_max"))


def rows(reader: GroupReader, path: str, name: str, i: int) -> np.ndarray:
    return decode_rows(reader.read(f"{path}/{name}_{i:03d}"), reader.read(f"{path}/{name}_{i:03d}_max"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Synthetic, Overview]:
    trace = synthetic_trace(tmp_path_factory.mktemp("o") / "run.zarr", steps=7, encoding="factors", absent=[(2, 1)])
    return trace, make_overview(open_trace(trace.path), time_groups=3)


def test_rows_are_the_means_of_p(made) -> None:
    trace, overview = made
    reader = overview.reader()
    for i, exact in enumerate(trace.probabilities):
        expected = np.stack([np.nanmean(exact[0, 0, steps], 0)[..., 1:] for steps in np.array_split(np.arange(7), 3)])
        found = rows(reader, "views/000", "rows", i)[:, :, 0]
        assert (np.abs(found - expected) <= 0.00392 * expected.max(-1, keepdims=True) + 1e-6).all()
        cls = np.stack([np.nanmean(exact[0, 0, steps], 0)[..., 0] for steps in np.array_split(np.arange(7), 3)])
        np.testing.assert_allclose(reader.read(f"views/000/special_{i:03d}")[:, :, 0], cls, atol=1e-6)


def test_maps_are_those_of_the_oracle(made) -> None:
    trace, overview = made
    reader = overview.reader()
    for i, (p, g) in enumerate(zip(trace.probabilities, trace.generated, strict=True)):
        groups = np.array_split(np.arange(7), 3)
        expected = np.stack([np.nansum(g[0, 0, steps].mean(-1), 0) for steps in groups])
        found = maps(reader, "views/000", "r2g", i)[:, :, 0]
        assert (np.abs(found - expected) <= (HALF_LEVEL + 1e-6) * expected.max((-2, -1), keepdims=True)).all()
        expected = np.stack([np.nansum(p[0, 0, steps].mean((-3, -2))[..., 1:], 0) for steps in groups])
        found = maps(reader, "views/000", "g2r", i)
        assert (np.abs(found - expected) <= (HALF_LEVEL + 1e-6) * expected.max(-1, keepdims=True)).all()


def test_scores_are_the_analyzers(made) -> None:
    trace, overview = made
    opened, scores = open_trace(trace.path), overview.reader().read("views/000/scores")
    names = overview.facts["scores"]
    whole = judge(opened, ["imacs_g", "imacs_r"])
    heads = [judge(opened, ["imacs_g", "imacs_r"], keep="head", layers=i) for i in range(3)]
    layers = judge(opened, ["imacs_g", "imacs_r"], keep="layer")
    for name in ("imacs_g", "imacs_r"):
        expected = [*np.concatenate([found[name].values for found in heads]), *layers[name].values, float(whole[name])]
        np.testing.assert_allclose(scores[:, names.index(name)], expected, atol=1e-5)


def test_it_is_the_same_every_time(made) -> None:
    trace, overview = made
    assert make_overview(open_trace(trace.path), time_groups=3).files == overview.files


def test_a_packed_trace_has_the_same_overview(made, tmp_path) -> None:
    stored = synthetic_trace(tmp_path / "run.zarr", steps=7, absent=[(2, 1)])
    pack(stored.path, tmp_path / "run.zarr.zip")
    packed = open_trace(tmp_path / "run.zarr.zip")
    assert packed.record.chunk_steps > 1
    first, second = (make_overview(trace, time_groups=3) for trace in (open_trace(stored.path), packed))
    assert {n: d for n, d in first.files.items() if n != "zarr.json"} == {n: d for n, d in second.files.items() if n != "zarr.json"}
    assert first.facts["views"] == second.facts["views"] and second.facts["trace"]["name"] == "run.zarr.zip"


def test_it_opens_with_zarr_and_xarray(made, tmp_path) -> None:
    made[1].save(tmp_path / "o")
    group = zarr.open_group(tmp_path / "o", mode="r")
    reader = made[1].reader()
    assert {path for path, array in group.members(max_depth=None) if isinstance(array, zarr.Array)} == set(reader.arrays)
    for path in reader.arrays:
        assert np.array_equal(group[path][:], reader.read(path), equal_nan=group[path].dtype.kind == "f")
    found = xr.open_datatree(tmp_path / "o", engine="zarr", consolidated=False)
    assert found["views/000/rows_002"].dims == ("time", "head_002", "frame", "row_y_002", "row_x_002", "key_002")


def test_memory_and_threads_change_nothing(made) -> None:
    trace, overview = made
    with dask.config.set(scheduler="synchronous"):
        assert make_overview(open_trace(trace.path), time_groups=3).files == overview.files
