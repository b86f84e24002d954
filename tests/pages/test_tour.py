"""The notebook runs from end to end, and is kept with outputs that a code host can show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

TOUR = ROOT / "examples/tour.ipynb"
MOST_BYTES = 1_500_000


def outputs(notebook: Path) -> list[list[dict[str, Any]]]:
    """The outputs of each cell of code."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]


def shown(notebook: Path) -> list[set[str]]:
    """The kinds of what each cell of code shows."""
    kinds = [{kind for output in found for kind in output.get("data", {})} for found in outputs(notebook)]
    return [found - {"image/jpeg"} for found in kinds]  # the same pictures again


def test_it_is_kept_with_its_outputs() -> None:
    assert TOUR.stat().st_size < MOST_BYTES
    assert all(shown(TOUR)), "a cell without output: run the notebook before it is kept"
    assert {output["output_type"] for found in outputs(TOUR) for output in found} <= {"execute_result", "display_data"}
    assert sum("image/png" in kinds for kinds in shown(TOUR)) >= 3, "frames are not shown by code hosts; pictures are"
    whole = TOUR.read_text(encoding="utf-8")
    assert "<iframe srcdoc=" in whole and str(Path.home()) not in whole


def test_it_runs_and_shows_the_same_kinds_of_things(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("nbconvert")
    pytest.importorskip("ipykernel")
    given = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(tmp_path), "--log-level", "ERROR"]
    copy = tmp_path / "copy.ipynb"
    copy.write_bytes(TOUR.read_bytes())
    done = subprocess.run(
        [*given, "--output", "tour.ipynb", str(copy)], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert shown(tmp_path / "tour.ipynb") == shown(TOUR)
    assert (tmp_path / "tour.html").stat().st_size > 10**6
