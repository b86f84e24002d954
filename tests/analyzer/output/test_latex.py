"""LaTeX tables: every character of a name is escaped, intervals stand beside means, and every row has as many cells."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2am.analyzer import open_trace
from i2am.analyzer.cli.main import run
from i2am.analyzer.numerics.statistics import Interval
from i2am.analyzer.output.latex import escape, write_cell, write_latex
from traces import synthetic_trace

pytestmark = pytest.mark.analyzer

COMMANDS = r"\\(?:text[a-z]+\{\}|[&%$#_{}]|uparrow\$?)"


def cells(tex: str) -> list[list[str]]:
    """Cells of every row between the lines."""
    body = tex.partition("\\toprule\n")[2].partition("\\bottomrule")[0]
    rows = [line for line in body.splitlines() if line != "\\midrule"]
    assert all(row.endswith(r" \\") for row in rows)
    return [re.split(r"(?<!\\) & ", row.removesuffix(r" \\")) for row in rows]


@given(st.text())
def test_text_leaves_nothing_that_latex_would_read(text: str) -> None:
    left = re.sub(COMMANDS, "", escape(text).replace(r"$\uparrow$", "").replace(r"$\downarrow$", ""))
    assert not set(left) & set("\\&%$#_{}~^\n\r")


@given(st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True), st.text(max_size=9))
def test_every_row_has_as_many_cells(names: list[str], value: str) -> None:
    tex = write_latex([dict.fromkeys(names, value), {names[0]: 1.5}], value, value)
    assert {len(row) for row in cells(tex)} == {len(names)}
    assert all(line.startswith("%") for line in tex.splitlines()[:4])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "--"),
        (float("nan"), "--"),
        (3, "3"),
        (-0.25, "$-0.250$"),
        ("a_b", r"a\_b"),
        (Interval(0.5, 0.4, 0.6, 9), r"$0.500 \pm 0.100$"),
        (Interval(0.5, 0.4, 0.7, 9), "$0.500^{+0.200}_{-0.100}$"),
        (Interval(0.5, float("nan"), float("nan"), 1), "$0.500$"),
        (Interval(float("nan"), float("nan"), float("nan"), 0), "--"),
    ],
)
def test_cells(value: object, shown: str) -> None:
    assert write_cell(value) == shown  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tables")
    for side in range(2):
        for seed in range(3):
            synthetic_trace(root / f"side{side}" / f"{seed}.zarr", seed=10 * side + seed, steps=1)
    return root


def test_a_dataset_is_a_row_of_means(folder: Path) -> None:
    out = folder / "my table.tex"
    assert run(["evaluate", str(folder / "side0"), "--metric", "imacs_g", "-o", str(out)]) == 0
    head, row = cells(out.read_text())
    assert head == ["method", r"imacs\_g $\uparrow$", "traces"] and row[0] == "i2am" and row[2] == "3"
    assert re.fullmatch(r"\$-?[\d.]+( \\pm [\d.]+|\^\{\+[\d.]+\}_\{-[\d.]+\})\$", row[1])
    assert r"\label{tab:my-table}" in out.read_text()


def test_two_folders_are_their_means_and_the_difference(folder: Path) -> None:
    assert run(["diff", str(folder / "side0"), str(folder / "side1"), "-o", str(folder / "d.tex")]) == 0
    assert [row[0] for row in cells((folder / "d.tex").read_text())] == ["", "first", "second", "difference"]


def test_a_comparison_is_its_correlations(folder: Path) -> None:
    trace = folder / "side0" / "0.zarr"
    assert open_trace(trace).complete
    assert run(["compare", str(trace), "--recipes", "i2am,i2am-custom", "-o", str(folder / "c.tex")]) == 0
    assert [row[0] for row in cells((folder / "c.tex").read_text())] == ["recipe", "i2am", "i2am-custom"]
