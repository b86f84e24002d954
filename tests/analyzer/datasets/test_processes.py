"""Datasets in several processes: the same table, whatever becomes of a process, and nothing left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from i2am.analyzer import evaluate
from i2am.analyzer.cli.main import run
from i2am.analyzer.datasets.dataset import ask
from i2am.analyzer.datasets.processes import FEW, Crew, choose_jobs
from i2am.analyzer.datasets.rows import DatasetRequest
from i2am.analyzer.store.discovery import Member, find_traces
from i2am.schema.errors import InvalidInput
from i2am.schema.messages import for_shell
from traces import synthetic_trace

pytestmark = pytest.mark.analyzer

METRICS = ("imacs_g", "iou_g", "row_entropy")
MANY = 24


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many sound traces, and one that did not finish."""
    folder = tmp_path_factory.mktemp("many")
    for seed in range(3):
        synthetic_trace(folder / f"pair-{seed:02d}.zarr", steps=4, seed=seed, encoding=("probabilities", "factors")[seed % 2])
    for number in range(3, MANY):
        shutil.copytree(folder / f"pair-{number % 3:02d}.zarr", folder / f"pair-{number:02d}.zarr")
    synthetic_trace(folder / "part.zarr", steps=2, planned=5, status="interrupted", seed=5)
    return folder


def test_processes_give_what_this_one_gives_bit_for_bit(traces: Path) -> None:
    alone, together = (evaluate(traces, metrics=METRICS, layers="*_blocks.*", jobs=jobs) for jobs in (1, 3))
    assert alone.sizes["trace"] == MANY
    xr.testing.assert_identical(alone, together)


def test_a_script_needs_no_guard_and_runs_once(traces: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from i2am.analyzer import evaluate\nprint(dict(evaluate({str(traces)!r}, jobs=2).sizes))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == (f"{{'trace': {MANY}}}\n", "")


class Deadly:
    """A path that ends the process that is asked for it."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (9,)

    def __str__(self) -> str:
        return "deadly.zarr"


def test_a_trace_that_costs_its_process_costs_no_other_its_row(traces: Path) -> None:
    found = find_traces(traces)
    deadly: Any = Deadly()
    members = [Member("deadly", deadly), *found[:3], Member("deadly", deadly), *found[3:5]]
    with for_shell():
        request = DatasetRequest(metrics=("imacs_g",))
        with Crew(2) as crew:
            answered = ask(members, request, crew=crew)
        assert [member.name for member, _ in answered.skipped] == ["deadly", "deadly"]
        assert "deadly.zarr cost its process" in answered.skipped[0][1].error and "--jobs 1" in answered.skipped[0][1].error
        alone = ask(found[:5], request)
    assert [row for _, row in answered.good] == alone.rows


def test_messages_from_processes_are_spelled_for_their_reader(traces: Path) -> None:
    for shell, wanted in ((True, "--partial"), (False, "partial=True")):
        with for_shell() if shell else nullcontext():
            request = DatasetRequest(metrics=("imacs_g",))
        with Crew(2) as crew:
            ((_, row),) = ask(find_traces(traces), request, crew=crew).skipped
        assert wanted in row.error


def test_processes_are_started_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask.system.CPU_COUNT", 16)
    assert [choose_jobs(None, traces) for traces in (1, FEW, FEW + 1, 1000)] == [1, 1, FEW + 1, 16]
    assert [choose_jobs(8, traces) for traces in (1, 2, 1000)] == [1, 2, 8]
    with pytest.raises(InvalidInput, match="jobs=0 processes; expected 1 or more"):
        choose_jobs(0, 5)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_the_process_that_is_forked_has_one_thread(traces: Path) -> None:
    with Crew(2) as crew:
        ask(find_traces(traces)[:4], DatasetRequest(metrics=("imacs_g",)), crew=crew)
        first = crew._first
        assert first is not None
        assert len(os.listdir(f"/proc/{first.pid}/task")) == 1


def test_a_client_takes_no_processes(traces: Path) -> None:
    with pytest.raises(InvalidInput, match="jobs= is of this machine"):
        evaluate(traces, client=object(), jobs=2)


def below(pid: int) -> list[int]:
    """Processes that a process started, and those that these did."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, left = [], [pid]
    while left:
        mine = [child for child, parent in parents.items() if parent in left]
        found, left = found + mine, mine
    return found


def gone(pids: list[int], seconds: float = 20) -> bool:
    """Whether all of these end within some seconds."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked at in /proc")
@pytest.mark.parametrize(
    "sent", [pytest.param(signal.SIGINT, id="Ctrl-C", marks=pytest.mark.torch), pytest.param(signal.SIGKILL, id="kill -9")]
)
def test_an_end_in_the_middle_leaves_no_process_and_rows_to_go_on_with(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sent: signal.Signals
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", str(traces), "--metric", ",".join(METRICS), "-o", "table.csv"]
    rows = tmp_path / "table.csv.rows.jsonl"
    program = [sys.executable, "-P", "-m", "i2am.analyzer.cli"]
    process = subprocess.Popen([*program, *command, "--jobs", "2"], stderr=subprocess.PIPE, text=True)
    while not rows.exists() or rows.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    children = below(process.pid)
    assert len(children) == 3, "the first, and two that work"
    assert not any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in children)
    process.send_signal(sent)
    _, said = process.communicate()
    assert gone(children)
    finished = rows.read_bytes().count(b"\n") - 1
    assert 2 <= finished < MANY
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert f"i2am: interrupted; {finished} rows are kept in table.csv.rows.jsonl; --resume goes on from there" in said
    assert run([*command, "--jobs", "1"]) == 2
    assert "add --resume to go on from there, or --overwrite to begin anew" in capsys.readouterr().err
    assert run([*command, "--jobs", "1", "--resume"]) == 4, "one trace did not finish"
    resumed = (tmp_path / "table.csv").read_bytes()
    assert run([*command, "--jobs", "1", "--overwrite"]) == 4
    assert (tmp_path / "table.csv").read_bytes() == resumed
    assert resumed.count(b"\n") == MANY + 1
