"""`faithfulness`: synthetic traces against effects that are planted, its refusals, `rank_cells`, and the command `judge`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

from i2am.analyzer import Faithfulness, Trace, faithfulness, g2r, looks, open_trace, rank_cells, rollout
from i2am.analyzer.cli.group import i2am
from i2am.recorder.store.effects import EffectStore
from i2am.schema.errors import InvalidInput, TraceError, UnknownSelection
from i2am.schema.experiments.effects import EffectRecord
from traces import reference_layer, self_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

FULL = {"values": "full", "value_dim": 5, "output_dim": 6, "reference": (6, 8)}
LAYERS = tuple(reference_layer(f"{name}.attn2", (8, 6), heads=2, **FULL) for name in ("down", "mid", "up"))  # type: ignore[arg-type]
CELLS = (3, 4)
KNOWN = {"group": "reference", "sample": 0, "branches": "cond"}
FAST: dict[str, Any] = {"bootstrap": 100}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace with values, one of another reference, and one without values."""
    folder = tmp_path_factory.mktemp("judged")
    for seed, name in enumerate(("run", "other")):
        synthetic_trace(folder / f"{name}.zarr", layers=LAYERS, seed=seed, steps=2)
    synthetic_trace(folder / "plain.zarr", layers=[reference_layer("down.attn2", (8, 6), reference=(6, 8))], seed=2, steps=1)
    return folder


@pytest.fixture(scope="module")
def trace(folder: Path) -> Trace:
    return open_trace(folder / "run.zarr")


def by_hand(map: np.ndarray) -> np.ndarray:
    """A map (..., ref_y, ref_x) of 6 x 8 as the means of 3 x 4 cells."""
    return map.reshape(*map.shape[:-2], 3, 2, 4, 2).mean((-3, -1))


def effects_of(trace: Trace, **arrays: tuple[tuple[str, ...], Any]) -> xr.Dataset:
    coords = {"layer": [layer.name for layer in trace.layers], "head": [0, 1]}
    dims = {dim for names, _ in arrays.values() for dim in names}
    return xr.Dataset(arrays, {name: values for name, values in coords.items() if name in dims}, {**KNOWN, "trace": trace.record.id})


def planted(trace: Trace, weight: Any = "attention") -> xr.Dataset:
    """Effects that are what SRAM says."""
    seen = by_hand(looks(trace, weight=weight).values)
    return effects_of(trace, effect=(("y", "x", "cell_y", "cell_x"), seen))


def score_of(found: Faithfulness, **named: Any) -> Any:
    [score] = [one for one in found.scores if all(getattr(one, name) == value for name, value in named.items())]
    return score


def test_the_map_that_is_the_effect_is_found_among_all(trace: Trace) -> None:
    found = faithfulness(trace, planted(trace, "knock-out"), recipes="i2am", **FAST)
    scores = {(score.map, score.weight): score.agreement.spearman.mean for score in found.scores}
    assert set(scores) == {(map, weight) for map in ("SRAM", "G2R") for weight in ("attention", "norm", "contribution", "knock-out")}
    for map in ("SRAM", "G2R"):  # G2R is the mean of SRAM where all positions count
        assert scores[map, "knock-out"] == pytest.approx(1) and scores[map, "attention"] < 1
    assert found.verdict.startswith("G2R by knock-out may be believed: it follows what dropping each cell's keys changes")
    assert not found.notes


def test_shuffled_effects_are_followed_by_no_map(trace: Trace) -> None:
    right = planted(trace)
    wrong = right.isel(cell_y=[1, 2, 0], cell_x=[2, 0, 3, 1])
    found = faithfulness(trace, wrong, recipes="i2am", weights="attention", **FAST)
    assert [score.clear for score in found.scores] == [False, False]
    assert "No SRAM of this run may be believed" in found.verdict and "No G2R" in found.verdict


