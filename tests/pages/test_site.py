"""The site that `make docs` builds: every page is in its navigation, every public name and parameter in its reference."""

from __future__ import annotations

import importlib
import inspect
import re
import sys

import pytest
from repository import ROOT

pytest.importorskip("sphinx")
sys.path.insert(0, str(ROOT / "docs"))
import reference

FACES = ("i2am.analyzer", "i2am.recorder", "i2am.schema")


def test_every_page_is_in_the_navigation() -> None:
    linked = re.findall(r"\]\(([^)#]+\.md)\)", (ROOT / "docs/README.md").read_text(encoding="utf-8"))
    pages = {path.resolve() for path in (ROOT / "docs").rglob("*.md")} - {ROOT / "docs/README.md"}
    assert pages <= {(ROOT / "docs" / link).resolve() for link in linked}


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_is_listed(face: str) -> None:
    names = reference.names_of(face)
    page = reference.list_names(face)
    assert len(names) >= 4
    assert [name for name in names if f":: {face}.{name}\n" not in page] == []
    assert set(names) >= set(getattr(importlib.import_module(face), "__all__", ()))


def public_functions() -> list[tuple[str, object]]:
    found = [(f"{face}.{name}", getattr(importlib.import_module(face), name)) for face in FACES for name in reference.names_of(face)]
    return [(name, function) for name, function in found if inspect.isfunction(function)]


@pytest.mark.parametrize(("name", "function"), public_functions(), ids=[name for name, _ in public_functions()])
def test_every_parameter_is_explained(name: str, function: object) -> None:
    """By its function, or for all functions in docs/api/parameters.md."""
    explained = reference.explained(inspect.getdoc(function) or "") | set(reference.shared_parameters())
    assert set(inspect.signature(function).parameters) <= explained  # type: ignore[arg-type]


def test_every_shared_parameter_is_one_of_a_function() -> None:
    taken = {each for _, function in public_functions() for each in inspect.signature(function).parameters}  # type: ignore[arg-type]
    assert set(reference.shared_parameters()) <= taken


def test_a_docstring_becomes_fields_links_and_code() -> None:
    lines = ["One *sentence* of `r2g` and `x`.", "", "    r2g(trace)", "", "`keep`  axes", "`a`, `b`  both", "", "Range    >= 0; ends_"]
    reference.write_docstring(None, "class", "i2am.analyzer.Trace", None, None, lines)
    assert lines[0] == "One \\*sentence\\* of :py:obj:`r2g <i2am.analyzer.r2g>` and ``x``."
    assert lines[2:5] == [".. code-block:: python", "", "    r2g(trace)"]
    assert lines[6:9] == [":param keep: axes", ":param a: both", ":param b: both"]
    assert ":Range: >= 0; ends\\_" in lines
