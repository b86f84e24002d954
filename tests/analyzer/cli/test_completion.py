"""Shells complete the values of options, and hear nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.analyzer


def complete(line: str) -> list[str]:
    """What bash is offered for the last word of a line."""
    words = line.split(" ")
    environment = {**os.environ, "_I2AM_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run([sys.executable, "-P", "-m", "i2am.analyzer.cli"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    return [each.partition(",")[2] for each in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("i2am ver", ["verify"]),
        ("i2am map run.zarr --style ", ["viridis", "mako", "i2am", "daam", "plain"]),
        ("i2am map run.zarr --recipe i2am-o", ["i2am-official", "i2am-official-pbe"]),
        ("i2am map run.zarr --branch c", ["cond"]),
        ("i2am map run.zarr --keep time,l", ["time,layer"]),
        ("i2am map run.zarr --scale ", ["shared", "own"]),
        ("i2am compare run.zarr --recipes i2am,daa", ["i2am,daam"]),
        ("i2am evaluate traces --metric imacs_g,imacs_", ["imacs_g,imacs_g", "imacs_g,imacs_r"]),
    ],
)
def test_values_are_completed(line: str, offered: list[str]) -> None:
    assert complete(line)[: len(offered)] == offered


def test_the_script_for_a_shell_comes_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "i2am.analyzer.cli"],
        env={**os.environ, "_I2AM_COMPLETE": "bash_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""
