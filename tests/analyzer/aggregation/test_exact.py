"""What is kept apart until it is resampled: the same as sums where a clamp has nothing to cut, for images, videos and partial keys."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from methods import LATENT, method_trace

from i2am.analyzer import Recipe, g2r, get_recipe, open_trace, r2g, sram, token_map
from i2am.analyzer.aggregation import exact
from i2am.analyzer.trace.reader import Trace
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module", params=["image", "video"])
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("exact") / "run.zarr"
    if request.param == "image":
        return open_trace(method_trace(path, "probabilities").path)
    layers = [
        dataclasses.replace(reference_layer("down.attn2", (4, 3)), frames=3),
        dataclasses.replace(reference_layer("up.attn2", (8, 6), reference=(2, 3), text=4), frames=3),
    ]
    return open_trace(synthetic_trace(path, layers=layers, steps=3, latent_grid=(8, 6), frames=3, absent={(1, 0)}).path)


def rows(**changes: Any) -> tuple[Recipe, Recipe]:
    """Two rows that give one map: bilinear resampling leaves nothing to clamp, but that is only known once it is done."""
    row = get_recipe("i2am", resize="bilinear", reference_target="latent", target=(9, 7), **changes)
    return get_recipe(row, clamp=True), get_recipe(row, clamp=False)


@pytest.mark.parametrize("before", [(), ("time",), ("head",), ("time", "head")])
@pytest.mark.parametrize("keep", [(), ("time",), ("layer", "head")])
def test_a_clamp_with_nothing_to_cut_changes_nothing(trace: Trace, before: tuple[str, ...], keep: tuple[str, ...]) -> None:
    apart, summed = rows(before=before)
    weights = np.random.default_rng(0).random((64, 48) if trace.latent_frames else LATENT)
    for ask, options in ((r2g, {}), (g2r, {}), (g2r, {"query_mask": weights})):
        one, other = (ask(trace, recipe=row, keep=keep, **options) for row in (apart, summed))
        assert one.dims == other.dims
        np.testing.assert_allclose(one, other, rtol=2e-6)


@pytest.mark.parametrize("budget", [1, 2**12, 2**25])
def test_the_size_of_pieces_does_not_matter(trace: Trace, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    usual = [ask(trace, recipe="i2am-custom", **options).values for ask, options in ((r2g, {}), (g2r, {"query_mask": "mask"}))]
    monkeypatch.setattr(exact, "LIFT_BYTES", budget)
    for one, (ask, options) in zip(usual, ((r2g, {}), (g2r, {"query_mask": "mask"})), strict=True):
        np.testing.assert_allclose(ask(trace, recipe="i2am-custom", **options), one, rtol=1e-9)


def test_tasks_travel_to_other_processes(trace: Trace) -> None:
    place = (1, 2, 3) if trace.latent_frames else (2, 3)
    lazy = [
        r2g(trace, recipe="i2am-official"),
        g2r(trace, recipe="i2am-custom"),
        sram(trace, place, recipe="i2am-custom"),
        token_map(trace, [1], group="reference", keep="token"),
    ]
    for map in lazy:
        copy = pickle.loads(pickle.dumps(map))
        np.testing.assert_array_equal(copy.compute(scheduler="synchronous"), map.compute(scheduler="threads", num_workers=3))


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
def test_keys_that_were_not_kept_take_their_share(tmp_path: Path, encoding: str) -> None:
    layer = reference_layer("a.attn2", (8, 6), text=4, hidden=9)
    made = synthetic_trace(tmp_path / "t.zarr", layers=[layer], steps=2, encoding=encoding, latent_grid=(8, 6))
    trace, tolerance = open_trace(made.path), {"probabilities": 2e-3, "factors": 1e-5}[encoding]
    keys = made.probabilities[0][0, 0][..., [1, 3]]
    found = token_map(trace, [1, 3], keep=("time", "head", "token"))
    np.testing.assert_allclose(found, np.moveaxis(keys, -1, 2), rtol=tolerance, atol=1e-9)
    columns = token_map(trace, [1, 3], keep=("time", "head", "token"), recipe="i2am")
    np.testing.assert_allclose(columns, np.moveaxis(made.generated[0][0, 0][..., [1, 3]], -1, 2), rtol=tolerance, atol=1e-9)
    alone = token_map(trace, [1], among=[1, 3], keep=("time", "head"))
    np.testing.assert_allclose(alone, keys[..., 0] / keys.sum(-1), rtol=tolerance)


def test_a_token_that_nobody_may_see_has_an_empty_map(tmp_path: Path) -> None:
    """Its scores are too low for float16: P is 0 and so is G, not NaN."""
    layer = reference_layer("a.attn2", (8, 6), head_dim=4)
    made = synthetic_trace(tmp_path / "t.zarr", layers=[layer], steps=1, sharpness=60, latent_grid=(8, 6))
    found = token_map(open_trace(made.path), group="reference", recipe="i2am", keep="token")
    assert np.isfinite(found).all()


@pytest.mark.parametrize("before", [("token",), (), ("time",)])
def test_maps_of_different_steps_can_be_computed_together(trace: Trace, before: tuple[Any, ...]) -> None:
    recipe, at = get_recipe("i2am", before=before), (1, 1, 1)[-len(trace.latent_places) :]
    lazy = [ask for steps in (0, [0, 1], 1) for ask in (r2g(trace, steps=steps, recipe=recipe), sram(trace, at, steps=steps))]
    for together, alone in zip(dask.compute(lazy)[0], lazy, strict=True):
        np.testing.assert_array_equal(together, alone)
