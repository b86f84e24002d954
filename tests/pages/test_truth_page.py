"""The page of the study holds what its command prints: a tiny run has the same tables, columns and rows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from repository import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("skimage")

from i2am.recorder.demo.pipeline import WEIGHTS  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PAGE = ROOT / "docs" / "truth.md"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def structure(text: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Title, header and first cells of every table; optimiser steps count for nothing."""
    found = []
    for title, header, rows in re.findall(r"\*\*(.+?)\*\*\n\n(\|.*?)\n\|[-|]+\n((?:\|.*\n)+)", text):
        first = tuple(row.split("|")[1].strip() for row in rows.splitlines())
        found.append((title, header, () if title == "A training run" else first))
    return found


def test_the_page_has_the_tables_that_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpoints
    import truth_tables
    from truth import MARKS, collect, conditions, write_page

    for module in (checkpoints, truth_tables):
        monkeypatch.setattr(module, "RESAMPLES", 20)
    for step in (1, 2):
        (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "checkpoints" / f"step-{step:06d}").symlink_to(WEIGHTS)
    study = collect(tmp_path, pairs=1, steps=5, stride=1, checkpoints=tmp_path / "run", few=2, short=2)
    printed = truth_tables.report(study)
    page = PAGE.read_text()
    begin, end = (page.index(mark) for mark in MARKS)
    assert structure(page[begin:end]) == structure(printed)
    assert len(structure(printed)) == 11
    assert conditions(64, 50, 5, (16, 20)).partition("; ")[2] in page
    written = tmp_path / "page.md"
    written.write_text(page)
    write_page(written, printed)
    assert written.read_text() == page[:begin] + f"{MARKS[0]}\n\n{printed}\n" + page[end:]


def test_a_page_without_a_place_for_tables_is_refused(tmp_path: Path) -> None:
    from truth import write_page

    page = tmp_path / "page.md"
    page.write_text("nothing here")
    with pytest.raises(SystemExit, match="has no place for the tables"):
        write_page(page, "x")
    with pytest.raises(SystemExit, match="holds 0 checkpoints"):
        __import__("checkpoints").find_checkpoints(tmp_path)


def test_rank_correlation_is_spearmans() -> None:
    from checkpoints import over_pairs, spearman
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40).astype(float), rng.random(40)
    assert spearman(a, b) == pytest.approx(float(spearmanr(a, b).statistic))
    assert spearman(a, np.ones(40)) == 0
    found = over_pairs(a, a + 0.1 * b)
    assert found.low <= found.value <= found.high <= 1
    assert over_pairs(a, a).low == pytest.approx(1)


def test_ridge_finds_the_head_that_knows() -> None:
    """Heads of noise and one that shows the truth: weights learnt on one half find it on the other."""
    from aggregation import WAYS, Finding, judge_way

    rng = np.random.default_rng(0)
    findings = [knowing_finding(rng, Finding) for _ in range(6)]
    plain, ridge = (judge_way(next(way for way in WAYS if way.name.startswith(name)), findings) for name in ("plain", "ridge"))
    selected = judge_way(next(way for way in WAYS if "selected" in way.name), findings)
    assert ridge["pck"].mean() > 0.9 > plain["pck"].mean()
    assert selected["pck"].mean() > plain["pck"].mean()
    assert ridge["iou_g"].mean() > 0.8 > plain["iou_g"].mean()
    assert ridge["imacs_r"].mean() > plain["imacs_r"].mean()


def knowing_finding(rng: np.random.Generator, make: type) -> object:
    """A recording of 2 layers of 4 heads on 8 x 8 cells, of which head 3 of layer 1 knows everything."""
    place = np.argwhere(rng.random((8, 8)) < 0.4)
    cells = rng.integers(0, 64, len(place))
    truth = (np.stack(np.divmod(cells, 8), -1) + 0.5) / 8
    mask, reference = (np.kron(rng.random((8, 8)) < 0.5, np.ones((4, 4))) > 0 for _ in range(2))
    looks, r2g, g2r = rng.random((2, 2, 4, len(place), 64)), rng.random((2, 2, 4, 8, 8)), rng.random((2, 2, 4, 8, 8))
    looks[:, 1, 3] = np.eye(64)[cells] * 0.5
    r2g[:, 1, 3], g2r[:, 1, 3] = (each[::4, ::4] + 0.01 for each in (mask, reference))
    answers = rng.random((2, 4, len(place), 8, 8))
    blank = np.full((1, 1), np.nan)
    return make(
        looks=looks, answers=answers, shares=answers, r2g=r2g, g2r=g2r, g2r_plain=g2r.sum((0, 1, 2)), even=rng.random((2, 2, 4)),
        place=place, truth=truth, mask=mask, reference_mask=reference, image=blank, recipes_r2g=blank, recipes_g2r=blank,
        recipes_looks=blank, recipes_answers=blank, layers=np.array(["a", "b"]), grids=np.array([(8, 8), (8, 8)]),
    )  # fmt: skip
