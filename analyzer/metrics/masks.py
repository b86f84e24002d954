"""Masks as metrics need them: one channel, two values, the size of the map's picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ..facts import MapFacts
from .placement import Map


def binarize(mask: Map) -> NDArray[np.bool_]:
    """A mask of any usual kind as booleans: bool, 0/1, or 0..255 (128 and more is inside).

    Dims     (row, column) or (row, column, 1) -> (row, column)
    Raises   InvalidInput if it is not one picture of one channel, or nothing, or everything, is inside
    """
    values = one_channel(mask)
    inside = values if values.dtype == bool else np.asarray(values >= (128 if _full(values, "the mask") == 255 else 0.5))
    covered = int(np.count_nonzero(inside))
    if covered in (0, inside.size):
        what = "empty: no pixel is" if covered == 0 else "full: every pixel is"
        raise InvalidInput(
            f"the mask ({inside.shape[0]} x {inside.shape[1]}) is {what} inside, and scores compare inside with outside; "
            "give a mask that is white (255 or 1) on the part that counts and black (0) elsewhere"
        )
    return inside


def fit_mask(map: Map, mask: Map) -> NDArray[np.bool_]:
    """The mask as booleans, if it can score the map; nothing lazy is computed, so ask before a long scan.

    Raises   InvalidInput naming both sizes if it is not of the size of the picture that the map lies on; as `binarize`
    """
    found = one_channel(mask).shape
    facts = MapFacts.of_placed(map)
    shape = facts.image_shape
    if shape is not None and tuple(int(n) for n in shape) != found:
        raise InvalidInput(
            f"the mask is {found[0]} x {found[1]} (height x width), but the map lies on {facts.image or 'its picture'}, "
            f"which is {shape[0]} x {shape[1]}; resize the mask to that, or give the mask of that picture"
        )
    return binarize(mask)


def one_channel(mask: Map, what: str = "the mask") -> NDArray[Any]:
    """The values of a mask.

    Dims     (row, column) or (row, column, 1) -> (row, column)
    Raises   InvalidInput if it is not one picture of one channel
    """
    values = np.asarray(mask)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise InvalidInput(
            f"{what} has shape {values.shape} and dtype {values.dtype}; expected one channel (height, width), bool, 0/1 or 0..255"
        )
    return values


def shares(values: NDArray[Any], what: str) -> NDArray[np.float64]:
    """Values of 0..1 or 0..255 as 0..1; what is greater than 1 anywhere is taken for 0..255.

    Dims     any -> the same
    Raises   InvalidInput for values outside both ranges
    """
    full = _full(values, what)
    return values.astype(np.float64) / full


def _full(values: NDArray[Any], what: str) -> int:
    """The value that stands for all: 1 or 255."""
    if values.dtype.kind not in "buif":
        raise InvalidInput(f"{what} has dtype {values.dtype}; expected bool, 0/1 or 0..255")
    if values.size and not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
        raise InvalidInput(f"{what} has values from {values.min()} to {values.max()}; expected 0/1 or 0..255")
    return 255 if values.size and values.max() > 1 else 1
