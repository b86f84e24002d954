"""Scores as rows of a table: for pandas, files and papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..numerics.statistics import LEVEL
from ..output.files import Output, Table, save
from ..output.latex import Cell
from .scores import Score

if TYPE_CHECKING:
    from .judgement import Faithfulness

COLUMNS: Final[dict[str, type[str] | type[float]]] = {
    "map": str, "against": str, "recipe": str, "weight": str, "layer": str, "head": float, "spearman": float, "low": float, "high": float,
    "pearson": float, "random_low": float, "random_high": float, "other": float, "own_other": float, "count": float,
}  # fmt: skip
"""Names and kinds; `count` is of the patches, cells, layers or heads that the interval draws from."""


def row_of(score: Score) -> dict[str, Any]:
    """One score; a number that there is not is NaN."""
    found, (low, high) = score.agreement, score.agreement.random
    numbers = {"spearman": found.spearman.mean, "low": found.spearman.low, "high": found.spearman.high, "pearson": found.pearson}
    named = {name: getattr(score, name) for name in ("map", "against", "recipe", "weight", "layer", "head")}
    controls = {"random_low": low, "random_high": high, "other": score.other, "own_other": found.own_other}
    return {**named, **numbers, **controls, "count": found.spearman.count}


def facts_of(found: Faithfulness) -> dict[str, Any]:
    """All that was found, as one JSON document."""
    return {
        "scores": [row_of(score) for score in found.scores],
        "areas": [asdict(area) for area in found.areas],
        "verdict": found.verdict,
        "notes": list(found.notes),
        "level": LEVEL,
    }


def save_scores(found: Faithfulness, path: Path, *, overwrite: bool = False) -> None:
    """Write a row a score, whole or not at all; raises as `output.files.check_output`."""
    facts = {name: value for name, value in facts_of(found).items() if name != "scores"}
    rows = [{name: None if value != value else value for name, value in row_of(score).items()} for score in found.scores]  # NaN is a gap
    caption = f"Rank correlation of maps with effects of interventions, with its {LEVEL:.0%} bootstrap interval. {found.verdict}"
    save(Output(table=Table(COLUMNS, rows, facts, caption, print_scores(found.scores))), path, overwrite=overwrite)


def print_scores(scores: Sequence[Score]) -> list[dict[str, Cell]]:
    """What a paper prints; layers and heads only where some are kept apart."""
    kept = [name for name, there in (("layer", any(s.layer for s in scores)), ("head", any(s.head is not None for s in scores))) if there]
    return [
        {
            "map": score.map,
            "against": score.against,
            "recipe": score.recipe,
            "weight": score.weight,
            **{name: getattr(score, name) for name in kept},
            "rank correlation": score.agreement.spearman,
            "shuffled up to": score.agreement.random[1],
            "other reference": score.other,
        }
        for score in scores
    ]
