"""An evaluation as plain values, and as a table with one row a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..methods.recipes import get_recipe
from ..numerics.statistics import LEVEL, RESAMPLES
from ..output.files import Output, Table, save
from .dataset import Evaluation, skipped_facts

Record = dict[str, Any]


def facts_of(evaluation: Evaluation) -> Record:
    """The evaluation as one JSON document."""
    return {
        "recipe": get_recipe(evaluation.request.recipe).label,
        "traces": records(evaluation),
        "mean": {
            name: {"mean": found.mean, "low": found.low, "high": found.high, "count": found.count}
            for name, found in evaluation.means().items()
        },
        "level": LEVEL,
        "resamples": RESAMPLES,
        "seed": evaluation.seed,
        "skipped": [skipped_facts(member, row) for member, row in evaluation.skipped],
        "note": "; ".join(remarks(evaluation)) or None,
    }


def save_table(evaluation: Evaluation, path: Path, *, overwrite: bool = False) -> None:
    """Write one row a trace, whole or not at all.

    Raises   as `output.files.check_output`
    """
    columns: dict[str, type[str] | type[float]] = {"trace": str, "id": str, **dict.fromkeys(evaluation.metrics, float), "path": str}
    facts = {name: value for name, value in facts_of(evaluation).items() if name != "traces"}
    save(Output(table=Table(columns, records(evaluation), facts)), path, overwrite=overwrite)


def records(evaluation: Evaluation) -> list[Record]:
    """One row a trace."""
    return [
        {"trace": member.name, "id": row.id, **{name: row.values.get(name) for name in evaluation.metrics}, "path": str(member.path)}
        for member, row in evaluation.good
    ]


def remarks(evaluation: Evaluation) -> list[str]:
    """What to bear in mind: copies of one recording, what an encoding lost."""
    noted = [row.note for _, row in evaluation.good if row.note]
    lines = []
    if noted:
        lines.append(noted[0] if len(evaluation.good) == 1 else f"{noted[0]} (the first of {len(noted)} such traces)")
    ids = [row.id for _, row in evaluation.good]
    if len(set(ids)) < len(ids):
        copies = len(ids) - len(set(ids))
        lines.append(f"note: {copies} of the {len(ids)} traces are copies of others; the interval takes them for recordings of their own")
    return lines
