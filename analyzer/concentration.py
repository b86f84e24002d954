"""How spread out attention is: of whole maps, and of the rows of P, call by call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import entr

from ..schema.errors import InvalidInput
from .assembly import AXES, kept_axes
from .attention import place_dims
from .metrics import Map, scored
from .reader import Trace, head_numbers
from .selection import choose, split

STRONGEST: Final = 0.1
"""Share of cells that `concentration` counts as the strongest."""


def entropy(map: Map) -> xr.DataArray:
    """How evenly a map is spread over its cells: its entropy as a distribution over that of an even one.

    Dims     (..., row, column) -> (...)
    Range    [0, 1]; 1 is even, 0 is one cell; 1 for a map that is 0 everywhere
    Raises   InvalidInput for negative values or NaN
    """
    shares, plain = _shares(map)
    return scored(plain, _evenness(shares), "entropy")


def concentration(map: Map, share: float = STRONGEST) -> xr.DataArray:
    """How much of a map lies in its strongest `share` of cells, of which at least one is taken.

    Dims     (..., row, column) -> (...)
    Range    [`share`, 1]; `share` if the map is even
    Raises   InvalidInput for a share outside (0, 1], negative values or NaN
    """
    if not 0 < share <= 1:
        raise InvalidInput(f"the share of cells is {share}; expected more than 0 and at most 1")
    shares, plain = _shares(map)
    count = max(1, round(share * shares.shape[-1]))
    return scored(plain, np.sort(shares, axis=-1)[..., -count:].sum(-1), "concentration", share=share)


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
    chosen = choose(trace, **selection)
    tables = []
    for index, tokens, selected in zip(chosen.layers, chosen.groups, chosen.pairs, strict=True):
        first = tokens.start if specials else tokens.start + tokens.specials
        if tokens.stop - first < 2:
            name = trace.layers[index].name
            raise InvalidInput(f"layer {name} has {tokens.stop - first} tokens of {tokens.name} to look at; a row needs two to be uneven")
        numbers = head_numbers(trace.layers[index])
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


def row_evenness(rows: NDArray[Any]) -> NDArray[np.float64]:
    values = rows.astype(np.float64)
    total = values.sum(-1, keepdims=True)
    # A row that the model turned away from these tokens altogether prefers none of them.
    even = np.where(np.isnan(total), np.nan, 1 / values.shape[-1])
    return _evenness(np.divide(values, total, out=np.broadcast_to(even, values.shape).copy(), where=total > 0))


def _shares(map: Map) -> tuple[NDArray[np.float64], xr.DataArray]:
    """Each map as shares of its sum, its cells in one row; and the map, labelled."""
    plain = map if isinstance(map, xr.DataArray) else xr.DataArray(map)
    values = np.asarray(plain, np.float64)
    if values.ndim < 2 or not np.isfinite(values).all() or (values < 0).any():
        raise InvalidInput(
            f"a map of shape {values.shape}, {values.min()} to {values.max()}, is no distribution; expected rows and columns of numbers "
            "that are 0 or more, all of them recorded"
        )
    flat = values.reshape(*values.shape[:-2], -1)
    total = flat.sum(-1, keepdims=True)
    return np.divide(flat, total, out=np.full(flat.shape, 1 / flat.shape[-1]), where=total > 0), plain


def _evenness(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    if shares.shape[-1] < 2:
        return np.ones(shares.shape[:-1])
    return np.asarray(np.clip(entr(shares).sum(-1) / np.log(shares.shape[-1]), 0, 1))