def test_only_patches_of_the_mask_count_in_sram_and_masked_g2r_comes_along(trace: Trace) -> None:
    effects = planted(trace)
    outside = np.ones((8, 6), bool)
    outside[2:6, 1:5] = False  # the mask covers the middle half of either side, and so the middles of 4 x 3 patches
    effects["effect"].values[outside] = np.random.default_rng(0).random((outside.sum(), *CELLS))
    found = faithfulness(trace, effects, weights="attention", **FAST)
    sram = score_of(found, map="SRAM").agreement.spearman
    assert sram.mean == pytest.approx(1) and sram.count == 12
    assert {score.recipe for score in found.scores if score.map == "G2R"} == {"i2am", "i2am(query_mask=yes)"}


def test_layers_and_heads_are_scored_by_themselves(trace: Trace) -> None:
    found = faithfulness(trace, planted(trace), recipes="i2am", weights="attention", keep=("head", "layer"), **FAST)
    assert len(found.scores) == 2 * (1 + 3 + 6)
    name = trace.layers[1].name
    seen = by_hand(g2r(trace, layers=1, heads=1).values).ravel()
    mean = by_hand(looks(trace).values).reshape(48, 12).mean(0)
    expected = np.corrcoef(seen, mean)[0, 1]
    assert score_of(found, map="G2R", layer=name, head=1).agreement.pearson == pytest.approx(expected)
    frame = found.to_dataframe()
    assert len(frame.query("layer == '' and head.isna()")) == 2 and "<p>" in found._repr_html_()


def test_pixels_layers_heads_and_curves_are_held_too(trace: Trace) -> None:
    rng = np.random.default_rng(1)
    seen = by_hand(looks(trace).values)
    totals = g2r(trace, keep=("layer", "head")).sum(("ref_y", "ref_x")).values
    ones = np.ones((8, 6))
    arrays = {
        "effect": (("y", "x", "cell_y", "cell_x"), rng.random((8, 6, *CELLS))),
        "pixels": (("y", "x", "cell_y", "cell_x"), seen),
        "layers": (("layer", "y", "x"), np.array([1.0, 3, 2])[:, None, None] * ones),
        "heads": (("layer", "head", "y", "x"), totals[..., None, None] * ones),
        "without": (("y", "x"), 2 * ones),
        "deletion": (("order", "share", "y", "x"), np.array([[0, 1], [1, 1]])[..., None, None] * ones),
        "insertion": (("order", "share", "y", "x"), np.array([[2, 0], [0, np.nan]])[..., None, None] * ones),
    }
    effects = effects_of(trace, **arrays).assign_coords(order=["truth", "random"], share=[0.1, 0.5])
    found = faithfulness(trace, effects, recipes="i2am", weights="attention", **FAST)
    assert score_of(found, map="SRAM", against="pixels").agreement.spearman.mean == pytest.approx(1)
    assert score_of(found, map="totals", against="heads").agreement.spearman.mean == pytest.approx(1)
    [area] = found.areas  # the other order was not measured whole
    assert (area.order, area.deletion.mean, area.insertion.mean) == ("truth", pytest.approx(0.25), pytest.approx(0.5))
    assert "what inverting each cell's pixels changes" in found.verdict
    xr.testing.assert_identical(effects, effects_of(trace, **arrays).assign_coords(order=["truth", "random"], share=[0.1, 0.5]))


def test_another_references_maps_stand_beside(trace: Trace, folder: Path) -> None:
    found = faithfulness(trace, planted(trace), other=open_trace(folder / "other.zarr"), weights="attention", **FAST)
    score = score_of(found, map="SRAM")
    assert score.agreement.spearman.mean == pytest.approx(1) and abs(score.other) < 0.3
    assert "the map of the other reference follows these effects less" in found.verdict
    copy = planted(trace)
    copy["effect"][:] = by_hand(looks(open_trace(folder / "other.zarr")).values)
    turned = faithfulness(trace, copy, other=open_trace(folder / "other.zarr"), weights="attention", **FAST)
    assert score_of(turned, map="SRAM").other == pytest.approx(1)


