"""Resampling without torch equals torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analyzer.numerics.resize import resize

LENGTH = st.integers(1, 40)


@settings(deadline=None, max_examples=150)
@given(LENGTH, LENGTH, LENGTH, LENGTH, st.sampled_from(["bicubic", "bilinear", "nearest"]), st.integers(0, 2**32 - 1))
def test_resize_equals_torch(rows: int, columns: int, height: int, width: int, mode: str, seed: int) -> None:
    picture = np.random.default_rng(seed).normal(size=(1, 2, rows, columns))
    corners = {} if mode == "nearest" else {"align_corners": False}
    theirs = torch.nn.functional.interpolate(torch.from_numpy(picture), (height, width), mode=mode, **corners).numpy()
    np.testing.assert_allclose(resize(picture, (height, width), mode), theirs, atol=1e-6)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize(("source", "target"), [((16, 12), (512, 384)), ((64, 64), (8, 8)), ((37, 28), (64, 48)), ((8, 8), (224, 224))])
def test_resize_equals_torch_at_real_sizes(mode: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).random((1, 1, *source))
    corners = {} if mode == "nearest" else {"align_corners": False}
    theirs = torch.nn.functional.interpolate(torch.from_numpy(picture), target, mode=mode, **corners).numpy()
    np.testing.assert_allclose(resize(picture, target, mode), theirs, atol=1e-6)
    np.testing.assert_allclose(resize(picture.astype(np.float32), target, mode), theirs, atol=1e-6)
