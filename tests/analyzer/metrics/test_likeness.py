"""PSNR and SSIM against scikit-image's, and against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from i2am.analyzer import psnr, ssim
from i2am.schema.errors import InvalidInput

pytestmark = pytest.mark.analyzer


def pair(seed: int, noise: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:24, 0:17]
    smooth = np.stack([128 + 90 * np.sin(rows / 5 + i) * np.cos(columns / 4) for i in range(3)], axis=-1)
    return smooth.astype(np.uint8), np.clip(smooth + rng.normal(0, noise, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [2.0, 40.0])
def test_they_are_those_of_scikit_image(noise: float) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    one, other = pair(0, noise)
    assert psnr(one, other) == pytest.approx(metrics.peak_signal_noise_ratio(one, other, data_range=255))
    settings = {"channel_axis": -1, "data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert ssim(one, other) == pytest.approx(metrics.structural_similarity(one, other, **settings))


def test_one_window_is_the_formula() -> None:
    one, other = (each[:11, :11, :1].astype(float) for each in pair(1))
    at = np.arange(-5, 6)
    weight = np.exp(-(at**2) / 4.5)
    weight = np.outer(weight, weight)[..., None] / weight.sum() ** 2
    mean, there = (weight * one).sum(), (weight * other).sum()
    spread, other_spread, both = (
        (weight * a * b).sum() - c * d for a, b, c, d in ((one, one, mean, mean), (other, other, there, there), (one, other, mean, there))
    )
    light = (2 * mean * there + 6.5025) / (mean**2 + there**2 + 6.5025)
    assert ssim(one.astype(np.uint8), other.astype(np.uint8)) == pytest.approx(
        light * (2 * both + 58.5225) / (spread + other_spread + 58.5225)
    )
    assert psnr(one, other) == pytest.approx(20 * math.log10(255 / math.sqrt(((one - other) ** 2).mean())))


def test_equal_pictures_and_those_that_do_not_compare() -> None:
    one, _ = pair(2)
    assert psnr(one, one) == math.inf and ssim(one, one) == pytest.approx(1)
    with pytest.raises(InvalidInput, match="24 x 17 x 3 and 20 x 17 x 3; expected two of one size"):
        psnr(one, one[:20])
    with pytest.raises(InvalidInput, match="10 x 17; SSIM needs 11 x 11"):
        ssim(one[:10], one[:10])
