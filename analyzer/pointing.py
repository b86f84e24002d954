"""Where every patch looks on the reference, and whether that is where it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..schema.errors import InvalidInput
from .attention import centres, generated_softmax, probabilities
from .attribution import g2r
from .metrics import Map, binarize, scored
from .reader import Trace, head_numbers
from .recipes import Recipe
from .recipes import recipe as named
from .resize import resize
from .selection import Selection, cell, choose, split
from .truth import Truth

Values: TypeAlias = NDArray[np.float64]
Grid: TypeAlias = tuple[int, int]

RADIUS: Final = 0.125
"""A patch points at its true place if it looks within this distance of it, in units of the reference's longer side."""
PLACES: Final = ("y", "x", "ref_y", "ref_x")
"""Axes of a look: on the generated grid, then on the reference's."""


def looks(
    trace: Trace, *, keep: Iterable[str] | str = (), time_groups: int | None = None, recipe: str | Recipe = "i2am", **selection: Any
) -> xr.DataArray:
    """SRAM of every patch of the latent grid at once, in one pass over the trace.

    Sums run over time and means over (layer, head) pairs, whatever the recipe says of sums and means: what is asked of looks is where
    they are strong.

    Dims     kept axes in the order time, layer, head, then (y, x, ref_y, ref_x); lazy
    Range    >= 0; NaN where no call is left to average
    Raises   UnknownSelection; InvalidInput for tokens that have no place on a picture
    """
    row = named(recipe, query_mask=False)
    if trace.latent_frames:
        raise InvalidInput(f"{trace.path} is of a video, and patches point from the places of one image; ask sram for a patch of a frame")
    chosen = choose(trace, recipe=row, on_reference=True, **selection)
    # The map of G2R knows the axes, their labels, and which picture the tokens lie on; its values are never asked for.
    like = g2r(trace, keep=keep, time_groups=time_groups, recipe=row, **{**selection, "layers": list(chosen.layers)})
    if like.dims[-2:] != ("ref_y", "ref_x"):
        raise InvalidInput(f"the {chosen.groups[0].name} tokens have no place on a picture, so no patch can point at one")
    times = split(chosen.steps, time_groups) if "time" in like.dims else (chosen.steps,)
    kept = frozenset(str(dim) for dim in like.dims[:-2])
    to = (like.sizes["ref_y"], like.sizes["ref_x"])
    values = da.stack([_at_time(trace, chosen, row, group, kept, to) for group in times])  # type: ignore[no-untyped-call]
    values = values if "time" in kept else values[0]
    found = xr.DataArray(
        values, dims=(*like.dims[:-2], *PLACES), coords=like.coords, attrs={**like.attrs, "direction": "sram"}, name="looks"
    )
    return found.assign_coords(y=centres(trace.latent_grid[0]), x=centres(trace.latent_grid[1]))


def peaks(looks: xr.DataArray) -> xr.DataArray:
    """Where each patch looks most, in shares of the reference picture's height and width.

    Dims     (..., y, x, ref_y, ref_x) -> (..., y, x, place): place is (y, x)
    Range    [0, 1]; of cells that are equally strong the first; NaN where nothing was recorded
    """
    values = np.asarray(looks, np.float64)
    flat = values.reshape(*values.shape[:-2], -1)
    absent = np.isnan(flat).any(-1, keepdims=True)
    best = np.where(absent, 0, flat).argmax(-1)
    found = np.where(absent, np.nan, _places(looks)[best])
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
    height, width = looks.attrs.get("image_shape") or (1, 1)
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
    places = _places(looks)
    flat = values.reshape(*values.shape[:-2], -1)
    with np.errstate(invalid="ignore"):
        centre = flat @ places / flat.sum(-1, keepdims=True)  # (..., y, x, place)
    inside = (
        np.ones(values.shape[-4:-2], bool) if mask is None else resize(binarize(mask), (values.shape[-4], values.shape[-3]), "nearest") > 0
    )
    total = np.zeros(values.shape[:-4])
    for axis in (0, 1):
        ahead, behind = (np.take(inside, range(*ends), axis) for ends in ((1, inside.shape[axis]), (0, inside.shape[axis] - 1)))
        both = ahead & behind
        if not both.any():
            raise InvalidInput("no two neighbouring patches lie in the mask, so their attention cannot be compared; give a larger mask")
        steps = np.abs(np.diff(centre, axis=axis - 3)).sum(-1)
        total += steps[..., both].mean(-1)
    return scored(looks, total, "attention_variation", axes=len(PLACES))


