"""Datasets: every trace a row, whatever is wrong with its neighbours."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import traces
from i2am.analyzer import evaluate, g2r, head_accuracy, imacs, open_trace, r2g, save_heads
from i2am.analyzer.cli.main import run
from i2am.analyzer.datasets import rows
from i2am.analyzer.datasets.dataset import ask
from i2am.analyzer.datasets.rows import DatasetRequest
from i2am.analyzer.evaluation.metric_table import METRICS, judge
from i2am.analyzer.maps.heatmap import heatmap
from i2am.analyzer.methods.recipes import get_recipe
from i2am.analyzer.numerics.statistics import bootstrap_mean
from i2am.analyzer.storage import folder
from i2am.analyzer.storage.folder import open_file
from i2am.analyzer.store.discovery import find_traces
from i2am.schema.errors import CorruptTrace, InvalidInput, NotATrace, UnknownSelection
from traces import default_layers, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

SCORES = ("imacs_g", "imacs_r", "imacs_r_plain")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sound traces of one model."""
    folder = tmp_path_factory.mktemp("good")
    for seed in range(3):
        position = np.random.default_rng(seed).random((8, 6, 2)).tolist()
        synthetic_trace(folder / f"pair-{seed}.zarr", steps=2, seed=seed, facts={"demo": {"position": position}})
    return folder


