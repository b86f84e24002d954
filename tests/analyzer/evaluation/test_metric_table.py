"""The table of metrics, and all that are asked of a trace in one pass."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repository import ROOT

from i2am.analyzer import g2r, imacs, open_trace, r2g
from i2am.analyzer.cli.main import run
from i2am.analyzer.evaluation.metric_table import ASK, IMACS, METRICS, available, find_metrics, judge, plan_metrics
from i2am.analyzer.inspection.truth import require_truth
from i2am.analyzer.maps.looks import looks
from i2am.analyzer.metrics.pointing import pck
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    opened = open_trace(synthetic_trace(tmp_path_factory.mktemp("judge") / "run.zarr").path)
    position = np.random.default_rng(0).random((8, 6, 2)).round(4).tolist()
    opened.record.provenance["facts"] = {"demo": {"position": position}}
    return opened


def test_every_metric_gives_a_number_and_says_what_it_is(trace: Trace) -> None:
    scores = judge(trace, METRICS)
    assert list(scores) == list(METRICS)
    for name, value in scores.items():
        assert value.dims == () and np.isfinite(float(value)), name
    for row in METRICS.values():
        assert row.of in ASK and row.meaning


def test_scores_are_those_of_the_functions(trace: Trace) -> None:
    options = {"layers": [0, 2], "keep": "head", "steps": [0, 1]}
    found = judge(trace, ["imacs_g", "pck", "imacs_r"], **options)
    np.testing.assert_allclose(found["imacs_g"], imacs(r2g(trace, **options), trace.image("mask")))
    np.testing.assert_allclose(found["imacs_r"], imacs(g2r(trace, query_mask="mask", **options), trace.image("reference_mask")))
    np.testing.assert_allclose(found["pck"], pck(looks(trace, **options), require_truth(trace)))
    assert found["imacs_g"].dims == ("head",)


def test_imacs_is_what_the_command_prints(trace: Trace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["imacs", str(trace.path), "--json"]) == 0
    facts, found = json.loads(capsys.readouterr().out), judge(trace, IMACS)
    assert {name: float(found[name]) for name in IMACS} == {name: pytest.approx(facts[name]) for name in IMACS}


def test_metrics_share_their_maps(trace: Trace) -> None:
    plan = plan_metrics(trace, ["imacs_g", "iou_g", "miou_g", "entropy_g"])
    assert list(plan.maps) == ["r2g"]


def test_a_trace_brings_some_metrics_and_not_others(trace: Trace, tmp_path: Path) -> None:
    assert available(trace) == list(METRICS)
    plain = open_trace(synthetic_trace(tmp_path / "plain.zarr", layers=[reference_layer(reference=None, text=5)]).path)
    assert available(plain) == []
    without_truth = open_trace(trace.path)
    assert available(without_truth) == [name for name in METRICS if METRICS[name].against != "truth"]


@pytest.mark.parametrize(
    ("fields", "options", "missing"),
    [
        ({"layers": [reference_layer(text=4)]}, {"group": "text"}, {"places", "truth"}),
        ({"layers": [reference_layer(reference=(1, 1), specials=0)]}, {}, {"tokens", "truth"}),
        ({"layers": [reference_layer("a", (8, 6), frames=2)], "frames": 2}, {}, {"image", "truth"}),
        ({}, {"recipe": "daam"}, {"places", "truth"}),
        ({"status": "interrupted"}, {}, {"mask", "reference_mask", "truth", "painted"}),
    ],
)
def test_what_is_available_is_what_can_be_judged(
    fields: dict[str, Any], options: dict[str, Any], missing: set[str], tmp_path: Path
) -> None:
    opened = open_trace(synthetic_trace(tmp_path / "run.zarr", **fields).path, partial=True)
    names = available(opened, **options)
    assert names == [name for name, row in METRICS.items() if not missing & set(row.needs)]
    assert list(judge(opened, names, **options)) == names
    for name in METRICS.keys() - set(names):
        with pytest.raises(InvalidInput):
            judge(opened, [name], **options)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("imac_g", "no metric 'imac_g'; did you mean imacs_g\\? there are imacs_g, imacs_r"),
        ("zzz", "no metric 'zzz'; there are imacs_g"),
        (3, "no metric 3"),
    ],
)
def test_an_unknown_metric_lists_those_there_are(name: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        find_metrics([name])


def test_what_a_trace_does_not_have_is_said(trace: Trace, tmp_path: Path) -> None:
    plain = open_trace(trace.path)
    with pytest.raises(InvalidInput, match="does not say where its patches truly come from"):
        plan_metrics(plain, ["pck"])
    with pytest.raises(InvalidInput, match="no metric was asked for"):
        plan_metrics(plain, [])
    cut = open_trace(synthetic_trace(tmp_path / "cut.zarr", status="interrupted").path, partial=True)
    with pytest.raises(InvalidInput, match=r"holds no mask of the generated image.*give one with mask="):
        plan_metrics(cut, ["imacs_g"])


def test_truth_from_a_file(trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, names = open_trace(trace.path), ["pck", "pointing_error"]
    position = require_truth(trace).position
    np.save(tmp_path / "truth.npy", position)
    found, expected = judge(plain, names, truth=tmp_path / "truth.npy"), judge(trace, names)
    assert {name: float(found[name]) for name in names} == {name: float(expected[name]) for name in names}
    command = ["evaluate", str(plain.path), "--metric", "pck,pointing_error", "--truth"]
    assert run([*command, str(tmp_path / "truth.npy"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["traces"][0]
    assert {name: row[name] for name in names} == {name: float(expected[name]) for name in names}
    (tmp_path / "bad.csv").write_text("y,x\n")
    assert run([*command, str(tmp_path / "bad.csv")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["heads", str(plain.path), "--by", "truth", "--truth", str(tmp_path / "truth.npy"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "truth"


def test_masking_first_touches_the_reference_alone(trace: Trace, capsys: pytest.CaptureFixture[str]) -> None:
    plain, hidden = judge(trace, IMACS), judge(trace, IMACS, settings={"pre_mask": True})
    assert float(hidden["imacs_g"]) == float(plain["imacs_g"])
    for name, options in (("imacs_r", {"query_mask": "mask"}), ("imacs_r_plain", {})):
        map, mask = g2r(trace, **options).compute(), trace.image("reference_mask")
        assert float(hidden[name]) == pytest.approx(float(imacs(map, mask, pre_mask=True)))
        assert float(hidden[name]) > float(plain[name])
    assert run(["imacs", str(trace.path), "--pre-mask", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["imacs_r"] == pytest.approx(float(hidden["imacs_r"]))


def test_the_page_names_every_metric() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    table = page.split("\n\n")[2]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert named == list(METRICS)
    for line in table.splitlines()[2:]:
        for name in re.findall(r"`(\w+)`", line.split("|")[1]):
            assert line.split("|")[5].strip() == METRICS[name].better
