"""Many recordings: each row's trace is what it would be alone, a failure stops nothing, and a second run does only what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner, Result
from repository import ROOT
from specs import PAINT_BY_EXAMPLE

from i2am.recorder.cli import batch
from i2am.recorder.cli.batch import Place, find_place, gather
from i2am.recorder.cli.record import record_command
from i2am.recorder.store.lock import TraceLock
from i2am.schema.errors import InvalidInput, NoSpace, TraceError
from pipelines import paint_by_example, picture, square_mask

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SPEC = f'{PAINT_BY_EXAMPLE}[record]\nlayers = "*mid*"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    paint_by_example()[0].save_pretrained(folder / "model")
    (folder / "pairs").mkdir()
    picture(1).save(folder / "image.png")
    square_mask().save(folder / "mask.png")
    for number in range(4):
        picture(10 + number).save(folder / f"pairs/{number}.png")
    (folder / "spec.toml").write_text(SPEC)
    return folder


def manifest(folder: Path, *rows: str, header: str = "name,example_image,seed") -> Path:
    path = folder / "pairs/pairs.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def run(folder: Path, *arguments: object, spec: str = "spec.toml") -> Result:
    table = folder / "pairs/pairs.csv"
    result = CliRunner().invoke(record_command, [str(a) for a in (folder / spec, "--manifest", table, *arguments)])
    if isinstance(result.exception, TraceError):
        raise result.exception
    return result


def document(result: Result) -> Any:
    return json.loads(result.stdout)


def generated(path: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(path / "images/generated_0", mode="r")[:])


def record_of(path: Path) -> Any:
    return json.loads((path / "zarr.json").read_text())["attributes"]["i2am"]


def test_each_row_is_what_it_would_be_alone_and_the_model_is_loaded_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest(folder, "a,0.png,1", "b,1.png,2", "c,1.png,")
    loads = []
    load = batch.load_pipeline
    monkeypatch.setattr(batch, "load_pipeline", lambda spec: loads.append(1) or load(spec))
    made = document(run(folder, "-o", tmp_path / "many", "--json"))
    assert made["counts"] == {"recorded": 3} and len(loads) == 1
    assert [(row["name"], row["path"]) for row in made["rows"]] == [(n, str(tmp_path / f"many/{n}.zarr")) for n in "abc"]
    assert [record_of(Path(row["path"]))["id"] for row in made["rows"]] == [row["id"] for row in made["rows"]]
    manifest(folder, "b,1.png,2")
    run(folder, "-o", tmp_path / "one")
    assert np.array_equal(generated(tmp_path / "one/b.zarr"), generated(tmp_path / "many/b.zarr"))
    assert not np.array_equal(generated(tmp_path / "many/a.zarr"), generated(tmp_path / "many/b.zarr"))
    facts = record_of(tmp_path / "many/b.zarr")["provenance"]["facts"]
    assert facts == {"spec": SPEC, "manifest": "pairs.csv", "row": {"name": "b", "example_image": "1.png", "seed": "2"}}
    assert {image["name"] for image in record_of(tmp_path / "many/b.zarr")["images"]} >= {"reference", "mask", "generated_0"}


def test_a_second_run_does_what_is_missing(folder: Path, tmp_path: Path) -> None:
    manifest(folder, "a,0.png,1", "b,1.png,2", "c,2.png,3")
    first = {row["name"]: row["id"] for row in document(run(folder, "-o", tmp_path, "--json"))["rows"]}
    root = tmp_path / "b.zarr/zarr.json"
    text = root.read_text()
    assert '"status": "complete"' in text
    root.write_text(text.replace('"status": "complete"', '"status": "interrupted"'))
    second = document(run(folder, "-o", tmp_path, "--json"))
    assert {row["name"]: row["result"] for row in second["rows"]} == {"a": "skipped", "b": "recorded", "c": "skipped"}
    now = {name: record_of(tmp_path / f"{name}.zarr")["id"] for name in first}
    assert (now["a"], now["c"]) == (first["a"], first["c"]) and now["b"] != first["b"]
    manifest(folder, "a,0.png,9", "b,1.png,2")
    told = run(folder, "-o", tmp_path)
    assert told.exit_code == 0 and "a: skipped: it was recorded from another spec, row or options" in told.stdout
    again = document(run(folder, "-o", tmp_path, "--json", "--overwrite"))
    assert again["counts"] == {"recorded": 2} and record_of(tmp_path / "a.zarr")["id"] != first["a"]


def test_one_failure_stops_nothing_and_is_listed_at_the_end(folder: Path, tmp_path: Path) -> None:
    (folder / "pairs/text.png").write_text("no image")
    rows = ("gone,9.png,", "broken,text.png,", "taken,0.png,", "refused,0.png,many", "good,0.png,")
    manifest(folder, *rows, header="name,example_image,num_inference_steps")
    (tmp_path / "taken.zarr").mkdir()
    (tmp_path / "taken.zarr/thesis.txt").write_text("years of work")
    result = run(folder, "-o", tmp_path)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == f"{tmp_path}: 4 failed, 1 recorded"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["gone", "broken", "taken", "refused"]
    for line, words in zip(
        lines[1:], ("is no file", "is no image that can be read", "thesis.txt, which is not part of a trace", "refuses"), strict=True
    ):
        assert words in line
    assert record_of(tmp_path / "good.zarr")["status"] == "complete"
    assert (tmp_path / "taken.zarr/thesis.txt").read_text() == "years of work"


def test_what_is_wrong_with_every_row_is_said_once(folder: Path, tmp_path: Path) -> None:
    manifest(folder, "a,1", "b,2", header="name,seed")
    with pytest.raises(InvalidInput, match="PaintByExamplePipeline needs example_image"):
        run(folder, "-o", tmp_path / "x")
    manifest(folder, "a,0.png,3", header="name,example_image,guidance")
    with pytest.raises(InvalidInput, match="column 'guidance' is no argument of PaintByExamplePipeline; did you mean guidance_scale"):
        run(folder, "-o", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_full_disk_ends_the_batch_and_says_what_was_not_tried(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(folder, "a,0.png,1", "b,1.png,2", "c,2.png,3")
    once = batch.record_spec

    def full(pipeline: Any, spec: Any, path: Path, **options: Any) -> Any:
        if path.name == "b.zarr":
            raise NoSpace(f"no space left for {path}")
        return once(pipeline, spec, path, **options)

    monkeypatch.setattr(batch, "record_spec", full)
    result = run(folder, "-o", tmp_path, "--json")
    assert result.exit_code == 1
    assert [row["result"] for row in document(result)["rows"]] == ["recorded", "failed", "not tried"]


def test_budgets_are_held_before_the_model_is_loaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(folder, "a,0.png,1", "b,1.png,2")
    monkeypatch.setattr(batch, "load_pipeline", lambda spec: pytest.fail("loaded"))
    with pytest.raises(
        NoSpace, match=r"a.zarr would hold .* the limit is max_bytes='1kB'; no other encoding is smaller, no part .*, steps='::3' makes it"
    ):
        run(folder, "-o", tmp_path, "--max-bytes", "1kB")
    monkeypatch.setattr(batch, "free_bytes", lambda path: 1000)
    with pytest.raises(NoSpace, match=r"of others besides\) and 1 kB are free"):
        run(folder, "-o", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_dry_run_of_a_manifest(folder: Path, tmp_path: Path) -> None:
    manifest(folder, "a,0.png,1", "b,9.png,2")
    table = run(folder, "--dry-run").stdout.splitlines()
    assert table[0].startswith("1 of 2 rows are to be recorded, ")
    assert table[1].startswith("  b: pairs.csv, line 3: example_image = '9.png' is no file")
    made = document(run(folder, "--dry-run", "--json", "--heads", "0"))
    assert (made["rows"], made["waiting"], list(made["errors"])) == (2, 1, ["b"])
    assert made["each"]["layers"][0]["head_numbers"] == [0]


def test_ranks_share_the_rows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(folder, "a,0.png,1", "b,1.png,2", "c,2.png,3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, names in (("1", ["b"]), ("0", ["a", "c"])):
        monkeypatch.setenv("RANK", rank)
        assert [row["name"] for row in document(run(folder, "-o", tmp_path, "--json"))["rows"]] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr", "c.zarr"]
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(InvalidInput, match="RANK=2, WORLD_SIZE=2"):
        find_place()
    assert gather(Place(), [{"name": "mine"}]) == [{"name": "mine"}]


def test_tasks_of_srun_share_the_rows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(folder, "a,0.png,1", "b,1.png,2", "c,2.png,3")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert find_place().world == 1  # as in a batch script, which is no task of srun
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    for rank, names in (("1", ["b"]), ("0", ["a", "c"])):
        monkeypatch.setenv("SLURM_PROCID", rank)
        monkeypatch.setenv("SLURM_LOCALID", rank)
        result = run(folder, "-o", tmp_path, "--json")
        assert [row["name"] for row in document(result)["rows"]] == names
        said = f"process {rank} of 2 (SLURM_PROCID={rank}, SLURM_STEP_NUM_TASKS=2, SLURM_LOCALID={rank}) records {len(names)} of 3 rows"
        assert said in result.stderr
    assert find_place().local == 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert find_place().world == 1
    monkeypatch.setenv("SLURM_PROCID", "7")
    with pytest.raises(InvalidInput, match="SLURM_PROCID=7, SLURM_STEP_NUM_TASKS=1"):
        find_place()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert (find_place().rank, find_place().world) == (1, 3)


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_rows_of_another_process_are_skipped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: tuple[str, ...]
) -> None:
    manifest(folder, "a,0.png,1")
    run(folder, "-o", tmp_path / "theirs")
    manifest(folder, "a,0.png,1", "b,1.png,2", "c,2.png,3")
    once = batch.record_spec
    held: list[TraceLock] = []

    def beside(pipeline: Any, spec: Any, path: Path, **options: Any) -> Any:
        """While the first row is recorded, another process finishes the second and begins the third."""
        shutil.copytree(tmp_path / "theirs/a.zarr", tmp_path / "ours/b.zarr")
        shutil.copytree(tmp_path / "theirs/a.zarr/layers", tmp_path / "ours/c.zarr/layers")
        held.append(TraceLock(tmp_path / "ours/c.zarr"))
        return once(pipeline, spec, path, **options)

    monkeypatch.setattr(batch, "record_spec", beside)
    result = run(folder, "-o", tmp_path / "ours", "--json", *overwrite)
    held[0].release()
    rows = document(result)["rows"]
    assert result.exit_code == 0 and [row["result"] for row in rows] == ["recorded", "skipped", "skipped"]
    assert "another process has recorded it since" in rows[1]["note"] and rows[2]["note"] == "another process is recording it"
    assert record_of(tmp_path / "ours/b.zarr")["id"] == record_of(tmp_path / "theirs/a.zarr")["id"]


def test_a_row_whose_lock_is_lost_fails_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(folder, "a,0.png,1", "b,1.png,2")
    once = batch.record_spec

    def beside(pipeline: Any, spec: Any, path: Path, **options: Any) -> Any:
        if path.name == "a.zarr":  # locked between the look and the recording
            path.mkdir(parents=True)
            lock = TraceLock(path)
            try:
                return once(pipeline, spec, path, **{**options, "overwrite": True})
            finally:
                lock.release()
        return once(pipeline, spec, path, **options)

    monkeypatch.setattr(batch, "record_spec", beside)
    rows = document(run(folder, "-o", tmp_path / "ours", "--json"))["rows"]
    assert [row["result"] for row in rows] == ["failed", "recorded"] and "is being recorded by another process" in rows[0]["error"]


def test_two_processes_of_torchrun_record_the_example(tmp_path: Path) -> None:
    """The committed example, shorter: pairs drawn by its script, the shipped weights, one report for both processes."""
    package = Path(sys.modules["i2am"].__path__[0]).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}

    def python(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300)

    drawn = python(ROOT / "examples/draw_pairs.py", tmp_path / "pairs", "--count", 3)
    assert drawn.returncode == 0, drawn.stderr
    with open(tmp_path / "pairs/pairs.csv", "a") as file:
        file.write("missing,0,no.png,no.png,no.png,no.png\n")
    record = [sys.executable, "-c", "from i2am.recorder.cli.record import record_command; record_command()", ROOT / "examples/demo.toml"]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--no-python", *record]
    made = python(*launch, "--manifest", tmp_path / "pairs/pairs.csv", "-o", tmp_path / "traces", "--json", "--steps", "0")
    documents = [json.loads(line) for line in made.stdout.splitlines() if line.startswith("{")]
    assert len(documents) == 1, made.stderr
    assert [row["result"] for row in documents[0]["rows"]] == ["recorded", "recorded", "recorded", "failed"]
    assert made.returncode == 1
    assert {record_of(path)["status"] for path in (tmp_path / "traces").iterdir()} == {"complete"}
