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


@pytest.mark.parametrize("first", ["", "import i2am.schema.layout", "import i2am.analyzer.store.files"])
def test_the_layout_of_the_schema_is_the_function_whatever_was_imported_before(first: str) -> None:
    assert python(f"{first}\nfrom i2am.schema import layout\nprint(layout.__name__, callable(layout))") == "layout True\n"
    assert python(f"{first}\nimport i2am.schema\nprint(callable(i2am.schema.layout))") == "True\n"


def test_every_name_of_the_schema_is_there_once_it_is_asked_for() -> None:
    tree = ast.parse((ROOT / "schema/__init__.py").read_text(encoding="utf-8"))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    names = {alias.name: node.module for node in froms for alias in node.names}
    assert len(names) > 20
    for name, module in names.items():
        code = f"import i2am.schema as face, i2am.schema.{module}, sys\nprint(face.{name} is sys.modules['i2am.schema.{module}'].{name})"
        assert python(f"{code}\nassert '{name}' in dir(face)") == "True\n", name
    assert python("import i2am.schema as face\nprint(hasattr(face, 'nothing'))") == "False\n"
