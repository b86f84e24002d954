"""A trace in a zip file answers as its folder does; archives that could hide, hurt or mislead are refused in words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import shutil
import struct
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from zips import Entry, craft, zip_trace

from i2am.analyzer import open_trace, r2g, sram
from i2am.analyzer.cli.main import run
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.storage.directory import MOST_DIRECTORY
from i2am.analyzer.storage.location import locate
from i2am.analyzer.storage.storage import Part
from i2am.schema.errors import CorruptTrace, IncompleteTrace, NotATrace
from traces import synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_trace(tmp_path_factory.mktemp("plain") / "run.zarr").path


@pytest.fixture(scope="module")
def expected(trace: Path) -> xr.DataArray:
    return r2g(open_trace(trace)).compute()


def with_zarr(trace: Path, out: Path) -> None:
    """As zarr's own store writes it."""
    from zarr.core.buffer.cpu import Buffer
    from zarr.storage import ZipStore

    async def copy() -> None:
        store = ZipStore(out, mode="w")
        for path in sorted(path for path in trace.rglob("*") if path.is_file()):
            await store.set(path.relative_to(trace).as_posix(), Buffer.from_bytes(path.read_bytes()))
        store.close()

    asyncio.run(copy())


def streamed(trace: Path, out: Path) -> None:
    """As to a pipe: sizes stand after the data."""

    class Pipe:
        def __init__(self, file: object) -> None:
            self.write, self.flush = file.write, file.flush  # type: ignore[attr-defined]

    with open(out, "wb") as file, zipfile.ZipFile(Pipe(file), "w") as archive:  # type: ignore[call-overload]
        for path in sorted(path for path in trace.rglob("*") if path.is_file()):
            with archive.open(zipfile.ZipInfo(path.relative_to(trace).as_posix()), "w") as member:
                member.write(path.read_bytes())


def wide(trace: Path, out: Path) -> None:
    """With zip64 fields in every header, whether needed or not."""
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(path for path in trace.rglob("*") if path.is_file()):
            with archive.open(path.relative_to(trace).as_posix(), "w", force_zip64=True) as member:
                member.write(path.read_bytes())


def info_zip(trace: Path, out: Path) -> None:
    if shutil.which("zip") is None:
        pytest.skip("no zip here")
    subprocess.run(["zip", "-q", "-0", "-r", str(out), trace.name], cwd=trace.parent, check=True)


def libarchive(trace: Path, out: Path) -> None:
    if shutil.which("bsdtar") is None:
        pytest.skip("no bsdtar here")
    command = ["bsdtar", "--format", "zip", "--options", "zip:compression=store", "-cf", str(out), trace.name]
    subprocess.run(command, cwd=trace.parent, check=True)


TOOLS: dict[str, Callable[[Path, Path], object]] = {
    "packed": zip_trace,
    "in one folder, with a comment": lambda trace, out: zip_trace(trace, out, top="run.zarr/", comment=b"a comment of somebody"),
    "zarr": with_zarr,
    "streamed": streamed,
    "zip64": wide,
    "Info-ZIP": info_zip,
    "libarchive": libarchive,
}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_that_stores_makes_an_archive_that_answers_as_the_folder(
    tool: str, trace: Path, expected: xr.DataArray, tmp_path: Path
) -> None:
    TOOLS[tool](trace, tmp_path / "run.zarr.zip")
    opened = open_trace(tmp_path / "run.zarr.zip")
    xr.testing.assert_identical(r2g(opened).compute().drop_attrs(), expected.drop_attrs())
    assert np.array_equal(opened.image("reference"), open_trace(trace).image("reference"))
    assert verify(tmp_path / "run.zarr.zip").ok


def test_what_desktops_and_repositories_leave_is_passed_over(trace: Path, expected: xr.DataArray, tmp_path: Path) -> None:
    path = zip_trace(trace, tmp_path / "run.zip", top="run.zarr/")
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("run.zarr/.DS_Store", "__MACOSX/run.zarr/._zarr.json", "README.md", "run.zarr/README.md"):
            archive.writestr(name, b"left behind")
    assert (r2g(open_trace(path)).compute() == expected).all()


def test_an_archive_over_four_gigabytes_is_read_in_place_and_without_reading_it(
    trace: Path, expected: xr.DataArray, tmp_path: Path
) -> None:
    path = tmp_path / "large.zip"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("._hole", "w", force_zip64=True) as hole:
            hole._fileobj.seek(5 * 2**30, 1)  # type: ignore[attr-defined]
            hole._file_size = 5 * 2**30  # type: ignore[attr-defined]
        for file in sorted(file for file in trace.rglob("*") if file.is_file()):
            archive.write(file, file.relative_to(trace).as_posix())
    assert path.stat().st_size > 5 * 2**30
    tracemalloc.start()
    assert (r2g(open_trace(path)).compute(scheduler="synchronous") == expected).all()
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()


