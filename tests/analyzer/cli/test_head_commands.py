"""Heads from the command line: counted, kept, selected, mapped, judged, and every misuse said in one line."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probed import CONCEPTS, TEXTS, probed

from i2am.analyzer import g2r, head_accuracy, head_relevance, load_heads, open_trace, r2g, select_heads, selective_iou
from i2am.analyzer.cli.main import run
from i2am.analyzer.heads.concepts import load_concepts
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LATENT = (8, 6)
PATHS = ("unet.up_blocks.0.attn2", "unet.down_blocks.0.attn2")
PROBES = probed(PATHS[0], 2).probes
LAYERS = [reference_layer(path, LATENT, heads=3, probes=PROBES) for path in PATHS]
OWN = "[concepts]\n" + "\n".join(f"{name} = {json.dumps(words)}" for name, words in CONCEPTS.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three traces that have probes, and a truth; a list of concepts; scores of both kinds."""
    home = tmp_path_factory.mktemp("heads")
    for seed in range(3):
        position = np.random.default_rng(seed).random((*LATENT, 2)).tolist()
        synthetic_trace(
            home / "traces" / f"{seed}.zarr", layers=LAYERS, seed=seed, steps=2, encoding="factors", texts=TEXTS, sharpness=6,
            facts={"demo": {"position": position}},
        )  # fmt: skip
    synthetic_trace(home / "other.zarr", layers=[reference_layer("unet.attn2", LATENT)], seed=7)
    synthetic_trace(home / "wide.zarr", layers=[reference_layer(path, LATENT, heads=3, head_dim=4) for path in PATHS], seed=8)
    (home / "own.toml").write_text(OWN)
    return home


@pytest.fixture(scope="module")
def vector(folder: Path) -> Path:
    path = folder / "hrv.zarr"
    assert run(["heads", str(folder / "traces"), "--concepts", str(folder / "own.toml"), "-o", str(path), "--json"]) == 0
    return path


