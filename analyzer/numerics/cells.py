"""What lies in the cells of a grid over a picture: the mean of its pixels, and whether a mask covers most."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .window import Window

Values: TypeAlias = NDArray[Any]


def cell_means(picture: Values, window: Window, grid: tuple[int, int]) -> Values:
    """The mean of a picture's pixels in each cell of a grid over its window.

    Dims     (y, x, channel) -> (row, column, channel), float64
    """
    height, width = picture.shape[:2]
    down = _overlaps(height, window.top, window.bottom, grid[0])
    across = _overlaps(width, window.left, window.right, grid[1])
    wide = np.tensordot(down, picture.astype(np.float64), (1, 0))
    return np.asarray(np.moveaxis(np.tensordot(across, wide, (1, 1)), 0, 1))


def covered_cells(mask: Values, window: Window, grid: tuple[int, int]) -> Values:
    """Cells of which a mask covers more than half.

    Dims     (y, x), 0 to 255 -> (row, column)
    """
    return np.asarray(cell_means((mask >= 128)[..., None], window, grid)[..., 0] > 0.5)


def _overlaps(length: int, low: float, high: float, cells: int) -> Values:
    """How much of each cell each pixel of an axis covers.

    Dims     (cell, pixel); each row sums to 1
    """
    edges = np.clip(np.linspace(low, high, cells + 1), 0, length)
    pixels = np.arange(length)
    covered = np.clip(np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels), 0, None)
    total = covered.sum(1, keepdims=True)
    return np.asarray(np.divide(covered, total, out=np.zeros_like(covered), where=total > 0))
