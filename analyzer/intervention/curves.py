"""Deletion and insertion curves: how fast the picture changes as cells are left out in an order, as areas with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..numerics.statistics import Interval
from .agreement import ENDS, Drawing


@dataclass(frozen=True, slots=True)
class Area:
    """One order of cells."""

    order: str
    deletion: Interval
    """Mean height of the curve of dropping the first cells: higher is a better order."""
    insertion: Interval
    """Mean height of the curve of dropping all but the first cells: lower is a better order."""


def measure_areas(effects: xr.Dataset, inside: NDArray[np.bool_], drawing: Drawing) -> tuple[Area, ...]:
    """Areas of the curves that were measured whole, in shares of what the picture changes without the reference.

    Where that was not tried, the greatest change of any curve is the whole.
    """
    if "deletion" not in effects or "insertion" not in effects or effects.sizes["share"] < 2:
        return ()
    shares = effects["share"].values.astype(np.float64)
    curves = effects[["deletion", "insertion"]].to_array("curve").transpose("order", "curve", "share", "y", "x").values[..., inside]
    whole = (
        effects["without"].values[inside] if "without" in effects else curves[np.isfinite(curves).all((1, 2, 3))].max((0, 1, 2), initial=0)
    )
    known, counts = np.isfinite(curves).all((1, 2, 3)), drawing.counts(whole.size)
    found = []
    for order, curve in zip(effects["order"].values[known], curves[known], strict=True):
        heights = np.trapezoid(curve.astype(np.float64), shares, axis=1) / (shares[-1] - shares[0])
        deletion, insertion = (_share(height, whole.astype(np.float64), counts) for height in heights)
        found.append(Area(str(order), deletion, insertion))
    return tuple(found)


def _share(height: NDArray[np.float64], whole: NDArray[np.float64], counts: NDArray[np.int64]) -> Interval:
    """Mean over patches, as a share; patches are drawn again."""
    if not whole.sum() > 0:
        return Interval(np.nan, np.nan, np.nan, whole.size)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = np.nanquantile((counts @ height) / (counts @ whole), ENDS)
    return Interval(float(height.sum() / whole.sum()), float(low), float(high), whole.size)
