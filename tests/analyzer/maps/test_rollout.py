"""Rollout over layers against explicit matrix products, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import softmaxes

from i2am.analyzer import looks, open_trace, pack, rollout
from i2am.analyzer.maps.rollout import gather
from i2am.analyzer.numerics.resize import resize
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput, UnknownSelection
from traces import Synthetic, reference_layer, self_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LATENT, TO = (8, 6), (3, 5)
LAYERS = (
    self_layer("a.attn1", (8, 6)),
    reference_layer("a.attn2", (8, 6), text=3),
    self_layer("b.attn1", (4, 3), heads=3),
    reference_layer("b.attn2", (4, 3)),
    self_layer("c.attn", (8, 6), text=2, reference=TO),
    reference_layer("d.attn2", (8, 6), reference=None, text=4),
    self_layer("e.attn1", (4, 6)),
)


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, Trace]:
    path = tmp_path_factory.mktemp("rollout") / "run.zarr"
    options: dict[str, Any] = {"branches": ("cond", "uncond"), "samples": 2, "static_keys": False, "latent_grid": LATENT}
    made = synthetic_trace(path, layers=LAYERS, encoding=request.param, steps=3, **options)
    return made, open_trace(path)


def bilinear(few: int, many: int) -> np.ndarray:
    """(many, few): what each fine place takes of coarse ones, borders repeated."""
    found = np.zeros((many, few))
    for place in range(many):
        centre = min(max((place + 0.5) * few / many - 0.5, 0), few - 1)
        low = int(centre)
        found[place, low] += 1 - (centre - low)
        found[place, min(low + 1, few - 1)] += centre - low
    return found


def followed(made: Synthetic, at: tuple[int, int, int], residual: float) -> np.ndarray:
    """The state after all layers of one step as products of matrices: (position, reference place)."""
    state = np.zeros((48, 15))
    for index, layer in enumerate(made.trace.layers):
        attention = softmaxes(made, index)[0][at].reshape(layer.heads, -1, layer.tokens).mean(0)
        groups = {group.role: group for group in layer.groups}
        if groups.keys() == {"text"}:
            continue
        up = np.kron(bilinear(layer.grid[0], 8), bilinear(layer.grid[1], 6))
        down = np.diag(1 / up.sum(0)) @ up.T
        given = np.zeros((len(attention), 15))
        if "reference" in groups:
            group = groups["reference"]
            given += attention[:, group.start + group.specials : group.stop]
        if "self" in groups:
            given += attention[:, groups["self"].start : groups["self"].stop] @ (down @ state)
        state = residual * state + (1 - residual) * (up @ given)
    return state


@pytest.mark.parametrize(("sample", "branch", "residual"), [(0, "cond", 0.5), (1, "uncond", 0.2)])
def test_it_is_what_the_matrix_products_say(run: tuple[Synthetic, Trace], sample: int, branch: str, residual: float) -> None:
    made, trace = run
    truth = [followed(made, (sample, int(branch == "uncond"), step), residual) for step in range(3)]
    found = rollout(trace, sample=sample, branch=branch, residual=residual)
    assert found.dims == ("y", "x", "ref_y", "ref_x") and found.attrs["residual"] == residual
    np.testing.assert_allclose(found.values, np.sum(truth, 0).reshape(*LATENT, *TO), rtol=1e-5, atol=1e-7)
    apart = rollout(trace, sample=sample, branch=branch, residual=residual, keep="time")
    np.testing.assert_allclose(apart.values, np.reshape(truth, (3, *LATENT, *TO)), rtol=1e-5, atol=1e-7)
    assert apart.dims[0] == "time" and apart["last_step"].values.tolist() == [0, 1, 2]
    assert (apart.sum(("ref_y", "ref_x")) <= 1).all() and (apart >= 0).all()


def test_one_layer_with_nothing_kept_is_where_patches_look(run: tuple[Synthetic, Trace]) -> None:
    _, trace = run
    found = rollout(trace, layers=["a.attn1", "a.attn2"], residual=0.0)
    np.testing.assert_allclose(found, looks(trace, layers=["a.attn2"]), rtol=1e-6)


def test_coarse_layers_gather_what_they_spread() -> None:
    constant = np.full((2, 8, 6), 3.0)
    np.testing.assert_allclose(gather(constant, (4, 3)), 3)
    fine, coarse = np.random.default_rng(0).random((2, 1, 8, 6))
    few = gather(fine, (4, 3))
    weights = np.kron(bilinear(4, 8).sum(0), bilinear(3, 6).sum(0)).reshape(4, 3)
    spread = resize(gather(coarse, (4, 3)), LATENT, "bilinear")
    assert np.vdot(few * weights, gather(coarse, (4, 3))) == pytest.approx(np.vdot(fine, spread)), "one is the other's adjoint"


def test_reference_grids_that_differ_keep_what_is_held(tmp_path: Path) -> None:
    layers = [self_layer("a.attn", LATENT, reference=(2, 2)), reference_layer("b.attn2", LATENT, reference=(4, 4), specials=0)]
    trace = open_trace(synthetic_trace(tmp_path / "run.zarr", layers=layers, steps=1, latent_grid=LATENT).path)
    held = rollout(trace, layers=["a.attn", "b.attn2"], residual=0.5).sum(("ref_y", "ref_x"))
    alone = rollout(trace, layers=["a.attn"], residual=0.5).sum(("ref_y", "ref_x"))
    np.testing.assert_allclose(held, 0.5 * alone + 0.5, rtol=1e-3)


def test_what_was_met_late_stands_where_its_module_runs(tmp_path: Path) -> None:
    """An adapter that is silent at first has its layer behind all others."""
    silent = reference_layer("a.attn2", LATENT, reference=None, text=4)
    layers = [silent, self_layer("b.attn1", LATENT), reference_layer("a.attn2", LATENT, call=1)]
    made = synthetic_trace(tmp_path / "late.zarr", layers=layers, steps=1, latent_grid=LATENT)
    own, reference = (made.probabilities[index][0, 0, 0].mean(0).reshape(48, -1) for index in (1, 2))
    found = rollout(open_trace(made.path), residual=0.0)
    np.testing.assert_allclose(found.values.reshape(48, -1), own @ reference[:, 1:], rtol=2e-3, atol=1e-6)


def test_what_cannot_be_followed_is_said(run: tuple[Synthetic, Trace], tmp_path: Path) -> None:
    _, trace = run
    with pytest.raises(InvalidInput, match=r"goes through self-attention, of which .* holds none in these layers; record with keys='all'"):
        rollout(trace, layers=["a.attn2"])
    with pytest.raises(InvalidInput, match=r"residual=1.0; expected a share from 0 to below 1"):
        rollout(trace, residual=1.0)
    with pytest.raises(InvalidInput, match="keep= takes time alone"):
        rollout(trace, keep="head")
    with pytest.raises(UnknownSelection, match="sees a reference"):
        rollout(trace, layers=["a.attn1"])
    packed = pack(trace.path, tmp_path / "some.zip", layers="re:^[ab]")
    with pytest.raises(InvalidInput, match=r"goes through all layers, but only some were recorded; record all, or name those .* layers="):
        rollout(open_trace(packed.path))
    assert rollout(open_trace(packed.path), layers="*").shape == (*LATENT, *TO)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"absent": {(1, 0)}}, r"a.attn1 was not called in step 1, .*steps="),
        ({"provenance": {"self_left_out": {"has more than 4 x 4 positions": ["z.attn1"]}}}, "left out: each has more than 4 x 4 positions"),
        ({"provenance": {"options": {"layers": ["*up*"]}}}, "only some were recorded"),
        ({"provenance": {"self_left_out": 3, "derived": 5}}, "left out"),
    ],
)
def test_gaps_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    trace = open_trace(synthetic_trace(tmp_path / "run.zarr", layers=LAYERS[:2], steps=2, latent_grid=LATENT, **options).path)
    with pytest.raises(InvalidInput, match=said):
        rollout(trace)
    if "absent" in options:
        assert rollout(trace, steps=0).shape == (*LATENT, *TO)
