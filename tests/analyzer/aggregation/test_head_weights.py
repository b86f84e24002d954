"""Heads that count by a weight each: weighted means and sums, in float64 from the attention itself, then laws over all recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from i2am.analyzer import (
    g2r,
    get_recipe,
    judge,
    load_heads,
    looks,
    open_trace,
    r2g,
    row_entropy,
    save_heads,
    sram,
    weigh_heads,
)
from i2am.analyzer.cli.main import run
from i2am.analyzer.trace.heads import head_coordinates
from i2am.schema.errors import InvalidInput, UnknownSelection
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LATENT = (8, 6)
NAMES = ["unet.down_blocks.0.attn2", "unet.mid_block.attn2", "unet.up_blocks.0.attn2"]
WEIGHTS = {NAMES[0]: {0: 0.25, 1: 2.0}, NAMES[2]: {0: 0.0, 2: 1.5}}
PAIRS = [(0, 0, 0.25), (0, 1, 2.0), (2, 2, 1.5)]
"""The same as (layer, head, weight), without the head that does not count."""


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    layers = [reference_layer(name, LATENT, heads=heads) for name, heads in zip(NAMES, (2, 4, 3), strict=True)]
    return synthetic_trace(tmp_path_factory.mktemp("weights") / "t.zarr", layers=layers, steps=2, encoding=request.param)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """Layers of two sizes, so that maps are resampled and clamped."""
    layers = [reference_layer(name, grid, heads=3) for name, grid in zip(NAMES, (LATENT, (4, 3), (4, 3)), strict=True)]
    return synthetic_trace(tmp_path_factory.mktemp("weights") / "c.zarr", layers=layers, steps=3, encoding="factors", sharpness=6)


def of_head(made: Synthetic, direction: str, layer: int, head: int) -> np.ndarray:
    """One head's map, summed over steps, from attention in float64."""
    if direction == "r2g":
        return made.generated[layer][0, 0, :, head].mean(-1).sum(0)
    rows = made.probabilities[layer][0, 0, :, head][..., 1:].sum(0)
    return (rows.mean((0, 1)) if direction == "g2r" else rows[2, 4]).reshape(3, 5)


ASK: dict[str, Any] = {"r2g": r2g, "g2r": g2r, "sram": lambda trace, **options: sram(trace, (2, 4), **options)}


@pytest.mark.parametrize("direction", ASK)
def test_a_map_is_the_weighted_mean_of_its_heads(made: Synthetic, direction: str) -> None:
    ask, trace = ASK[direction], open_trace(made.path)
    near = {"rtol": 2e-2 if direction == "r2g" else 1e-3}  # of float16 probabilities
    maps = [weight * of_head(made, direction, layer, head) for layer, head, weight in PAIRS]
    np.testing.assert_allclose(ask(trace, heads=WEIGHTS), np.sum(maps, 0) / 3.75, **near)
    by_layer = ask(trace, heads=WEIGHTS, keep="layer")
    np.testing.assert_allclose(by_layer.sel(layer=0), np.sum(maps[:2], 0) / 2.25, **near)
    np.testing.assert_allclose(by_layer.sel(layer=2), maps[2] / 1.5, **near)
    by_head = ask(trace, heads=WEIGHTS, keep="head")
    assert by_head["head"].values.tolist() == [0, 1, 2]
    np.testing.assert_allclose(by_head.sel(head=0), maps[0] / 0.25, **near)
    summed = ask(trace, heads=WEIGHTS, recipe=get_recipe("i2am", heads="sum", layers="sum"))
    np.testing.assert_allclose(summed, np.sum(maps, 0), **near)
    assert ask(trace, heads=WEIGHTS).attrs["heads"] == "0:0*0.25,1*2 2:2*1.5"


RECIPES = ["i2am", "i2am-official", "i2am-custom", "attention-map-diffusers", "ovam"]
"""One for each order of sums, clamp and resampling."""


