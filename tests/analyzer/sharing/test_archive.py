"""The archive is a zip file to everyone: Python, `unzip`, and beyond four gigabytes and 65,535 members."""

from __future__ import annotations

import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from i2am.analyzer import open_trace, pack
from i2am.analyzer.cli.main import run
from i2am.analyzer.sharing.archive import Archive
from traces import synthetic_trace

pytestmark = pytest.mark.analyzer


def test_members_are_what_was_added() -> None:
    file = BytesIO()
    archive = Archive(file)
    members = {"a/b.json": b"{}", "c": b"", "layers/000/x/c.0": bytes(range(256)) * 99}
    for name, data in members.items():
        archive.add(name, data)
    archive.finish()
    with ZipFile(file) as found:
        assert {name: found.read(name) for name in found.namelist()} == members


@pytest.mark.skipif(shutil.which("unzip") is None, reason="there is no unzip")
def test_unzip_takes_it(tmp_path: Path) -> None:
    synthetic_trace(tmp_path / "t.zarr", steps=2)
    pack(tmp_path / "t.zarr", tmp_path / "p.zarr.zip")
    assert subprocess.run(["unzip", "-tq", tmp_path / "p.zarr.zip"], check=False, capture_output=True).returncode == 0
    subprocess.run(["unzip", "-q", tmp_path / "p.zarr.zip", "-d", tmp_path / "u.zarr"], check=True)
    assert open_trace(tmp_path / "u.zarr").id == open_trace(tmp_path / "t.zarr").id


def test_offsets_beyond_four_gigabytes(tmp_path: Path) -> None:
    with open(tmp_path / "far.zip", "w+b") as file:
        archive = Archive(file)
        archive.add("near", b"1")
        file.truncate(5 * 2**30)  # a hole, which takes no room
        file.seek(5 * 2**30)
        archive._offset = 5 * 2**30
        archive.add("far", b"22")
        archive.finish()
    with ZipFile(tmp_path / "far.zip") as found:
        assert [found.read(name) for name in ("near", "far")] == [b"1", b"22"]


def test_more_members_than_two_bytes_count(tmp_path: Path) -> None:
    with open(tmp_path / "many.zip", "wb") as file:
        archive = Archive(file)
        for number in range(2**16 + 5):
            archive.add(f"{number}", b"")
        archive.finish()
    with ZipFile(tmp_path / "many.zip") as found:
        assert len(found.namelist()) == 2**16 + 5


def test_the_commands_say_what_they_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic_trace(tmp_path / "t.zarr", steps=3)
    names = {name: str(tmp_path / name) for name in ("t.zarr", "p.zarr.zip", "u.zarr", "c.zarr.zip")}
    for arguments, words in (
        (("pack", names["t.zarr"], "-o", names["p.zarr.zip"], "--steps", "1:"), "2 steps of 3 layers"),
        (("unpack", names["p.zarr.zip"], "-o", names["u.zarr"]), "2 steps of 3 layers"),
        (("copy", names["u.zarr"], names["c.zarr.zip"]), "as recorded"),
        (("verify", names["c.zarr.zip"]), "ok, complete, 2 steps"),
    ):
        assert run(list(arguments)) == 0
        assert words in capsys.readouterr().out
    assert run(["copy", names["u.zarr"], names["c.zarr.zip"]]) == 2
    assert "add --overwrite to replace it" in capsys.readouterr().err
