"""From an adapter's tokens back to patches: the composition against an oracle, and what it must conserve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from i2am.analyzer import carry, g2r, open_trace, r2g, sram
from i2am.analyzer.maps.resampler import compose, token_patches
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput, UnknownSelection
from i2am.schema.trace import Layer, TokenGroup
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

TOKENS, GRID = 4, (3, 5)
PATCHES = 1 + GRID[0] * GRID[1]


def resampler_block(number: int) -> Layer:
    """CLS and 3 x 5 patches, and the four tokens themselves."""
    groups = (
        TokenGroup("reference", "reference", 0, PATCHES, 1, GRID, "reference"),
        TokenGroup("latents", "self", PATCHES, PATCHES + TOKENS),
    )
    path = f"unet.encoder_hid_proj.image_projection_layers.0.layers.{number}.attn"
    return Layer(path, 0, 3, 8, 8**-0.5, (1, TOKENS), PATCHES + TOKENS, groups, queries="reference")


def adapter_layer(path: str, grid: tuple[int, int]) -> Layer:
    return Layer(path, 1, 2, 8, 8**-0.5, grid, TOKENS, (TokenGroup("reference", "reference", 0, TOKENS, image="reference"),))


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def plus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, Trace]:
    """Two resampler blocks before two layers that attend to their tokens."""
    layers = [resampler_block(0), resampler_block(1), adapter_layer("unet.a.attn2", (8, 6)), adapter_layer("unet.b.attn2", (4, 3))]
    path = tmp_path_factory.mktemp("plus") / "run.zarr"
    made = synthetic_trace(path, layers=layers, encoding=request.param, branches=("cond", "uncond"), static_keys=False)
    return made, open_trace(path)


def composed(made: Synthetic, branch: int, step: int) -> np.ndarray:
    """What the tokens are made of, block by block in plain loops."""
    made_of = np.zeros((TOKENS, PATCHES))
    for block in (0, 1):
        attention = made.probabilities[block][0, branch, step].mean(0)[0]
        new = np.zeros_like(made_of)
        for token in range(TOKENS):
            new[token] = 0.5 * made_of[token] + 0.5 * attention[token, :PATCHES]
            for other in range(TOKENS):
                new[token] += 0.5 * attention[token, PATCHES + other] * made_of[other]
        made_of = new
    return made_of / made_of.sum(1, keepdims=True)


@pytest.mark.parametrize("branch", [0, 1])
def test_tokens_are_made_of_what_the_oracle_says(plus: tuple[Synthetic, Trace], branch: int) -> None:
    made, trace = plus
    found = token_patches(trace, "reference", branch=branch)
    for step in range(4):
        truth = composed(made, branch, step)[:, 1:].reshape(TOKENS, *GRID)
        np.testing.assert_allclose(found.values[step], truth, rtol=2e-3, atol=1e-6)


def test_one_group_a_step_carries_exactly(plus: tuple[Synthetic, Trace]) -> None:
    made, trace = plus
    carried = carry(trace, g2r(trace, keep="time")).sum("time")
    truth = np.zeros(PATCHES)
    for step in range(4):
        maps = [made.probabilities[layer][0, 0, step].mean((1, 2)) for layer in (2, 3)]  # (head, token)
        truth += np.concatenate(maps).mean(0) @ composed(made, 0, step)
    np.testing.assert_allclose(carried.values, truth[1:].reshape(GRID), rtol=2e-3)
    assert carried.attrs["image"] == "reference" and carried.dims == ("ref_y", "ref_x")


def test_a_patch_carries_every_kept_axis(plus: tuple[Synthetic, Trace]) -> None:
    _, trace = plus
    tokens = sram(trace, at=(2, 3), keep=("time", "layer", "head"), time_groups=2)
    carried = carry(trace, tokens)
    assert carried.dims == ("time", "layer", "head", "ref_y", "ref_x")
    apart = [carry(trace, sram(trace, at=(2, 3), keep="time", time_groups=2, layers=[layer])) for layer in (2, 3)]
    np.testing.assert_allclose(carried.mean("head").values, np.stack([a.values for a in apart], 1))


def test_attention_to_one_patch_arrives_at_that_patch() -> None:
    block = np.zeros((TOKENS, PATCHES + TOKENS))
    block[range(TOKENS), [1, 7, 15, 4]] = 1
    np.testing.assert_array_equal(compose([block, block], PATCHES), block[:, :PATCHES])


def test_nothing_is_made_or_lost_but_what_has_no_place(plus: tuple[Synthetic, Trace]) -> None:
    made, trace = plus
    found = token_patches(trace, "reference").sum(("ref_y", "ref_x"))
    cls = np.stack([composed(made, 0, step)[:, 0] for step in range(4)])
    np.testing.assert_allclose(found.values, 1 - cls, rtol=2e-3)


def test_maps_leave_the_resampler_out(plus: tuple[Synthetic, Trace]) -> None:
    _, trace = plus
    assert r2g(trace, keep="layer").layer.values.tolist() == [2, 3]
    assert g2r(trace, layers="*", keep="layer").layer.values.tolist() == [2, 3]
    assert trace.latent_grid == (8, 6)


def test_what_cannot_be_carried_is_said(plus: tuple[Synthetic, Trace], tmp_path: Path) -> None:
    _, trace = plus
    with pytest.raises(UnknownSelection, match="tokens of an adapter and no places"):
        r2g(trace, layers=[0])
    with pytest.raises(InvalidInput, match="only a map over an adapter's tokens"):
        carry(trace, r2g(trace))
    with pytest.raises(InvalidInput, match="from 0 to below 1"):
        carry(trace, g2r(trace), residual=1.0)
    synthetic_trace(tmp_path / "plain.zarr", layers=[reference_layer(reference=None, text=4)])
    plain = open_trace(tmp_path / "plain.zarr")
    with pytest.raises(UnknownSelection, match="holds no resampler of the tokens 'text'"):
        carry(plain, g2r(plain, group="text"))
