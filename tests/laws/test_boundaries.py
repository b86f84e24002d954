"""The halves stay apart: checked in child processes, where a lazy import or a dependency's import would show."""

import subprocess
import sys

import pytest
from repository import ROOT


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.analyzer
@pytest.mark.torch
@pytest.mark.parametrize("statement", ["import i2am.analyzer", "from i2am.analyzer import open_trace, r2g, g2r, sram, imacs"])
def test_the_analyzer_needs_no_torch(statement: str) -> None:
    assert not modules_after(statement) & {"torch", "diffusers", "transformers"}


@pytest.mark.analyzer
@pytest.mark.torch
def test_the_schema_needs_numpy_alone() -> None:
    assert not modules_after("import i2am.schema") & {"torch", "zarr", "dask", "xarray"}


@pytest.mark.analyzer
@pytest.mark.parametrize("arguments", [["--help"], ["map", "--help"], ["verify", "--help"], ["--version"]])
def test_help_waits_for_no_numpy(arguments: list[str]) -> None:
    asked = f"from io import StringIO\nwith redirect_stdout(StringIO()): assert run({arguments}) == 0"
    found = modules_after(f"from contextlib import redirect_stdout\nfrom i2am.analyzer.cli.main import run\n{asked}")
    assert "click" in found
    assert not found & {"numpy", "dask", "xarray", "scipy", "PIL"}


@pytest.mark.analyzer
@pytest.mark.parametrize("module", ["verify", "info"])
def test_looking_at_a_trace_needs_neither_dask_nor_pandas(module: str) -> None:
    found = modules_after(f"import i2am.analyzer.inspection.{module}, i2am.analyzer.cli.main")
    assert not found & {"dask", "xarray", "pandas", "scipy"}


@pytest.mark.analyzer
@pytest.mark.torch
def test_the_writer_needs_neither_half() -> None:
    assert not modules_after("import i2am.recorder.store.writer") & {"torch", "dask", "xarray"}


def test_the_recorder_needs_no_dask() -> None:
    assert not modules_after("import i2am.recorder.session.recording") & {"dask", "xarray"}


@pytest.mark.analyzer
def test_what_skips_without_torch_is_run_with_it() -> None:
    """`make test` runs tests of the analyzer where torch is not installed, and those that are marked `torch` also where it is."""
    tests = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    skip = 'importorskip("torch")'
    assert not [path for path, text in tests.items() if skip in text and "mark.analyzer" in text and "mark.torch" not in text]
