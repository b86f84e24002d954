"""Recordings to an object store: copied while the next one is sampled, kept here and named where that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from buckets import serving_bucket
from click.testing import CliRunner, Result
from specs import PAINT_BY_EXAMPLE

from i2am.recorder.cli import upload
from i2am.recorder.cli.record import record_command
from i2am.schema.errors import AlreadyExists, InvalidInput, NoAnswer, TraceError
from pipelines import paint_by_example, picture, square_mask

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


SPEC = PAINT_BY_EXAMPLE.replace("[images]", '[images]\nexample_image = "pairs/0.png"') + '[record]\nlayers = "*mid*"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uploads")
    paint_by_example()[0].save_pretrained(folder / "model")
    picture(1).save(folder / "image.png")
    square_mask().save(folder / "mask.png")
    (folder / "pairs").mkdir()
    for number in range(3):
        picture(10 + number).save(folder / f"pairs/{number}.png")
    (folder / "spec.toml").write_text(SPEC)
    (folder / "pairs/pairs.csv").write_text("name,example_image,seed\na,0.png,1\nb,1.png,2\nc,2.png,3\n")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving_bucket("records") as place:
        yield place


def run(folder: Path, *arguments: object) -> Result:
    result = CliRunner().invoke(record_command, [str(a) for a in (folder / "spec.toml", *arguments)])
    if isinstance(result.exception, TraceError):
        raise result.exception
    return result


def rows(result: Result) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads(result.stdout)["rows"]}


@pytest.mark.parametrize("name", ["run.zarr", "run.zarr.zip"])
def test_one_recording(folder: Path, server: str, tmp_path: Path, name: str) -> None:
    out, scratch = f"{server}/{tmp_path.name}/{name}", tmp_path / "scratch"
    made = run(folder, "-o", out, "--scratch", scratch, "--json")
    assert json.loads(made.stdout)["path"] == out
    assert f"recorded in {scratch}, then copied to {out}" in made.stderr
    code, facts = upload.run_analyzer("verify", out)
    assert (code, facts["trace"]) == (0, json.loads(made.stdout)["id"])
    assert list(scratch.iterdir()) == []
    with pytest.raises(AlreadyExists, match="exists already; choose another address"):
        run(folder, "-o", out, "--scratch", scratch)


def test_a_folder_of_its_own_goes_again(folder: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    monkeypatch.setattr(upload.tempfile, "mkdtemp", lambda prefix: made.mkdir() or str(made))
    run(folder, "-o", f"{server}/{tmp_path.name}/run.zarr")
    assert not made.exists()
    with pytest.raises(AlreadyExists):
        run(folder, "-o", f"{server}/{tmp_path.name}/run.zarr")
    assert not made.exists()


def test_what_could_not_be_copied_stays_and_the_message_says_how(folder: Path, server: str, tmp_path: Path) -> None:
    import s3fs

    s3fs.S3FileSystem().pipe_file(f"records/{tmp_path.name}/run.zarr/thesis.tex", b"work of years")
    out, local = f"{server}/{tmp_path.name}/run.zarr", tmp_path / "scratch/run.zarr"
    with pytest.raises(NoAnswer, match=rf"thesis.tex.*the recording stays in {local}, copy it with `i2am copy {local} {out}`"):
        run(folder, "-o", out, "--scratch", tmp_path / "scratch")
    assert upload.run_analyzer("verify", str(local))[0] == 0


def test_the_rows_of_a_manifest_and_again(folder: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, scratch = f"{server}/{tmp_path.name}", tmp_path / "scratch"
    arguments = ("--manifest", folder / "pairs/pairs.csv", "-o", out, "--scratch", scratch, "--json")
    work = upload.run_analyzer

    def shaky(*given: str) -> tuple[int, dict[str, Any]]:
        return (6, {"error": {"message": "the line is dead"}}) if given[0] == "copy" and given[2].endswith("b.zarr") else work(*given)

    monkeypatch.setattr(upload, "run_analyzer", shaky)
    first = run(folder, *arguments)
    assert first.exit_code == 1
    found = rows(first)
    assert {name: row["result"] for name, row in found.items()} == {"a": "recorded", "b": "failed", "c": "recorded"}
    assert {name: row["path"] for name, row in found.items() if name != "b"} == {n: f"{out}/{n}.zarr" for n in "ac"}
    assert f"the line is dead; the recording stays in {scratch / 'b.zarr'}, copy it with `i2am copy" in found["b"]["error"]
    assert [path.name for path in scratch.iterdir()] == ["b.zarr"]
    monkeypatch.undo()
    again = run(folder, *arguments)  # what was not copied is copied, and nothing is recorded anew
    assert again.exit_code == 0
    assert {row["result"] for row in rows(again).values()} == {"skipped"}
    assert list(scratch.iterdir()) == []
    for name in "abc":
        assert work("verify", f"{out}/{name}.zarr")[0] == 0


def test_outputs_are_refused_in_words_before_anything_is_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is for traces that are copied to an address"):
        run(folder, "-o", tmp_path / "run.zarr", "--scratch", tmp_path)
    with pytest.raises(InvalidInput, match="cannot tell from s3://records/run what to write"):
        run(folder, "-o", "s3://records/run")
