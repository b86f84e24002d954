"""What is the same everywhere by construction is left out of a comparison, and said where it is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from i2am.analyzer import RECIPES, compare, open_trace, r2g
from i2am.analyzer.cli.main import run
from i2am.analyzer.metrics.placement import tells_apart
from traces import default_layers, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


def test_a_mean_over_all_keys_of_a_softmax_over_keys_is_left_out(tmp_path: Path) -> None:
    layers = [reference_layer("a", (8, 6), specials=0), reference_layer("b", (8, 6), specials=0)]
    trace = open_trace(synthetic_trace(tmp_path / "run.zarr", layers=layers, steps=2).path)
    found = compare(trace)
    left_out = {each.split(":")[0] for each in found.attrs["left_out"] if "constant" in each}
    for name, row in RECIPES.items():
        if name in found["recipe"].values:
            assert tells_apart(np.asarray(found["map"].sel(recipe=name))[None]).all(), name
        elif name in left_out:
            assert np.ptp(r2g(trace, recipe=row.name).values) < 1e-2  # a clamp may overshoot
    assert {"i2am-v1", "daam"} <= left_out


def test_other_keys_in_the_softmax_make_it_worth_comparing(tmp_path: Path) -> None:
    layers = [reference_layer("a", (8, 6), specials=0, hidden=4), reference_layer("b", (8, 6), specials=0, text=5)]
    found = compare(open_trace(synthetic_trace(tmp_path / "run.zarr", layers=layers, steps=2).path))
    assert not [each for each in found.attrs["left_out"] if "constant" in each]


def test_the_sheet_says_what_is_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from i2am.analyzer.output import sheets

    said: list[str] = []
    compose = sheets.compose
    monkeypatch.setattr(sheets, "compose", lambda tiles, columns, captions: (said.extend(captions), compose(tiles, columns, captions))[1])
    layers = [reference_layer(layer.path, layer.grid, specials=0) for layer in default_layers()]
    made = synthetic_trace(tmp_path / "run.zarr", layers=layers, steps=2)
    assert run(["compare", str(made.path), "--recipes", "i2am,i2am-v1", "-o", str(tmp_path / "s.png")]) == 0
    assert "constant" not in said[0]
    assert said[1] == "i2am-v1, constant"
