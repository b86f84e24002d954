"""Where every patch looks: SRAM of all patches at once, and how evenly each patch attends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Unpack

import dask.array as da
import numpy as np
import xarray as xr

from ...schema.errors import InvalidInput
from ..aggregation.request import AXES, MapRequest, kept_axes, request_map
from ..aggregation.selection import Select, Selection, SelectOptions, choose, split
from ..influence.calls import weighted_array
from ..methods.recipes import Recipe, Weight, get_recipe
from ..metrics.pointing import PLACES, Grid, Values
from ..numerics.resize import bring, middle
from ..numerics.statistics import row_evenness
from ..trace.reader import Trace
from ..trace.views import centres, place_dims


def looks(
    trace: Trace,
    *,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    recipe: str | Recipe = "i2am",
    weight: Weight | None = None,
    **options: Unpack[SelectOptions],
) -> xr.DataArray:
    """SRAM of every patch of the latent grid at once, in one pass over the trace.

    Sums run over time and means over (layer, head) pairs, whatever the recipe says of sums and means: what is asked of looks is where
    they are strong.

    Dims     kept axes in the order time, layer, head, then (y, x, ref_y, ref_x); lazy
    Range    >= 0, of contributions any; NaN where no call is left to average
    Raises   UnknownSelection; InvalidInput for tokens that have no place on a picture
    """
    row = get_recipe(recipe, weight=weight, query_mask=False)
    if trace.latent_frames:
        raise InvalidInput(f"{trace.path} is of a video, and patches point from the places of one image; ask sram for a patch of a frame")
    request = request_map(trace, "sram", Select(**options), recipe=row, keep=keep, time_groups=time_groups)
    if "ref_x" not in request.places:
        raise InvalidInput(f"the {request.chosen.groups[0].name} tokens have no place on a picture, so no patch can point at one")
    layers = range(len(request.chosen.layers))
    sums: da.Array = da.stack([da.stack([_of_layer(request, steps, i) for i in layers]) for steps in request.times])  # type: ignore
    gone = tuple(i for i, axis in enumerate(AXES) if i and axis not in request.axes)
    means = _mean(sums, gone, request.chosen) if gone else sums
    values = means if "time" in request.axes else means[0]
    latent = dict(zip(("y", "x"), map(centres, trace.latent_grid), strict=True))
    dims = (*request.axes, *PLACES)
    return xr.DataArray(values, request.coordinates() | latent, dims, "looks", request.facts().to_attrs())


def _mean(sums: da.Array, gone: tuple[int, ...], chosen: Selection) -> da.Array:
    """The mean over layers, heads or both, each head as much as it counts.

    Dims     (time, layer, head, y, x, ref_y, ref_x) -> without the axes that are gone
    """
    weights = table_of_weights(chosen)[None, ..., None, None, None, None]
    counted = da.where(da.isnan(sums), 0, weights).sum(axis=gone)
    mean: da.Array = da.nansum(sums * weights, axis=gone) / da.where(counted > 0, counted, np.nan)
    return mean


def table_of_weights(chosen: Selection) -> Values:
    """How much each head of each layer counts; 0 where a layer does not have it.

    Dims     -> (layer, head)
    """
    rows = (dict(zip(own, weights, strict=True)) for own, weights in zip(chosen.pairs, chosen.head_weights, strict=True))
    return np.array([[row.get(number, 0.0) for number in chosen.heads] for row in rows])


def _of_layer(request: MapRequest, steps: tuple[int, ...], i: int) -> da.Array:
    """One layer's sum over steps, its heads at their places among all selected ones, every patch of the latent grid its cell's.

    Dims     -> (head, y, x, ref_y, ref_x), NaN for heads that the layer does not have
    """
    trace, chosen, row, to = request.trace, request.chosen, request.row, request.target[1:]
    index, tokens, columns = chosen.layers[i], chosen.groups[i], request.columns[i]
    spatial = slice(columns.tokens[0], columns.tokens[-1] + 1)
    part, plain = (
        weighted_array(trace, index, "probability" if columns.softmax == "keys" else "generated", weight)
        .isel(sample=chosen.sample, branch=chosen.branch, step=list(steps), token=spatial)
        .astype(np.float64)
        for weight in (row.weight, "attention")
    )
    if columns.among is not None:
        part = part / plain.sum("token")
    if tokens.grid != to:
        if "time" in row.before:
            part = part.sum("step", skipna=True, min_count=1).expand_dims(step=[0], axis=0)
        part = xr.apply_ufunc(
            _resample, part, kwargs={"grid": tokens.grid, "to": to, "row": row}, input_core_dims=[["token"]], output_core_dims=[["cell"]],
            dask="parallelized", dask_gufunc_kwargs={"output_sizes": {"cell": math.prod(to)}}, output_dtypes=[np.float64],
        )  # fmt: skip
    numbers = list(trace.layers[index].heads_kept)
    there = [numbers.index(number) if number in chosen.pairs[i] else -1 for number in chosen.heads]
    rows, across = (middle(n, m) for n, m in zip(trace.layers[index].grid, trace.latent_grid, strict=True))
    total: da.Array = part.sum("step", skipna=True, min_count=1).data.rechunk(-1)[there][:, rows][:, :, across]
    absent = np.array([place < 0 for place in there])[:, None, None, None]
    laid: da.Array = da.where(absent, np.nan, total).reshape((*total.shape[:3], *to))
    return laid


def _resample(rows: Values, grid: Grid, to: Grid, row: Recipe) -> Values:
    """Task: tokens on the common reference grid, as maps are.

    Dims     (..., token) -> (..., cell)
    """
    return bring(rows.reshape(*rows.shape[:-1], *grid), to, row.resize, row.clamp).reshape(*rows.shape[:-1], -1)


def row_entropy(
    trace: Trace,
    *,
    specials: bool = False,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    weight: Weight | None = None,
    **options: Unpack[SelectOptions],
) -> xr.DataArray:
    """How evenly single patches look at the reference: entropy of each row of P over the group's tokens, over that of an even row.

    Each row, weighted or as it is, is made to sum to 1 over those tokens first; of contributions their sizes count. Means run over
    the generated positions, and over those of time, layer and head that are not kept; every call is read once. A map hides this: a
    hundred patches that each look at another place make an even map.

    Dims     kept axes in the order time, layer, head; lazy
    Range    [0, 1]; NaN where no call was recorded
    Raises   UnknownSelection, InvalidInput; for a layer with one token to look at too
    """
    kept = kept_axes(keep, time_groups)
    chosen = choose(trace, Select(**options))
    times = split(chosen.steps, time_groups) if "time" in kept else (chosen.steps,)
    tables = []
    for index, tokens, selected in zip(chosen.layers, chosen.groups, chosen.pairs, strict=True):
        first = tokens.start if specials else tokens.start + tokens.specials
        if tokens.stop - first < 2:
            name = trace.layers[index].name
            raise InvalidInput(f"layer {name} has {tokens.stop - first} tokens of {tokens.name} to look at; a row needs two to be uneven")
        heads = [place for place, number in enumerate(trace.layers[index].heads_kept) if number in selected]
        calls = weighted_array(trace, index, "probability", weight or "attention")
        calls = calls.isel(sample=chosen.sample, branch=chosen.branch, head=heads, token=slice(first, tokens.stop))
        if weight == "contribution":
            calls = abs(calls)
        even: xr.DataArray = xr.apply_ufunc(
            row_evenness, calls, input_core_dims=[["token"]], dask="parallelized", output_dtypes=[np.float64], keep_attrs=False
        ).mean(place_dims(trace.layers[index].places))
        tables.append(xr.concat([even.isel(step=list(steps)).mean("step") for steps in times], "time"))
    table = xr.concat(tables, "layer", join="outer").drop_vars(("sample", "branch"))
    table = table.assign_coords(layer=list(chosen.layers)).transpose(*AXES)
    gone = [axis for axis in AXES if axis not in kept]
    attrs = {"trace": trace.id, "group": chosen.groups[0].name}
    weights = xr.DataArray(table_of_weights(chosen), {"layer": list(chosen.layers), "head": list(chosen.heads)}, ("layer", "head"))
    return (table.weighted(weights).mean(gone) if gone else table).rename("row_entropy").assign_attrs(attrs)
