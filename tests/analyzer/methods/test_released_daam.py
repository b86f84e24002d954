"""Where DAAM's own code and recipe `daam` differ, and that the recipe can be told to follow it there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from methods import daam, daam_released, synthetic_calls

from i2am.analyzer import open_trace, token_map
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


def close(found: object, truth: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found), truth, rtol=1e-5, atol=1e-5 * np.abs(truth).max())


@pytest.mark.parametrize("guided", [True, False])
def test_what_the_code_of_daam_does_at_other_sizes_can_be_asked_for(tmp_path: Path, guided: bool) -> None:
    """docs/methods.md: of a 512-pixel model at 384 pixels it drops layers of 12 x 12, and without guidance half of the heads."""
    names = {"down_blocks.0.attn2": 48, "down_blocks.1.attn2": 24, "down_blocks.2.attn2": 12}
    layers = [reference_layer(name, (side, side), heads=4, text=5, reference=None) for name, side in names.items()]
    made = synthetic_trace(tmp_path / "t.zarr", layers=layers, encoding="factors", steps=2, latent_grid=(48, 48), sharpness=2.0)
    trace, calls = open_trace(made.path), synthetic_calls(made)
    wanted, heads = daam_released(calls, lambda c: [2], guided), None if guided else slice(2, 4)
    close(token_map(trace, [2], recipe="daam(target=64+64)", layers=list(names)[:2], heads=heads), wanted)
    with pytest.raises(AssertionError):
        close(token_map(trace, [2], recipe="daam(target=64+64)"), wanted)
    close(token_map(trace, [2], recipe="daam"), daam(calls, lambda c: [2], (48, 48)))