@pytest.fixture(scope="module")
def mixed(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and one trace of everything that can be wrong."""
    folder = tmp_path_factory.mktemp("mixed")
    for path in good.iterdir():
        (folder / path.name).symlink_to(path, target_is_directory=True)
    synthetic_trace(folder / "part.zarr", steps=2, planned=5, status="interrupted", seed=5)
    (folder / "bare.zarr").mkdir()
    for name, pattern in (("flipped", "layers/000/probability/c.*"), ("gone", "layers/001/query_lse/c.*"), ("rooted", "zarr.json")):
        path = Path(shutil.copytree(good / "pair-0.zarr", folder / f"{name}.zarr"))
        file = next(path.glob(pattern))
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 16
        file.unlink() if name == "gone" else file.write_bytes(data)
    layers = [reference_layer(grid=(4, 3), reference=None, text=5)]
    synthetic_trace(folder / "words.zarr", layers=layers, steps=2, latent_grid=(4, 3), seed=7)
    return folder


BAD = {"bare": "NotATrace", "flipped": "CorruptTrace", "gone": "CorruptTrace", "part": "IncompleteTrace", "rooted": "CorruptTrace"}
BAD["words"] = "UnknownSelection"


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def scores(path: Path) -> dict[str, float]:
    """What the map functions and the score say of one trace."""
    trace = open_trace(path)
    return {
        "imacs_g": float(imacs(r2g(trace), trace.image("mask"))),
        "imacs_r": float(imacs(g2r(trace, query_mask="mask"), trace.image("reference_mask"))),
        "imacs_r_plain": float(imacs(g2r(trace), trace.image("reference_mask"))),
    }


def test_an_evaluation_is_what_each_trace_says_alone(good: Path) -> None:
    table = evaluate(good, metrics=SCORES)
    assert dict(table.sizes) == {"trace": 3}
    for name in table["trace"].values:
        alone = scores(good / f"{name}.zarr")
        assert {metric: float(table[metric].sel(trace=name)) for metric in SCORES} == alone
        assert str(table["id"].sel(trace=name).values) == open_trace(good / f"{name}.zarr").id


def test_every_metric_of_the_table_can_be_asked_for(good: Path) -> None:
    trace = open_trace(good / "pair-1.zarr")
    table = evaluate(good, metrics=list(METRICS))
    assert {name: float(table[name][1]) for name in METRICS} == {name: float(value) for name, value in judge(trace, METRICS).items()}


def test_means_and_intervals_are_attributes(good: Path) -> None:
    table = evaluate([good / "pair-2.zarr", good], metrics="imacs_g", seed=4)
    assert list(table["trace"].values) == ["pair-2", "pair-0", "pair-1"]
    found = bootstrap_mean(table["imacs_g"].values, seed=4)
    assert table["imacs_g"].attrs == {"mean": found.mean, "interval": [found.low, found.high], "level": 0.95, "count": 3}
    assert (table.attrs["seed"], table.attrs["recipe"], json.loads(table.attrs["skipped"])) == (4, "i2am", [])


def test_selections_and_recipes_reach_the_maps(good: Path) -> None:
    table = evaluate(good, recipe="i2am-official", metrics="imacs_g", layers="*up_blocks*", heads=[0], steps=1)
    trace = open_trace(good / "pair-1.zarr")
    map = r2g(trace, recipe="i2am-official", layers="*up_blocks*", heads=[0], steps=1)
    assert float(table["imacs_g"][1]) == pytest.approx(float(imacs(heatmap(map), trace.image("mask"))), rel=1e-6)


def test_a_changed_recipe_is_named_by_its_label(good: Path) -> None:
    row = get_recipe("i2am", resize="bilinear")
    table = evaluate(good, recipe=row, metrics="imacs_g")
    assert table.attrs["recipe"] == row.label == "i2am(resize=bilinear)"
    trace = open_trace(good / "pair-0.zarr")
    assert float(table["imacs_g"][0]) == float(imacs(r2g(trace, recipe=row), trace.image("mask")))
    xr.testing.assert_identical(evaluate(good, recipe=row.label, metrics="imacs_g"), table)


def test_a_dataset_can_be_saved(good: Path) -> None:
    table = evaluate(good)
    table.to_netcdf("table.nc", engine="h5netcdf")
    table.to_zarr("table.zarr", zarr_format=3, consolidated=False)
    for name, options in (("table.nc", {"engine": "h5netcdf"}), ("table.zarr", {"engine": "zarr", "consolidated": False})):
        with xr.open_dataset(name, **options) as read:
            xr.testing.assert_equal(read.load(), table)


def test_bad_traces_are_listed_with_the_reason_and_the_rest_is_untouched(mixed: Path, good: Path) -> None:
    table = evaluate(mixed)
    skipped = {row["trace"]: row for row in json.loads(table.attrs["skipped"])}
    assert {name: row["type"] for name, row in skipped.items()} == BAD
    assert "probability" in skipped["flipped"]["message"]
    xr.testing.assert_equal(table.drop_vars("path"), evaluate(good).drop_vars("path"))


def test_a_trace_without_the_mask_a_metric_needs_is_skipped(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = traces._pictures
    monkeypatch.setattr(traces, "_pictures", lambda *given: {k: v for k, v in pictures(*given).items() if k != "reference_mask"})
    half = synthetic_trace(tmp_path / "half.zarr", steps=2).path
    (row,) = json.loads(evaluate([good, half]).attrs["skipped"])
    assert (row["trace"], row["exit_code"]) == ("half", 2)
    assert "reference_mask=" in row["message"]
    assert evaluate([good, half], metrics="imacs_g").sizes["trace"] == 4
    assert run(["imacs", str(half), str(good / "pair-0.zarr")]) == 0, "IMACS_g alone is an answer, as for one trace"


def test_one_pass_serves_all_levels_of_both_directions(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, read = open_trace(good / "pair-0.zarr"), []

    def counted(root: str, name: str) -> object:
        read.append(f"{root}/{name}")
        return open_file(root, name)

    levels = [(), ("time",), ("head",), ("layer",), ("time", "head", "layer")]
    alone = [ask(trace, keep=keep).compute() for ask in (r2g, g2r) for keep in levels]
    monkeypatch.setattr(folder, "open_file", counted)
    together = dask.compute([ask(trace, keep=keep) for ask in (r2g, g2r) for keep in levels])[0]
    data = [path for path in read if "/layers/" in path]
    assert sorted(data) == sorted(
        str(p) for p in trace.path.glob("layers/*/*/c.*") if p.parent.name in ("probability", "query_lse", "token_lse")
    )
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_positions_must_mean_the_same_in_every_trace(good: Path, tmp_path: Path) -> None:
    other = synthetic_trace(tmp_path / "other.zarr", layers=default_layers()[1:], steps=3, seed=8).path
    heads = synthetic_trace(
        tmp_path / "heads.zarr", layers=(reference_layer(default_layers()[0].path, (8, 6), heads=4), *default_layers()[1:]), steps=2, seed=9
    ).path
    everything = [other, heads, good]

    def left_out(**selection: object) -> dict[str, str]:
        return {row["trace"]: row["message"] for row in json.loads(evaluate(everything, metrics="imacs_g", **selection).attrs["skipped"])}

    assert left_out() == {}
    assert left_out(layers="*mid_block*") == {}
    found = left_out(layers=[1])
    assert set(found) == {"other"}
    assert "layers= chooses by position" in found["other"] and "choose layers by name" in found["other"]
    assert set(left_out(layers="1")) == {"other"}
    assert set(left_out(heads=0)) == {"other", "heads"}
    found = left_out(steps=slice(0, 1))
    assert set(found) == {"other"}
    assert "it has 3 steps, heads has 2" in found["other"]


def test_heads_chosen_by_layer_need_only_these_layers_to_agree(good: Path, tmp_path: Path) -> None:
    layers = default_layers()
    other = synthetic_trace(tmp_path / "other.zarr", layers=layers[1:], steps=3, seed=8).path
    table = evaluate([good, other], metrics="imacs_g", heads={layers[1].path: [0, 3]})
    assert list(table["trace"].values) == ["pair-0", "pair-1", "pair-2", "other"]
    (row,) = json.loads(evaluate([good, other], metrics="imacs_g", heads={1: [0]}).attrs["skipped"])
    assert row["trace"] == "other"


def test_heads_of_a_file_refuse_traces_of_another_model(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = (*default_layers()[:2], reference_layer(default_layers()[2].path, (8, 6), heads=3))
    synthetic_trace(tmp_path / "other.zarr", layers=layers, steps=2, seed=8)
    save_heads(head_accuracy([good / "pair-0.zarr"]), tmp_path / "heads.zarr")
    given = ["--heads-from", tmp_path / "heads.zarr", "--top", 1, "--metric", "imacs_g"]
    (row,) = answer(capsys, 4, "evaluate", good, tmp_path / "other.zarr", *given)["skipped"]
    assert row["trace"] == "other"
    assert "made of another model" in row["message"]


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"metrics": "nope"}, InvalidInput, "no metric 'nope'; there are imacs_g"),
        ({"metrics": ()}, InvalidInput, "no metric was asked for"),
        ({"recipe": "nope"}, InvalidInput, "no recipe 'nope'"),
        ({"keep": "time"}, InvalidInput, "one number for each trace"),
        ({"layers": "*nope*"}, UnknownSelection, "none of the 3 traces can be evaluated; the first, pair-0: no layer"),
        ({"mask": np.eye(3)}, InvalidInput, "mask= of a dataset is the name of an image"),
        ({"mask": "nope.png"}, UnknownSelection, "nope.png is neither"),
    ],
)
def test_what_is_wrong_with_the_question_is_one_error(good: Path, options: dict[str, object], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        evaluate(good, **options)


def test_if_nothing_is_left_it_is_said(mixed: Path) -> None:
    with pytest.raises(CorruptTrace, match="none of the 2 traces"):
        evaluate([mixed / "bare.zarr", mixed / "flipped.zarr"])
    with pytest.raises(NotATrace, match="there is no nothing"):
        evaluate("nothing")


def test_a_trace_that_breaks_our_own_code_costs_only_itself(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = rows.open_trace
    monkeypatch.setattr(rows, "open_trace", lambda path, partial: 1 / 0 if "pair-1" in str(path) else opened(path))
    answered = ask(find_traces(good), DatasetRequest(metrics=("imacs_g",)))
    assert [row.error for _, row in answered.skipped] == ["ZeroDivisionError: division by zero"]


# The command line.


def answer(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> dict[str, object]:
    assert run([*map(str, arguments), "--json"]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    doc = json.loads(captured.out)
    assert isinstance(doc, dict)
    return doc


def test_imacs_of_several_traces_has_a_row_each_and_their_mean(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(good.iterdir())
    facts = answer(capsys, 0, "imacs", *paths)
    for row, path in zip(facts["traces"], paths, strict=True):
        alone = answer(capsys, 0, "imacs", path)
        assert {name: row[name] for name in SCORES} == {name: alone[name] for name in SCORES}
        assert (row["id"], row["path"]) == (alone["trace"], str(path))
    mean = facts["mean"]["imacs_g"]
    assert mean["mean"] == np.mean([row["imacs_g"] for row in facts["traces"]])
    assert mean["low"] < mean["mean"] < mean["high"]
    assert run(["imacs", str(good)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["trace", "pair-0", "pair-1", "pair-2", "mean", "95%", "95%", "traces"]
    assert f"{mean['mean']:.4f}" in shown[4]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_evaluate_writes_one_row_a_trace(good: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    out = Path(f"table{suffix}")
    facts = answer(capsys, 0, "evaluate", good, "--metric", "imacs_g,imacs_r_plain", "-o", out)
    if suffix == ".csv":
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        found = [{**row, "imacs_g": float(row["imacs_g"]), "imacs_r_plain": float(row["imacs_r_plain"])} for row in rows]
    else:
        from pyarrow.parquet import read_table

        table = read_table(out)
        found = table.to_pylist()
        assert json.loads(table.schema.metadata[b"i2am"])["mean"] == facts["mean"]
    assert found == facts["traces"]
    assert run(["evaluate", str(good), "-o", str(out)]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert run(["evaluate", str(good), "-o", str(out), "--overwrite"]) == 0
    assert f"{out}: 3 traces" in capsys.readouterr().out
    assert os.listdir() == [out.name]


def test_skipped_traces_are_said_on_stderr_and_make_the_exit_code_4(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(mixed), "-o", "table.csv"]) == 4
    captured = capsys.readouterr()
    assert "table.csv: 3 traces" in captured.out
    lines = captured.err.splitlines()
    assert [line.split()[1].rstrip(":") for line in lines[:-1]] == sorted(BAD)
    assert lines[-1] == f"{len(BAD)} of {len(BAD) + 3} traces were skipped"
    assert "--partial" in captured.err
    facts = answer(capsys, 4, "evaluate", mixed)
    assert {row["trace"]: row["type"] for row in facts["skipped"]} == BAD


def test_nothing_is_written_where_no_trace_answers(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(mixed / "bare.zarr"), str(mixed / "gone.zarr"), "-o", "t.csv"]) == 4
    assert "none of the 2 traces" in capsys.readouterr().err
    assert os.listdir() == []


def test_partial_traces_count_if_asked_for(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((64, 48), np.uint8)
    mask[20:] = 255
    Image.fromarray(mask).save("mask.png")
    given = ["evaluate", mixed / "pair-0.zarr", mixed / "part.zarr", "--mask", "mask.png", "--metric", "imacs_g"]
    assert [row["trace"] for row in answer(capsys, 4, *given)["traces"]] == ["pair-0"]
    rows = answer(capsys, 0, *given, "--partial")["traces"]
    assert rows[1]["imacs_g"] == float(imacs(r2g(open_trace(mixed / "part.zarr", partial=True)), mask))


def test_copies_of_one_recording_are_noticed(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(good / "pair-0.zarr", tmp_path / "copy.zarr")
    assert "1 of the 4 traces are copies of others" in answer(capsys, 0, "evaluate", good, tmp_path / "copy.zarr")["note"]


def test_masks_from_files_serve_every_trace(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((64, 48), np.uint8)
    mask[:20] = 255
    Image.fromarray(mask).save("mask.png")
    rows = answer(capsys, 0, "evaluate", good, "--mask", "mask.png", "--metric", "imacs_g")["traces"]
    assert rows[2]["imacs_g"] == float(imacs(r2g(open_trace(good / "pair-2.zarr")), mask))


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        ("evaluate {good} -o table.txt", 2, "end it in .csv, .parquet or .tex"),
        ("evaluate {good} -o gone/table.csv", 2, "the folder gone does not exist"),
        ("evaluate {good} --metric nope", 2, "no metric 'nope'"),
        ("evaluate {good} --recipe nope", 2, "no recipe 'nope'"),
        ("imacs {good} --penalty -1", 2, "none of the 3 traces"),
        ("evaluate empty", 3, "there is no trace in empty"),
        ("evaluate 'nowhere/*.zarr'", 3, "there is no trace in"),
        ("evaluate nothing.zarr", 3, "there is no nothing.zarr"),
        ("evaluate", 2, "Missing argument"),
        ("imacs", 2, "Missing argument"),
    ],
)
def test_bad_input_is_one_line(good: Path, capsys: pytest.CaptureFixture[str], line: str, code: int, reason: str) -> None:
    Path("empty").mkdir()
    before = os.listdir()
    arguments = [part.strip("'").format(good=good) for part in line.split()]
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert reason in captured.err
    assert run([*arguments, "--json"]) == code
    assert reason in json.loads(capsys.readouterr().out)["error"]["message"]
    assert os.listdir() == before


def test_without_pyarrow_the_line_names_the_extra(good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(["evaluate", str(good), "-o", "t.parquet"]) == 5
    assert 'pip install "i2am[parquet]"' in capsys.readouterr().err


def test_folders_have_means_of_their_own(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seeds in (("tryon", (0, 1)), ("detection", (2,))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            (tmp_path / name / f"{seed}.zarr").symlink_to(good / f"pair-{seed}.zarr", target_is_directory=True)
    asked = ["evaluate", str(tmp_path / "tryon"), str(tmp_path / "detection"), "--metric", "imacs_g", "--by-folder"]
    assert run([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    scores = {row["trace"]: row["imacs_g"] for row in found["traces"]}
    means = {"tryon": (scores["0"] + scores["1"]) / 2, "detection": scores["2"]}
    assert list(found["folders"]) == [str(tmp_path / name) for name in means]
    for name, mean in means.items():
        assert found["folders"][str(tmp_path / name)]["imacs_g"]["mean"] == pytest.approx(mean)
    assert run([*asked, "-o", str(tmp_path / "tasks.tex")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3].split() == ["folder", "imacs_g"] and printed[-2].endswith(f"{means['tryon']:.4f}")
    rows = [line for line in (tmp_path / "tasks.tex").read_text().splitlines() if " & i2am & " in line]
    assert len(rows) == 2 and f"{means['detection']:.3f}" in rows[1]
