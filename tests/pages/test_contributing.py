"""CONTRIBUTING.md and ARCHITECTURE.md: what they name exists, and a row added as they say is known everywhere."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden import GOLDEN
from repository import ROOT

from i2am.analyzer import METRICS, RECIPES, available, entropy, get_recipe, judge, open_trace, r2g
from i2am.analyzer.cli.main import run

pytestmark = pytest.mark.analyzer

PAGES = ("CONTRIBUTING.md", "ARCHITECTURE.md")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def definitions(path: Path) -> Iterator[str]:
    """Names that a module defines at its top."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)]):
                yield name


@pytest.mark.parametrize("page", PAGES)
def test_names_and_paths_exist(page: str) -> None:
    text = read(page)
    named = re.findall(r"`(\w+)`(?: there)? in\s+`([\w/]+\.py)`", text)
    assert named
    missing = [f"{name} in {path}" for name, path in named if name not in definitions(ROOT / path)]
    paths = re.findall(r"(?<![\w/.*])((?:analyzer|recorder|schema|tests|examples|docs)/[\w/.]*\w)", text)
    assert not missing + [path for path in paths if not (ROOT / path).exists()]


def test_the_style_example_is_in_the_code() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", read("CONTRIBUTING.md"), flags=re.S)
    assert example in read("analyzer/metrics/boxes.py")


def test_the_floors_drawn_are_those_of_the_contracts() -> None:
    contracts = {c["name"]: c for c in tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]}
    rows = re.findall(r"^    (\d+) {5,6}(.{45})(.*)$", read("ARCHITECTURE.md"), flags=re.M)
    drawn = {int(floor): [left.split(), right.partition("(")[0].split()] for floor, left, right in rows if int(floor)}
    for side, half in enumerate(("analyzer", "recorder")):
        layers = contracts[f"floors of the {half}"]["layers"]
        assert [drawn[floor][side] for floor in range(len(layers), 0, -1)] == [layer.replace("|", " ").split() for layer in layers]


def test_a_recipe_is_one_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setitem(RECIPES, "mine", dataclasses.replace(RECIPES["i2am"], name="mine", source="nobody", time="mean"))
    trace = open_trace(GOLDEN)
    assert r2g(trace, recipe="mine").equals(r2g(trace, recipe=get_recipe("i2am", time="mean")))
    assert run(["map", str(GOLDEN), "--r2g", "--recipe", "mine", "-o", str(tmp_path / "r2g.npy")]) == 0
    assert run(["recipes", "mine"]) == 0
    assert "nobody" in capsys.readouterr().out


def test_a_metric_is_one_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = dataclasses.replace(METRICS["entropy_g"], name="doubled", function=lambda map: 2 * entropy(map))
    monkeypatch.setitem(METRICS, "doubled", row)
    trace = open_trace(GOLDEN)
    found = judge(trace, ["doubled", "entropy_g"])
    assert float(found["doubled"]) == 2 * float(found["entropy_g"])
    assert "doubled" in available(trace)
    assert run(["evaluate", str(GOLDEN), "--metric", "doubled", "--json"]) == 0
    assert float(found["doubled"]) == pytest.approx(json.loads(capsys.readouterr().out)["traces"][0]["doubled"])
