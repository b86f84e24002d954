"""The files of an overview: codes within their bounds, every byte checked, readable by zarr and xarray."""

import json

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i2am.analyzer.overview.group import (
    FACTS,
    ROW_ERROR,
    GroupReader,
    GroupWriter,
    Overview,
    decode_maps,
    decode_rows,
    encode_maps,
    encode_rows,
)
from i2am.schema.errors import AlreadyExists, CorruptTrace, UnknownVersion

pytestmark = pytest.mark.analyzer

NUMBERS = st.floats(0, 1, width=32)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=NUMBERS))
def test_rows_are_within_their_bound_and_keep_their_peak(rows: np.ndarray) -> None:
    codes, top = encode_rows(rows)
    found = decode_rows(codes, top)
    assert np.array_equal(top, rows.max(1))
    assert np.array_equal(found.max(1), rows.max(1))
    assert (np.abs(found.astype(np.float64) - rows) <= ROW_ERROR * rows.max(1, keepdims=True).astype(np.float64) + 1e-45).all()


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)), elements=st.floats(0, 1e6, width=32)))
def test_maps_are_within_half_a_level(maps: np.ndarray) -> None:
    codes, top = encode_maps(maps, 2)
    bound = maps.max((1, 2), keepdims=True) / 131_000 + 1e-45
    assert (np.abs(decode_maps(codes, top) - maps) <= bound).all()


def write() -> dict[str, bytes]:
    writer = GroupWriter()
    writer.add("views/000/rows_000", np.arange(24, dtype=np.uint8).reshape(2, 3, 4), ("head", "y", "token"))
    writer.add("views/000/r2g_000", np.arange(6, dtype=np.uint16).reshape(2, 3), ("time", "x"))
    writer.add("timestep", np.array([3.0, 1.5], np.float32), ("step",))
    return writer.finish({"version": 1, "notes": ["ä"]})


def test_it_opens_with_zarr_and_xarray(tmp_path) -> None:
    Overview(write()).save(tmp_path / "o")
    group = zarr.open_group(tmp_path / "o", mode="r")
    assert group.attrs[FACTS]["notes"] == ["ä"]
    assert np.array_equal(group["views/000/rows_000"][:], np.arange(24).reshape(2, 3, 4))
    found = xr.open_dataset(tmp_path / "o", engine="zarr", group="views/000", consolidated=False)
    assert found["r2g_000"].dims == ("time", "x") and found["r2g_000"].values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert xr.open_zarr(tmp_path / "o")["timestep"].values.tolist() == [3.0, 1.5]


def test_it_is_saved_opened_packed_and_unpacked_as_it_is(tmp_path) -> None:
    made = Overview(write())
    made.save(tmp_path / "o")
    assert Overview.open(tmp_path / "o").files == Overview.unpack(made.pack()).files == made.files
    with pytest.raises(AlreadyExists, match="exists already"):
        made.save(tmp_path / "o")


@pytest.mark.parametrize("at", [0, 3, 11, -1, -5])
def test_a_changed_byte_is_an_error_that_names_the_array(at: int) -> None:
    files = write()
    name = "views/000/rows_000/c.0.0.0"
    data = bytearray(files[name])
    data[at] ^= 4
    with pytest.raises(CorruptTrace, match="views/000/rows_000"):
        GroupReader(files | {name: bytes(data)}, "it").read("views/000/rows_000")


@pytest.mark.parametrize("shape", [[2, 3, 5], [2, 3, 3], [10**9, 10**9, 9], [2, -3, 4], "no", [2, 3, True]])
def test_another_size_is_an_error_that_names_the_array(shape: object) -> None:
    files = write()
    root = json.loads(files["zarr.json"])
    root["consolidated_metadata"]["metadata"]["views/000/rows_000"]["shape"] = shape
    with pytest.raises(CorruptTrace, match="views/000/rows_000"):
        GroupReader(files | {"zarr.json": json.dumps(root).encode()}, "it").read("views/000/rows_000")


def test_a_missing_chunk_and_another_version_are_errors() -> None:
    files = write()
    with pytest.raises(CorruptTrace, match="timestep of it is missing"):
        GroupReader({n: d for n, d in files.items() if not n.startswith("timestep")}, "it").read("timestep")
    with pytest.raises(UnknownVersion, match="version 2; this release reads version 1"):
        GroupReader(files | {"zarr.json": files["zarr.json"].replace(b'"version":1', b'"version":2')}, "it")
    with pytest.raises(CorruptTrace, match="no overview"):
        GroupReader({}, "it")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]\n", b'{"a": [0, 9]}\n', b'{"a": [-1, 0]}\nxx', b'{"a": 3}\nxx', b"\xff\n"])
def test_what_is_no_overview_in_one_piece_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptTrace):
        Overview.unpack(data)
