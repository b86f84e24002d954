"""From a map to numbers: bring it to its picture, normalise it, threshold it, and label what a metric says of it.

Every function takes a DataArray or an array whose last two axes are rows and columns, and treats each map of the leading
(kept) axes on its own, as the published code does. Maps are small: what is lazy is computed here.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ..facts import MapFacts
from ..numerics.resize import resize
from ..numerics.window import Window

Map: TypeAlias = xr.DataArray | NDArray[Any]
Values: TypeAlias = NDArray[np.float64]

THRESHOLD = 0.4
ROUNDING = 1e-6
"""A map whose values differ by no more than this share of the greatest is constant: float32 sums differ by as much."""
SCALED = "share of its range"
"""Units of a map that was scaled by its own least and greatest value."""


def normalize(map: Map) -> xr.DataArray:
    """Each map to [0, 1] by its own least and greatest value.

    Dims     (..., row, column) -> the same
    Range    [0, 1]; a map that is constant up to rounding tells nothing apart and becomes 0
    Raises   InvalidInput if a value is not finite
    """
    return _like(map, _normalize(_values(map))).assign_attrs(units=SCALED)


def threshold(map: Map, above: float = THRESHOLD) -> xr.DataArray:
    """Keep what is greater than `above`, set the rest to 0: M * 1[M > above].

    Dims     any -> the same
    Raises   InvalidInput if a value is not finite
    Source   Park et al. 2024, Eq. 9
    """
    values = _values(map)
    return _like(map, np.where(values > above, values, 0.0))


def upsample(map: Map, size: tuple[int, int], mode: str = "bicubic") -> xr.DataArray:
    """Resample each map to (rows, columns), as torch's interpolate with align_corners=False does.

    Dims     (..., row, column) -> the same, last two of length `size`
    Raises   InvalidInput if the size is not positive or a value is not finite
    """
    if len(size) != 2 or min(size) < 1:
        raise InvalidInput(f"cannot bring a map to {size[0]} x {size[-1]}; expected two positive numbers of pixels, (height, width)")
    resized = _resize(_values(map), (int(size[0]), int(size[1])), mode)
    if not isinstance(map, xr.DataArray):
        return _like(map, resized)
    rows, columns = map.dims[-2:]
    kept = {name: axis for name, axis in map.coords.items() if rows not in axis.dims and columns not in axis.dims}
    # Centres of pixels as shares of the picture, as a trace's y and x are.
    centres = {dim: (dim, (np.arange(n) + 0.5) / n) for dim, n in zip((rows, columns), size, strict=True)}
    return xr.DataArray(resized, dims=map.dims, coords={**kept, **centres}, attrs=map.attrs, name=map.name)


def place(map: Map, size: tuple[int, int], mode: str = "bicubic", limits: tuple[float, float] | None = None) -> xr.DataArray:
    """Lay a map on its picture: normalised over the window its tokens cover, or between limits, 0 outside it.

    The window comes from the map's attributes (a processor may have cropped the picture before cutting it into tokens) and
    is rounded to whole pixels.

    Dims     (..., row, column) -> the same, last two of length `size`
    Range    [0, 1]
    Raises   InvalidInput if the window lies outside the picture or a value is not finite
    """
    return _lay(map, size, mode, limits, signed=False)


def place_signed(map: Map, size: tuple[int, int], mode: str = "bicubic", limits: tuple[float, float] | None = None) -> xr.DataArray:
    """Lay a difference on its picture: no change is in the middle, and as far from it as the greatest change, or limit, is 0 and 1.

    Dims     (..., row, column) -> the same, last two of length `size`
    Range    [0, 1]; 0.5 is no change, and all there is outside the window of the map
    Raises   InvalidInput if the window lies outside the picture or a value is not finite
    """
    return _lay(map, size, mode, limits, signed=True)


def hide(map: Map, inside: NDArray[Any]) -> xr.DataArray:
    """The map times the mask, which is brought to the map's grid without antialiasing as the published code does it.

    Dims     map (..., row, column), mask (row, column) of the map's picture -> as the map
    """
    values, window = _values(map), _window(map, inside.shape)
    seen = np.zeros(window.size)
    seen[window.seen(inside.shape)] = inside[window.inside(inside.shape)]
    return _like(map, values * _resize(seen, (values.shape[-2], values.shape[-1]), "bicubic"))


def over_frames(scores: xr.DataArray) -> xr.DataArray:
    """Of a video, whose frames are scored one by one, the mean over frames.

    Dims     (..., [frame]) -> (...)
    """
    return scores.mean("frame", keep_attrs=True) if "frame" in scores.dims else scores


def require_threshold(threshold: float) -> None:
    """Refuse a threshold that no normalised map can straddle."""
    if not 0 <= threshold < 1:
        raise InvalidInput(f"the threshold is {threshold}; maps are normalised to [0, 1], so expected 0 <= threshold < 1")


def scored(map: xr.DataArray, values: NDArray[Any], name: str, axes: int = 2, **settings: Any) -> xr.DataArray:
    """One number for each map of the kept axes, labelled as they are.

    Dims     map (..., `axes` axes of places), values (...) -> (...)
    """
    leading = map.dims[: map.ndim - axes]
    coords = {name: axis for name, axis in map.coords.items() if set(axis.dims) <= set(leading)}
    facts = {name: value for name, value in map.attrs.items() if name in ("trace", "recipe", "direction", "group", "image")}
    return xr.DataArray(values, dims=leading, coords=coords, attrs={**facts, **settings}, name=name)


def _lay(map: Map, size: tuple[int, int], mode: str, limits: tuple[float, float] | None, signed: bool) -> xr.DataArray:
    """A map on the part of its picture that its window covers."""
    window, values = _window(map, size), _values(map)
    shown = _resize(values, window.size, mode)[(..., *window.seen(size))]
    if signed:
        most = np.abs(values).max(axis=(-2, -1), keepdims=True) if limits is None else np.full((1, 1), limits[1])
        shown = np.clip(0.5 + np.divide(shown, most, out=np.zeros_like(shown), where=most > 0) / 2, 0, 1)
    elif limits is not None:
        shown = np.clip((shown - limits[0]) / ((limits[1] - limits[0]) or 1.0), 0, 1)
    else:  # asked of the map as it is: resampling overshoots, and may widen what is only rounding
        shown = _normalize(keep_where(tells_apart(values), shown))
    placed = shown
    if shown.shape[-2:] != tuple(size):
        placed = np.full((*values.shape[:-2], *size), 0.5 if signed else 0.0)
        placed[(..., *window.inside(size))] = shown
    if not isinstance(map, xr.DataArray):
        return _like(map, placed)
    whole = upsample(map, size, mode).copy(data=placed)
    whole.attrs.pop("window", None)
    return whole.assign_attrs(units=SCALED)


def _values(map: Map) -> Values:
    """The numbers in float64, computed if lazy; refuses what is not a finite map."""
    values = np.asarray(map, dtype=np.float64)
    if values.ndim < 2:
        raise InvalidInput(
            f"a map of shape {values.shape} has no rows and columns; tokens without a grid (text) cannot be laid on a picture"
        )
    if not np.isfinite(values).all():
        raise InvalidInput(
            "the map holds NaN or infinity: some call it asks for was not recorded; "
            "select steps and layers that are present (`i2am info` lists them)"
        )
    return values


def _normalize(values: Values) -> Values:
    low, high = values.min(axis=(-2, -1), keepdims=True), values.max(axis=(-2, -1), keepdims=True)
    apart = tells_apart(values)
    scaled = values - low
    return keep_where(apart, np.divide(scaled, high - low, out=scaled, where=apart))


def keep_where(kept: NDArray[np.bool_], maps: Values) -> Values:
    """The maps that are kept, and 0 in place of the others.

    Dims     (..., 1, 1), (..., row, column) -> the same
    """
    return maps if kept.all() else np.where(kept, maps, 0.0)


def tells_apart(values: Values) -> NDArray[np.bool_]:
    """Whether each map's values differ by more than rounding.

    Dims     (..., row, column) -> (..., 1, 1)
    """
    low, high = values.min(axis=(-2, -1), keepdims=True), values.max(axis=(-2, -1), keepdims=True)
    return np.asarray(high - low > ROUNDING * np.maximum(np.abs(low), np.abs(high)))


def _resize(values: Values, size: tuple[int, int], mode: str) -> Values:
    return values if values.shape[-2:] == size else np.asarray(resize(values, size, mode), dtype=np.float64)


def _window(map: Map, size: tuple[int, ...]) -> Window:
    """What a map covers of its picture, of which something must be left."""
    window = Window.of(MapFacts.of_placed(map).window, size)
    window.require_overlap(size)
    return window


def _like(map: Map, values: Values) -> xr.DataArray:
    if isinstance(map, xr.DataArray):
        return map.copy(data=values)
    return xr.DataArray(values, dims=[*(f"axis_{i}" for i in range(values.ndim - 2)), "y", "x"])
