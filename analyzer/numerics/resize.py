"""Bicubic, bilinear and nearest resampling as in torch's `interpolate(align_corners=False)`, with numpy alone.

Every mode is separable and linear: each target pixel of an axis is a weighted sum of a few source pixels, its taps, so an axis takes
one matrix: out = down @ picture @ across.T.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.sums import middle as middle
from ...schema.arrays.sums import nearest
from ...schema.errors import InvalidInput
from .products import product

Values: TypeAlias = NDArray[Any]

MODES: Final = ("bicubic", "bilinear", "nearest")
CUBIC: Final = -0.75
"""The cubic kernel's slope parameter: torch's, not the -0.5 of Keys and of PIL."""


def resize(picture: Any, size: tuple[int, int], mode: str = "bicubic") -> Values:
    """Resample the last two axes to `size`: pixel centres, borders repeated, no antialiasing.

    Dims     (..., y, x) -> (..., *size), float32 stays float32, everything else becomes float64
    Range    bicubic may leave the range of its input by a little; clamp where that matters
    Raises   InvalidInput for an unknown mode or an empty size
    """
    values = np.asarray(picture)
    values = values if values.dtype == np.float32 else values.astype(np.float64)
    if values.ndim < 2:
        raise InvalidInput(f"a picture needs rows and columns, got shape {values.shape}")
    rows, columns = values.shape[-2:]
    if mode == "nearest":  # picking keeps NaN and infinity where they are
        return values[..., taps(rows, size[0], mode)[0][0][:, None], taps(columns, size[1], mode)[0][0]]
    down, across = (matrix(source, target, mode).astype(values.dtype) for source, target in zip((rows, columns), size, strict=True))
    wide = product(values.reshape(-1, columns), across.T).reshape(*values.shape[:-1], size[1])
    return product(down, wide)


def bring(maps: Values, target: tuple[int, ...], mode: str, clamp: bool = False) -> Values:
    """Maps resampled and, if asked, clamped at 0; maps that are of that size already, as they are.

    Dims     (..., row, column) or (..., frame, row, column) -> (..., *target)
    """
    if maps.shape[-len(target) :] == target:
        return maps
    values = resize(maps, (target[-2], target[-1]), mode) if maps.shape[-2:] != target[-2:] else maps
    if len(target) > 2 and values.shape[-3] != target[0]:
        along = matrix(values.shape[-3], target[0], mode).astype(values.dtype)
        values = np.einsum("gf,...fyx->...gyx", along, values)
    return np.maximum(values, 0, out=values) if clamp else values


@lru_cache(maxsize=256)
def matrix(source: int, target: int, mode: str = "bicubic") -> Values:
    """What resampling does to an axis.

    Dims     (target, source), float64; each row sums to 1
    """
    places, weights = taps(source, target, mode)
    dense = np.zeros((target, source))
    np.add.at(dense, (np.broadcast_to(np.arange(target), places.shape), places), weights)
    dense.setflags(write=False)  # shared by all callers through the cache
    return dense


@lru_cache(maxsize=256)
def taps(source: int, target: int, mode: str = "bicubic") -> tuple[Values, Values]:
    """Which source pixels each target pixel of an axis sees, and with what weights.

    Dims     (tap, target), (tap, target); weights sum to 1 over taps
    Raises   InvalidInput for an unknown mode or an empty axis
    """
    if min(source, target) < 1:
        raise InvalidInput(f"cannot resample an axis of length {source} to {target}; both must be positive")
    if mode not in MODES:
        raise InvalidInput(f"unknown resampling {mode!r}; there are {', '.join(MODES)}")
    if source == target:
        places, weights = np.arange(source)[None], np.ones((1, source))
    elif mode == "nearest":
        places, weights = nearest(source, target)[None], np.ones((1, target))
    else:
        places, weights = _interpolation(source, target, mode)
    places = np.clip(places, 0, source - 1)
    for shared in (places, weights):
        shared.setflags(write=False)
    return places, weights


def _interpolation(source: int, target: int, mode: str) -> tuple[Values, Values]:
    centre = (np.arange(target) + 0.5) * (source / target) - 0.5
    centre = np.maximum(centre, 0) if mode == "bilinear" else centre
    first = np.floor(centre).astype(np.intp)
    steps = np.array([0, 1] if mode == "bilinear" else [-1, 0, 1, 2])[:, None]
    distance = np.abs(centre - first - steps)
    return first + steps, 1 - distance if mode == "bilinear" else _cubic(distance)


def _cubic(distance: Values) -> Values:
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
    return np.where(distance <= 1, near, far)
