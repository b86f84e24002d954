"""Several recipes' maps side by side: on one grid, correlated, lazily, and by command."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from methods import LAYERS, method_trace
from PIL import Image
from scipy import stats

from i2am.analyzer import Trace, compare, g2r, get_recipe, open_trace, r2g, sram, token_map
from i2am.analyzer.aggregation import build
from i2am.analyzer.cli.main import run
from i2am.analyzer.methods.recipes import RECIPES
from i2am.analyzer.numerics.resize import resize
from i2am.schema.errors import InvalidInput, UnknownSelection
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return method_trace(tmp_path_factory.mktemp("comparison") / "run.zarr", "factors", layers=LAYERS[:2] + LAYERS[3:])


def test_maps_lie_on_the_finest_grid_and_are_correlated(made: Synthetic) -> None:
    trace = open_trace(made.path)
    names = ["i2am", get_recipe("i2am", target="first"), "attention-map-diffusers"]
    found = compare(trace, names, group="text")
    assert found["recipe"].values.tolist() == ["i2am", "i2am(target=first)", "attention-map-diffusers"]
    maps = [r2g(trace, recipe=name, group="text").values for name in names]
    assert [m.shape for m in maps] == [(16, 12), (8, 6), (8, 6)]
    fine = [resize(m, (16, 12), "bilinear") for m in maps]
    np.testing.assert_allclose(found["map"], fine, rtol=1e-12)
    for i, one in enumerate(fine):
        for j, other in enumerate(fine):
            assert found["pearson"][i, j] == pytest.approx(stats.pearsonr(one.ravel(), other.ravel())[0], abs=1e-9)
            assert found["spearman"][i, j] == pytest.approx(stats.spearmanr(one.ravel(), other.ravel())[0], abs=1e-9)
    assert {name: found["map"].attrs.get(name) for name in ("direction", "group", "image", "recipe")} == {
        "direction": "r2g", "group": "text", "image": "generated_0", "recipe": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace whose softmax runs over reference tokens alone, so that their P sum to 1."""
    layers = [reference_layer(f"down_blocks.{i}.attn2", grid) for i, grid in enumerate([(8, 6), (16, 12)])]
    return method_trace(tmp_path_factory.mktemp("alone") / "run.zarr", "factors", layers=layers, absent=()).path


def test_constant_maps_correlate_with_nothing(alone: Path) -> None:
    found = compare(open_trace(alone), ["i2am", "i2am-v1", "i2am-official"])
    assert found["pearson"].isnull().values.tolist() == [[False, True, False], [True, True, True], [False, True, False]]
    assert found["spearman"].isnull().equals(found["pearson"].isnull())


def test_without_recipes_all_that_can_be_asked_are(made: Synthetic) -> None:
    trace = open_trace(made.path)
    found = compare(trace)
    assert found["recipe"].values.tolist() == [name for name in RECIPES if name != "hrv-selective"]
    assert [each.partition(":")[0] for each in found.attrs["left_out"]] == ["hrv-selective"]
    assert "choose them with heads=" in found.attrs["left_out"][0]
    assert len(compare(trace, heads={"up*": [0, 2], "down*": 1})["recipe"]) == len(RECIPES)
    on_reference = compare(trace, direction="g2r")
    assert on_reference["recipe"].values.tolist() == [name for name in RECIPES if RECIPES[name].g2r != "none"]
    np.testing.assert_allclose(on_reference["map"].sel(recipe="i2am-custom"), g2r(trace, recipe="i2am-custom"), rtol=1e-12)
    assert on_reference["map"].dims == ("recipe", "ref_y", "ref_x")
    patches = compare(trace, ["i2am", "i2am-v1"], direction="sram", at=(3, 4))
    np.testing.assert_allclose(patches["map"][1], sram(trace, (3, 4), recipe="i2am-v1"), rtol=1e-12)
    words = compare(trace, ["daam", "ovam"], direction="tokens", tokens=[1, 2])
    np.testing.assert_allclose(words["map"][0], token_map(trace, [1, 2]), rtol=1e-12)


