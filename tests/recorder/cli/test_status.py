"""`i2am status`: what became of each row of a manifest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from i2am.recorder.cli.status import status_command
from i2am.recorder.store.condition import find_condition
from i2am.schema.errors import InvalidInput
from traces import synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("status")
    synthetic_trace(folder / "traces/anna.zarr", steps=2)
    synthetic_trace(folder / "traces/bert.zarr", steps=2, planned=5, status="interrupted", seed=1)
    synthetic_trace(folder / "traces/carl.zarr", steps=2, seed=2)
    (folder / "traces/carl.zarr/manifest.json").write_text("{")
    synthetic_trace(folder / "traces/stranger.zarr", steps=1, seed=3)
    (folder / "pairs.csv").write_text("name,seed\nanna,1\nbert,2\ncarl,3\ndora,4\n")
    return folder


def status(folder: Path, *more: str) -> Result:
    return CliRunner().invoke(status_command, [str(folder / "traces"), "--manifest", str(folder / "pairs.csv"), *more])


def test_every_row_has_its_state_and_the_exit_code_says_whether_all_are_complete(made: Path) -> None:
    found = status(made, "--json")
    assert found.exit_code == 4
    facts = json.loads(found.output)
    assert {row["name"]: row["state"] for row in facts["rows"]} == dict(
        zip(("anna", "bert", "carl", "dora"), ("complete", "partial", "broken", "missing"), strict=True)
    )
    assert facts["counts"] == dict.fromkeys(("complete", "partial", "missing", "broken"), 1)
    assert facts["others"] == ["stranger.zarr"]
    lines = status(made).output.splitlines()
    assert lines[0].endswith("traces: 1 complete, 1 partial, 1 missing, 1 broken")
    assert lines[1].startswith("  bert: partial: interrupted: stopped by the test; 2 of 5 steps are whole")
    assert lines[2].startswith("  carl: broken: manifest.json is not JSON")
    assert lines[3:] == ["  dora: missing", "1 other traces lie there, which the manifest does not name"]


def test_all_complete_is_exit_code_0(made: Path, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("name\nanna\n")
    found = CliRunner().invoke(status_command, [str(made / "traces"), "--manifest", str(tmp_path / "one.csv")])
    assert (found.exit_code, found.output.splitlines()[0].rpartition(": ")[2]) == (0, "1 complete, 0 partial, 0 missing, 0 broken")


def chunk(path: Path) -> Path:
    return next(path.glob("layers/000/probability/c.*"))


BREAKS: dict[str, Callable[[Path], object]] = {
    "is missing": lambda path: chunk(path).unlink(),
    "bytes instead of": lambda path: chunk(path).write_bytes(b"short"),
    "manifest.json is missing": lambda path: (path / "manifest.json").unlink(),
    "its root was changed": lambda path: (path / "zarr.json").write_text("{"),
}


@pytest.mark.parametrize("reason", BREAKS)
def test_what_is_broken_says_where(tmp_path: Path, reason: str) -> None:
    path = synthetic_trace(tmp_path / "run.zarr", steps=2).path
    assert find_condition(path).state == "complete"
    BREAKS[reason](path)
    found = find_condition(path)
    assert found.state == "broken" and reason in found.why


def test_what_has_only_begun_is_partial_and_what_is_something_else_is_broken(tmp_path: Path) -> None:
    assert find_condition(tmp_path / "nothing.zarr").state == "missing"
    begun = tmp_path / "begun.zarr"
    begun.mkdir()
    (begun / "zarr.json.partial").touch()
    assert find_condition(begun).state == "partial"
    (begun / "notes.txt").touch()
    assert find_condition(begun).state == "broken"
    assert find_condition(begun / "notes.txt").state == "broken"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("name\nanna\n")
    found = CliRunner().invoke(status_command, [str(tmp_path / "gone"), "--manifest", str(tmp_path / "one.csv")])
    assert isinstance(found.exception, InvalidInput) and "there is no folder" in str(found.exception)


@pytest.mark.torch
def test_it_loads_no_torch() -> None:
    code = "import sys, i2am.recorder.cli.status; assert not {'torch', 'diffusers', 'dask', 'xarray'} & {*sys.modules}, 'loaded'"
    subprocess.run([sys.executable, "-c", code], check=True)
