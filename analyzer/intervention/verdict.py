"""The verdict on a run's maps in plain words: which may be believed, which say something, and which say nothing.

A map says something if its score lies above what shuffled cells reach and its interval above 0, and may be believed if the interval lies
above 0.5.
Maps are as good as the best if the interval of the difference, sample by sample, holds 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ...schema.messages import listed
from ..numerics.statistics import LEVEL
from .agreement import ENDS
from .cells import ROLLOUT
from .scores import CELLS, Against, Score

ENOUGH: Final = 0.5
"""Rank correlation from which a map may be believed; at 0.5 two cells are in the right order two times in three."""
LEFT_OUT: Final[dict[Against, str]] = {"keys": "dropping each cell's keys changes", "pixels": "inverting each cell's pixels changes"}


def write_verdict(scores: Sequence[Score]) -> str:
    """One sentence for each kind of map and effect, of maps of all layers together."""
    whole = [score for score in scores if not score.layer and score.against in CELLS]
    kinds = dict.fromkeys((score.map, score.against) for score in whole)
    return " ".join(_judge([score for score in whole if (score.map, score.against) == kind]) for kind in kinds)


def tied(scores: Sequence[Score]) -> list[Score]:
    """The best score and those that cannot be told from it, the best first."""
    ordered = sorted(scores, key=lambda score: -score.agreement.spearman.mean)
    best = ordered[0].agreement.draws
    with_best = [score for score in ordered[1:] if np.nanquantile(best - score.agreement.draws, ENDS[0]) <= 0]
    return [ordered[0], *with_best]


def _judge(scores: Sequence[Score]) -> str:
    """On maps of one kind against effects of one kind."""
    against = f"what {LEFT_OUT[scores[0].against]}"
    clear = [score for score in scores if score.clear]
    if not clear:
        return f"No {scores[0].map} of this run may be believed: none follows {against} better than shuffled cells."
    best, *equals = tied(clear)
    found = best.agreement.spearman
    grade = "may be believed" if found.low >= ENOUGH else "says something, but not enough to be believed"
    parts = [
        f"{scores[0].map} by {named(best)} {grade}: it follows {against} (rank correlation {found.mean:.2f}, {LEVEL:.0%} {found.low:.2f} "
        f"to {found.high:.2f})"
    ]
    if equals:
        parts.append(f"as good: {_listed(equals)}")
    if worse := [score for score in clear if score not in (best, *equals)]:
        parts.append(f"worse: {_listed(worse)}")
    if nothing := [score for score in scores if not score.clear]:
        parts.append(f"not to be believed, as shuffled cells do as well: {_listed(nothing)}")
    if not np.isnan(best.other):
        same = best.other >= found.low
        parts.append(f"the map of the other reference follows these effects {'as well' if same else 'less'} ({best.other:.2f})")
    return f"{'; '.join(parts)}."


def named(score: Score) -> str:
    """Weight and recipe of a map, as a verdict calls it."""
    if score.recipe.startswith(ROLLOUT):
        return score.recipe
    return score.weight if score.recipe == "i2am" else f"{score.weight} of {score.recipe}"


def _listed(scores: Sequence[Score]) -> str:
    return listed([f"{named(score)} ({score.agreement.spearman.mean:.2f})" for score in scores])
