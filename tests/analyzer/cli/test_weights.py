"""Weights on the command line: an option of maps, metrics and comparisons, and one line where a trace cannot have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from i2am.analyzer import compare, differ, evaluate, g2r, judge, open_trace, word_map
from i2am.analyzer.cli.main import run
from i2am.analyzer.figures.figure import figure
from i2am.schema.errors import InvalidInput
from i2am.schema.text import Text, Word
from i2am.schema.trace import TokenGroup
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LAYER = reference_layer(
    "up.attn2", (8, 6), text=4, values="full", value_dim=5, output_dim=6, probes=(TokenGroup("concepts", "text", 0, 3),)
)
TEXTS = (Text("text", "dog", ("<s>", "dog", "</s>", "</s>"), (Word("dog", 1, 2),), branch="cond"),)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("weights")
    synthetic_trace(home / "run.zarr", layers=[LAYER], encoding="factors", texts=TEXTS)
    return home / "run.zarr"


def test_maps_take_the_weight(path: Path, tmp_path: Path) -> None:
    trace = open_trace(path)
    assert run(["map", str(path), "--g2r", "--weight", "knock-out", "-o", str(tmp_path / "g.nc")]) == 0
    found = xr.open_dataarray(tmp_path / "g.nc")
    np.testing.assert_array_equal(found, g2r(trace, weight="knock-out"))
    assert found.attrs["weight"] == "knock-out"
    assert run(["map", str(path), "--word", "dog", "--weight", "norm", "-o", str(tmp_path / "w.nc")]) == 0
    np.testing.assert_array_equal(xr.open_dataarray(tmp_path / "w.nc"), word_map(trace, "dog", weight="norm"))


def test_metrics_and_comparisons_take_the_weight(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = open_trace(path)
    assert run(["evaluate", str(path), "--metric", "iou_g", "--weight", "norm", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    score = float(judge(trace, ["iou_g"], weight="norm")["iou_g"])
    assert told["recipe"] == "i2am(weight=norm)"
    assert float(evaluate(path, metrics=["iou_g"], weight="norm")["iou_g"][0]) == score
    assert run(["compare", str(path), "--recipes", "i2am,i2am-v1", "--weight", "contribution", "--json"]) == 0
    both = compare(trace, ["i2am", "i2am-v1"], weight="contribution")
    assert both.attrs["constant"] == []
    assert json.loads(capsys.readouterr().out)["pearson"][0][1] == pytest.approx(float(both["pearson"][0, 1]))
    alike = differ(trace, trace, ["iou_g"], weight="norm").facts
    assert (alike["recipe"], alike["metrics"][0]["first"]) == ("i2am(weight=norm)", score)


def test_figures_take_recipes_with_a_weight(path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure(path, "words", recipe="daam(weight=knock-out)")


def test_what_cannot_be_had_is_one_line(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic_trace(tmp_path / "plain.zarr")
    cases = {
        "no weight knock-out: it has no values; record them with --values full": [
            tmp_path / "plain.zarr",
            "--g2r",
            "--weight",
            "knock-out",
        ],
        "weight is 'norms'; expected attention, norm, contribution, knock-out": [path, "--g2r", "--weight", "norms"],
        "leave out --weight norm": [path, "--tokens", "0", "--probe", "concepts", "--weight", "norm"],
    }
    for says, arguments in cases.items():
        assert run(["map", *map(str, arguments), "-o", str(tmp_path / "no.png")]) != 0
        told = capsys.readouterr().err
        assert says in told
        assert "Traceback" not in told
    with pytest.raises(InvalidInput, match="makes others"):
        open_trace(path).view(recipe="i2am(weight=norm)")
