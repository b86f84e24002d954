"""Copies are the same files, each compared on its way; what ended early goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

from i2am.analyzer import copy, open_trace, pack
from i2am.analyzer.sharing import copying
from i2am.schema import AlreadyExists, CorruptTrace, IncompleteTrace, InvalidInput
from traces import synthetic_trace

pytestmark = pytest.mark.analyzer


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a trace in a folder or a zip file."""
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("first", [".zarr", ".zip"])
@pytest.mark.parametrize("second", [".zarr", ".zip"])
def test_a_copy_has_the_same_files(tmp_path: Path, first: str, second: str) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", steps=3, encoding="factors")
    one, two = tmp_path / f"1{first}", tmp_path / f"2{second}"
    copy(made.path, one)
    done = copy(one, two)
    assert contents(made.path) == contents(one) == contents(two)
    assert (done.files, done.kept) == (len(contents(two)), 0)
    assert open_trace(two).id == made.trace.id
    with pytest.raises(AlreadyExists, match="exists already"):
        copy(made.path, two)


def test_a_packed_zip_copies_to_the_same_bytes(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", steps=5, branches=("cond", "uncond"), samples=2)
    pack(made.path, tmp_path / "p.zip", chunk_steps=2)
    copy(tmp_path / "p.zip", tmp_path / "p.zarr")
    copy(tmp_path / "p.zarr", tmp_path / "q.zip")
    assert (tmp_path / "p.zip").read_bytes() == (tmp_path / "q.zip").read_bytes()


@pytest.mark.parametrize("ending", [".zarr", ".zip"])
@pytest.mark.parametrize("torn", [False, True])
def test_a_copy_that_ended_early_goes_on(tmp_path: Path, ending: str, torn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made, out = synthetic_trace(tmp_path / "t.zarr", steps=3), tmp_path / f"c{ending}"
    read = copying._read

    def some(*given):
        for number, file in enumerate(read(*given)):
            if number == 20:
                raise KeyboardInterrupt
            yield file

    monkeypatch.setattr(copying, "_read", some)
    with pytest.raises(KeyboardInterrupt):
        copy(made.path, out)
    assert not out.exists()
    monkeypatch.undo()
    left = tmp_path / f".c{ending}.partial"
    if torn:
        last = left if left.is_file() else max(left.rglob("c.*"), key=lambda path: path.stat().st_mtime_ns)
        last.write_bytes(last.read_bytes()[:-7])
    done = copy(made.path, out)
    assert done.kept == (19 if torn else 20)
    assert contents(out) == contents(made.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["t.zarr", out.name])


@pytest.mark.parametrize("ending", [".zarr", ".zip"])
def test_what_another_copy_left_is_not_mixed_in(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = synthetic_trace(tmp_path / "1.zarr", steps=4, seed=1)
    two, out = synthetic_trace(tmp_path / "2.zarr", steps=2, seed=2), tmp_path / f"c{ending}"
    with monkeypatch.context() as patch:
        patch.setattr("i2am.analyzer.sharing.target._rename", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            copy(one.path, out)
    copy(two.path, out)
    assert contents(out) == contents(two.path)


def test_a_changed_file_is_not_copied(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", steps=2)
    file = made.path / "layers/001/probability/c.0.0.1.0.0.0.0"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptTrace, match=r"layers/001/probability/c\.0\.0\.1.* sha256"):
        copy(made.path, tmp_path / "c.zarr")
    file.write_bytes(whole)
    assert copy(made.path, tmp_path / "c.zarr").kept > 0
    assert contents(made.path) == contents(tmp_path / "c.zarr")


def test_what_cannot_be_copied_is_refused_in_words(tmp_path: Path) -> None:
    half = synthetic_trace(tmp_path / "half.zarr", steps=2, planned=4, status="interrupted")
    with pytest.raises(IncompleteTrace, match="i2am seal"):
        copy(half.path, tmp_path / "c.zarr")
    made = synthetic_trace(tmp_path / "t.zarr", steps=2)
    with pytest.raises(InvalidInput, match="end it in"):
        copy(made.path, tmp_path / "c")
