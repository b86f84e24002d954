"""The folders of the package: listed in pyproject.toml with their data files, small, and each with a docstring that says what it is for."""

from __future__ import annotations

import ast
import glob
import tomllib
from pathlib import Path

import pytest
from repository import ROOT

pytestmark = pytest.mark.analyzer

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
MOST_MODULES = 9
SUMMARY_LINES = range(2, 6)
HALVES = ("analyzer", "recorder", "schema")


def source_files() -> list[Path]:
    """Every file below the halves, relative to the root, but for what the interpreter leaves."""
    found = [path.relative_to(ROOT) for half in HALVES for path in (ROOT / half).rglob("*") if path.is_file()]
    return [path for path in found if "__pycache__" not in path.parts]


ROOMS = sorted({path.parent for path in source_files() if path.suffix == ".py"})


def dotted(folder: Path) -> str:
    return ".".join(("i2am", *folder.parts))


def test_pyproject_lists_every_folder_that_has_modules() -> None:
    assert SETUPTOOLS["packages"] == sorted(["i2am", *map(dotted, ROOMS)])
    assert all((ROOT / room / "__init__.py").is_file() for room in ROOMS)


def test_package_data_names_the_data_files_that_exist() -> None:
    promised = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in patterns:
            found = [Path(name) for name in glob.glob(pattern, root_dir=folder, recursive=True)]
            files = {(folder / name).relative_to(ROOT) for name in found if (folder / name).is_file()}
            assert files, f"{package}: nothing matches {pattern}"
            promised |= files
    assert promised == {Path("py.typed"), *(path for path in source_files() if path.suffix != ".py")}


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_a_room_is_small_and_says_what_it_is_for(room: Path) -> None:
    modules = [path for path in (ROOT / room).glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES
    summary = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")))
    assert summary is not None
    assert len([line for line in summary.splitlines() if line]) in SUMMARY_LINES
