"""Patches of the generated image that are worth asking about, where nobody named any."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..metrics.pointing import Truth
from ..numerics.resize import middle
from ..trace.reader import Trace

PATCHES: Final = 3
Cell: TypeAlias = tuple[int, ...]
"""(row, column) on the latent grid, the frame before them in a video."""


def choose_cells(trace: Trace, truth: Truth | None, mask: NDArray[np.bool_] | None) -> list[Cell]:
    """Three latent cells worth asking about: spread over the inside of the mask, or else over the picture, and over a video's frames."""
    rows, columns = trace.latent_grid
    inside = np.ones((rows, columns), bool)
    if mask is not None:
        share = np.add.reduceat(mask.astype(np.intp), np.arange(rows) * mask.shape[0] // rows, axis=0)
        share = np.add.reduceat(share, np.arange(columns) * mask.shape[1] // columns, axis=1)
        inside = share >= share.max()
    if truth is not None and (inside & np.isfinite(truth.position[..., 0])).any():
        inside &= np.isfinite(truth.position[..., 0])
    cells = np.argwhere(inside)
    chosen = [cells[len(cells) * (2 * i + 1) // (2 * PATCHES)] for i in range(PATCHES)]
    frames = [(int(frame),) for frame in middle(trace.latent_frames, PATCHES)] if trace.latent_frames else [()] * PATCHES
    return list(dict.fromkeys((*frame, int(y), int(x)) for frame, (y, x) in zip(frames, chosen, strict=True)))
