"""A command after each finished row: what it is given, and what its failure costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from i2am.analyzer.cli.main import run
from traces import synthetic_trace

pytestmark = pytest.mark.analyzer

ODD = "two words; touch '$(x)' {trace}"


@pytest.fixture(autouse=True)
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b", ODD)):
        synthetic_trace(Path("traces", f"{name}.zarr"), steps=2, seed=seed)
    synthetic_trace(Path("traces/part.zarr"), steps=2, planned=5, status="interrupted", seed=5)
    Path("note.py").write_text("import sys, json\nopen('told.jsonl', 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n")
    return tmp_path


def told() -> list[list[str]]:
    """What the command was given, each time."""
    path = Path("told.jsonl")
    return sorted(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def evaluate(command: str, *more: str) -> int:
    return run(["evaluate", "traces", "-o", "table.csv", "--after", command, *more])


NOTE = f"{sys.executable} note.py {{path}} 'to:{{trace}}/x y'"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_it_is_given_each_finished_trace_and_no_shell_sees_it(traces: Path, jobs: str) -> None:
    assert evaluate(NOTE, "--jobs", jobs) == 4, "one trace did not finish"
    assert told() == sorted([str(traces / "traces" / f"{name}.zarr"), f"to:{name}/x y"] for name in ("a", "b", ODD))


def test_it_is_run_once_for_a_row_also_after_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    failing = f"{sys.executable} -c \"import os, sys; sys.exit('no room for ' + sys.argv[1] if os.path.exists('full') else 0)\" {{trace}}"
    Path("full").touch()
    assert evaluate(failing, "--json") == 4
    failed = json.loads(capsys.readouterr().out)["failed_after"]
    assert sorted(failed) == sorted(("a", "b", ODD))
    assert failed["a"].endswith("ended with exit code 1: no room for a")
    assert evaluate(NOTE, "--resume") == 4
    assert len(told()) == 3
    assert evaluate(NOTE, "--resume") == 4
    assert len(told()) == 3, "a row that has had its command has had it"


def test_its_failure_is_listed_and_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "traces/a.zarr", "traces/b.zarr", "-o", "table.csv", "--after", "no-such-program {path}"]) == 1
    captured = capsys.readouterr()
    assert "table.csv: 2 traces" in captured.out
    assert captured.err.splitlines() == [
        f"after {name}: no-such-program could not be run (No such file or directory)" for name in ("a", "b")
    ]
    assert Path("table.csv.rows.jsonl").exists(), "so that --resume runs it again"
    assert run(["evaluate", "traces/a.zarr", "traces/b.zarr", "-o", "table.csv", "--after", "true", "--resume"]) == 0
    assert not Path("table.csv.rows.jsonl").exists()


def test_a_name_that_looks_like_an_option_is_not_given() -> None:
    Path("traces/a.zarr").rename("traces/-rf.zarr")
    assert run(["evaluate", "traces/-rf.zarr", "traces/b.zarr", "--after", NOTE]) == 1
    assert [given[0].rpartition("/")[2] for given in told()] == ["b.zarr"]


@pytest.mark.parametrize(("command", "reason"), [("", "names no command"), ("a 'b", "cannot be split into words")])
def test_what_is_no_command_is_one_line(command: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(command) == 2
    assert reason in capsys.readouterr().err
