"""The page of known truth holds what the benchmark of faithfulness prints, and its own way of dropping keys is that of interventions."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repository import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PAGE = ROOT / "docs" / "truth.md"
LAYERS = ("down_blocks.0.attentions.0", "down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.0",
          "up_blocks.0.attentions.1", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1")  # fmt: skip


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def structure(text: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Title, header and first two cells of the rows of every table."""
    tables = re.findall(r"\*\*(.+?)\*\*\n\n(\|.*?)\n\|[-|]+\n((?:\|.*\n)+)", text)
    return [
        (title, header, tuple(re.sub(r"-?\d+\.\d+.*", "", "|".join(row.split("|")[1:3])) for row in rows.splitlines()))
        for title, header, rows in tables
    ]


def drawn_pair(rng: np.random.Generator) -> dict[str, Any]:
    """A pair with every score that the tables have, drawn by chance."""
    import faithfulness_tables as tables

    numbers = ("spearman", "pearson", "own_other", "other")
    names = [f"unet.{name}.transformer_blocks.0.attn2" for name in LAYERS]
    rows = [
        {"what": what, "weight": weight, "layer": layer, **asked, **dict(zip(numbers, rng.random(4), strict=True))}
        for (what, weight), asked, layer in itertools.product(tables.ROWS, tables.COLUMNS.values(), ("", *names))
    ]
    totals = [
        {"what": "all layers", "weight": weight, "masked": True, "map": "totals", "against": against, "layer": "", "spearman": rng.random()}
        for weight, against in itertools.product(tables.WEIGHTS, ("layers", "heads"))
    ]
    recipes = {False: "i2am", True: "i2am(query_mask=yes)"}
    parts = {"names": names, "silenced": rng.random(7), "cls": {"effect": 0.1, "attention": rng.random(7)}}
    parts |= {name: rng.random((7, 4)) for name in ("heads", "pck", "attention", "norm", "contribution")}
    return {"scores": rows + totals, "parts": parts, "other": [{**row, "recipe": recipes[row["masked"]]} for row in rows[:48:8]]}


def test_the_page_has_the_tables_that_the_benchmark_prints() -> None:
    import curves
    from faithfulness import MARKS, conditions
    from faithfulness_tables import report

    rng = np.random.default_rng(0)
    pairs = [drawn_pair(rng) for _ in range(2)]
    orders = ("random", *(name for name, _, _ in curves.MAPS), "measured, cell by cell")
    printed = report(pairs, pairs, pairs, [dict.fromkeys(orders, (0.1, 0.2))] * 2)
    page = PAGE.read_text()
    begin, end = (page.index(mark) for mark in MARKS)
    assert structure(page[begin:end]) == structure(printed) and len(structure(printed)) == 8
    assert conditions(32, 5, 8, 4, 2, 8).partition("; ")[2] in page


def test_keys_are_dropped_as_interventions_drop_them() -> None:
    from effects import arguments, cell_tokens, drop_tokens, invert_cells
    from recordings import pipelines

    from i2am.recorder import Intervention, alter_pixels, intervene
    from i2am.recorder.demo.pairs import HELD_OUT, draw_pair
    from i2am.recorder.intervention.outputs import place_effect

    model, cells, grid = pipelines()["trained"], [(3, 4), (5, 2)], (16, 16)
    pair = draw_pair(HELD_OUT, model.size)
    call = arguments(pair, 2)
    before = intervene(model, (), **call).images
    dropped = drop_tokens(model, pair, 2, [cell_tokens(model, [cell], 8) for cell in cells], grid)
    inverted = invert_cells(model, pair, 2, cells, 8, grid)
    for cell, mine, changed in zip(cells, dropped, inverted, strict=True):
        without = intervene(model, Intervention("drop", group="reference", cells=[cell], lattice=(8, 8)), **call).images
        np.testing.assert_allclose(mine, place_effect(before, without, grid), atol=1e-5)
        other = model(
            **{**call, "example_image": alter_pixels(pair.reference, [cell], (8, 8)), "generator": arguments(pair, 2)["generator"]}
        )
        np.testing.assert_allclose(changed, place_effect(before, other.images, grid), atol=1e-5)
        assert mine.max() > 1e-3 < changed.max()


def test_what_is_kept_is_gone_on_with(tmp_path: Path) -> None:
    from effects import effects_of

    with np.load(_kept(tmp_path)) as arrays:
        found = effects_of(None, tmp_path, 0, 2, 2)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found["effect"], arrays["effect"])
    assert found["heads"].dims == ("layer", "head", "y", "x") and found["layer"].values[0].endswith("attn2")


def _kept(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"effect": (2, 2, 4, 4), "layers": (1, 4, 4), "heads": (1, 2, 4, 4), "without": (4, 4)}
    path = folder / "000-2-2.effects.npz"
    np.savez(path, layer_names=np.array(["unet.mid"]), **{name: rng.random(shape) for name, shape in shapes.items()})
    return path
