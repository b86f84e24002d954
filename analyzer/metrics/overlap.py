"""How well a map agrees with a mask: IMACS, and intersection over union at one threshold or over several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypedDict

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from .masks import fit_mask
from .placement import THRESHOLD, Map, hide, over_frames, place, require_threshold, scored

PENALTY: Final = 3.0
THRESHOLDS: Final = (0.3, 0.4, 0.5)
"""Of normalised attention: those of the head relevance papers' tables."""


class ImacsOptions(TypedDict, total=False):
    """The settings of `imacs` as keyword arguments."""

    penalty: float
    threshold: float
    pre_mask: bool


def imacs(map: Map, mask: Map, penalty: float = PENALTY, threshold: float = THRESHOLD, pre_mask: bool = False) -> xr.DataArray:
    """How well a map and a mask agree: mean of M inside the mask, less `penalty` times its mean outside.

    M is the map at the mask's size, min-max normalised, then thresholded. A reference map that covers only a window of its
    picture is 0 outside it. `pre_mask` multiplies the map by the mask before all that, as some of the published scores do: what
    lies outside is then hardly counted at all, so scores with and without it must not be compared. The map is scored as it is; what
    its recipe scores, which for some is the complement, is `heatmap(map)`.

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
    values = placed.values * (placed.values > threshold)
    flat = values.reshape(*values.shape[:-2], -1)
    within, outside = (np.vecdot(flat, part.ravel().astype(np.float64)) / np.count_nonzero(part) for part in (inside, ~inside))
    found = within - penalty * outside
    return over_frames(scored(placed, found, "imacs", penalty=penalty, threshold=threshold, pre_mask=pre_mask))


def segment(map: Map, size: tuple[int, int], threshold: float = THRESHOLD, percentile: float | None = None) -> xr.DataArray:
    """Where a map is strong, on its picture: above a share of its range or, if given, above a percentile of its own values.

    Dims     (..., row, column) -> the same, last two of length `size`, bool
    Raises   InvalidInput for a threshold outside [0, 1), a percentile outside [0, 100], a map with NaN
    """
    require_threshold(threshold)
    placed = place(map, size)
    level = threshold if percentile is None else cut(placed, percentile)[..., None, None]
    return placed.copy(data=placed.values > level)


def cut(map: Map, percentile: float) -> NDArray[np.float64]:
    """The value that `percentile` % of each map's cells do not pass.

    Dims     (..., row, column) -> (...)
    Raises   InvalidInput for a percentile outside [0, 100]
    """
    if not 0 <= percentile <= 100:
        raise InvalidInput(f"the percentile is {percentile}; expected a number from 0 to 100")
    return np.asarray(np.percentile(np.asarray(map, np.float64), percentile, axis=(-2, -1)))


def iou(map: Map, mask: Map, threshold: float = THRESHOLD, percentile: float | None = None) -> xr.DataArray:
    """Pixels in both over pixels in either, of the strong part of a map and a mask.

    Dims     map (..., [frame,] row, column), mask (row, column) -> (...)
    Range    [0, 1]; 0 for a map that is constant
    Raises   InvalidInput for a mask of another size than the map's picture, an empty or full mask, a map with NaN
    """
    inside = fit_mask(map, mask)
    strong = segment(map, (inside.shape[0], inside.shape[1]), threshold, percentile)
    both, either = (np.count_nonzero(found, axis=(-2, -1)) for found in (strong.values & inside, strong.values | inside))
    return over_frames(scored(strong, both / either, "iou", threshold=threshold, percentile=percentile))


def miou(map: Map, mask: Map, thresholds: Sequence[float] = THRESHOLDS) -> xr.DataArray:
    """Mean of `iou` over thresholds.

    Dims     map (..., row, column), mask (row, column) -> (...)
    Range    [0, 1]
    Raises   InvalidInput if there is no threshold; as `iou`
    """
    if not len(thresholds):
        raise InvalidInput("there is no threshold to take the mean over; expected some in [0, 1), such as 0.3, 0.4, 0.5")
    each = [iou(map, mask, float(threshold)) for threshold in thresholds]
    mean = each[0].copy(data=np.mean([found.values for found in each], axis=0)).rename("miou")
    return mean.assign_attrs(threshold=tuple(float(threshold) for threshold in thresholds))