def test_cells_that_were_not_tried_are_left_out_and_said(trace: Trace) -> None:
    effects = planted(trace)
    effects["effect"][:, :, 1, 2] = np.nan
    found = faithfulness(trace, effects, recipes="i2am", weights="attention", **FAST)
    assert [score.agreement.spearman.mean for score in found.scores] == pytest.approx([1, 1])
    assert found.notes == ("11 of 12 cells were tried for keys",)


def test_weights_that_the_trace_cannot_have_are_left_out_and_said_or_refused_by_name(folder: Path) -> None:
    plain = open_trace(folder / "plain.zarr")
    found = faithfulness(plain, planted(plain), recipes="i2am", **FAST)
    assert {score.weight for score in found.scores} == {"attention"}
    assert len(found.notes) == 3 and all("values" in note for note in found.notes)
    with pytest.raises(UnknownSelection, match="no weight norm"):
        faithfulness(plain, planted(plain), weights="norm", **FAST)
    trace = open_trace(folder / "run.zarr")
    found = faithfulness(trace, planted(trace), other=plain, recipes="i2am", **FAST)
    assert {score.weight for score in found.scores} == {"attention"}
    assert len(found.notes) == 3 and all(note.startswith(f"{plain.path}: ") for note in found.notes)


def test_the_rollout_is_scored_where_self_attention_was_recorded(tmp_path: Path, trace: Trace) -> None:
    synthetic_trace(tmp_path / "self.zarr", layers=[self_layer("a.attn1", (8, 6)), LAYERS[0]], seed=5, steps=1)
    rolled = open_trace(tmp_path / "self.zarr")
    seen = by_hand(rollout(rolled).values)
    effects = effects_of(rolled, effect=(("y", "x", "cell_y", "cell_x"), seen)).drop_vars("layer", errors="ignore")
    found = faithfulness(rolled, effects, weights="attention", **FAST)
    means = {(score.map, score.recipe): score.agreement.spearman.mean for score in found.scores}
    assert [means["SRAM", "rollout"], means["G2R", "rollout"]] == pytest.approx([1, 1])
    assert means["G2R", "rollout(query_mask=yes)"] < 1 and not found.notes
    asked: dict[str, Any] = {"group": "reference", "cells": CELLS, "sample": 0, "branch": "cond"}
    np.testing.assert_allclose(rank_cells(str(tmp_path / "self.zarr"), **asked)["rollout"], seen[2:6, 1:4].mean((0, 1)))
    assert faithfulness(trace, planted(trace), weights="attention", **FAST).notes[0].startswith("no rollout: ")
    with pytest.raises(InvalidInput, match="rollout"):
        faithfulness(trace, planted(trace), recipes="rollout", **FAST)


