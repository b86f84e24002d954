"""Where output goes wrong: closed streams, readers that left, disks that are full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from i2am.analyzer import open_trace, r2g
from i2am.analyzer.cli.failures import describe
from i2am.analyzer.cli.main import run
from i2am.schema.errors import InvalidInput
from i2am.schema.messages import size_text
from traces import Synthetic, synthetic_trace

pytestmark = pytest.mark.analyzer

PROGRAM = (sys.executable, "-P", "-m", "i2am.analyzer.cli")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return synthetic_trace(tmp_path_factory.mktemp("streams") / "run.zarr", steps=2)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("line", "code"), [("info {t}", 0), ("verify {t}", 0), ("bogus", 2), ("bogus --json", 2)])
def test_a_closed_stream_changes_no_exit_code(made: Synthetic, closed: str, line: str, code: int) -> None:
    command = " ".join([*PROGRAM, line.format(t=made.path), closed])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "Error" not in done.stderr


@pytest.mark.parametrize("given", [["bogus"], ["bogus", "--json"], ["info", "nothing"]])
def test_a_reader_that_left_does_not_hide_the_exit_code(given: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        code = subprocess.run([*PROGRAM, *given], stdout=gone, stderr=gone, check=False).returncode
    assert code == (3 if "info" in given else 2)


@pytest.mark.parametrize("suffix", [".nc", ".npy", ".png"])
def test_a_file_that_may_not_grow_is_one_line_and_leaves_nothing(made: Synthetic, suffix: str, tmp_path: Path) -> None:
    """A limit on file sizes fails as a full disk does: in the middle of writing."""
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)); from i2am.analyzer.cli.main import main; main()"
    given = ["map", str(made.path), "--r2g", "--keep", "layer,head", "-o", str(tmp_path / f"m{suffix}")]
    done = subprocess.run([sys.executable, "-P", "-c", code, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["i2am: File too large"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".nc", ".npy", ".png"])
def test_a_full_disk_has_its_exit_code(
    made: Synthetic, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run(["map", str(made.path), "--r2g", "-o", str(tmp_path / f"m{suffix}")]) == 7
    assert "no space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_that_are_written_are_numpy_s(made: Synthetic, tmp_path: Path) -> None:
    assert run(["map", str(made.path), "--r2g", "-o", str(tmp_path / "m.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "m.npy"), r2g(open_trace(made.path)).values)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (58_123, "58.1 kB"), (999_600, "1 MB"), (45e6, "45 MB"), (2e12, "2 TB")],
)
def test_sizes_have_the_unit_that_suits_them(nbytes: float, text: str) -> None:
    assert size_text(nbytes) == text


@pytest.mark.parametrize("command", ["info", "verify"])
def test_small_traces_are_counted_in_kilobytes(made: Synthetic, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, str(made.path)]) == 0
    shown = capsys.readouterr().out
    assert " kB" in shown
    assert "0.0 MB" not in shown


def test_no_line_of_the_help_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "..." not in shown.split("Commands:")[1]


def test_options_are_named_as_the_caller_writes_them(made: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["map", str(made.path), "--r2g", "--time-groups", "2", "-o", str(tmp_path / "m.npy")]) == 2
    assert "--time-groups splits the time axis, which is not kept; add --keep time" in capsys.readouterr().err
    with pytest.raises(InvalidInput, match="time_groups= splits the time axis, which is not kept; add keep='time'"):
        r2g(open_trace(made.path), time_groups=2)


def test_what_was_noted_on_the_way_is_said() -> None:
    stopped = KeyboardInterrupt()
    stopped.add_note("3 of 5 steps are recorded and readable")
    aborted = click.Abort()
    aborted.__cause__ = stopped
    assert describe(aborted, ["record"]) == ("Interrupted", "interrupted; 3 of 5 steps are recorded and readable", 130)
