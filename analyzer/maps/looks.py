"""Where every patch looks: SRAM of all patches at once, and how evenly each patch attends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from ...schema.errors import InvalidInput
from ..aggregation.request import AXES, kept_axes
from ..aggregation.select import Select
from ..aggregation.selection import Selection, cell, choose, split
from ..methods.recipes import Recipe, get_recipe
from ..metrics.pointing import PLACES, Grid, Values
from ..numerics.resize import resize
from ..numerics.statistics import row_evenness
from ..trace.reader import Trace
from ..trace.views import centres, place_dims
from .attribution import g2r


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
    row = get_recipe(recipe, query_mask=False)
    if trace.latent_frames:
        raise InvalidInput(f"{trace.path} is of a video, and patches point from the places of one image; ask sram for a patch of a frame")
    chosen = choose(trace, Select.of(selection), recipe=row, on_reference=True)
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
    calls = trace.probabilities(index) if row.g2r == "keys" else trace.generated_softmax(index)
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
    numbers = list(trace.layers[index].heads_kept)
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


def row_entropy(
    trace: Trace, *, specials: bool = False, keep: Iterable[str] | str = (), time_groups: int | None = None, **selection: Any
) -> xr.DataArray:
    """How evenly single patches look at the reference: entropy of each row of P over the group's tokens, over that of an even row.

    Each row is made to sum to 1 over those tokens first. Means run over the generated positions, and over those of time, layer and
    head that are not kept; every call is read once. A map hides this: a hundred patches that each look at another place make an
    even map.

    Dims     kept axes in the order time, layer, head; lazy
    Range    [0, 1]; NaN where no call was recorded
    Raises   UnknownSelection, InvalidInput; for a layer with one token to look at too
    """
    kept = kept_axes(keep, time_groups)
    chosen = choose(trace, Select.of(selection))
    tables = []
    for index, tokens, selected in zip(chosen.layers, chosen.groups, chosen.pairs, strict=True):
        first = tokens.start if specials else tokens.start + tokens.specials
        if tokens.stop - first < 2:
            name = trace.layers[index].name
            raise InvalidInput(f"layer {name} has {tokens.stop - first} tokens of {tokens.name} to look at; a row needs two to be uneven")
        numbers = trace.layers[index].heads_kept
        heads = [place for place, number in enumerate(numbers) if number in selected]
        calls = trace.probabilities(index).isel(sample=chosen.sample, branch=chosen.branch, head=heads, token=slice(first, tokens.stop))
        even = _even_rows(calls).mean(place_dims(trace.layers[index].places))
        times = split(chosen.steps, time_groups) if "time" in kept else (chosen.steps,)
        tables.append(xr.concat([even.isel(step=list(steps)).mean("step") for steps in times], "time"))
    table = xr.concat(tables, "layer", join="outer").drop_vars(("sample", "branch"))
    table = table.assign_coords(layer=list(chosen.layers)).transpose(*AXES)
    gone = [axis for axis in AXES if axis not in kept]
    attrs = {"trace": trace.id, "group": chosen.groups[0].name}
    return (table.mean(gone) if gone else table).rename("row_entropy").assign_attrs(attrs)


def _even_rows(calls: xr.DataArray) -> xr.DataArray:
    found: xr.DataArray = xr.apply_ufunc(
        row_evenness, calls, input_core_dims=[["token"]], dask="parallelized", output_dtypes=[np.float64], keep_attrs=False
    )
    return found
