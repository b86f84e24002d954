"""Failure signatures: each planted failure is flagged, health is not, and the numbers are those of the definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from oracles import attribution_trace, softmaxes
from planted import PLANTS, planted_trace

from i2am.analyzer import open_trace
from i2am.analyzer.aggregation.selection import Select, choose
from i2am.analyzer.cli.main import run
from i2am.analyzer.diagnosis.evidence import gather, survey_layers
from i2am.analyzer.diagnosis.signatures import SIGNATURES, diagnose, ranges
from i2am.analyzer.numerics.statistics import correlation
from i2am.schema.errors import InvalidInput
from traces import reference_layer, self_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_trace(tmp_path_factory.mktemp("healthy") / "run.zarr")


def test_a_healthy_recording_has_no_flag(healthy: Path) -> None:
    facts = diagnose(open_trace(healthy))
    assert facts["flagged"] == []
    assert [row["key"] for row in facts["signatures"]] == [signature.key for signature in SIGNATURES]
    for row in facts["signatures"]:
        assert row["value"] is not None and np.isfinite(row["value"]) and row["sentence"]


def test_every_signature_has_a_plant() -> None:
    assert set(PLANTS) == {signature.key for signature in SIGNATURES} == set(ranges()) - {"pairs", "steps"}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_failure_is_flagged(name: str, healthy: Path, tmp_path: Path) -> None:
    before = {row["key"]: row["value"] for row in diagnose(open_trace(healthy))["signatures"]}
    facts = diagnose(open_trace(planted_trace(tmp_path / "run.zarr", PLANTS[name])))
    row = next(row for row in facts["signatures"] if row["key"] == name)
    assert row["flagged"] and name in facts["flagged"]
    assert row["value"] > row["limit"] > before[name]


@pytest.mark.parametrize("name", [signature.key for signature in SIGNATURES])
def test_limits_lie_beyond_what_is_healthy(name: str) -> None:
    row = ranges()[name]
    assert sorted(row["healthy"]) == row["healthy"] and sorted(row["control"]) == row["control"]
    assert row["healthy"][2] < row["limit"] < row["control"][2]
    assert row["control_is"]


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
def test_the_survey_is_what_its_calls_say(tmp_path: Path, encoding: str) -> None:
    made = attribution_trace(tmp_path / "run.zarr", encoding)
    trace = open_trace(made.path)
    found = survey_layers(trace, choose(trace, Select(sample=1, branch="uncond", heads=[0, 2])))
    for layer, each in enumerate(found):
        assert each is not None
        group = next(g for g in made.trace.layers[layer].groups if g.name == "reference")
        heads = [h for h in (0, 2) if h < made.trace.layers[layer].heads]
        P, G = (softmax[1, 1][:, heads][..., group.start : group.stop] for softmax in softmaxes(made, layer))
        places = slice(group.specials, None)
        assert each.calls == 4
        np.testing.assert_allclose(each.mass, P.mean((2, 3)).sum(0), rtol=1e-5)
        np.testing.assert_allclose(each.looked, P[..., places].sum((0, 1)).reshape(each.looked.shape), rtol=1e-5)
        np.testing.assert_allclose(each.answered, G[..., places].sum((0, 1)).reshape(each.answered.shape), rtol=2e-5)
        rows = P[..., places] / P[..., places].sum(-1, keepdims=True)
        even = -(rows * np.log(np.where(rows, rows, 1))).sum(-1) / np.log(rows.shape[-1])
        np.testing.assert_allclose(each.even, even.mean((2, 3)).sum(0), rtol=1e-5)


def test_numbers_are_those_of_the_definitions(healthy: Path) -> None:
    evidence = gather(open_trace(healthy))
    by_key = {signature.key: signature.measure(evidence) for signature in SIGNATURES}
    layers = [each for each in evidence.statistics if each is not None]
    assert by_key["uniform"][0] == pytest.approx(min((each.even / each.calls).min() for each in layers))
    assert by_key["uniform"][1].startswith("head 0 of")
    assert by_key["special_sink"][0] == pytest.approx(np.mean([each.mass[:, 0] / each.calls for each in layers]))
    assert by_key["token_sink"][0] == pytest.approx(np.mean([(each.mass[:, 1:] / each.calls).max(1) for each in layers]))
    assert by_key["mismatch"][0] == 0
    a, b = np.random.default_rng(0).random((2, 5, 4))
    assert correlation(a, b) == pytest.approx(float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())))
    assert np.isnan(correlation(a, np.ones((5, 4))))


def test_what_a_trace_does_not_have_is_not_measured(tmp_path: Path) -> None:
    path = synthetic_trace(tmp_path / "run.zarr", layers=[reference_layer(reference=None, text=5)], steps=1).path
    facts = diagnose(open_trace(path), group="text")
    missing = {row["key"]: row["sentence"] for row in facts["signatures"] if row["value"] is None}
    assert set(missing) == {"uniform", "outside_reference", "inconsistent", "mismatch", "special_sink", "token_sink"}
    assert all(text.startswith("not measured: ") for text in missing.values())
    cut = synthetic_trace(tmp_path / "cut.zarr", status="interrupted")
    facts = diagnose(open_trace(cut.path, partial=True))
    assert {row["key"] for row in facts["signatures"] if row["value"] is None} == {"outside_mask", "outside_reference"}
    with pytest.raises(InvalidInput, match="selection of steps is empty; the trace has none"):
        diagnose(open_trace(synthetic_trace(tmp_path / "none.zarr", steps=0, planned=3, status="interrupted").path, partial=True))


def test_the_picture_looking_at_itself_is_held_against_its_own_mask(tmp_path: Path) -> None:
    trace = open_trace(synthetic_trace(tmp_path / "run.zarr", layers=[self_layer("down.attn1", (8, 6))], latent_grid=(8, 6)).path)
    assert diagnose(trace, group="self") == diagnose(trace, group="self", reference_mask="mask")


def test_absent_layers_and_heads_do_not_disturb(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "run.zarr", absent={(step, 1) for step in range(4)})
    facts = diagnose(open_trace(made.path))
    assert all(row["value"] is not None for row in facts["signatures"])


def test_the_command_prints_a_table_or_a_document(healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sick = planted_trace(tmp_path / "sick.zarr", PLANTS["special_sink"])
    assert run(["diagnose", str(sick)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(SIGNATURES) + 2
    assert next(line for line in lines if "tokens without a place" in line).startswith("FLAG")
    assert lines[-1].endswith("a flag is a reason to look, not a verdict")
    assert run(["diagnose", str(healthy), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["flagged"] == [] and len(facts["signatures"]) == len(SIGNATURES)
    assert run(["diagnose", str(healthy), "--mask", "nothing.png"]) == 2
    assert "nothing.png is neither" in capsys.readouterr().err
