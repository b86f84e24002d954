"""Where every patch looks on the reference, and whether that is where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ..facts import MapFacts
from ..numerics.resize import resize
from ..numerics.window import Window
from .masks import binarize
from .placement import Map, scored

Values: TypeAlias = NDArray[np.float64]
Grid: TypeAlias = tuple[int, int]

RADIUS: Final = 0.125
"""A patch points at its true place if it looks within this distance of it, in units of the reference's longer side."""
PLACES: Final = ("y", "x", "ref_y", "ref_x")
"""Axes of a look: on the generated grid, then on the reference's."""


def peaks(looks: xr.DataArray) -> xr.DataArray:
    """Where each patch looks most, in shares of the reference picture's height and width.

    Dims     (..., y, x, ref_y, ref_x) -> (..., y, x, place): place is (y, x)
    Range    [0, 1]; of cells that are equally strong the first; NaN where nothing was recorded
    """
    values = np.asarray(looks, np.float64)
    flat = values.reshape(*values.shape[:-2], -1)
    absent = np.isnan(flat).any(-1, keepdims=True)
    best = np.where(absent, 0, flat).argmax(-1)
    found = np.where(absent, np.nan, cell_places(looks)[best])
    coords = {name: axis for name, axis in looks.coords.items() if not {"ref_y", "ref_x"} & set(axis.dims)}
    return xr.DataArray(found, dims=(*looks.dims[:-2], "place"), coords=coords, attrs=looks.attrs, name="peaks")


def pck(looks: xr.DataArray, truth: Truth, radius: float = RADIUS) -> xr.DataArray:
    """Percentage of correct keypoints, as a share: patches that look most within `radius` of where they truly come from.

    Only patches whose place is known count.

    Dims     (..., y, x, ref_y, ref_x) -> (...)
    Range    [0, 1]; NaN where nothing was recorded
    Raises   InvalidInput for a radius that is not positive, a truth of another grid
    """
    if not (math.isfinite(radius) and radius > 0):
        raise InvalidInput(f"the radius is {radius}; expected a positive share of the reference's longer side, such as {RADIUS}")
    far = distances(looks, truth)
    hit = np.where(np.isnan(far).any(-1), np.nan, (far <= radius).mean(-1))
    return scored(looks, hit, "pck", axes=len(PLACES), radius=radius)


def pointing_error(looks: xr.DataArray, truth: Truth) -> xr.DataArray:
    """Mean distance from where a patch looks most to where it truly comes from, in units of the reference's longer side.

    Dims     (..., y, x, ref_y, ref_x) -> (...)
    Range    >= 0; NaN where nothing was recorded
    """
    return scored(looks, distances(looks, truth).mean(-1), "pointing_error", axes=len(PLACES))


def distances(looks: xr.DataArray, truth: Truth) -> NDArray[np.float64]:
    """How far each patch of known place looks from it.

    Dims     -> (..., patch)
    Raises   InvalidInput if the truth is of another grid, or knows no place
    """
    if truth.position.shape[:2] != looks.shape[-4:-2] or not truth.known.any():
        rows, columns = looks.shape[-4:-2]
        raise InvalidInput(f"the truth has shape {truth.position.shape}; expected known places of {rows} x {columns} patches")
    height, width = MapFacts.of(looks).image_shape or (1, 1)
    found = peaks(looks).values[..., truth.known, :] - truth.position[truth.known]
    return np.asarray(np.hypot(found[..., 0] * height, found[..., 1] * width) / max(height, width))


def attention_variation(looks: xr.DataArray, mask: Map | None = None) -> xr.DataArray:
    """How far apart neighbouring patches look: total variation of the centres of their attention.

    A patch's centre is the mean place it looks at, weighted by how strongly. Neighbours count where both lie in the mask, which is
    brought to the patches by nearest cell. In shares of the reference's sides; the published loss takes cells, and 0.001 of it.

    Dims     looks (..., y, x, ref_y, ref_x), mask (row, column) -> (...)
    Range    [0, 4]; 0 where all patches look at one place; NaN where nothing was recorded
    Raises   InvalidInput for a mask in which no two patches are neighbours
    Source   Kim et al., StableVITON, CVPR 2024, attention total variation loss
    """
    values = np.asarray(looks, np.float64)
    centre, _ = expected_places(values.reshape(*values.shape[:-2], -1), cell_places(looks))
    grid = (values.shape[-4], values.shape[-3])
    inside = np.ones(grid, bool) if mask is None else resize(binarize(mask), grid, "nearest") > 0
    total = np.zeros(values.shape[:-4])
    for axis in (0, 1):
        ahead, behind = (np.take(inside, range(*ends), axis) for ends in ((1, inside.shape[axis]), (0, inside.shape[axis] - 1)))
        both = ahead & behind
        if not both.any():
            raise InvalidInput("no two neighbouring patches lie in the mask, so their attention cannot be compared; give a larger mask")
        steps = np.abs(np.diff(centre, axis=axis - 3)).sum(-1)
        total += steps[..., both].mean(-1)
    return scored(looks, total, "attention_variation", axes=len(PLACES))


def expected_places(rows: Values, places: Values) -> tuple[Values, Values]:
    """The mean place that each row looks at, weighted by how strongly, and the standard deviation around it along each axis.

    Dims     rows (..., cell), places (cell, place) -> (..., place) twice
    """
    with np.errstate(invalid="ignore"):
        shares = rows / rows.sum(-1, keepdims=True)
    mean = shares @ places
    # Less the middle, which leaves squares that do not cancel.
    middle = places.mean(0)
    squares = shares @ (places - middle) ** 2 - (mean - middle) ** 2
    return mean, np.sqrt(np.maximum(squares, 0))


def cell_places(looks: xr.DataArray) -> NDArray[np.float64]:
    """Centres of the reference's cells in shares of its picture, of which they may cover only a window.

    Dims     -> (cell, place)
    """
    rows, columns = looks.shape[-2:]
    facts = MapFacts.of(looks)
    height, width = facts.image_shape or (1, 1)
    window = Window.of(facts.window, (height, width))
    y = (window.top + (np.arange(rows) + 0.5) / rows * (window.bottom - window.top)) / height
    x = (window.left + (np.arange(columns) + 0.5) / columns * (window.right - window.left)) / width
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Truth:
    """Where each cell of the latent grid truly comes from."""

    position: NDArray[np.float64]
    """(y, x, yx): shares of the reference's height and width from its top left; NaN where nothing comes from it."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """(y, x): cells with a true place."""
        return np.asarray(np.isfinite(self.position).all(-1), bool)
