"""Known truth on the latent grid: where each of its cells comes from, as metrics take it and a trace keeps it."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from .files import Places

DIGITS: Final = 4
"""Decimals of a share that a trace keeps."""


def lay_truth(values: Places, grid: tuple[int, int]) -> Places:
    """Where each cell of a grid over the generated image comes from: the mean of what is known in it.

    A cell of a flow is known if half of its pixels are. A flow that is coarser than the grid lends each cell the pixel at its centre.

    Dims     as `read_truth` returns -> (row, column, 2)
    Range    [0, 1]; NaN where nothing is known
    """
    least = 0.0
    if values.ndim == 3:
        near = [(2 * np.arange(max(n, m)) + 1) * n // (2 * max(n, m)) for n, m in zip(values.shape[:2], grid, strict=True)]
        fine = values[np.ix_(*near)]
        centres = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in fine.shape[:2]), indexing="ij"), -1)
        pairs, least = np.concatenate([centres, fine], -1).reshape(-1, 4), 0.5
    else:
        pairs = values
    rows, columns = (np.minimum((pairs[:, i] * n).astype(np.intp), n - 1) for i, n in enumerate(grid))
    cells, known = rows * grid[1] + columns, np.isfinite(pairs[:, 2:]).all(1)
    every, there = (np.bincount(cells[each], minlength=math.prod(grid)) for each in (slice(None), known))
    sums = np.stack([np.bincount(cells[known], pairs[known, 2 + i], math.prod(grid)) for i in range(2)], -1)
    counts = np.where((there > 0) & (there >= least * every), there, np.nan)[:, None]
    return np.asarray((sums / counts).reshape(*grid, 2))


def write_places(places: Places) -> list[list[list[float | None]]]:
    """Places as a trace's record keeps them, under `provenance.truth`: null where there is none."""
    table = places.round(DIGITS).astype(object)
    table[~np.isfinite(places)] = None
    found: list[list[list[float | None]]] = table.tolist()
    return found
