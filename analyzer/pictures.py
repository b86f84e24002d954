"""The picture that a method makes of its map: masked, scaled, brought to the image's size, scaled, inverted, cut."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..schema.errors import InvalidInput
from .metrics import require_shares, upsample
from .recipes import Recipe, Scaling
from .recipes import recipe as named
from .resize import resize

EPSILON: Final = 1e-8
"""Keeps the released code's scaling from dividing by 0."""


def heatmap(
    map: xr.DataArray, shape: tuple[int, int] | None = None, *, recipe: str | Recipe | None = None, mask: NDArray[Any] | None = None
) -> xr.DataArray:
    """The picture that the map's recipe draws and scores; by default of the size of the image that the map lies on.

    `mask` (row, column) is the reference's own, by which some recipes multiply G2R and SRAM first; without one this is left out.

    Dims     (..., row, column) -> (..., *shape)
    Range    [0, 1] where the recipe scales by the least and greatest value of each map
    Raises   InvalidInput for a map without rows and columns, or with NaN
    Source   of i2am-official, the released code's hook; the paper mentions neither the complement nor the first scaling
    """
    row = named(recipe if recipe is not None else map.attrs.get("recipe", "i2am"))
    size = shape or map.attrs.get("image_shape")
    if size is None:
        raise InvalidInput("the trace holds no image that the map lies on; say which size its picture shall have")
    on_reference = map.attrs.get("direction") in ("g2r", "sram")
    if row.pre_mask and mask is not None and on_reference:
        map = map * _weights(mask, (map.shape[-2], map.shape[-1]))
    scaled = _scale(upsample(_scale(map, row.scale_before), (int(size[0]), int(size[1])), row.upsample), row.scale_after)
    if row.invert and not on_reference:
        scaled = 1 - scaled
    return scaled.where(scaled > row.threshold, 0.0).assign_attrs(map.attrs) if row.threshold else scaled


def _weights(mask: NDArray[Any], grid: tuple[int, int]) -> NDArray[Any]:
    """The mask on the map's grid, as the released code brings it there."""
    values = np.asarray(mask)
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.ndim != 2:
        raise InvalidInput(f"the reference's mask has shape {values.shape}; expected (rows, columns)")
    require_shares(values, "the reference's mask")
    return resize(values.astype(np.float64) / (255 if values.max() > 1 else 1), grid, "bicubic")


def _scale(map: xr.DataArray, scaling: Scaling) -> xr.DataArray:
    if scaling == "none":
        return map
    axes = map.dims[-2:]
    high = map.max(axes)
    scaled = map / (high + EPSILON) if scaling == "max" else (map - map.min(axes)) / (high - map.min(axes) + EPSILON)
    return scaled.assign_attrs(map.attrs)
