"""A metric's results: one number for each map, labelled as the map is; thresholds checked; frames averaged."""

from __future__ import annotations

from typing import Any

import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import InvalidInput


def over_frames(scores: xr.DataArray) -> xr.DataArray:
    """Of a video, whose frames are scored one by one, the mean over frames.

    Dims     (..., [frame]) -> (...)
    """
    return scores.mean("frame", keep_attrs=True) if "frame" in scores.dims else scores


def require_threshold(threshold: float) -> None:
    """Refuse a threshold that no normalised map can straddle.

    Raises   InvalidInput
    """
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
