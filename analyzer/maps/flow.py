"""The flow of attention: the expected place on the reference of where each patch looks, and the reference warped by it."""

from __future__ import annotations

from typing import Any, Final, Unpack

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ..aggregation.selection import MapOptions
from ..facts import MapFacts
from ..metrics.pointing import cell_places, expected_places
from ..numerics.resize import resize
from ..trace.images import find_image, still_picture
from ..trace.reader import Trace
from .looks import looks

AXES: Final = ("ref_y", "ref_x")
UNITS: Final = "share of its height and width"
EVEN: Final = 12**-0.5
"""Standard deviation of attention that is even over the whole reference."""


def flow(trace: Trace, **options: Unpack[MapOptions]) -> xr.Dataset:
    """Where on the reference each patch is expected to look, and how widely its attention is spread around that place.

        found = flow(open_trace("run.zarr"), layers="*up_blocks.1*")
        found["flow"].sel(axis="ref_y"), found["spread"].max("axis")

    The soft-argmax of `looks`: `flow` is the mean place, weighted by how strongly the patch looks there, `spread` the standard deviation.
    What is negative in a row, as contributions and bicubic resampling may be, counts as 0. A patch that looks at two places is expected
    between them, and one that looks everywhere in the middle, with a spread of 0.29: believe the flow where the spread is small.

    Dims     flow and spread (kept axes, y, x, axis), axis is ref_y, ref_x; lazy
    Units    shares of the reference picture's height and width, from its top left
    Range    flow [0, 1], spread [0, 0.5]; NaN where no call is left to average
    Raises   as `looks`
    Source   the soft-argmax of Zhou et al., Leffa, CVPR 2025, with the softmax as the model has it
    """
    rows = looks(trace, **options)
    found = xr.apply_ufunc(
        _expect, rows, kwargs={"places": cell_places(rows)}, input_core_dims=[AXES], output_core_dims=[["moment", "axis"]],
        dask="parallelized", dask_gufunc_kwargs={"output_sizes": {"moment": 2, "axis": 2}}, output_dtypes=[np.float64],
    ).assign_coords(axis=list(AXES))  # fmt: skip
    attrs = MapFacts.of(rows).to_attrs()
    said = {"flow": "expected position on the reference", "spread": "standard deviation around the expected position"}
    parts = {name: found.isel(moment=i).assign_attrs(attrs, long_name=text, units=UNITS) for i, (name, text) in enumerate(said.items())}
    return xr.Dataset(parts, attrs=attrs)


def _expect(rows: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Task: mean place and standard deviation.

    Dims     (..., ref_y, ref_x) -> (..., moment, axis)
    """
    return np.stack(expected_places(np.maximum(rows.reshape(*rows.shape[:-2], -1), 0), places), axis=-2)


def warp_reference(trace: Trace, found: xr.Dataset, *, fade: bool = False) -> NDArray[np.uint8]:
    """The reference as `flow` lays it on the generated picture: each pixel the reference's colour at its expected place.

        picture = warp_reference(trace, flow(trace, layers="*up_blocks.1*"))

    `found` is what `flow` returned, of one map. Places between the centres of patches, and colours between those of pixels, are bilinear;
    beyond an edge the edge is repeated.
    With `fade`, a pixel is paler the wider its patch looks, and white where attention is as wide as an even one, as the flow says nothing
    there.

    Dims     (y, x, colour), of the generated picture's size
    Range    0 to 255
    Raises   InvalidInput for a flow of several maps, or with NaN, and for a trace without a picture of the reference
    """
    facts = MapFacts.of(found["flow"])
    image = find_image(trace, facts.image, "reference")
    if image is None:
        raise InvalidInput(f"{trace.path} holds no picture of the reference {facts.group} to warp")
    if kept := found["flow"].dims[:-3]:
        raise InvalidInput(f"a flow of each {kept[0]} was given, and one is warped at a time; select one, or leave out {option('keep')}")
    values = np.asarray(found["flow"], np.float64)
    if not np.isfinite(values).all():
        raise InvalidInput("the flow holds NaN: no call was recorded of what it asks for; select steps and layers that `i2am info` lists")
    pixels, shown = still_picture(trace, image), find_image(trace, f"generated_{facts.sample}", "generated")
    size = pixels.shape[:2] if shown is None else (shown.height, shown.width)
    lengths: NDArray[Any] = np.array(pixels.shape[:2])[:, None, None]
    places = resize(np.moveaxis(values, -1, 0), size, "bilinear") * lengths - 0.5
    warped = np.stack([map_coordinates(each, places, np.float64, order=1, mode="nearest") for each in np.moveaxis(pixels, -1, 0)], -1)
    if fade:
        width = resize(np.asarray(found["spread"], np.float64).max(-1), size, "bilinear")[..., None]
        warped = 255 + (warped - 255) * np.clip(1 - width / EVEN, 0, 1)
    return np.asarray(np.rint(warped), np.uint8)
