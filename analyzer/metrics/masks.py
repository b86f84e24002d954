"""Masks as metrics need them: one channel, two values, the size of the map's picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ..facts import MapFacts
from .placement import Map, _like, _pixels, _resize, _values


def hide(map: Map, inside: NDArray[Any]) -> xr.DataArray:
    """The map times the mask, which is brought to the map's grid without antialiasing as the published code does it.

    Dims     map (..., row, column), mask (row, column) of the map's picture -> as the map
    """
    values = _values(map)
    top, left, bottom, right = _pixels(MapFacts.of(map).window, inside.shape)
    seen = np.zeros((bottom - top, right - left))
    rows, columns = slice(max(top, 0), min(bottom, inside.shape[0])), slice(max(left, 0), min(right, inside.shape[1]))
    seen[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = inside[rows, columns]
    return _like(map, values * _resize(seen, (values.shape[-2], values.shape[-1]), "bicubic"))


def binarize(mask: Map) -> NDArray[np.bool_]:
    """A mask of any usual kind as booleans: bool, 0/1, or 0..255 (128 and more is inside).

    Dims     (row, column) or (row, column, 1) -> (row, column)
    Raises   InvalidInput if it is not one picture of one channel, or nothing, or everything, is inside
    """
    values = _one_channel(mask)
    inside = values if values.dtype == bool else _over_half(values)
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
    found = _one_channel(mask).shape
    facts = MapFacts.of(map)
    shape = facts.image_shape
    if shape is not None and tuple(int(n) for n in shape) != found:
        raise InvalidInput(
            f"the mask is {found[0]} x {found[1]} (height x width), but the map lies on {facts.image or 'its picture'}, "
            f"which is {shape[0]} x {shape[1]}; resize the mask to that, or give the mask of that picture"
        )
    return binarize(mask)


def require_shares(values: NDArray[Any], what: str) -> None:
    """Refuse what is neither 0..1 nor 0..255.

    Raises   InvalidInput
    """
    if values.dtype.kind not in "buif":
        raise InvalidInput(f"{what} has dtype {values.dtype}; expected bool, 0/1 or 0..255")
    if values.size and not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
        raise InvalidInput(f"{what} has values from {values.min()} to {values.max()}; expected 0/1 or 0..255")


def _one_channel(mask: Map) -> NDArray[Any]:
    values = np.asarray(mask)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise InvalidInput(
            f"the mask has shape {values.shape} and dtype {values.dtype}; expected one channel (height, width), bool, 0/1 or 0..255"
        )
    return values


def _over_half(values: NDArray[Any]) -> NDArray[np.bool_]:
    require_shares(values, "the mask")
    return np.asarray(values >= (128 if values.size and values.max() > 1 else 0.5))
