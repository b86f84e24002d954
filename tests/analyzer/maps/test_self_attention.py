"""Maps of self-attention: the picture takes the reference's place, and they lie on what was generated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracles import assert_close, softmaxes

from i2am.analyzer import g2r, heatmap, looks, make_overview, open_trace, r2g, sram, token_map
from i2am.analyzer.numerics.resize import resize
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import UnknownSelection
from traces import Synthetic, reference_layer, self_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LATENT = (8, 6)
LAYERS = (
    self_layer("down.attn1", (8, 6)),
    reference_layer("down.attn2", (8, 6), text=3),
    self_layer("mid.attn1", (4, 3), heads=3),
    reference_layer("mid.attn2", (4, 3)),
    self_layer("joint.attn", (8, 6), text=2, reference=(3, 5)),
)
OWN = (0, 2, 4)
"""Layers that hold the image's own keys."""


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, Trace]:
    path = tmp_path_factory.mktemp("self") / "run.zarr"
    made = synthetic_trace(path, layers=LAYERS, encoding=request.param, steps=3, samples=2, static_keys=False, latent_grid=LATENT)
    return made, open_trace(path)


def parts(made: Synthetic, sample: int) -> list[tuple[np.ndarray, np.ndarray, tuple[int, int]]]:
    """P and G of the own keys of each (layer, head) pair: (step, row, column, key), and the grid of the keys."""
    found = []
    for index in OWN:
        layer = made.trace.layers[index]
        own = next(group for group in layer.groups if group.role == "self")
        P, G = (softmax[sample, 0][..., own.start : own.stop] for softmax in softmaxes(made, index))
        found += [(P[:, head], G[:, head], layer.grid) for head in range(layer.heads)]
    return found


def brought(pictures: np.ndarray) -> np.ndarray:
    """Pictures of steps on the latent grid, added."""
    return (pictures if pictures.shape[-2:] == LATENT else np.maximum(resize(pictures, LATENT, "bicubic"), 0)).sum(0)


@pytest.mark.parametrize("sample", [0, 1])
def test_a_patch_looks_at_the_picture_itself(run: tuple[Synthetic, Trace], sample: int) -> None:
    made, trace = run
    rows, everywhere, onto = [], [], []
    for P, G, grid in parts(made, sample):
        rows.append(brought(P[:, 5 * grid[0] // 8, 4 * grid[1] // 6].reshape(-1, *grid)))
        everywhere.append(brought(P.mean((1, 2)).reshape(-1, *grid)))
        onto.append(brought(G.mean(3)))
    patch = sram(trace, (5, 4), group="self", sample=sample)
    assert_close(patch, np.mean(rows, 0))
    assert_close(g2r(trace, group="self", sample=sample), np.mean(everywhere, 0))
    assert g2r(trace, group="self", sample=sample).attrs["long_name"] == "G2R: what of the picture itself was used"
    assert_close(r2g(trace, group="self", sample=sample), np.mean(onto, 0))
    assert_close(looks(trace, group="self", sample=sample)[5, 4], np.mean(rows, 0))
    assert (patch.attrs["image"], patch.attrs["image_shape"]) == (f"generated_{sample}", (64, 48))
    assert heatmap(patch).shape == (64, 48)


def test_tokens_of_the_picture_have_maps(run: tuple[Synthetic, Trace]) -> None:
    made, trace = run
    found = token_map(trace, [7], group="self", layers=[0, 4])
    assert_close(found, np.mean([P[..., 7].sum(0) for P, _, grid in parts(made, 0) if grid == LATENT], 0))


def test_nothing_changes_where_no_group_is_named(run: tuple[Synthetic, Trace]) -> None:
    _, trace = run
    assert r2g(trace, keep="layer").layer.values.tolist() == [1, 3, 4]
    assert sram(trace, (5, 4)).attrs["image"] == "reference"
    assert trace.latent_grid == LATENT


def test_a_trace_of_self_attention_alone_says_what_to_name(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "own.zarr", layers=[LAYERS[0]], steps=2)
    trace = open_trace(made.path)
    with pytest.raises(UnknownSelection, match="no selected layer sees a reference; say which tokens with group=, of self"):
        r2g(trace)
    (view,) = make_overview(trace).facts["views"]
    assert (view["group"], view["role"]) == ("self", "self")
