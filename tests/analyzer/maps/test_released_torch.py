"""Law 8: recipe `i2am-official` equals the released code's order of operations, rebuilt here step by step with torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from i2am.analyzer import g2r, open_trace, r2g
from i2am.analyzer.maps.heatmap import heatmap
from i2am.recorder.demo.cli import record_demo
from traces import Synthetic, reference_layer, synthetic_trace

LATENT, IMAGE = (8, 6), (64, 48)
LAYERS = (
    reference_layer("down_blocks.0.attn2", (8, 6), heads=2),
    reference_layer("down_blocks.1.attn2", (4, 3), heads=3),
    reference_layer("mid_block.attn2", (2, 2), heads=2),
    reference_layer("up_blocks.0.attn2", (4, 3), heads=4),
)


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    path = tmp_path_factory.mktemp("released") / "t.zarr"
    return synthetic_trace(path, layers=LAYERS, steps=5, encoding=request.param, latent_grid=LATENT, absent={(3, 1)}, sharpness=1.5)


def released(columns: list[np.ndarray]) -> np.ndarray:
    """R2G of layers that are given as G, (step, head, y, x, token): the running sum, bicubic, clamp, and the means."""
    maps = []
    for layer in columns:
        summed = torch.from_numpy(np.nansum(layer, axis=0)).movedim(-1, 1)  # (head, token, y, x)
        maps.append(interpolate(summed, LATENT, mode="bicubic").clamp(min=0).mean(1))
    return torch.cat(maps).mean(0).numpy()  # over (layer, head) pairs


def test_r2g_equals_the_released_order_of_operations(made: Synthetic) -> None:
    wanted = released([made.generated[i][0, 0] for i in (0, 1, 3)])
    found = r2g(open_trace(made.path), recipe="i2am-official")
    np.testing.assert_allclose(found, wanted, rtol=1e-5 if made.trace.layers[0].encoding == "factors" else 1e-3)
    assert found.attrs["calls"] == 14
    plain = r2g(open_trace(made.path), layers=["*down*", "*up*"]).to_numpy()
    assert np.abs(plain - wanted).max() > 1e-4 * wanted.max(), "the order of operations can be told apart here"


def test_time_groups_and_layers_are_kept_likewise(made: Synthetic) -> None:
    found = r2g(open_trace(made.path), recipe="i2am-official", keep=("time", "layer"), time_groups=2)
    tolerance = 1e-5 if made.trace.layers[0].encoding == "factors" else 1e-3
    for time, steps in enumerate((slice(0, 3), slice(3, 5))):
        for place, layer in enumerate((0, 1, 3)):
            np.testing.assert_allclose(found[time, place], released([made.generated[layer][0, 0, steps]]), rtol=tolerance)


def test_the_picture_is_the_complement_cut_at_the_threshold(made: Synthetic) -> None:
    trace = open_trace(made.path)
    for values in (r2g(trace, recipe="i2am-official"), g2r(trace, recipe="i2am-official")):
        m = torch.from_numpy(values.to_numpy())
        m = (m - m.min()) / (m.max() - m.min() + 1e-8)
        m = interpolate(m[None, None], IMAGE, mode="bicubic")[0, 0]
        m = (m - m.min()) / (m.max() - m.min() + 1e-8)
        # R2G: values of 0.6 and more are set to 1, then the picture is turned over.
        shown = {"r2g": 1 - torch.where(m >= 0.6, 1.0, m), "g2r": torch.where(m > 0.4, m, 0.0)}[values.attrs["direction"]]
        np.testing.assert_allclose(heatmap(values, IMAGE), shown, atol=1e-5)


def test_it_holds_on_the_demo_model_too(tmp_path: Path) -> None:
    record_demo(tmp_path / "demo.zarr", 0, steps=2)
    trace = open_trace(tmp_path / "demo.zarr")
    kept = [i for i, layer in enumerate(trace.layers) if "mid_block" not in layer.path]
    maps = []
    for i in kept:
        summed = torch.from_numpy(trace.generated_softmax(i).isel(sample=0, branch=0).astype(np.float64).sum("step").to_numpy()).movedim(
            -1, 1
        )
        maps.append(interpolate(summed, trace.latent_grid, mode="bicubic").clamp(min=0).mean(1))
    np.testing.assert_allclose(r2g(trace, recipe="i2am-official"), torch.cat(maps).mean(0), rtol=1e-5)
