"""What a mask scores is the picture that a recipe makes of its map: scores equal those of the released hooks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from methods import LATENT, hook_imacs, hook_picture, method_trace

from i2am.analyzer import Trace, box_iou, get_recipe, iou, judge, miou, open_trace, r2g
from i2am.analyzer import g2r as ask_g2r
from i2am.analyzer.cli.main import run
from i2am.analyzer.maps.heatmap import heatmap, scored_picture
from i2am.analyzer.methods.recipes import RECIPES
from i2am.analyzer.metrics.placement import normalize
from i2am.schema.trace import TokenGroup
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

TURNED = {"i2am-official": True, "i2am-official-pbe": True, "i2am-custom": False}
IMAGE = (32, 24)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return open_trace(method_trace(tmp_path_factory.mktemp("scores") / "run.zarr", "factors", absent=()).path)


def inside(trace: Trace, name: str) -> np.ndarray:
    return np.asarray(trace.image(name)[..., 0] >= 128)


@pytest.mark.parametrize("name", TURNED)
def test_imacs_g_is_the_hook_s(trace: Trace, name: str) -> None:
    map, mask = r2g(trace, recipe=name).values, inside(trace, "mask")
    wanted = hook_imacs(map, mask, TURNED[name])
    assert float(judge(trace, ["imacs_g"], recipe=name)["imacs_g"]) == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted - hook_imacs(map, mask, not TURNED[name])) > 0.05, "the map and its complement can be told apart here"


def test_imacs_r_is_the_hooks(trace: Trace) -> None:
    mask = inside(trace, "reference_mask")
    official = judge(trace, ["imacs_r_plain"], recipe="i2am-official")["imacs_r_plain"]
    assert float(official) == pytest.approx(hook_imacs(ask_g2r(trace, recipe="i2am-official").values, mask, hidden=True), abs=1e-5)
    custom = ask_g2r(trace, recipe="i2am-custom").values  # positions weighed by the mask (v1, Eq. 17)
    for hidden in (False, True):  # the hook's cloth_forcing
        found = judge(trace, ["imacs_r"], recipe="i2am-custom", settings={"pre_mask": hidden})["imacs_r"]
        assert float(found) == pytest.approx(hook_imacs(custom, mask, hidden=hidden), abs=1e-5)


def test_a_group_that_only_the_layers_of_g2r_read_is_scored(tmp_path: Path) -> None:
    """As in StableVITON: CLS in the layers of R2G, the garment's features in blocks that R2G leaves out."""
    cls = TokenGroup("cls", "reference", 0, 1, 1, None, "reference")
    layers = [
        dataclasses.replace(reference_layer("unet.output_blocks.1.attn2", reference=(1, 1), specials=0), groups=(cls,)),
        reference_layer("unet.warp_flow_blks.4.attn2", specials=0),
        reference_layer("unet.warp_flow_blks.5.attn2", specials=0),
    ]
    trace = open_trace(synthetic_trace(tmp_path / "run.zarr", layers=layers).path)
    found = judge(trace, ["imacs_r_plain"], recipe="i2am-official", group="reference")["imacs_r_plain"]
    map = ask_g2r(trace, recipe="i2am-official", layers="*warp_flow_blks.4*", group="reference").values
    assert float(found) == pytest.approx(hook_imacs(map, inside(trace, "reference_mask"), hidden=True), abs=1e-5)
    assert np.isfinite(float(judge(trace, ["imacs_g"], recipe="i2am-official", group="cls")["imacs_g"]))


@pytest.mark.parametrize("name", TURNED)
def test_overlaps_and_boxes_are_those_of_the_picture(trace: Trace, name: str) -> None:
    found = judge(trace, ["iou_g", "miou_g", "box_iou_g"], recipe=name)
    map, mask = r2g(trace, recipe=name).values, inside(trace, "mask")
    whole, shown = hook_whole(map, TURNED[name]), hook_picture(map, IMAGE, TURNED[name])
    for metric, wanted in (("iou_g", iou(whole, mask)), ("miou_g", miou(whole, mask)), ("box_iou_g", box_iou(shown, mask))):
        assert float(found[metric]) == pytest.approx(float(wanted), abs=1e-9), metric


def hook_whole(map: np.ndarray, turned: bool) -> np.ndarray:
    """The hook's picture before it is cut, from what is cut of it and of its complement."""
    shown, rest = hook_picture(map, IMAGE, turned), hook_picture(map, IMAGE, not turned)
    return np.where(shown > 0, shown, 1 - rest)


@pytest.mark.parametrize("command", ["imacs", "evaluate"])
def test_the_commands_score_the_picture(trace: Trace, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--metric", "imacs_g,imacs_r_plain"] if command == "evaluate" else []
    assert run([command, str(trace.path), "--recipe", "i2am-official", "--json", *more]) == 0
    facts = json.loads(capsys.readouterr().out)
    row = facts["traces"][0] if command == "evaluate" else facts
    assert row["imacs_g"] == pytest.approx(hook_imacs(r2g(trace, recipe="i2am-official").values, inside(trace, "mask"), True), abs=1e-5)
    hidden = hook_imacs(ask_g2r(trace, recipe="i2am-official").values, inside(trace, "reference_mask"), hidden=True)
    assert row["imacs_r_plain"] == pytest.approx(hidden, abs=1e-5)
    if command == "imacs":
        assert facts["pre_mask"] is True
        assert run(["imacs", str(trace.path), str(trace.path), "--recipe", "i2am-official", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["pre_mask"] is True


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "hrv-selective"])
@pytest.mark.parametrize("cut", [True, False])
def test_what_is_scored_is_the_picture_that_is_drawn(trace: Trace, name: str, cut: bool) -> None:
    for map, mask in ((r2g(trace, recipe=name), inside(trace, "mask")), *of_reference(trace, name)):
        if name == "i2am-v1" and map.attrs["direction"] == "g2r":
            continue  # constant: nothing is scored of it
        row = get_recipe(name, threshold=RECIPES[name].threshold if cut else 0.0)
        drawn = normalize(heatmap(map, recipe=row, mask=mask))
        np.testing.assert_allclose(normalize(scored_picture(map.compute(), mask, cut=cut)), drawn, atol=1e-5)


def of_reference(trace: Trace, name: str) -> list[tuple[xr.DataArray, np.ndarray]]:
    return [] if RECIPES[name].g2r == "none" else [(ask_g2r(trace, recipe=name), inside(trace, "reference_mask"))]


def test_a_constant_map_scores_nothing(trace: Trace) -> None:
    options: dict[str, Any] = {"attrs": {"direction": "r2g", "recipe": "i2am-official"}, "dims": ("y", "x")}
    even = xr.DataArray(np.ones(LATENT) + 1e-9 * np.random.default_rng(0).random(LATENT), **options)
    for cut in (True, False):
        assert not scored_picture(even, inside(trace, "mask"), cut=cut).values.any()


def test_boxes_are_drawn_around_what_the_threshold_leaves() -> None:
    """The published script reads pictures that are cut: where they hold little, little is around it."""
    slope = np.broadcast_to(np.linspace(0, 0.3, 16)[:, None], (16, 12))
    map = xr.DataArray(slope.copy(), dims=("y", "x"), attrs={"direction": "r2g", "recipe": "i2am-custom", "image_shape": IMAGE})
    map[2:6, 3:7] = 1.0
    mask = np.zeros(IMAGE, bool)
    mask[2:14, 4:16] = True
    assert float(box_iou(scored_picture(map, mask, cut=True), mask)) > 0.5
    assert float(box_iou(scored_picture(map, mask), mask)) < 0.2
