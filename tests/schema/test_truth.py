"""Known truth from files and arrays, brought to a grid; files that are none are refused in one line."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.schema.errors import InvalidInput
from i2am.schema.truth import files
from i2am.schema.truth.files import read_truth
from i2am.schema.truth.places import lay_truth, write_places

pytestmark = pytest.mark.analyzer

PAIRS = np.array([[0.1, 0.1, 0.5, 0.25], [0.2, 0.3, 0.7, 0.75], [1.0, 1.0, 0.0, 1.0]])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def packed(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def flow(shape: tuple[int, int] = (6, 4)) -> np.ndarray:
    values = np.random.default_rng(0).random((*shape, 2))
    values[0] = np.nan
    return values


def test_files_and_arrays_say_the_same(tmp_path: Path) -> None:
    rows = "\n".join(",".join(map(str, row)) for row in PAIRS.tolist())
    np.testing.assert_array_equal(read_truth(write(tmp_path / "a.csv", f"y,x,ref_y,ref_x\n{rows}\n\n")), PAIRS)
    np.testing.assert_array_equal(read_truth(PAIRS.tolist()), PAIRS)
    np.save(tmp_path / "b.npy", flow())
    np.savez_compressed(tmp_path / "c.npz", flow=flow().astype(np.float32))
    np.testing.assert_array_equal(read_truth(str(tmp_path / "b.npy")), flow())
    np.testing.assert_allclose(read_truth(tmp_path / "c.npz"), flow(), rtol=1e-6)


def test_pairs_become_the_mean_of_their_cell() -> None:
    laid = lay_truth(PAIRS, (2, 2))
    np.testing.assert_allclose(laid[0, 0], [0.6, 0.5])
    np.testing.assert_array_equal(laid[1, 1], [0, 1])
    assert np.isnan(laid[[0, 1], [1, 0]]).all()


@given(st.tuples(*[st.integers(1, 7)] * 4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_flow_becomes_the_mean_of_what_half_of_a_cell_knows(sizes: tuple[int, int, int, int], seed: int) -> None:
    rows, columns, down, across = sizes
    rng = np.random.default_rng(seed)
    values = rng.random((rows * down, columns * across, 2))
    values[rng.random(values.shape[:2]) < 0.5] = np.nan
    laid = lay_truth(values, (rows, columns))
    for y, x in np.ndindex(rows, columns):
        cell = values[y * down : (y + 1) * down, x * across : (x + 1) * across].reshape(-1, 2)
        known = cell[np.isfinite(cell).all(1)]
        wanted = known.mean(0) if len(known) and 2 * len(known) >= len(cell) else [np.nan, np.nan]
        np.testing.assert_allclose(laid[y, x], wanted)
    np.testing.assert_array_equal(lay_truth(laid, (rows, columns)), laid)


def test_a_coarse_flow_lends_each_cell_the_pixel_at_its_centre() -> None:
    laid = lay_truth(flow((2, 3)), (4, 9))
    np.testing.assert_array_equal(laid, flow((2, 3)).repeat(2, 0).repeat(3, 1))


def test_a_trace_keeps_places_as_json() -> None:
    table = json.loads(json.dumps(write_places(lay_truth(PAIRS, (2, 2))), allow_nan=False))
    np.testing.assert_array_equal(np.array(table, np.float64), lay_truth(PAIRS, (2, 2)))


HEAD = "y,x,ref_y,ref_x\n"
CLAIMS = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999, 9999, 2), }".ljust(117) + b"\n"
"""An array that says it is larger than its file."""
BAD: list[tuple[str, str | bytes, str]] = [
    ("a.csv", "", "first line is ''"),
    ("a.csv", "x,y,ref_x,ref_y\n0,0,0,0\n", "first line is 'x,y,ref_x,ref_y', not 'y,x,ref_y,ref_x'"),
    ("a.csv", HEAD, "knows no place"),
    ("a.csv", HEAD + "0,0,0,0\n0,0,0\n", "line 3 has 3 numbers under 4 columns"),
    ("a.csv", HEAD + "0,0,0,\x1b[2J\n", r"line 2: could not convert string to float: '\\x1b\[2J'"),
    ("a.csv", HEAD + "0,0,0,nan\n", "has a place at nan"),
    ("a.csv", HEAD + "3,4,120,12\n", r"has a place at 3; places are shares .* from 0 to 1: of pixel j of n, \(j \+ 0.5\) / n"),
    ("a.csv", b"\xff\xfe\x00", "cannot be read as truth"),
    ("a.csv", HEAD + '"', "cannot be read as truth"),
    ("a.png", b"\x89PNG", "its name ends in '.png'; give a CSV file"),
    ("a.npy", b"", "cannot be read as truth"),
    ("a.npy", CLAIMS, "cannot be read as truth"),
    ("a.npz", b"PK\x03\x04rubbish", "cannot be read as truth"),
    ("a.npz", packed(a=PAIRS, b=PAIRS), "it holds 2 arrays"),
    ("a.npz", packed(a=np.array([{"a": 1}], object)), "cannot be read as truth: Object arrays cannot be loaded"),
    ("a.npz", packed(a=np.array(["one"])), "holds <U3, not numbers"),
    ("a.npz", packed(a=PAIRS * 1j), "holds complex128, not numbers"),
    ("a.npz", packed(a=np.ones((3, 3, 3))), r"has shape \(3, 3, 3\); expected pairs"),
    ("a.npz", packed(a=np.full((3, 3, 2), np.nan)), "knows no place"),
    ("a.npz", packed(a=np.full((3, 3, 2), -0.1)), "has a place at -0.1"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD)
def test_what_is_no_truth_is_refused_in_one_line(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput, match=said) as caught:
        read_truth(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_files_that_are_not_there_and_arrays_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read the truth .*gone.csv: No such file"):
        read_truth(tmp_path / "gone.csv")
    with pytest.raises(InvalidInput, match="the truth cannot be read"):
        read_truth([[1, 2], [3]])
    with pytest.raises(InvalidInput, match="the truth holds object"):
        read_truth({"a": 1})


def test_sizes_are_checked_before_anything_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(files.MOST_BYTES + 1))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("was unpacked"))
    with pytest.raises(InvalidInput, match=r"it holds 1 arrays of 67108865 bytes"):
        read_truth(tmp_path / "bomb.npz")
    monkeypatch.setattr(files, "MOST_BYTES", 10)
    with pytest.raises(InvalidInput, match="it has 16 bytes, and 10 at most are read"):
        read_truth(write(tmp_path / "large.csv", HEAD))
