"""Measures of single calls, and scores of heads, layers and all of them over the whole run.

    evenness  entropy of rows over the group's tokens, over that of even rows: mean over patches in the mask
    leak      share of what masked patches give the reference that falls outside its mask
    inside    share of R2G that lies in the mask
    copy      correlation of the colours that patches in the mask were painted with the colours of where they looked
    share     share of the softmax that the group has: mean over all patches
    peak      greatest share that a row gives one token: mean over patches in the mask

The copy score is ours: paint each patch in the mean colour of where it looked, and compare. Heads that know where a patch comes from
repaint the picture. It needs colours that carry over, and has no value for a reference of one colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.trace import Image
from ..facts import MapFacts, picture_facts
from ..maps.heatmap import scored_picture
from ..metrics.overlap import imacs
from ..numerics.resize import middle

Values: TypeAlias = NDArray[Any]

MEASURES: Final = ("evenness", "leak", "inside", "copy", "share", "peak")
SCORES: Final = ("imacs_g", "imacs_r", "inside", "leak", "copy", "evenness")
PLAIN: Final = 1e-6
"""Colours, of 0 to 1, that differ by less than this are one colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What one layer's attention to one token group is held against; None where it is not known."""

    rows: tuple[int, int, int]
    """Frames, rows and columns of the patches whose rows are measured."""
    patches: Values
    """(patch,): whether it lies in the mask; all do where there is none."""
    painted: Values | None
    """(patch, 3): the colour it was painted, from 0 to 1."""
    colours: Values | None
    """(token, 4): the colour of each key, and 1."""
    inside: Values | None
    """(frame, y, x): places of the layer in the mask."""
    outside: Values | None
    """(token,): keys outside the reference's mask."""


def measure_call(
    targets: Targets, r2g: Values, g2r: Values, share: Values, even: Values, peak: Values, mass: Values, copied: Values | None
) -> Values:
    """The measures of one call.

    Dims     r2g (head, frame, y, x), g2r (weighting, head, token), share and copied (head,), even, peak, mass (head, patch)
             -> (head, measure)
    """
    found = np.full((len(r2g), len(MEASURES)), np.nan)
    asked = targets.patches
    with np.errstate(invalid="ignore", divide="ignore"):
        if asked.any():
            found[:, 0] = even[:, asked].mean(1)
            found[:, 5] = np.nanmean(np.where(mass > 0, peak / mass, np.nan)[:, asked], 1) if (mass[:, asked] > 0).any(1).all() else np.nan
        if targets.outside is not None and len(g2r) > 1:
            found[:, 1] = g2r[1][:, targets.outside].sum(1) / g2r[1].sum(1)
        if targets.inside is not None:
            found[:, 2] = r2g[:, targets.inside].sum(1) / r2g.sum((1, 2, 3))
    found[:, 3] = np.nan if copied is None else copied
    found[:, 4] = share
    return found


def copy_score(copied: Values, painted: Values | None, patches: Values) -> Values:
    """Correlation of copied with painted colours, over patches in the mask and the three colours, each less its mean.

    Dims     copied (..., patch, 4): colours times attention, and attention; painted (patch, 3), patches (patch,) -> (...)
    Range    [-1, 1]; NaN where either has one colour, or fewer than two patches count
    """
    if painted is None or np.count_nonzero(patches) < 2:
        return np.full(copied.shape[:-2], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = copied[..., patches, :3] / copied[..., patches, 3:]
        seen = seen - seen.mean(-2, keepdims=True)
        shown = painted[patches] - painted[patches].mean(0)
        spread = [np.sqrt((each**2).mean((-2, -1))) for each in (seen, shown)]
        score = (seen * shown).mean((-2, -1)) / (spread[0] * spread[1])
    return np.asarray(np.where((spread[0] > PLAIN) & (spread[1] > PLAIN), np.clip(score, -1, 1), np.nan))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """The pictures and masks that a view's maps are scored with."""

    recipe: str
    generated: Image | None
    reference: Image | None
    mask: Values | None
    """(y, x), 0 to 255, of the generated image."""
    reference_mask: Values | None
    inside: Values | None
    """(y, x): cells of the common grid in the mask."""

    def score(self, maps: Totals) -> list[float]:
        """The scores of what some heads add up to."""
        found = dict.fromkeys(SCORES, np.nan)
        if self.mask is not None:
            found["imacs_g"] = self._imacs(maps.r2g if len(maps.r2g) > 1 else maps.r2g[0], "r2g", self.generated, self.mask)
            total = maps.r2g.sum()
            if self.inside is not None and total > 0:
                found["inside"] = float(maps.r2g[:, self.inside].sum() / total)
        if self.mask is not None and self.reference_mask is not None and maps.g2r is not None:
            found["imacs_r"] = self._imacs(maps.g2r, "g2r", self.reference, self.reference_mask)
        if maps.leaked is not None and maps.leaked[1] > 0:
            found["leak"] = float(maps.leaked[0] / maps.leaked[1])
        if maps.copied is not None:
            found["copy"] = float(copy_score(maps.copied, maps.painted, maps.patches))
        if len(maps.evenness) and np.isfinite(maps.evenness).any():
            found["evenness"] = float(np.nanmean(maps.evenness))
        return [found[name] for name in SCORES]

    def _imacs(self, values: Values, direction: str, image: Image | None, mask: Values) -> float:
        if not np.isfinite(values).all():
            return np.nan
        dims = ("frame", "y", "x")[-values.ndim :] if direction == "r2g" else ("ref_y", "ref_x")
        attrs = MapFacts(direction=direction, recipe=self.recipe, **picture_facts(image)).to_attrs()
        return float(imacs(scored_picture(xr.DataArray(values, dims=dims, attrs=attrs), mask), mask))


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What some heads add up to over all of time."""

    r2g: Values
    """(frame, y, x) on the common grid."""
    g2r: Values | None
    """(y, x) on the common grid of the reference, of masked positions."""
    leaked: Values | None
    """Attention of masked positions outside the reference's mask, and all of it."""
    copied: Values | None
    """(patch, 4)"""
    rows: tuple[int, int, int]
    painted: Values | None
    patches: Values
    evenness: Values
    """Of each call and head."""


def add_totals(parts: Sequence[Totals]) -> Totals:
    """Those of several layers together, on the patches of the one that has most of them."""
    finest = max(parts, key=lambda part: part.rows[1] * part.rows[2])
    whole = [part.copied for part in parts]
    g2r, leaked = [part.g2r for part in parts], [part.leaked for part in parts]
    return Totals(
        r2g=sum_known([part.r2g for part in parts], np.zeros(())),
        g2r=None if any(each is None for each in g2r) else sum_known(g2r, np.zeros(())),
        leaked=None if any(each is None for each in leaked) else sum_known(leaked, np.zeros(())),
        copied=None if any(each is None for each in whole) else sum_known([_spread(part, finest.rows) for part in parts], np.zeros(())),
        rows=finest.rows,
        painted=finest.painted,
        patches=finest.patches,
        evenness=np.concatenate([part.evenness for part in parts]),
    )


def sum_known(values: Sequence[Values | None], start: Values) -> Values:
    """The sum of arrays of one shape."""
    for each in values:
        assert each is not None  # asked before
        start = start + each
    return start


def _spread(part: Totals, rows: tuple[int, int, int]) -> Values:
    """Copied colours on the patches of another layer, each the nearest of its own."""
    assert part.copied is not None  # asked before
    at = np.ix_(*(middle(n, m) for n, m in zip(part.rows, rows, strict=True)))
    return np.asarray(part.copied.reshape(*part.rows, 4)[at].reshape(-1, 4))
