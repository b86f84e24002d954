"""What users import: every name of a face's stub exists, and none hides a package."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from repository import ROOT

pytestmark = pytest.mark.analyzer

FACES = ("analyzer", "recorder", "recorder/demo")


def stub(half: str) -> list[str]:
    """Names that a half's stub hands on."""
    tree = ast.parse((ROOT / half / "__init__.pyi").read_text(encoding="utf-8"))
    return [alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_every_name_of_the_stub_can_be_imported() -> None:
    printed = python("import i2am.analyzer as face; print(*(n for n in face.__all__ if getattr(face, n) is not None))")
    assert printed.split() == sorted(stub("analyzer"))


@pytest.mark.parametrize("half", FACES)
def test_no_name_is_a_package_or_stands_twice(half: str) -> None:
    """A function of a package's name would be replaced by the package as soon as that is imported."""
    names, packages = stub(half), {path.parent.name for path in (ROOT / half).rglob("__init__.py")}
    modules = {path.stem for path in (ROOT / half).glob("*.py")}
    assert len(names) == len(set(names))
    assert not set(names) & (packages | modules)
