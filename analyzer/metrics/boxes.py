"""Boxes around what a map is strong on: the I2AM authors' protocol for finding objects.

The map at the picture's size is cut at its 65th percentile, opened and closed with a square of 5 pixels, dilated once; of what
hangs together, the part whose box holds most of all that is left gives the box.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from ...schema.errors import InvalidInput
from ..facts import MapFacts
from .masks import binarize, fit_mask
from .overlap import segment
from .placement import Map, over_frames, place, scored

PERCENTILE: Final = 65.0
SQUARE: Final = 5
"""Side of the structuring element in pixels, at the published picture size of 512."""
EDGES: Final = ("top", "left", "bottom", "right")
SHARES: Final = (0.1, 0.3)
"""Of the picture: objects that the published detection protocol takes, and its random boxes."""
DRAWS: Final = 1000
NEIGHBOURS: Final = np.ones((3, 3), bool)
"""Pixels that touch at a corner hang together."""


def find_boxes(map: Map, size: tuple[int, int] | None = None, percentile: float = PERCENTILE, square: int = SQUARE) -> xr.DataArray:
    """The box of each map, in pixels of its picture; `size` is needed only where the map does not know its picture.

    Dims     (..., row, column) -> (..., edge): top, left, bottom, right, the last two exclusive
    Range    NaN where nothing is left to draw a box around
    Raises   InvalidInput if the picture's size is unknown, a percentile outside [0, 100], a square without a middle
    Source   Park et al., ICLR 2025, detection protocol; from the numbers, where the published script reads a coloured picture
    """
    known = MapFacts.of(map).image_shape
    target = size or known
    if target is None:
        raise InvalidInput("the map does not say how large its picture is; give size=(height, width)")
    strong = segment(map, (int(target[0]), int(target[1])), percentile=percentile)
    found = np.full((*strong.shape[:-2], 4), np.nan)
    for at in np.ndindex(strong.shape[:-2]):
        found[at] = largest(clean(strong.values[at], square))
    result = scored(strong, found[..., 0], "box", percentile=percentile, square=square)
    return result.expand_dims(edge=list(EDGES), axis=-1).copy(data=found)


def clean(strong: NDArray[np.bool_], square: int = SQUARE) -> NDArray[np.bool_]:
    """Opened, closed and dilated once. What lies beyond the edge counts as neither, so that the edge itself changes nothing.

    Dims     (row, column) -> the same
    Raises   InvalidInput for a square that has no middle pixel
    """
    if square < 1 or square % 2 == 0:
        raise InvalidInput(f"the structuring square has {square} pixels a side; expected an odd number of 1 or more")
    element = np.ones((square, square), bool)
    shrink = partial(ndimage.binary_erosion, structure=element, border_value=1)
    grow = partial(ndimage.binary_dilation, structure=element, border_value=0)
    opened = grow(shrink(strong))
    return np.asarray(grow(shrink(grow(opened))), bool)


def largest(strong: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The box of the part whose box holds most strong pixels, of any part; the first from the top of those that hold as many.

    Dims     (row, column) -> (edge,), NaN if nothing is strong
    """
    parts = ndimage.find_objects(ndimage.label(strong, NEIGHBOURS)[0])
    if not parts:
        return np.full(4, np.nan)
    rows, columns = max(parts, key=lambda part: np.count_nonzero(strong[part]))
    return np.array([rows.start, columns.start, rows.stop, columns.stop], np.float64)


def box_of(mask: Map) -> NDArray[np.float64]:
    """The tight box of a mask.

    Dims     (row, column) -> (edge,)
    Raises   InvalidInput for a mask that is empty or full
    """
    inside = binarize(mask)
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.float64)


def overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area in both boxes over area in either; 0 where there is no box.

    Dims     (..., edge), (..., edge) -> (...)
    Range    [0, 1]
    """
    first, second = np.broadcast_arrays(first, second)
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    either = sum((box[..., 2:] - box[..., :2]).prod(-1) for box in (first, second)) - both
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nan_to_num(both / either))


def box_iou(map: Map, mask: Map, percentile: float = PERCENTILE, square: int = SQUARE) -> xr.DataArray:
    """How well the box of a map agrees with the box of a mask: intersection over union.

    Dims     map (..., row, column), mask (row, column) -> (...)
    Range    [0, 1]; 0 where the map gives no box
    Raises   as `find_boxes` and `iou`
    """
    inside = fit_mask(map, mask)
    found = find_boxes(map, (inside.shape[0], inside.shape[1]), percentile, square)
    return over_frames(scored(found, overlap(found.values, box_of(inside)), "box_iou", axes=1, percentile=percentile))


def whole_box_iou(map: Map, mask: Map) -> xr.DataArray:
    """What a box around the whole picture would score in place of the map's: the share of it that the mask's box takes.

    Dims     map (..., row, column), mask (row, column) -> (...)
    Range    (0, 1]
    Raises   as `iou`
    Source   Park et al., ICLR 2025, detection protocol, "overall image"
    """
    return _baseline(map, mask, np.array([[0.0, 0, 1, 1]]), "whole_box_iou")


def random_box_iou(map: Map, mask: Map, shares: tuple[float, float] = SHARES, draws: int = DRAWS, seed: int = 0) -> xr.DataArray:
    """What a random box would score in place of the map's: the mean over `draws` boxes of 10 to 30 % of the picture.

    `shares`  of the picture that a box takes, least and most
    `draws`  random boxes

    Area, then height, then place are uniform over what fits; how the published boxes were drawn is not known.

    Dims     map (..., row, column), mask (row, column) -> (...)
    Range    [0, 1]
    Raises   as `iou`
    Source   Park et al., ICLR 2025, detection protocol, "random 10-30 %"
    """
    rng = np.random.default_rng(seed)
    area = rng.uniform(*shares, draws)
    height = rng.uniform(area, 1)
    size = np.stack([height, area / height], axis=-1)
    corner = rng.uniform(0, 1 - size)
    return _baseline(map, mask, np.concatenate([corner, corner + size], axis=-1), "random_box_iou")


def _baseline(map: Map, mask: Map, boxes: NDArray[np.float64], name: str) -> xr.DataArray:
    """The mean overlap of boxes, in shares of the picture, with the mask's: the same for each map.

    Dims     map (..., row, column), boxes (box, edge) -> (...)
    """
    inside = fit_mask(map, mask)
    placed = place(map, (inside.shape[0], inside.shape[1]))
    score = overlap(boxes * np.tile(inside.shape, 2), box_of(inside)).mean()
    return over_frames(scored(placed, np.full(placed.shape[:-2], score), name))
