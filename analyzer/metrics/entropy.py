"""How spread out attention is: of whole maps, and of the rows of P, call by call."""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ..numerics.statistics import evenness
from .placement import Map, scored

STRONGEST: Final = 0.1
"""Share of cells that `concentration` counts as the strongest."""


def entropy(map: Map) -> xr.DataArray:
    """How evenly a map is spread over its cells: its entropy as a distribution over that of an even one.

    Dims     (..., row, column) -> (...)
    Range    [0, 1]; 1 is even, 0 is one cell; 1 for a map that is 0 everywhere
    Raises   InvalidInput for negative values or NaN
    """
    shares, plain = _shares(map)
    return scored(plain, evenness(shares), "entropy")


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
