"""Measures of single calls, and scores of heads, layers and all of them over the whole run.

    evenness  entropy of rows over the group's tokens, over that of even rows: mean over patches in the mask
    leak      share of what masked patches give the reference that falls outside its mask
    inside    share of R2G that lies in the mask
    copy      correlation of the colours that patches in the mask were painted with the colours of where they looked
    share     share of the softmax that the group has: mean over all patches
    peak      greatest share that a row gives one token: mean over patches in the mask

`metrics/copying.py` says what the copy score is. Here it is on each layer's own grid, of the patches whose rows are measured.
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
from ..metrics.copying import correlate_colours
from ..metrics.overlap import imacs
from ..numerics.resize import middle

Values: TypeAlias = NDArray[Any]

MEASURES: Final = ("evenness", "leak", "inside", "copy", "share", "peak")
SCORES: Final = ("imacs_g", "imacs_r", "inside", "leak", "copy", "evenness")
AT_ONCE: Final = 2**18
"""Pixels of maps that are scored at once."""


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


def measure_call(targets: Targets, r2g: Values, g2r: Values, share: Values, even: Values, peak: Values, copied: Values | None) -> Values:
    """The measures of one call.

    Dims     r2g (head, frame, y, x), g2r (weighting, head, token), share and copied (head,), even and peak (head, patch)
             -> (head, measure)
    """
    found = np.full((len(r2g), len(MEASURES)), np.nan)
    found[:, 0], found[:, 5] = (mean_known(each[:, targets.patches]) for each in (even, peak))
    with np.errstate(invalid="ignore", divide="ignore"):
        if targets.outside is not None and len(g2r) > 1:
            found[:, 1] = g2r[1][:, targets.outside].sum(1) / g2r[1].sum(1)
        if targets.inside is not None:
            found[:, 2] = r2g[:, targets.inside].sum(1) / r2g.sum((1, 2, 3))
    found[:, 3] = np.nan if copied is None else copied
    found[:, 4] = share
    return found


def mean_known(values: Values) -> Values:
    """Mean over the last axis of what is not NaN; NaN where nothing is.

    Dims     (..., value) -> (...)
    """
    there = ~np.isnan(values)
    count = there.sum(-1)
    return np.asarray(np.where(count > 0, np.where(there, values, 0).sum(-1) / np.maximum(count, 1), np.nan))


def score_copied(copied: Values, targets: Targets) -> Values:
    """The copy score of patches in the mask.

    Dims     copied (..., patch, 4): colours times attention, and attention -> (...)
    Range    [-1, 1]; NaN where either has one colour, or fewer than two patches count
    """
    painted, patches = targets.painted, targets.patches
    if painted is None:
        return np.full(copied.shape[:-2], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return correlate_colours(copied[..., patches, :3] / copied[..., patches, 3:], painted[patches])


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What selections of heads add up to over all of time; None where it is not known."""

    r2g: Values
    """(selection, frame, y, x) on the common grid."""
    g2r: Values | None
    """(selection, y, x) on the common grid of the reference, of masked positions."""
    leaked: Values | None
    """(selection, 2): attention of masked positions outside the reference's mask, and all of it."""
    copied: Values | None
    """(selection, patch, 4)"""
    evenness: Values
    """(selection, 2): sum over calls and heads, and how many they are."""
    targets: Targets
    """Of the layer whose patches these are."""


def add_totals(parts: Sequence[Totals]) -> Totals:
    """One selection of all those of several layers, on the patches of the layer that has most of them."""
    finest = max((part.targets for part in parts), key=lambda targets: targets.rows[1] * targets.rows[2])
    return Totals(
        r2g=_sum([part.r2g for part in parts]),
        g2r=_sum_known([part.g2r for part in parts]),
        leaked=_sum_known([part.leaked for part in parts]),
        copied=_sum_known([None if part.copied is None else _spread(part.copied, part.targets.rows, finest.rows) for part in parts]),
        evenness=_sum([part.evenness for part in parts]),
        targets=finest,
    )


def _sum(parts: Sequence[Values]) -> Values:
    return np.asarray(np.concatenate(parts).sum(0, keepdims=True))


def _sum_known(parts: Sequence[Values | None]) -> Values | None:
    known = [part for part in parts if part is not None]
    return _sum(known) if len(known) == len(parts) else None


def _spread(copied: Values, rows: tuple[int, int, int], wanted: tuple[int, int, int]) -> Values:
    """Copied colours on the patches of another layer, each the nearest of its own."""
    frames, down, across = (middle(n, m) for n, m in zip(rows, wanted, strict=True))
    laid = copied.reshape(len(copied), *rows, 4)[:, frames][:, :, down][:, :, :, across]
    return np.asarray(laid.reshape(len(copied), -1, 4))


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

    def score(self, maps: Totals, mapped: bool = True) -> Values:
        """The scores of selections, IMACS only of those that are `mapped`: it takes a map of the picture's size for each.

        Dims     -> (selection, score), NaN where it is not known
        """
        unknown = np.full(len(maps.r2g), np.nan)
        found = dict.fromkeys(SCORES, unknown)
        if self.mask is not None and mapped:
            found["imacs_g"] = self._imacs(maps.r2g, "r2g", self.generated, self.mask)
            if self.reference_mask is not None and maps.g2r is not None:
                found["imacs_r"] = self._imacs(maps.g2r, "g2r", self.reference, self.reference_mask)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.inside is not None:
                found["inside"] = maps.r2g[..., self.inside].sum((1, 2)) / maps.r2g.sum((1, 2, 3))
            if maps.leaked is not None:
                found["leak"] = maps.leaked[:, 0] / maps.leaked[:, 1]
            found["evenness"] = maps.evenness[:, 0] / maps.evenness[:, 1]
        if maps.copied is not None:
            found["copy"] = score_copied(maps.copied, maps.targets)
        return np.stack([found[name] for name in SCORES], 1).astype(np.float32)

    def _imacs(self, maps: Values, direction: str, image: Image | None, mask: Values) -> Values:
        """Of some maps at a time: on small pictures most of it is not arithmetic, on large ones memory is."""
        dims = ("selection", "frame", "y", "x") if direction == "r2g" else ("selection", "ref_y", "ref_x")
        attrs = MapFacts(direction=direction, recipe=self.recipe, **picture_facts(image)).to_attrs()
        count = max(1, AT_ONCE // mask.size)
        parts = [xr.DataArray(maps[i : i + count], dims=dims, attrs=attrs) for i in range(0, len(maps), count)]
        return np.concatenate([imacs(scored_picture(part, mask), mask).values for part in parts])