def test_scans_that_recipes_share_are_done_once(made: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[Any] = []
    done = build.scan
    monkeypatch.setattr(build, "scan", lambda *args: (scans.append(args), done(*args))[1])
    lazy = compare(open_trace(made.path), ["i2am", get_recipe("i2am", resize="bilinear"), get_recipe("i2am", layers="sum")])
    assert scans == [], "nothing is read before it is computed"
    dask.compute(lazy, scheduler="synchronous")
    assert len(scans) == 4 * 3 - 3  # layers x steps, less three calls that are absent


@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda t: compare(t, ["i2am"]), InvalidInput, "needs two recipes or more, got i2am; there are i2am, i2am-v1"),
    (lambda t: compare(t, "daam"), InvalidInput, "needs two recipes or more, got daam"),
    (lambda t: compare(t, ["i2am", "daam", get_recipe("i2am")]), InvalidInput, "recipe i2am is named twice"),
    (lambda t: compare(t, ["i2am", "damm"]), InvalidInput, "no recipe 'damm'; did you mean daam"),
    (lambda t: compare(t, ["i2am", "hrv-selective"]), InvalidInput, "choose them with heads="),
    (lambda t: compare(t, direction="up"), InvalidInput, "no maps called 'up'; there are r2g, g2r, sram, tokens"),
    (lambda t: compare(t, direction="sram"), InvalidInput, "at= is the patch of sram, which needs one"),
    (lambda t: compare(t, at=(1, 1)), InvalidInput, "at= is the patch of sram"),
    (lambda t: compare(t, tokens=[1]), InvalidInput, "tokens= chooses .* with direction='tokens'"),
    (lambda t: compare(t, keep="time"), InvalidInput, "keeps no axis, so it takes no keep="),
    (lambda t: compare(t, layers="nope"), InvalidInput, "no recipe can be asked for r2g of this trace; i2am: no layer .* 'nope'"),
    (lambda t: compare(t, ["i2am", "daam"], layers="nope"), UnknownSelection, "no layer of the trace matches 'nope'"),
    (lambda t: compare(t, direction="g2r", group="text"), InvalidInput, "the text tokens have no place on a picture"),
])  # fmt: skip
def test_what_cannot_be_compared_is_said_in_one_line(
    made: Synthetic, call: Callable[[Trace], Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call(open_trace(made.path))


def test_the_command_prints_the_table_and_writes_maps(
    made: Synthetic, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "i2am,i2am(resize=nearest, clamp=no),i2am-v1"
    assert run(["compare", str(alone), "--recipes", names, "-o", str(tmp_path / "maps.nc")]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.rstrip() for line in lines[1:-1]]
    assert [row.rsplit(maxsplit=3)[0] for row in rows] == ["i2am", "i2am(resize=nearest, clamp=no)", "i2am-v1"]
    saved = xr.load_dataset(tmp_path / "maps.nc")
    assert f"{saved['pearson'].values[0, 1]:.3f}" == rows[0].split()[2]
    assert f"{saved['spearman'].values[0, 1]:.3f}" in rows[1]
    assert rows[2].split()[1:] == ["nan", "nan", "."]

    assert run(["compare", str(made.path), "-o", str(tmp_path / "sheet.png")]) == 0
    out = capsys.readouterr()
    assert "left out: hrv-selective" in out.err
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert "i2am-custom" in sheet.text["i2am-map"]
        assert 5 * 256 <= sheet.width < 6 * 256  # nine tiles in rows of five

    assert run(["compare", str(made.path), "--tokens", "1,2", "--recipes", "daam,ovam", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["recipes"], facts["direction"]) == (["daam", "ovam"], "tokens")
    assert facts["pearson"][0][1] == pytest.approx(facts["pearson"][1][0], abs=1e-12)


@pytest.mark.parametrize(("arguments", "code", "words"), [
    ("compare {t} --recipes i2am", 2, "needs two recipes or more"),
    ("compare {t} --recipe i2am", 2, "--recipes says which methods"),
    ("compare {t} --set clamp=no", 2, "--recipes says which methods"),
    ("compare {t} --g2r --at 1,2", 2, "say which maps"),
    ("compare {t} -o maps.npy", 2, "end it in .png, .nc, .zarr, .csv, .parquet or .tex"),
    ("map {t} --r2g --set clamp", 2, "'clamp' changes nothing; write field=value"),
    ("map {t} --r2g --set clmp=no", 2, "no field 'clmp'; did you mean clamp"),
    ("map {t} --r2g --tokens 1", 2, "say which map"),
    ("map {t} --r2g --probe concepts", 2, "--probe says which text a --word is of"),
    ("map {t} --tokens 1 --probe concepts", 2, "no selected layer has the probe"),
    ("imacs {t} --recipe daamm", 2, "did you mean daam"),
    ("recipes damm", 2, "did you mean daam"),
])  # fmt: skip
def test_what_is_typed_wrong_is_one_line(
    made: Synthetic, capsys: pytest.CaptureFixture[str], arguments: str, code: int, words: str
) -> None:
    assert run(arguments.format(t=made.path).split()) == code
    out = capsys.readouterr()
    assert out.out == ""
    assert len(out.err.strip().splitlines()) == 1
    assert re.search(words, out.err)


def test_fields_are_set_and_tokens_drawn_by_command(made: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "map.npy"
    arguments = ["map", str(made.path), "--r2g", "--recipe", "i2am-official", "--set", "resize=bilinear", "--set", "target=7x9"]
    assert run([*arguments, "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "i2am-official(resize=bilinear, target=7+9)"
    row = get_recipe("i2am-official", resize="bilinear", target=(7, 9))
    np.testing.assert_array_equal(np.load(path), r2g(open_trace(made.path), recipe=row))
    assert run(["map", str(made.path), "--tokens", "1,2", "-o", str(path), "--overwrite", "--set", "time=mean"]) == 0
    np.testing.assert_array_equal(np.load(path), token_map(open_trace(made.path), [1, 2], recipe=get_recipe("daam", time="mean")))
    assert run(["imacs", str(made.path), "--recipe", "daam", "--layers", "0,1", "--set", "clamp=no", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert (facts["recipe"], facts["imacs_r"]) == ("daam(clamp=no)", None)


def test_recipes_lists_rows_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)
    assert run(["recipes", "daam", "ovam", "--set", "clamp=yes"]) == 0
    out = capsys.readouterr().out
    assert "* r2g=keys" in out
    assert "ovam(clamp=yes)" in out
    assert run(["recipes", "daam", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["factors"] == [1, 2, 4]


def test_videos_are_compared_over_all_their_frames(tmp_path: Path) -> None:
    layers = [dataclasses.replace(reference_layer("a", (4, 3)), frames=3), dataclasses.replace(reference_layer("b", (8, 6)), frames=3)]
    made = synthetic_trace(tmp_path / "t.zarr", layers=layers, steps=1, encoding="factors", latent_grid=(8, 6), frames=3)
    trace = open_trace(made.path)
    found = compare(trace, ["i2am", get_recipe("i2am", target="first")])
    one, other = (r2g(trace, recipe=name).values for name in ("i2am", get_recipe("i2am", target="first")))
    assert found["map"].dims == ("recipe", "frame", "y", "x")
    other = resize(other, (8, 6), "bilinear")
    assert found["pearson"][0, 1] == pytest.approx(stats.pearsonr(one.ravel(), other.ravel())[0], abs=1e-9)
    assert run(["compare", str(made.path), "--recipes", "i2am,i2am(target=first)", "-o", str(tmp_path / "sheet.png")]) == 0