@pytest.mark.parametrize("name", RECIPES)
def test_weights_of_a_mean_are_relative_and_equal_ones_change_nothing(coarse: Synthetic, name: str) -> None:
    trace = open_trace(coarse.path)
    row = get_recipe(name, layers="mean", heads="mean", skip="", factors=())
    plain = {layer: [0, 2] for layer in NAMES}
    ask = [r2g] if row.g2r == "none" else [r2g, g2r]
    for map in ask:
        for keep in ((), "layer", "head", "time"):
            equal = map(trace, heads=plain, recipe=row, keep=keep)
            fives = map(trace, heads={layer: {0: 5.0, 2: 5} for layer in NAMES}, recipe=row, keep=keep)
            np.testing.assert_allclose(fives, equal, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("keep", [(), "layer", "head"])
def test_keeping_heads_and_weighing_them_afterwards_is_the_same(coarse: Synthetic, name: str, keep: Any) -> None:
    """For every order of clamp, sums and resampling; each head of each layer was held to its oracle before."""
    trace, row = open_trace(coarse.path), get_recipe(name, skip="", factors=(), pool_positions=False)
    weights = np.array([[1.0, 0.0, 3.0], [0.5, 2.0, 0.0], [0.0, 0.0, 1.0]])
    heads = {layer: dict(enumerate(row)) for layer, row in zip(NAMES, weights.tolist(), strict=True)}
    for ask in [r2g] if row.g2r == "none" else [r2g, g2r]:
        each = ask(trace, recipe=row, keep=("layer", "head"), heads={layer: [0, 1, 2] for layer in NAMES}).values
        total = each * weights[..., None, None]
        axis = {(): (0, 1), "layer": (1,), "head": (0,)}[keep]
        if row.heads == "mean" and row.layers == "mean":
            wanted = total.sum(axis) / weights.sum(axis)[..., None, None]
        elif row.layers == "sum":
            wanted = total.sum(axis)
        else:  # heads are summed, layers averaged
            there = (weights > 0).any(1).sum() if keep == () else (weights > 0).sum(0)[:, None, None]
            wanted = total.sum(axis) / (1 if keep == "layer" else there)
        found = ask(trace, recipe=row, keep=keep, heads=heads).values
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-9)


def test_looks_and_metrics_weigh_heads_too(made: Synthetic) -> None:
    trace = open_trace(made.path)
    every = looks(trace, heads=WEIGHTS)
    np.testing.assert_allclose(every.sel(y=every["y"][2], x=every["x"][4]), sram(trace, (2, 4), heads=WEIGHTS), rtol=1e-5)
    rows = row_entropy(trace, keep=("layer", "head"), heads={name: [*heads] for name, heads in WEIGHTS.items()})
    wanted = sum(weight * float(rows.sel(layer=layer, head=head)) for layer, head, weight in PAIRS) / 3.75
    assert float(row_entropy(trace, heads=WEIGHTS)) == pytest.approx(wanted)
    assert float(judge(trace, ["imacs_g"], heads=WEIGHTS)["imacs_g"]) != float(judge(trace, ["imacs_g"])["imacs_g"])


def test_scores_of_heads_become_weights(made: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = open_trace(made.path)
    values = np.array([[0.5, 1.0, np.nan, np.nan], [0.0, 0.25, 0.0, 0.0], [0.1, 0.2, 0.3, np.nan]])
    attrs = {"traces": [], "kind": "truth", "model": ""}
    scores = xr.DataArray(values, dims=("layer", "head"), coords=head_coordinates(list(made.trace.layers)), attrs=attrs)
    found = weigh_heads(scores, trace=trace)
    assert found[NAMES[0]] == {0: 0.5, 1: 1.0} and found[NAMES[1]][1] == 0.25
    assert weigh_heads(scores, top=2) == {NAMES[0]: {0: 0.5, 1: 1.0}}
    save_heads(scores, tmp_path / "scores.nc")
    assert load_heads(tmp_path / "scores.nc").equals(scores)
    asked = ["map", str(made.path), "--r2g", "--heads-from", str(tmp_path / "scores.nc"), "--weigh", "-o", str(tmp_path / "r2g.npy")]
    assert run(asked) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "r2g.npy"), r2g(trace, heads=found).values)
    capsys.readouterr()
    assert run(["imacs", str(made.path), *asked[3:6], "--top", "2", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)["imacs_g"]
    assert one == pytest.approx(float(judge(trace, ["imacs_g"], heads=weigh_heads(scores, top=2))["imacs_g"]))
    assert run([*asked, "--bottom", "1", "--overwrite"]) == 2 and "leave out --bottom" in capsys.readouterr().err
    assert run(["map", str(made.path), "--r2g", "--weigh"]) == 2 and "--weigh is of a file that ranks heads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("heads", "error", "message"),
    [
        ({NAMES[0]: {0: -1.0}}, InvalidInput, "a head weighs -1.0; expected a number of 0 or more"),
        ({NAMES[0]: {0: float("nan")}}, InvalidInput, "a head weighs nan"),
        ({NAMES[0]: {0: "much"}}, InvalidInput, "a head weighs 'much'"),
        ({NAMES[0]: {0: True}}, InvalidInput, "a head weighs True"),
        ({NAMES[0]: {0: 0, 1: 0.0}}, InvalidInput, "gives every head the weight 0"),
        ({NAMES[0]: {7: 1.0}}, UnknownSelection, "no head 7"),
    ],
)
def test_what_is_no_weight_is_said(made: Synthetic, heads: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        r2g(open_trace(made.path), heads=heads)
