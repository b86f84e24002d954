"""Failure signatures of attention: what each measures, what its number means, and a recording's diagnosis by all of them.

Each is a number, higher is worse, with the range it has on a healthy model, and a plain sentence. Ranges were measured, not chosen:
`ranges.toml` says on what, and `benchmarks/ranges.py` measures them anew. They are those of the small model that comes with i2am; another
model may be healthy elsewhere, so a flag is a reason to look, not a verdict.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

import numpy as np
import xarray as xr

from ..facts import MapFacts
from ..metrics.pointing import RADIUS
from ..numerics.resize import middle, resize
from ..numerics.statistics import correlation
from ..numerics.window import Window
from ..trace.reader import Trace
from .evidence import Evidence, Mask, Values, gather

Found = tuple[float, str] | None
"""The number, and what the sentence names; None where the trace does not have what it takes."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One way in which attention fails; a higher number is worse."""

    key: str
    name: str
    measure: Callable[[Evidence], Found]
    bad: str
    """What a number over the limit means; {value}, {share} and {what} stand for the number, the same in percent and what it is of."""
    good: str
    needs: str
    """What the trace lacks where there is no number."""


def uniform(evidence: Evidence) -> Found:
    """Evenness of the rows of the head whose rows are least even."""
    found = [(value, who) for value, who in evidence.by_head(lambda s: s.even) if value > 0] if _spatial(evidence) else []
    return min(found) if found else None


def outside_mask(evidence: Evidence) -> Found:
    """R2G outside the mask over R2G inside it."""
    return (_contrast(evidence.maps["r2g"], evidence.mask), "the mask") if evidence.mask is not None else None


def outside_reference(evidence: Evidence) -> Found:
    """G2R of masked positions outside the reference mask over inside it."""
    if evidence.reference_mask is None or "g2r" not in evidence.maps:
        return None
    return _contrast(evidence.maps["g2r"], evidence.reference_mask), "the reference mask"


def inconsistent(evidence: Evidence) -> Found:
    """1 - the least correlation of a map of some steps with that of the next ones."""
    found = []
    for name, what in (("r2g_time", "R2G"), ("g2r_time", "G2R")):
        maps = evidence.maps[name].values if name in evidence.maps else np.empty((0, 1, 1))
        found += [(1 - correlation(maps[i], maps[i + 1]), f"{what} of fifths {i + 1} and {i + 2}") for i in range(len(maps) - 1)]
    found = [(value, what) for value, what in found if np.isfinite(value)]
    return max(found) if found else None


def mismatch(evidence: Evidence) -> Found:
    """Share of patches in the mask that the place they look at does not look back to."""
    there = [(i, each) for i, each in zip(evidence.chosen.layers, evidence.statistics, strict=True) if each is not None]
    if not _spatial(evidence) or len({each.looked.shape[1] for _, each in there}) != 1:
        return None
    latent = evidence.trace.latent_grid
    looked, answered = (
        np.sum([_on_latent(evidence.trace, i, getattr(each, which)) for i, each in there], axis=0) for which in ("looked", "answered")
    )
    back = answered[:, looked.argmax(1)].argmax(0)
    places = (np.stack(np.divmod(np.arange(len(back)), latent[1]), -1) + 0.5) / max(latent)
    lost = np.hypot(*(places - places[back]).T) > RADIUS
    inside = np.ones(latent, bool) if evidence.mask is None else resize(evidence.mask.astype(float), latent, "nearest") > 0
    return (float(lost[inside.ravel()].mean()), "patches") if inside.any() else None


def special_sink(evidence: Evidence) -> Found:
    """Share of attention that goes to tokens without a place, mean over heads."""
    specials = {group.specials for group in evidence.chosen.groups}
    if specials == {0} or not any(evidence.statistics) or not _spatial(evidence):
        return None
    found = evidence.by_head(lambda s: s.mass[:, : max(specials)].sum(1))
    return float(np.mean([value for value, _ in found])), "most in " + max(found)[1]


def token_sink(evidence: Evidence) -> Found:
    """Share of attention that goes to one token with a place, the strongest of each head, mean over heads."""
    if not _spatial(evidence) or not any(evidence.statistics):
        return None
    first = max(group.specials for group in evidence.chosen.groups)
    found = evidence.by_head(lambda s: s.mass[:, first:].max(1))
    return float(np.mean([value for value, _ in found])), "most in " + max(found)[1]


def lost_columns(evidence: Evidence) -> Found:
    """Greatest share of one token's column of G that the encoding lost."""
    lost = evidence.trace.lost
    found = [(lost[index], evidence.trace.layers[index].name) for index in evidence.chosen.layers]
    return max(found) if found else None


def _spatial(evidence: Evidence) -> bool:
    return all(group.grid is not None and group.tokens - group.specials > 1 for group in evidence.chosen.groups)


