"""The copy score: whether the colours that patches would copy from the reference are those they were painted in.

It is ours, and unpublished: paint each patch in the mean colour of where it looked, and correlate that with the picture. It needs
colours that carry over, and has no value for a reference of one colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .placement import scored

Values: TypeAlias = NDArray[Any]
Control: TypeAlias = Literal["turned", "shuffled"]

PLAIN: Final = 1e-6
"""Colours, of 0 to 1, that differ by less than this are one colour."""
CONTROLS: Final[dict[str, str]] = {
    "turned": "patches in the mask in reverse order, which turns what they would copy by half a turn and keeps its smoothness",
    "shuffled": "patches in the mask in random order, always the same",
}
"""How copies are dealt out to other patches, so that a score shows what colours agree by chance."""


@dataclass(frozen=True, slots=True)
class Painted:
    """What the generated picture shows of each patch of the latent grid."""

    colours: Values
    """(y, x, colour), from 0 to 1."""
    counted: NDArray[np.bool_]
    """(y, x): patches that count, those in the mask if there is one."""


def correlate_colours(copied: Values, painted: Values) -> Values:
    """Correlation of copied with painted colours, over patches and the three colours, each less its mean.

    Dims     copied (..., patch, colour), painted (patch, colour) -> (...)
    Range    [-1, 1]; NaN where either has one colour, or there are fewer than two patches
    """
    if len(painted) < 2:
        return np.full(copied.shape[:-2], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        seen, shown = copied - copied.mean(-2, keepdims=True), painted - painted.mean(0)
        spread = [np.sqrt((each**2).mean((-2, -1))) for each in (seen, shown)]
        score = (seen * shown).mean((-2, -1)) / (spread[0] * spread[1])
    return np.asarray(np.where((spread[0] > PLAIN) & (spread[1] > PLAIN), np.clip(score, -1, 1), np.nan))


def score_copies(copies: xr.DataArray, painted: Painted, control: Control | None = None) -> xr.DataArray:
    """The copy score of what patches would copy, or of the same dealt out to other patches.

    Dims     copies (..., y, x, colour) -> (...)
    Range    [-1, 1]; NaN where either has one colour, or fewer than two patches count
    """
    copied = np.asarray(copies, np.float64)[..., painted.counted, :]
    order = np.arange(copied.shape[-2])
    if control is not None:
        order = order[::-1] if control == "turned" else np.random.default_rng(0).permutation(order)
    found = correlate_colours(copied[..., order, :], painted.colours[painted.counted])
    return scored(copies, found, "copy_score", axes=3, **({"control": control} if control else {}))