def few(trace: Trace) -> xr.Dataset:
    effects = planted(trace)
    effects["effect"][:, :, :2] = np.nan
    return effects


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda trace: planted(trace).assign_attrs(trace="another"), {}, "effects are of the run another"),
        (few, {}, "4 of 12 cells of 'effect' were tried"),
        (lambda trace: planted(trace).drop_vars("effect"), {}, "no single cells"),
        (lambda trace: planted(trace).isel(y=slice(4)), {}, "the effects have 4 x 6"),
        (lambda trace: planted(trace).isel(cell_y=[0] * 9), {}, "more than the 6 x 8 places"),
        (planted, {"keep": "time"}, "scores are kept for each layer and head"),
        (planted, {"bootstrap": 1}, "2 samples or more"),
        (planted, {"recipes": ()}, "no recipe"),
        (planted, {"recipes": "daam"}, "no maps on the reference"),
    ],
)
def test_what_does_not_fit_is_refused(trace: Trace, change: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        faithfulness(trace, change(trace), **{**FAST, **options})


def test_a_trace_is_no_other_reference_of_itself(trace: Trace) -> None:
    with pytest.raises(InvalidInput, match="the same run with another reference"):
        faithfulness(trace, planted(trace), other=trace)


def test_cells_are_ranked_by_g2r_with_every_weight_that_there_is(folder: Path, trace: Trace) -> None:
    asked: dict[str, Any] = {"group": "reference", "cells": CELLS, "sample": 0, "branch": "cond"}
    found = rank_cells(str(folder / "run.zarr"), **asked)
    assert list(found) == ["attention", "norm", "contribution", "knock-out"]
    for weight, cells in found.items():
        np.testing.assert_allclose(cells, by_hand(g2r(trace, weight=weight, query_mask="mask").values))  # type: ignore[arg-type]
    assert list(rank_cells(str(folder / "plain.zarr"), **{**asked, "branch": "both"})) == ["attention"]


@pytest.fixture(scope="module")
def written(folder: Path, trace: Trace) -> Path:
    """The planted effects as `i2am faithfulness` keeps them."""
    record = EffectRecord(
        id="00000000-0000-4000-8000-000000000001", trace=trace.record.id, kind="drop", group="reference", cells=CELLS, grid=(8, 6)
    )
    store = EffectStore(folder / "faith.zarr", record)
    effects = planted(trace).transpose("cell_y", "cell_x", "y", "x")["effect"].values.astype(np.float32)
    with store.opened():
        for cell in np.ndindex(CELLS):
            put(store, cell, effects[cell])
    return folder / "faith.zarr"


def test_effects_of_chosen_layers_are_held_against_maps_of_these(folder: Path, trace: Trace, tmp_path: Path) -> None:
    record = EffectRecord(id="0", trace=trace.record.id, kind="drop", cells=CELLS, grid=(8, 6), group="reference", layers=("*up*",))
    store = EffectStore(tmp_path / "faith.zarr", record)
    seen = by_hand(looks(trace, layers="*up*").values).transpose(2, 3, 0, 1).astype(np.float32)
    with store.opened():
        for cell in np.ndindex(CELLS):
            put(store, cell, seen[cell])
    found = faithfulness(trace, tmp_path / "faith.zarr", recipes="i2am", weights="attention", **FAST)
    assert [score.agreement.spearman.mean for score in found.scores] == pytest.approx([1, 1])


def put(store: EffectStore, cell: tuple[int, ...], effect: np.ndarray) -> None:
    store.put("effect", cell, effect)


def judge(*words: Any) -> Result:
    return CliRunner().invoke(i2am, ["judge", *map(str, words)])


def test_the_command_prints_scores_and_verdict_and_writes_tables(written: Path, tmp_path: Path) -> None:
    run = written.parent / "run.zarr"
    found = judge(run, written, "--weight", "attention,norm", "--bootstrap", "50", "--other", written.parent / "other.zarr")
    assert found.exit_code == 0, found.output
    assert "rank correlation" in found.output and "SRAM by attention may be believed" in found.output
    for ending, more in (("csv", ("--keep", "layer,head")), ("tex", ())):
        words = (run, written, "--recipe", "i2am", "--weight", "attention", "--bootstrap", 50, *more)
        made = judge(*words, "-o", tmp_path / f"t.{ending}", "--json")
        assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert len(told["scores"]) == 2 and told["verdict"] and told["scores"][0]["layer"] == "" and told["scores"][0]["head"] is None
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(line for line in file if not line.startswith("#")))) == 2 * 10
    assert "\\toprule" in (tmp_path / "t.tex").read_text()


def test_the_command_refuses_effects_of_another_run_in_one_line(written: Path) -> None:
    found = judge(written.parent / "other.zarr", written)
    assert isinstance(found.exception, InvalidInput) and "holds effects of the run" in str(found.exception)
