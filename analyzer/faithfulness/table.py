"""Scores as rows of a table that files and terminals take."""

from __future__ import annotations

from typing import Any, Final

from .scores import Score

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