def _at_time(trace: Trace, chosen: Selection, row: Recipe, steps: tuple[int, ...], kept: frozenset[str], to: Grid) -> da.Array:
    """One time group: sums over its steps, then means over (layer, head) pairs.

    Dims     -> (layer?, head?, y, x, ref_y, ref_x)
    """
    total = [_of_layer(trace, chosen, row, steps, i, to) for i in range(len(chosen.layers))]
    every: da.Array = da.stack(total)  # type: ignore[no-untyped-call]
    axes = tuple(i for i, axis in enumerate(("layer", "head")) if axis not in kept)
    mean: da.Array = da.nanmean(every, axis=axes) if axes else every
    return mean


def _of_layer(trace: Trace, chosen: Selection, row: Recipe, steps: tuple[int, ...], which: int, to: Grid) -> da.Array:
    """One layer's sum over steps, its heads at their places among all selected ones, every patch of the latent grid its cell's.

    Dims     -> (head, y, x, ref_y, ref_x), NaN for heads that the layer does not have
    """
    index, tokens = chosen.layers[which], chosen.groups[which]
    grid, latent = trace.layers[index].grid, trace.latent_grid
    calls = (probabilities if row.g2r == "keys" else generated_softmax)(trace, index)
    spatial = slice(tokens.start + tokens.specials, tokens.stop)
    part = calls.isel(sample=chosen.sample, branch=chosen.branch, step=list(steps), token=spatial).astype(np.float64)
    if row.renormalize and row.g2r == "keys":
        part = part / part.sum("token")
    if tokens.grid != to:
        if "time" in row.before:
            part = part.sum("step", skipna=True, min_count=1).expand_dims(step=[0], axis=0)
        part = xr.apply_ufunc(
            _resize, part, kwargs={"grid": tokens.grid, "to": to, "row": row}, input_core_dims=[["token"]], output_core_dims=[["cell"]],
            dask="parallelized", dask_gufunc_kwargs={"output_sizes": {"cell": math.prod(to)}}, output_dtypes=[np.float64],
        )  # fmt: skip
    numbers = list(head_numbers(trace.layers[index]))
    there = [numbers.index(number) if number in chosen.pairs[which] else -1 for number in chosen.heads]
    rows = [cell((y, 0), latent, grid)[0] for y in range(latent[0])]
    columns = [cell((0, x), latent, grid)[1] for x in range(latent[1])]
    total: da.Array = part.sum("step", skipna=True, min_count=1).data.rechunk(-1)[there][:, rows][:, :, columns]
    absent = np.array([place < 0 for place in there])[:, None, None, None]
    laid: da.Array = da.where(absent, np.nan, total).reshape((*total.shape[:3], *to))
    return laid


def _resize(rows: Values, grid: Grid, to: Grid, row: Recipe) -> Values:
    """Task: tokens on the common reference grid, as maps are.

    Dims     (..., token) -> (..., cell)
    """
    pictures = resize(rows.reshape(*rows.shape[:-1], *grid), to, row.resize)
    pictures = np.maximum(pictures, 0) if row.clamp else pictures
    return np.asarray(pictures.reshape(*rows.shape[:-1], -1), np.float64)


def _places(looks: xr.DataArray) -> NDArray[np.float64]:
    """Centres of the reference's cells in shares of its picture, of which they may cover only a window.

    Dims     -> (cell, place)
    """
    rows, columns = looks.shape[-2:]
    height, width = looks.attrs.get("image_shape") or (1, 1)
    top, left, bottom, right = looks.attrs.get("window") or (0, 0, height, width)
    y = (top + (np.arange(rows) + 0.5) / rows * (bottom - top)) / height
    x = (left + (np.arange(columns) + 0.5) / columns * (right - left)) / width
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
