"""The picture that a method makes of its map: masked, scaled, brought to the image's size, scaled, inverted, cut."""

from __future__ import annotations

from typing import Any, Final

import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ..facts import MapFacts
from ..methods.recipes import Recipe, Scaling, get_recipe
from ..metrics.masks import one_channel, shares
from ..metrics.placement import hide, upsample
from ..numerics.window import Window
from ..trace.images import own_reference_mask
from ..trace.reader import Trace

EPSILON: Final = 1e-8
"""Keeps the released code's scaling from dividing by 0."""


def heatmap(
    map: xr.DataArray, shape: tuple[int, int] | None = None, *, recipe: str | Recipe | None = None, mask: NDArray[Any] | None = None
) -> xr.DataArray:
    """The picture that the map's recipe draws and scores; by default of the size of what the map covers of its image.

    `mask` (row, column) is the reference's own, by which some recipes multiply G2R and SRAM first; without one this is left out.

    Dims     (..., row, column) -> (..., *shape)
    Range    [0, 1] where the recipe scales by the least and greatest value of each map
    Raises   InvalidInput for a map without rows and columns, or with NaN
    Source   of i2am-official, the released code's hook; the paper mentions neither the complement nor the first scaling
    """
    facts = MapFacts.of(map)
    row = get_recipe(facts.recipe if recipe is None else recipe)
    if shape is None and facts.image_shape is None:
        raise InvalidInput("the trace holds no image that the map lies on; say which size its picture shall have")
    size = shape or Window.of(facts.window, facts.image_shape or ()).size
    if row.pre_mask and mask is not None and facts.on_reference:
        what = "the reference's mask"
        map = hide(map, shares(one_channel(mask, what), what))
    scaled = _scale(upsample(_scale(map, row.scale_before), (int(size[0]), int(size[1])), row.upsample), row.scale_after)
    if row.invert and not facts.on_reference:
        scaled = 1 - scaled
    return scaled.where(scaled > row.threshold, 0.0).assign_attrs(map.attrs) if row.threshold else scaled.assign_attrs(map.attrs)


def published(trace: Trace, map: xr.DataArray) -> xr.DataArray:
    """The picture of a map with all that its recipe needs of the trace; attribute `pre_mask` names the mask, if one was used.

    Raises   as `heatmap`; UnknownSelection if the trace has several masks of the reference
    """
    facts, name = MapFacts.of(map), None
    if get_recipe(facts.recipe).pre_mask and facts.on_reference:
        name = own_reference_mask(trace, facts.image)
    return heatmap(map, mask=None if name is None else trace.image(name)).assign_attrs(pre_mask=name)


def _scale(map: xr.DataArray, scaling: Scaling) -> xr.DataArray:
    if scaling == "none":
        return map
    axes = map.dims[-2:]
    high = map.max(axes)
    scaled = map / (high + EPSILON) if scaling == "max" else (map - map.min(axes)) / (high - map.min(axes) + EPSILON)
    return scaled.assign_attrs(map.attrs)