def test_an_opened_archive_travels_as_its_place_and_is_refused_once_replaced(trace: Path, expected: xr.DataArray, tmp_path: Path) -> None:
    path = zip_trace(trace, tmp_path / "run.zip")
    opened = open_trace(path)
    sent = pickle.dumps(opened.storage)
    assert len(sent) < 1000
    assert opened.storage == locate(path) == pickle.loads(sent)
    assert pickle.loads(sent) is pickle.loads(sent)
    other = synthetic_trace(tmp_path / "other.zarr", seed=5)
    zip_trace(other.path, path)
    again = pickle.loads(sent.replace(b"run.zip", b"run.zip"))
    again._contained = None  # as in another process
    with pytest.raises(CorruptTrace, match="not the one that was opened before"):
        again.size("zarr.json")


def test_a_part_beyond_a_file_and_a_file_that_is_not_there_are_what_they_are_in_a_folder(trace: Path, tmp_path: Path) -> None:
    for storage in (locate(trace), locate(zip_trace(trace, tmp_path / "run.zip"))):
        with pytest.raises(FileNotFoundError):
            storage.size("nothing")
        with pytest.raises(ValueError, match="ends 5 bytes early"):
            next(storage.fetch([Part("zarr.json", 5, storage.size("zarr.json"))]))
        text = (trace / "zarr.json").read_bytes()
        parts = [Part("zarr.json", 3, 4), Part("zarr.json", 0, 2), Part("zarr.json", 7, 0)]
        assert [part.tobytes() for part in storage.fetch(parts)] == [text[3:7], text[:2], b""]


def test_an_unfinished_recording_in_a_zip_opens_in_part(tmp_path: Path) -> None:
    part = synthetic_trace(tmp_path / "part.zarr", steps=2, planned=4, status="interrupted")
    path = zip_trace(part.path, tmp_path / "part.zip")
    with pytest.raises(IncompleteTrace):
        open_trace(path)
    found = sram(open_trace(path, partial=True), at=(2, 2)).compute()
    assert (found == sram(open_trace(part.path, partial=True), at=(2, 2)).compute()).all()


ROOT = Entry(b"zarr.json", b"{}")
INNER = craft([Entry(b"zarr.json", b"{}")])
BAD: dict[str, tuple[bytes, str]] = {
    "deflated": (craft([ROOT, Entry(b"a", b"xx", method=8)]), "a is compressed by the archive"),
    "sizes of a deflated one": (craft([Entry(b"a", b"xx", size=2000)]), "a is compressed"),
    "encrypted": (craft([Entry(b"a", b"xx", flags=1)]), "a is encrypted"),
    "strongly encrypted": (craft([Entry(b"a", b"xx", flags=0x41)]), "a is encrypted"),
    "masked": (craft([Entry(b"a", b"xx", flags=0x2000)]), "a is encrypted"),
    "twice": (craft([ROOT, ROOT]), "holds zarr.json twice"),
    "absolute": (craft([ROOT, Entry(b"/etc/passwd", b"")]), "'/etc/passwd' is no name"),
    "slip": (craft([ROOT, Entry(b"../../x", b"")]), r"'\.\./\.\./x' is no name"),
    "slip inside": (craft([ROOT, Entry(b"a/../b", b"")]), r"'a/\.\./b' is no name"),
    "a dot": (craft([ROOT, Entry(b"a/./b", b"")]), "is no name"),
    "an empty part": (craft([ROOT, Entry(b"a//b", b"")]), "is no name"),
    "backslash": (craft([ROOT, Entry(b"a\\b", b"")]), "is no name"),
    "drive": (craft([ROOT, Entry(b"C:b", b"")]), "is no name"),
    "control": (craft([ROOT, Entry(b"a\x1b[2J", b"")]), "is no name"),
    "no name": (craft([ROOT, Entry(b"", b"")]), "is no name"),
    "long name": (craft([ROOT, Entry(b"a" * 2000, b"")]), "is no name"),
    "not UTF-8": (craft([ROOT, Entry(b"\xff", b"", flags=0x800)]), "cannot be read"),
    "link": (craft([ROOT, Entry(b"a", b"/etc/passwd", attributes=0o120777 << 16)]), "a is a link"),
    "device": (craft([ROOT, Entry(b"a", b"", attributes=0o060666 << 16)]), "a is a link or a device"),
    "a folder's kind": (craft([ROOT, Entry(b"a", b"", attributes=0o040777 << 16)]), "a is a link or a device"),
    "a folder with bytes": (craft([ROOT, Entry(b"a/", b"x")]), "a folder with bytes"),
    "overlap": (craft([Entry(b"a", b"x" * 99), Entry(b"b", b"y", offset=0)]), "in the bytes of another member"),
    "outside": (craft([Entry(b"a", b"x", size=2**31, packed=2**31)]), "lies outside"),
    "offset outside": (craft([Entry(b"a", b"x", offset=2**31)]), "lies outside"),
    "a hole": (craft([Entry(b"a", b"x", trailing=b"z" * 2**18), Entry(b"b", b"")]), "belong to no member"),
    "something before": (craft([ROOT], shift=-7, before=b"#!/bin/"), "something was put before it"),
    "zip64 without the field": (craft([Entry(b"a", b"x", size=2**32 - 1, packed=2**32 - 1)]), "a member's size is missing"),
    "too many": (craft([ROOT], count=60000), "claims 60000 members"),
    "fewer": (craft([ROOT, Entry(b"a", b"")], count=1), "longer than its members"),
    "two ends": (craft([ROOT], comment=b"PK\5\6" + bytes(16) + struct.pack("<H", 0)), "two ends"),
    "cut off": (craft([ROOT, Entry(b"a", b"x" * 999)])[:500], "was cut off"),
    "cut off in the directory": (craft([ROOT, Entry(b"a", b"x")])[:-30], "was cut off"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_archive_that_should_not_be_read_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, why = BAD[case]
    path = tmp_path / "bad.zip"
    path.write_bytes(data)
    with pytest.raises(CorruptTrace, match=why) as error:
        open_trace(path)
    assert str(error.value).isprintable()
    assert run(["info", str(path)]) == 4
    assert capsys.readouterr().err.count("\n") == 1


NONE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is a file, not a trace"),
    "text": (b"hello", "is a file, not a trace"),
    "no members": (craft([]), "without zarr.json"),
    "two folders": (craft([Entry(b"a/zarr.json", b"{}"), Entry(b"b/zarr.json", b"{}")]), "without zarr.json"),
    "a zip in a zip": (craft([Entry(b"run.zarr.zip", INNER)]), "holds another one, not a trace; unpack the outer one"),
    "another group": (craft([ROOT]), "not a trace"),
}


@pytest.mark.parametrize("case", NONE)
def test_what_is_no_trace_is_said_to_be_none(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, why = NONE[case]
    (tmp_path / "none.zip").write_bytes(data)
    with pytest.raises(NotATrace, match=why):
        open_trace(tmp_path / "none.zip")
    assert run(["info", str(tmp_path / "none.zip")]) == 3
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"zarr.json", b"{}", local_name=b"zarr.jsom"),
        Entry(b"zarr.json", b"{}", local_name=b"zarr.jso"),
        Entry(b"zarr.json", b"{}", local_size=1),
        Entry(b"zarr.json", b"{}", local_method=8),
        Entry(b"zarr.json", b"{}", extra=b"\1\0\0\0", size=6, packed=6),
    ],
)
def test_headers_that_disagree_with_the_directory_are_refused_when_they_are_read(entry: Entry, tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(craft([entry, Entry(b"manifest.json", b"{}")]))
    with pytest.raises(CorruptTrace, match=r"zarr\.json .*cannot be read \(the archive's directory and the header|cannot be read"):
        open_trace(path)


def test_a_hostile_directory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with open(path, "wb") as file:
        file.truncate(6 * 2**30)
        file.seek(6 * 2**30 - 98)
        length = 6 * 2**30 - 98
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2**22, 2**22, length, 0))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, length, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0))
    tracemalloc.start()
    with pytest.raises(CorruptTrace, match="its directory claims 4194304 members in 6"):
        open_trace(path)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20 < MOST_DIRECTORY
    tracemalloc.stop()


