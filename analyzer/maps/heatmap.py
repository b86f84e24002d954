"""The picture that a method makes of its map: masked, scaled, brought to the image's size, scaled, inverted, cut."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ..facts import MapFacts
from ..methods.recipes import Recipe, Scaling, get_recipe
from ..metrics.masks import one_channel, shares
from ..metrics.placement import SCALED, hide, keep_where, normalize, tells_apart, threshold, upsample
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
    cut = scaled.where(scaled > row.threshold, 0.0) if row.threshold else scaled
    return cut.assign_attrs(map.attrs, **({} if row.scale_after == "none" else {"units": SCALED}))


def published(trace: Trace, map: xr.DataArray) -> xr.DataArray:
    """The picture of a map with all that its recipe needs of the trace; attribute `pre_mask` names the mask, if one was used.

    Raises   as `heatmap`; UnknownSelection if the trace has several masks of the reference
    """
    facts, name = MapFacts.of(map), None
    if get_recipe(facts.recipe).pre_mask and facts.on_reference:
        name = own_reference_mask(trace, facts.image)
    return heatmap(map, mask=None if name is None else trace.image(name)).assign_attrs({} if name is None else {"pre_mask": name})


def scored_picture(map: xr.DataArray, mask: NDArray[Any], *, pre_mask: bool = False, cut: bool = False) -> xr.DataArray:
    """What of a map its mask scores: the picture of `heatmap` but for its scaling, which metrics do themselves.

    On the reference, the mask multiplies the map first if the recipe has `pre_mask` or the caller asks for it. `cut` scales the picture
    and sets to 0 what the recipe's threshold cuts, for metrics without a threshold of their own.

    Dims     map (..., row, column), mask (row, column) of the whole image -> map on what its window covers of the image
    Range    0 everywhere of a map that is constant up to rounding
    Raises   InvalidInput for a map without rows and columns, or with NaN
    """
    facts = MapFacts.of(map)
    row = get_recipe(facts.recipe)
    found = hide(map, mask) if facts.on_reference and (pre_mask or row.pre_mask) else map
    shown = upsample(found, Window.of(facts.window, mask.shape).size, row.upsample)
    turned = -shown.values if row.invert and not facts.on_reference else shown.values
    picture = shown.copy(data=keep_where(tells_apart(np.asarray(found, np.float64)), turned))
    return threshold(normalize(picture), row.threshold) if cut else picture


def _scale(map: xr.DataArray, scaling: Scaling) -> xr.DataArray:
    if scaling == "none":
        return map
    axes = map.dims[-2:]
    high = map.max(axes)
    scaled = map / (high + EPSILON) if scaling == "max" else (map - map.min(axes)) / (high - map.min(axes) + EPSILON)
    return scaled.assign_attrs(map.attrs)
