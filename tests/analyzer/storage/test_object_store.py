"""Traces in an object store that speaks the protocol of S3, and on the hub."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import serving_bucket
from webserver import free_port, serving
from zips import zip_trace

from i2am.analyzer import evaluate, open_trace, r2g, sram
from i2am.analyzer.cli.main import run
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.storage import address
from i2am.schema.errors import CorruptTrace, NoAnswer, NotATrace
from traces import synthetic_trace

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = synthetic_trace(tmp_path_factory.mktemp("plain") / "run.zarr").path
    zip_trace(path, path.with_name("run.zarr.zip"))
    return path


@pytest.fixture(scope="module")
def store(trace: Path) -> Iterator[str]:
    """A bucket with the trace as a folder and as a zip file."""
    import fsspec

    with serving_bucket("shelf") as place:
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        fs.put(str(trace), "shelf/traces/run.zarr", recursive=True)
        fs.put(str(trace.with_name("run.zarr.zip")), "shelf/traces/deep/zipped.zarr.zip")
        yield f"{place}/traces"


@pytest.mark.parametrize("name", ["run.zarr", "deep/zipped.zarr.zip"])
def test_maps_and_checks_are_those_of_the_folder(name: str, store: str, trace: Path) -> None:
    opened = open_trace(f"{store}/{name}")
    assert (r2g(opened).compute() == r2g(open_trace(trace)).compute()).all()
    assert (sram(pickle.loads(pickle.dumps(opened)), at=(2, 2)).compute() == sram(open_trace(trace), at=(2, 2)).compute()).all()
    assert verify(f"{store}/{name}").ok
    assert opened.path == f"{store}/{name}"


def test_a_folder_and_a_pattern_are_listed_there(store: str) -> None:
    both = ["run", "zipped"]
    for given, names in (
        (store, both),
        (f"{store}/", both),
        (f"{store}/**/*.zarr.zip", ["zipped"]),
        ([f"{store}/run.zarr", f"{store}/*/*.zip"], both),
    ):
        assert sorted(evaluate(given, metrics=["imacs_g"])["trace"].values.tolist()) == names


def test_files_that_are_missing_or_strange_are_said(store: str, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fsspec

    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.put(str(trace), "shelf/broken.zarr", recursive=True)
    name = next(name for name in json.loads((trace / "manifest.json").read_text())["files"] if "/probability/c" in name)
    fs.rm(f"shelf/broken.zarr/{name}")
    with pytest.raises(CorruptTrace, match="is missing from the trace s3://shelf/broken"):
        open_trace("s3://shelf/broken.zarr")
    fs.pipe(f"shelf/broken.zarr/{name}", (trace / name).read_bytes())
    fs.pipe("shelf/broken.zarr/stranger", b"x")
    with pytest.raises(CorruptTrace, match="stranger in the trace s3://shelf/broken"):
        open_trace("s3://shelf/broken.zarr")
    assert run(["info", "s3://shelf/nothing.zarr"]) == 3
    assert run(["info", "s3://shelf/nothing.zarr.zip"]) == 3
    assert run(["info", "s3://nobucket/run.zarr"]) == 3
    assert capsys.readouterr().err.count("\n") == 3


def test_a_store_that_refuses_or_is_not_there_is_one_line(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import s3fs

    monkeypatch.setattr(address, "BACKOFF_SECONDS", 0.01)
    for error in (PermissionError("Forbidden"), OSError(5, "SlowDown"), RuntimeError("a-secret?")):

        async def refuse(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(s3fs.S3FileSystem, "_info", refuse)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(NoAnswer):
            open_trace(f"{store}/run.zarr")
        assert run(["info", f"{store}/run.zarr.zip"]) == 6
        assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert run(["info", f"{store}/run.zarr.zip"]) == 6
    assert capsys.readouterr().err.count("\n") == 1
    s3fs.S3FileSystem.clear_instance_cache()


def be_the_hub(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library of the hub ask another server."""
    for module in ("constants", "file_download"):  # releases differ in where they look
        monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def test_a_trace_on_the_hub_is_read_over_http_with_the_users_token(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "datasets" / "who" / "what" / "resolve" / "main"
    place.mkdir(parents=True)
    zip_trace(trace, place / "run.zarr.zip")
    with serving(tmp_path) as web:
        be_the_hub(f"{web.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}", monkeypatch)
        monkeypatch.setattr(
            "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE",
            web.address + "/{repo_id}/resolve/{revision}/{filename}",
            raising=False,
        )
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        opened = open_trace("hf://datasets/who/what/run.zarr.zip")
        assert (r2g(opened).compute() == r2g(open_trace(trace)).compute()).all()
        assert opened.path == "hf://datasets/who/what/run.zarr.zip"
        assert {seen["authorization"] for seen in web.seen} == {"Bearer hf_secret"}
        assert web.requests == 1
        with pytest.raises(NotATrace):
            open_trace("hf://datasets/who/what@other/run.zarr.zip")


def test_a_folder_on_the_hub_is_listed_by_its_library(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.relative_to(trace).as_posix(): path.stat().st_size for path in trace.rglob("*") if path.is_file()}
    listed = {f"datasets/who/what/run.zarr/{name}": {"size": size, "type": "file"} for name, size in {**files, "README.md": 5}.items()}
    with serving(trace.parent) as hub:
        be_the_hub(f"{hub.address}/{{filename}}", monkeypatch)
        monkeypatch.setattr("huggingface_hub.HfFileSystem.find", lambda *_, **__: listed)
        opened = open_trace("hf://datasets/who/what/run.zarr")
        assert (r2g(opened).compute() == r2g(open_trace(trace)).compute()).all()
        listed["datasets/who/what/run.zarr/present/c.0.0"]["size"] = 5
        with pytest.raises(CorruptTrace, match=r"present/c\.0\.0 of the trace hf://.* has 5 bytes where"):
            open_trace("hf://datasets/who/what/run.zarr")


def test_the_token_does_not_follow_a_redirect_to_another_server(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(trace.parent) as hub, serving(trace.parent) as storage:
        be_the_hub(f"{hub.address}/{{filename}}", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        hub.reset("redirect", where=f"{storage.address}/run.zarr.zip?signature=secret")
        opened = open_trace("hf://datasets/who/what/run.zarr.zip")
        assert opened.complete
        assert [seen.get("authorization") for seen in hub.seen] == ["Bearer hf_secret"]
        assert [seen.get("authorization") for seen in storage.seen] == [None]
        assert "secret" not in repr(opened)
