"""Two recordings side by side: the numbers are those of each alone, and what differs in shape is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from i2am.analyzer import g2r, judge, open_trace, r2g
from i2am.analyzer.cli.commands.diagnosis import write_difference
from i2am.analyzer.cli.main import run
from i2am.analyzer.evaluation import difference
from i2am.analyzer.evaluation.difference import differ, draw_difference
from i2am.analyzer.metrics.placement import place_signed
from i2am.analyzer.numerics.resize import resize
from i2am.analyzer.output.colours import BALANCE, colour
from i2am.analyzer.output.sheets import overlay
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput
from traces import default_layers, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Trace]:
    folder = tmp_path_factory.mktemp("two")
    return open_trace(synthetic_trace(folder / "a.zarr").path), open_trace(synthetic_trace(folder / "b.zarr", seed=1).path)


def test_maps_and_metrics_are_those_of_each_alone(two: tuple[Trace, Trace]) -> None:
    found = differ(*two, ["imacs_g", "entropy_r"], heads=[0, 1])
    for name, ask in (("r2g", r2g), ("g2r", g2r)):
        first, second = (ask(trace, heads=[0, 1]).compute().values for trace in two)
        assert list(found.maps[name]["which"].values) == ["first", "second", "difference"]
        np.testing.assert_allclose(found.maps[name].values, np.stack([first, second, second - first]))
        facts = found.facts["maps"][name]
        assert facts["correlation"] == pytest.approx(np.corrcoef(first.ravel(), second.ravel())[0, 1])
        assert facts["change"] == pytest.approx(np.abs(second - first).mean() / first.mean())
        layers = [ask(trace, heads=[0, 1], keep="layer").compute().values[1] for trace in two]
        assert found.facts["layers"][1][name]["correlation"] == pytest.approx(np.corrcoef(*(each.ravel() for each in layers))[0, 1])
    for row in found.facts["metrics"]:
        for which, trace in zip(("first", "second"), two, strict=True):
            assert row[which] == pytest.approx(float(judge(trace, [row["name"]], heads=[0, 1])[row["name"]]))


def test_a_recording_does_not_differ_from_itself(two: tuple[Trace, Trace]) -> None:
    found = differ(two[0], two[0])
    assert all(not maps.values[2].any() for maps in found.maps.values())
    for each in (found.facts["maps"], *found.facts["layers"]):
        assert each["r2g"] == {"correlation": pytest.approx(1), "change": 0}
    assert found.facts["metrics"] and all(row["first"] == row["second"] for row in found.facts["metrics"])


def test_swapping_turns_the_sign(two: tuple[Trace, Trace]) -> None:
    there, back = differ(*two, []), differ(two[1], two[0], [])
    for name in there.maps:
        np.testing.assert_array_equal(there.maps[name].values[2], -back.maps[name].values[2])


def test_what_was_not_recorded_has_no_number(two: tuple[Trace, Trace], tmp_path: Path) -> None:
    cut = open_trace(synthetic_trace(tmp_path / "cut.zarr", seed=2, absent={(step, 1) for step in range(4)}).path)
    found = differ(two[0], cut, [])
    assert found.facts["layers"][1]["r2g"] == {"correlation": None, "change": None}
    assert found.facts["layers"][0]["r2g"]["correlation"] is not None
    assert "-" in write_difference(found.facts).splitlines()[3].split()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"steps": 3}, "4 steps and 3$"),
        ({"layers": default_layers()[:2]}, "only the first has unet.up_blocks.1"),
        ({"layers": (*default_layers(), reference_layer("more.attn2"))}, "only the second has more.attn2$"),
        ({"layers": (reference_layer(default_layers()[0].path, (8, 6), heads=3), *default_layers()[1:])}, "attn2 has 2 and 3 heads$"),
        ({"layers": (reference_layer(default_layers()[0].path, (4, 6)), *default_layers()[1:])}, "has 8 x 6 and 4 x 6 positions$"),
        (
            {"layers": tuple(reference_layer(x.path, x.grid, heads=x.heads, reference=(5, 3)) for x in default_layers())},
            "other token groups",
        ),
        ({"layers": default_layers()[::-1]}, "another order$"),
        ({"latent_grid": (16, 12)}, "latent grids of 8 x 6 and 16 x 12$"),
    ],
)
def test_another_shape_is_named(two: tuple[Trace, Trace], tmp_path: Path, options: dict[str, object], reason: str) -> None:
    other = open_trace(synthetic_trace(tmp_path / "other.zarr", **options).path)
    with pytest.raises(InvalidInput, match=f"different shapes and cannot be laid over each other: .*{reason}"):
        differ(two[0], other)


def test_layers_that_agree_can_be_compared_alone(two: tuple[Trace, Trace], tmp_path: Path) -> None:
    other = open_trace(synthetic_trace(tmp_path / "other.zarr", layers=default_layers()[:2]).path)
    assert len(differ(two[0], other, [], layers=[0, 1]).facts["layers"]) == 2


def test_a_difference_is_laid_out_around_the_middle() -> None:
    map = xr.DataArray(
        np.array([[1.0, -4.0], [0.0, 2.0]]), dims=("ref_y", "ref_x"), attrs={"window": (1.0, 1.0, 3.0, 3.0), "image_shape": (4, 4)}
    )
    placed = place_signed(map, (4, 4)).values
    np.testing.assert_allclose(placed[1:3, 1:3], 0.5 + map.values / 8)
    rim = np.ones((4, 4), bool)
    rim[1:3, 1:3] = False
    assert (placed[rim] == 0.5).all()
    assert (place_signed(np.zeros((2, 2)), (6, 6)).values == 0.5).all()
    np.testing.assert_allclose(place_signed(map.values, (2, 2)).values, 1 - place_signed(-map.values, (2, 2)).values)
    larger = place_signed(map.values, (8, 8)).values
    np.testing.assert_allclose(larger, np.clip(0.5 + resize(map.values, (8, 8)) / 8, 0, 1))


def test_less_is_blue_more_is_red_and_nothing_flips() -> None:
    values = np.zeros((4, 4))
    values[0, 0], values[3, 1] = 1, -1
    pixels = np.asarray(overlay(xr.DataArray(values, dims=("y", "x")), None, "difference")).astype(int)
    cells = pixels.reshape(4, 64, 4, 64, 3)[:, 32, :, 32]
    assert cells[0, 0, 0] > cells[0, 0, 2] + 50
    assert cells[3, 1, 2] > cells[3, 1, 0] + 50
    assert tuple(colour(np.array(0.5), "difference")) == tuple(int(BALANCE[2][i : i + 2], 16) for i in (0, 2, 4))


def test_the_command_writes_a_sheet_or_the_maps(two: tuple[Trace, Trace], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(trace.path) for trace in two]
    assert run(["diff", *paths, "-o", str(tmp_path / "diff.png"), "--metric", "imacs_g"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[1].startswith("all layers") and "imacs_g" in text
    with Image.open(tmp_path / "diff.png") as sheet:
        assert sheet.size == draw_difference(differ(*two, [])).size
    assert run(["diff", *paths, "-o", str(tmp_path / "diff.nc"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in facts["metrics"]} >= {"imacs_g", "imacs_r", "row_entropy"}
    with xr.open_dataset(tmp_path / "diff.nc") as saved:
        assert saved["r2g"].dims == ("which", "y", "x") and saved["g2r"].dims == ("which", "ref_y", "ref_x")
        np.testing.assert_allclose(saved["r2g"].sel(which="difference"), saved["r2g"].values[1] - saved["r2g"].values[0])


@pytest.mark.parametrize(
    ("more", "code", "reason"),
    [
        (["-o", "diff.npy"], 2, "end it in .png, .nc or .zarr"),
        (["-o", "nowhere/diff.png"], 2, "the folder nowhere does not exist"),
        (["--metric", "imacs"], 2, "there is no metric 'imacs'; did you mean imacs_"),
        (["--recipe", "none"], 2, "there is no recipe 'none'"),
        (["--group", "text"], 2, "no selected layer has the token group 'text'"),
    ],
)
def test_bad_input_is_one_line(
    two: tuple[Trace, Trace],
    more: list[str],
    code: int,
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["diff", *(str(trace.path) for trace in two), *more]) == code
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_both_recordings_are_drawn_on_one_scale(two: tuple[Trace, Trace], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    plain_draw = difference.draw
    monkeypatch.setattr(difference, "draw", lambda *which, limits=None: (given.append(limits), plain_draw(*which, limits=limits))[1])
    found = differ(*two)
    draw_difference(found)
    maps = found.maps["r2g"][:2]
    assert given[:3] == [(float(maps.min()), float(maps.max()))] * 2 + [None]
