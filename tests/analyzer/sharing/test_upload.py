"""Copies to an object store that speaks the protocol of S3: whole or no trace, tried again, never over anything silently."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from buckets import serving_bucket

from i2am.analyzer import copy, open_trace, pack, r2g
from i2am.analyzer.cli.main import run
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.sharing import upload
from i2am.analyzer.storage import address
from i2am.schema.errors import AlreadyExists, InvalidInput, NoAnswer, NotATrace
from traces import synthetic_trace

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_trace(tmp_path_factory.mktemp("plain") / "run.zarr", steps=3).path


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving_bucket("bucket") as place:
        yield place


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of its own in the store, where nothing is kept of what was read."""
    monkeypatch.setattr(address, "BACKOFF_SECONDS", 0.01)
    address.MEMORY.clear()
    return f"{server}/{tmp_path.name}"


def store() -> Any:
    return upload.open_file_system("s3://bucket")


@pytest.mark.parametrize("name", ["run.zarr", "run.zarr.zip"])
def test_there_and_back(bucket: str, trace: Path, tmp_path: Path, name: str) -> None:
    assert copy(trace, f"{bucket}/deep/{name}").kept == 0
    assert verify(f"{bucket}/deep/{name}").ok
    assert (r2g(open_trace(f"{bucket}/deep/{name}")).compute() == r2g(open_trace(trace)).compute()).all()
    copy(f"{bucket}/deep/{name}", tmp_path / "back.zarr")
    files = {path.relative_to(trace): path.read_bytes() for path in trace.rglob("*") if path.is_file()}
    assert {path: (tmp_path / "back.zarr" / path).read_bytes() for path in files} == files
    with pytest.raises(AlreadyExists, match="exists already"):
        copy(trace, f"{bucket}/deep/{name}")
    pack(trace, tmp_path / "small.zip", steps=1)
    copy(tmp_path / "small.zip", f"{bucket}/deep/{name}", overwrite=True)
    address.MEMORY.clear()
    address.reopen.cache_clear()
    assert verify(f"{bucket}/deep/{name}").ok
    assert open_trace(f"{bucket}/deep/{name}").record.steps == 1


def test_a_copy_that_ended_early_is_no_trace_and_goes_on(bucket: str, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, seen = upload.Upload._put, []

    def some(self: upload.Upload, file: Any) -> None:
        seen.append(file.name)
        if len(seen) > 15:
            raise NoAnswer("the line is dead")
        put(self, file)

    monkeypatch.setattr(upload.Upload, "_put", some)
    with pytest.raises(NoAnswer, match="dead"):
        copy(trace, f"{bucket}/run.zarr")
    monkeypatch.undo()
    with pytest.raises(NotATrace):
        open_trace(f"{bucket}/run.zarr")
    there = set(upload.list_sizes(store(), f"{bucket}/run.zarr"))
    done = copy(trace, f"{bucket}/run.zarr")
    assert done.kept == len(there) == 15
    address.MEMORY.clear()
    assert verify(f"{bucket}/run.zarr").ok


def test_the_root_comes_last(bucket: str, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, done = upload.Upload._put, []

    def note(self: upload.Upload, file: Any) -> None:
        put(self, file)
        done.append(file.name)

    monkeypatch.setattr(upload.Upload, "_put", note)
    copy(trace, f"{bucket}/run.zarr")
    assert done[-2:] == ["manifest.json", "zarr.json"]


def test_requests_that_fail_are_tried_again(bucket: str, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, failed = store(), []
    pipe = fs.pipe_file

    def shaky(path: str, data: bytes) -> Any:
        if len(failed) < 5 or path.endswith("probability/c.0.0.1.0.0.0.0"):
            failed.append(path)
            raise ConnectionResetError("reset")
        return pipe(path, data)

    monkeypatch.setattr(fs, "pipe_file", shaky)
    with pytest.raises(NoAnswer, match=r"cannot be written: reset \(4 attempts\); copy again"):
        copy(trace, f"{bucket}/run.zarr")
    monkeypatch.undo()
    monkeypatch.setattr(address, "BACKOFF_SECONDS", 0.01)
    failed.clear()
    assert copy(trace, f"{bucket}/run.zarr").kept > 0


def test_what_is_no_trace_is_left_alone(bucket: str, trace: Path) -> None:
    store().pipe_file(f"{bucket}/run.zarr/thesis.tex", b"work of years")
    for overwrite in (False, True):
        with pytest.raises(AlreadyExists, match=r"holds thesis\.tex, which is no part of a trace"):
            copy(trace, f"{bucket}/run.zarr", overwrite=overwrite)
    assert store().cat_file(f"{bucket}/run.zarr/thesis.tex") == b"work of years"


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("https://host/run.zarr", "a web server, which takes no files"),
        ("s3://bucket/run", "cannot tell from s3://bucket/run what to write"),
        ("hf://datasets/who/what/run.zarr", "a commit of its own"),
    ],
)
def test_addresses_that_cannot_be_written_to_are_refused_in_words(trace: Path, out: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        copy(trace, out)


def test_a_bucket_that_is_not_there_is_said(bucket: str, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["copy", str(trace), "s3://nowhere/run.zarr.zip"]) == 6
    assert "Traceback" not in (said := capsys.readouterr().err) and "s3://nowhere/run.zarr.zip" in said