@pytest.fixture(scope="module")
def truth(folder: Path) -> Path:
    path = folder / "truth.nc"
    assert run(["heads", *(str(folder / "traces" / f"{i}.zarr") for i in (0, 1)), "--by", "truth", "-o", str(path), "--json"]) == 0
    return path


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert run([*map(str, arguments), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_concepts_are_printed_as_they_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["concepts"]) == 0
    printed = capsys.readouterr().out
    assert len(tomllib.loads(printed)["concepts"]) == 34
    (tmp_path / "own.toml").write_text(printed)
    assert load_concepts(tmp_path / "own.toml") == load_concepts()
    (tmp_path / "own.toml").write_text(OWN)
    assert answer(capsys, "concepts", "--from", tmp_path / "own.toml") == CONCEPTS
    assert run(["concepts", "--words", "--from", str(tmp_path / "own.toml")]) == 0
    assert capsys.readouterr().out.split("\n")[:3] == ["dog", "polar bear", "cat"]


def test_heads_are_counted_kept_and_listed(folder: Path, vector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traces = sorted((folder / "traces").iterdir())
    expected = head_relevance(traces, concepts=CONCEPTS)
    assert load_heads(vector).identical(expected)
    found = answer(capsys, "heads", *traces, "--concepts", folder / "own.toml", "--show", 2)
    (layer, numbers), *_ = select_heads(expected, "Color", top=1).items()
    best = found["first"]["Color"][0]
    assert (best["layer"], best["head"]) == (layer, numbers[0]) and len(found["first"]["Color"]) == 2
    assert found["traces"] == expected.attrs["traces"] and found["out"] is None
    assert run(["heads", str(folder / "traces"), "--concepts", str(folder / "own.toml"), "--seed", "3", "--draws", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("6 heads in 3 traces; layer.head (head relevance, which sums to 6)\nAnimals   ")
    assert captured.out.endswith("  0: unet.down_blocks.0.attn2\n  1: unet.up_blocks.0.attn2\n")
    assert captured.err == "the scores were not kept; keep them with -o FILE.nc\n"


def test_steps_can_be_counted_apart(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "timed.zarr"
    assert run(["heads", str(folder / "traces"), "--concepts", str(folder / "own.toml"), "--keep", "time", "-o", str(out)]) == 0
    assert "each step was counted apart" in capsys.readouterr().out
    assert load_heads(out).sizes["time"] == 2


def test_heads_are_scored_by_truth(folder: Path, truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traces = [folder / "traces" / f"{i}.zarr" for i in (0, 1)]
    assert load_heads(truth).identical(head_accuracy(traces))
    assert run(["heads", *map(str, traces), "--by", "truth"]) == 0
    assert capsys.readouterr().out.startswith("6 heads in 2 traces; layer.head (share of patches sent to their true place)\nbest    ")


def test_selected_heads_are_printed(folder: Path, vector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = select_heads(load_heads(vector), "Size", bottom=4)
    assert answer(capsys, "select", vector, "--concept", "Size", "--bottom", 4, "--of", folder / "traces/0.zarr") == expected
    assert run(["select", str(vector), "--concept", "Size", "--bottom", "4"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{layer}  {','.join(map(str, found))}" for layer, found in expected.items()]


def test_every_map_takes_heads_from_a_file(
    folder: Path, truth: Path, vector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = open_trace(folder / "traces/2.zarr")
    by_truth = select_heads(load_heads(truth), top=2)
    answer(capsys, "map", trace.path, "--r2g", "--heads-from", truth, "--top", 2, "-o", tmp_path / "r.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "r.npy"), r2g(trace, heads=by_truth).values)
    assert not np.allclose(np.load(tmp_path / "r.npy"), r2g(trace).values)
    answer(capsys, "map", trace.path, "--g2r", "--heads-from", vector, "--concept", "Size", "--bottom", 1, "-o", tmp_path / "g.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "g.npy"), g2r(trace, heads=select_heads(load_heads(vector), "Size", bottom=1)).values)
    chosen = answer(capsys, "imacs", trace.path, "--heads-from", truth, "--top", 2)["imacs_g"]
    assert chosen != answer(capsys, "imacs", trace.path)["imacs_g"]
    (row,) = answer(capsys, "evaluate", trace.path, "--metric", "imacs_g", "--heads-from", truth, "--top", 2)["traces"]
    assert row["imacs_g"] == pytest.approx(chosen)


def test_the_table_is_one_command(folder: Path, truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "selective", folder / "traces", "--count", 2)
    table = selective_iou(folder / "traces", count=2)
    assert found["iou"] == {kind: pytest.approx(table.sel(heads=kind).mean("trace").values) for kind in ("all", "top", "bottom")}
    assert found["thresholds"] == [0.3, 0.4, 0.5] and len(found["traces"]) == 3
    assert run(["selective", str(folder / "traces/2.zarr"), "--heads-from", str(truth), "--thresholds", "0.2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["threshold", "all", "6", "top", "1", "bottom", "1"] and printed[1].startswith("0.2 ")
    assert printed[2].endswith("heads chosen by truth on 2 other traces")
    own = ("--by", "relevance", "--concept", "Color", "--concepts", folder / "own.toml")
    assert answer(capsys, "selective", folder / "traces", *own)["by"] == "relevance"


def test_a_curve_is_printed_and_kept(folder: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["selective", str(folder / "traces/2.zarr"), "--heads-from", str(truth), "--thresholds", "0.3,0.5"]
    found = answer(capsys, *asked, "--counts", "1:")
    assert found["counts"] == [1, 2, 3, 4, 5, 6] and np.shape(found["iou"]["top"]) == (6, 2)
    assert run([*asked, "--counts", "2,6", "-o", str(tmp_path / "curve.csv")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["heads", "threshold", "all", "6", "top", "bottom"]
    assert [line.split()[:2] for line in printed[1:5]] == [["2", "0.3"], ["6", "0.3"], ["2", "0.5"], ["6", "0.5"]]
    rows = list(csv.DictReader((tmp_path / "curve.csv").read_text().splitlines()))
    assert [(row["count"], row["threshold"]) for row in rows] == [("2", "0.3"), ("2", "0.5"), ("6", "0.3"), ("6", "0.5")]
    assert float(rows[0]["top"]) == pytest.approx(found["iou"]["top"][1][0]) and rows[2]["top"] == rows[2]["all"]
    assert run([*asked, "-o", str(tmp_path / "single.nc"), "--count", "3"]) == 0
    assert run([*asked, "-o", str(tmp_path / "single.tex"), "--count", "3"]) == 0
    assert "3 &" in (tmp_path / "single.tex").read_text()


BAD: list[tuple[Callable[[Path], list[Any]], int, str]] = [
    (lambda f: ["heads", f / "traces/0.zarr"], 2, "lacks 340 of the concepts' words: Dog,"),
    (lambda f: ["heads", f / "traces/0.zarr", "--probe", "hues"], 2, "has a probe 'hues'; it has other, concepts. To have one,"),
    (lambda f: ["heads", f / "other.zarr"], 2, "was recorded as probabilities, which no other keys can be held against"),
    (lambda f: ["heads", f / "traces", "--by", "truth", "--seed", 3], 2, "--seed is of heads scored by relevance, not by truth"),
    (lambda f: ["heads", f / "traces", "--group", "text"], 2, "--group is of heads scored by truth or contribution, not by relevance"),
    (lambda f: ["heads", f / "traces", "--by", "truth", "-o", f / "h.npy"], 2, "end it in .nc or .zarr"),
    (lambda f: ["heads", f / "traces", "--by", "truth", "-o", f / "truth.nc"], 2, "choose another path, or add --overwrite"),
    (lambda f: ["heads", f / "traces", "--concepts", f / "nowhere.toml"], 2, "cannot be read as a list of concepts"),
    (lambda f: ["heads", f / "nowhere"], 3, "there is no"),
    (lambda f: ["select", f / "truth.nc"], 2, "say how many heads: just one of --top and --bottom, such as --top 30"),
    (lambda f: ["select", f / "truth.nc", "--top", 7], 2, "cannot take 7 heads; the scores rank 6"),
    (lambda f: ["select", f / "hrv.zarr", "--top", 1], 2, "say which concept, with --concept: Animals, Color, Size"),
    (lambda f: ["select", f / "hrv.zarr", "--concept", "Dog", "--top", 1], 2, "there is no concept 'Dog'; there are Animals, Color, Size"),
    (lambda f: ["select", f / "own.toml", "--top", 1], 2, "scores of heads are a .nc or .zarr that `i2am heads -o` wrote"),
    (lambda f: ["select", f / "truth.nc", "--top", 1, "--of", f / "wide.zarr"], 2, "has 3 heads of 8 channels in the layer"),
    (lambda f: ["map", f / "other.zarr", "--r2g", "--heads-from", f / "truth.nc", "--top", 1], 2, "made of another model"),
    (lambda f: ["imacs", f / "wide.zarr", "--heads-from", f / "truth.nc", "--top", 1], 2, "it was made of another model"),
    (lambda f: ["map", f / "traces/2.zarr", "--r2g", "--top", 1], 2, "--top is of a file that ranks heads; say which with"),
    (lambda f: ["map", f / "traces/2.zarr", "--r2g", "--heads", 1, "--heads-from", f / "truth.nc"], 2, "give one of them"),
    (lambda f: ["selective", f / "traces", "--heads-from", f / "truth.nc"], 2, "one of the 2 traces that the heads were"),
    (lambda f: ["selective", f / "traces/0.zarr"], 2, "not judged on the trace they were chosen on"),
    (lambda f: ["selective", f / "traces", "--heads-from", f / "truth.nc", "--by", "truth"], 2, "--by scores heads anew"),
    (lambda f: ["selective", f / "traces", "--thresholds", "half"], 2, "--thresholds are numbers with commas between"),
    (lambda f: ["selective", f / "traces", "--thresholds", "1.5"], 2, "threshold is 1.5"),
    (lambda f: ["selective", f / "traces", "--counts", "few"], 2, "--counts few is no choice of counts"),
    (lambda f: ["selective", f / "traces", "--count", 0], 2, "cannot take 0 heads; the scores rank 6"),
    (lambda f: ["selective", f / "traces", "-o", f / "t.png"], 2, "end it in"),
    (lambda f: ["concepts", "--from", f / "truth.nc"], 2, "cannot be read as a list of concepts"),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(BAD)))
def test_misuse_is_one_line(
    index: int, folder: Path, truth: Path, vector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ask, code, message = BAD[index]
    capsys.readouterr()
    assert run([str(part) for part in ask(folder)]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