def test_a_zip_bomb_of_overlapping_members_is_refused(tmp_path: Path) -> None:
    kernel = craft([Entry(b"a", b"x" * 10**6), *(Entry(b"b%d" % i, b"", size=10**6, packed=10**6, offset=0) for i in range(999))])
    (tmp_path / "bomb.zip").write_bytes(kernel)
    with pytest.raises(CorruptTrace, match="in the bytes of another member"):
        open_trace(tmp_path / "bomb.zip")


def test_any_changed_byte_is_refused_or_changes_no_answer(trace: Path, expected: xr.DataArray, tmp_path: Path) -> None:
    good = zip_trace(trace, tmp_path / "run.zip").read_bytes()
    rng = np.random.default_rng(0)
    directory = good.index(b"PK\1\2")
    for at in (*rng.integers(0, len(good), 60), *rng.integers(directory, len(good), 100)):
        changed = bytearray(good)
        changed[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "changed.zip").write_bytes(changed)
        with contextlib.suppress(CorruptTrace, NotATrace):
            assert (r2g(open_trace(tmp_path / "changed.zip")).compute() == expected).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_archive_is_refused(share: float, trace: Path, tmp_path: Path) -> None:
    good = zip_trace(trace, tmp_path / "run.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(good[: int(len(good) * share)])
    with pytest.raises((CorruptTrace, NotATrace)):
        open_trace(tmp_path / "cut.zip")


def test_a_link_that_the_user_names_is_followed(trace: Path, tmp_path: Path) -> None:
    zip_trace(trace, tmp_path / "run.zip")
    os.symlink(tmp_path / "run.zip", tmp_path / "link.zip")
    assert open_trace(tmp_path / "link.zip").id == open_trace(trace).id


def test_one_that_may_not_be_read_is_said_so(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_trace(trace, tmp_path / "run.zip")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("i2am.analyzer.storage.folder.open_file", refuse)
    with pytest.raises(CorruptTrace, match=r"run.zip cannot be read \(Permission denied\)"):
        open_trace(path)
