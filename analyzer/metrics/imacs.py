"""IMACS, the inpainting-mask attention consistency score of a map and a mask."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
import xarray as xr

from ...schema.errors import InvalidInput
from .masks import fit_mask
from .placement import THRESHOLD, Map, hide, place
from .results import over_frames, require_threshold, scored

PENALTY = 3.0


class ImacsOptions(TypedDict, total=False):
    """The settings of `imacs` as keyword arguments."""

    penalty: float
    threshold: float
    pre_mask: bool


def imacs(map: Map, mask: Map, penalty: float = PENALTY, threshold: float = THRESHOLD, pre_mask: bool = False) -> xr.DataArray:
    """How well a map and a mask agree: mean of M inside the mask, less `penalty` times its mean outside.

    M is the map at the mask's size, min-max normalised, then thresholded. A reference map that covers only a window of its
    picture is 0 outside it. `pre_mask` multiplies the map by the mask before all that, as some of the published scores do: what
    lies outside is then hardly counted at all, so scores with and without it must not be compared.

    Each frame of a video is scored against the mask by itself; the score is the mean over frames.

    Dims     map (..., [frame,] row, column), mask (row, column) -> (...); take float() where no axis was kept
    Range    [-penalty, 1]; 1 where M is 1 all over the mask and 0 elsewhere
    Raises   InvalidInput for a mask of another size than the map's picture, an empty or full mask, a map with NaN
    Source   Park et al. 2024, IMACS; the released code adds 1e-8 for empty masks of the reference alone, here both are errors
    """
    if not (math.isfinite(penalty) and penalty >= 0):
        raise InvalidInput(f"the penalty is {penalty}; expected a number of 0 or more (the paper takes {PENALTY:g})")
    require_threshold(threshold)
    inside = fit_mask(map, mask)
    placed = place(hide(map, inside) if pre_mask else map, (inside.shape[0], inside.shape[1]))
    values = np.where(placed.values > threshold, placed.values, 0.0)
    found = values[..., inside].mean(axis=-1) - penalty * values[..., ~inside].mean(axis=-1)
    return over_frames(scored(placed, found, "imacs", penalty=penalty, threshold=threshold, pre_mask=pre_mask))
