"""Metrics and differences of a video: frames are scored one by one, their mean counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from oracles import softmaxes

from i2am.analyzer import find_boxes, iou, judge, open_trace, r2g
from i2am.analyzer.aggregation.selection import Select, choose
from i2am.analyzer.cli.main import run
from i2am.analyzer.diagnosis.evidence import survey_layers
from i2am.analyzer.evaluation.difference import differ, save_difference
from i2am.analyzer.evaluation.metric_table import METRICS, available
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

FRAMES = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    layers = [reference_layer("a", (8, 6), frames=FRAMES), reference_layer("b", (4, 3), heads=3, frames=FRAMES)]
    return synthetic_trace(tmp_path_factory.mktemp("video") / "run.zarr", layers=layers, frames=FRAMES, encoding="factors")


def test_a_metric_is_the_mean_over_frames(made: Synthetic) -> None:
    trace = open_trace(made.path)
    names = available(trace)
    assert {"imacs_g", "iou_g", "miou_g", "box_iou_g", "entropy_g", "concentration_g", "row_entropy"} <= set(names)
    assert not {name for name in names if METRICS[name].of == "looks"}
    scores = judge(trace, names)
    assert all(value.dims == () and np.isfinite(float(value)) for value in scores.values())
    map = r2g(trace).compute()
    one_by_one = [float(iou(map.isel(frame=i), trace.image("mask"))) for i in range(FRAMES)]
    assert float(scores["iou_g"]) == pytest.approx(np.mean(one_by_one))
    assert find_boxes(map).dims == ("frame", "edge")


def test_the_survey_goes_through_all_frames(made: Synthetic) -> None:
    trace = open_trace(made.path)
    for layer, found in enumerate(survey_layers(trace, choose(trace, Select()))):
        assert found is not None
        P, G = (softmax[0, 0] for softmax in softmaxes(made, layer))
        np.testing.assert_allclose(found.mass, P.mean((2, 3, 4)).sum(0), rtol=1e-5)
        np.testing.assert_allclose(found.answered, G[..., 1:].sum((0, 1)).reshape(found.answered.shape), rtol=1e-4)


def test_a_video_is_compared(made: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = open_trace(made.path)
    found = differ(trace, trace)
    assert found.maps["r2g"].dims == ("which", "frame", "y", "x")
    save_difference(found, tmp_path / "diff.png")
    assert run(["diff", str(made.path), str(made.path), "-o", str(tmp_path / "diff.zarr"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["maps"]["r2g"]["change"] == 0
