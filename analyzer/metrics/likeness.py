"""How alike two pictures are: PSNR, and the structural similarity index (SSIM)."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ...schema.errors import InvalidInput

Pixels = NDArray[np.uint8]
MOST: Final = 255.0
SIGMA: Final = 1.5
"""Pixels, of the Gaussian window, which is cut at 11 x 11."""
REACH: Final = 5
STABLE: Final = ((0.01 * MOST) ** 2, (0.03 * MOST) ** 2)
"""Keep the two ratios of SSIM from dividing by 0."""


def psnr(first: Pixels, second: Pixels) -> float:
    """Peak signal over mean squared error, in decibel.

    Dims     (row, column, colour) uint8, both alike
    Range    0 up; infinity for equal pictures
    Raises   InvalidInput for pictures of different sizes
    """
    one, other = _same(first, second)
    error = float(np.square(one - other).mean())
    return 10 * math.log10(MOST**2 / error) if error else math.inf


def ssim(first: Pixels, second: Pixels) -> float:
    """Structural similarity in a Gaussian window, mean over all whole windows and colours.

    Dims     (row, column, colour) uint8, both alike, 11 x 11 at least
    Range    [-1, 1]; 1 for equal pictures
    Raises   InvalidInput for pictures of different sizes, or smaller than the window
    Source   Wang et al., IEEE TIP 2004
    """
    one, other = _same(first, second)
    if min(one.shape[:2]) <= 2 * REACH:
        raise InvalidInput(
            f"the pictures are {one.shape[0]} x {one.shape[1]}; SSIM needs {2 * REACH + 1} x {2 * REACH + 1} pixels at least"
        )

    def blur(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = ndimage.gaussian_filter(values, SIGMA, axes=(0, 1), radius=REACH)
        return found

    mean, mean_other = blur(one), blur(other)
    spread, spread_other = blur(one * one) - mean**2, blur(other * other) - mean_other**2
    shared = blur(one * other) - mean * mean_other
    light = (2 * mean * mean_other + STABLE[0]) / (mean**2 + mean_other**2 + STABLE[0])
    structure = (2 * shared + STABLE[1]) / (spread + spread_other + STABLE[1])
    return float((light * structure)[REACH:-REACH, REACH:-REACH].mean())


def _same(first: NDArray[Any], second: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if first.shape != second.shape:
        sizes = " and ".join(" x ".join(map(str, each.shape)) for each in (first, second))
        raise InvalidInput(f"the pictures are {sizes}; expected two of one size")
    return first.astype(np.float64), second.astype(np.float64)