def _contrast(map: xr.DataArray, inside: Mask) -> float:
    """Mean of a map outside a mask over its mean inside, on the part of the picture that the map covers."""
    window = Window.of(MapFacts.of(map).window, inside.shape)
    level = resize(map.values, window.size, "bilinear")[window.seen(inside.shape)]
    there = inside[window.inside(inside.shape)]
    if there.all() or not there.any():
        return np.nan
    within = float(level[there].mean())
    return float(level[~there].mean()) / within if within > 0 else np.inf


def _on_latent(trace: Trace, index: int, values: Values) -> Values:
    """What a layer's positions hold, for every patch of the latent grid.

    Dims     (position, token) -> (patch, token)
    """
    grid, latent = trace.layers[index].grid, trace.latent_grid
    rows, columns = (middle(n, m) for n, m in zip(grid, latent, strict=True))
    return values.reshape(*grid, -1)[rows][:, columns].reshape(latent[0] * latent[1], -1)


SIGNATURES: Final = (
    Signature(
        "uniform",
        "uniform attention",
        uniform,
        "even the sharpest head ({what}) looks almost everywhere alike ({value:.2f} of 1), so maps show noise",
        "the sharpest head ({what}) looks at few places",
        "no layer sees two or more tokens with a place",
    ),
    Signature(
        "outside_mask",
        "attention outside the mask",
        outside_mask,
        "the reference speaks to what lies outside the mask {value:.2f} times as strongly as to what lies inside",
        "the reference speaks more to what lies inside the mask",
        "the trace has no mask of the generated image",
    ),
    Signature(
        "outside_reference",
        "attention outside the reference mask",
        outside_reference,
        "masked patches look outside the reference mask {value:.2f} times as strongly as inside it",
        "masked patches look inside the reference mask",
        "the trace has no mask of the reference, or its tokens have no place",
    ),
    Signature(
        "inconsistent",
        "inconsistency over time",
        inconsistent,
        "maps change between groups of steps (most: {what}, correlation {rest:.2f}), so one map of all steps mixes different things",
        "every group of steps shows what the next one shows",
        "fewer than two steps were recorded",
    ),
    Signature(
        "mismatch",
        "R2G/G2R mismatch",
        mismatch,
        "the place that {share:.0%} of the patches look at most does not look back at them: the two directions tell different things",
        "where patches look, the reference looks back",
        "the tokens have no place, or another grid in every layer",
    ),
    Signature(
        "special_sink",
        "attention sink: tokens without a place",
        special_sink,
        "{share:.0%} of the attention goes to tokens without a place such as CLS ({what}), and no map of the reference shows it",
        "tokens without a place such as CLS take {share:.0%} of the attention",
        "no token is without a place",
    ),
    Signature(
        "token_sink",
        "attention sink: single tokens",
        token_sink,
        "one token draws {share:.0%} of a head's attention whichever patch looks ({what})",
        "no single token draws most of the attention",
        "the tokens have no place",
    ),
    Signature(
        "lost_columns",
        "column mass lost in encoding",
        lost_columns,
        "the encoding lost {share:.0%} of a token's column in {what}, so R2G is approximate; record with encoding factors",
        "the encoding keeps every token's column",
        "no layer was recorded",
    ),
)


@lru_cache(maxsize=1)
def ranges() -> dict[str, Any]:
    """The measured ranges, by key of signature: `healthy` and `control` are 5 %, 50 % and 95 % of the pairs, `limit` lies between them."""
    return tomllib.loads(files(__package__).joinpath("ranges.toml").read_text())


def diagnose(
    trace: Trace, *, mask: str | None = None, reference_mask: str | None = None, sample: int = 0, group: str | None = None
) -> dict[str, Any]:
    """Every signature of a trace: number, range, whether it is flagged, and a sentence.

    Masks are the trace's own unless others are named.

    Raises   UnknownSelection, InvalidInput for masks that do not fit, CorruptTrace
    """
    evidence = gather(trace, mask=mask, reference_mask=reference_mask, sample=sample, group=group)
    found = [judge_signature(signature, signature.measure(evidence)) for signature in SIGNATURES]
    return {
        "trace": trace.id,
        "group": evidence.chosen.groups[0].name,
        "sample": evidence.chosen.sample,
        "flagged": [row["key"] for row in found if row["flagged"]],
        "signatures": found,
        "measured_on": {name: ranges()[name] for name in ("pairs", "steps")},
    }


def judge_signature(signature: Signature, found: Found) -> dict[str, Any]:
    """One row of the diagnosis."""
    known = ranges()[signature.key]
    row: dict[str, Any] = {"key": signature.key, "name": signature.name, "value": None, "flagged": False, **known}
    if found is None:
        return {**row, "sentence": f"not measured: {signature.needs}"}
    value, what = found
    flagged = value > known["limit"]
    text = (signature.bad if flagged else signature.good).format(value=value, share=value, rest=1 - value, what=what)
    return {**row, "value": value, "flagged": flagged, "sentence": text}
