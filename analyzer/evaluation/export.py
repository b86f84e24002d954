"""An evaluation as text for a terminal, as plain values, and as a file: CSV or Parquet, one row a trace."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Final

from ...schema.errors import InvalidInput, MissingExtra
from ...schema.messages import SHOWN
from ..methods.recipes import get_recipe
from ..numerics.statistics import LEVEL, RESAMPLES
from ..output.files import refuse_existing, save_bytes
from .dataset import Evaluation, skipped_facts

Record = dict[str, Any]


def write_table(evaluation: Evaluation) -> str:
    """Every trace and the means, for a terminal."""
    metrics = evaluation.metrics
    rows = [[member.name, *(_number(row.values.get(name)) for name in metrics)] for member, row in evaluation.good]
    return "\n".join(_align([["trace", *metrics], *rows, *_mean_rows(evaluation)]))


def write_means(evaluation: Evaluation) -> str:
    """The means alone, for a terminal."""
    return "\n".join(_align([["", *evaluation.metrics], *_mean_rows(evaluation)]))


def write_notes(evaluation: Evaluation) -> str | None:
    """What to bear in mind: traces left out, copies of one recording, what an encoding lost."""
    lines = [f"skipped {member.name}: {row.error}" for member, row in evaluation.skipped[:SHOWN]]
    if (more := len(evaluation.skipped) - SHOWN) > 0:
        lines.append(f"skipped {more} more (--json lists all)")
    if evaluation.skipped:
        lines.append(f"{len(evaluation.skipped)} of {len(evaluation.rows)} traces were skipped")
    return "\n".join([*lines, *_remarks(evaluation)]) or None


def facts_of(evaluation: Evaluation) -> Record:
    """The evaluation as one JSON document."""
    return {
        "recipe": get_recipe(evaluation.request.recipe).label,
        "traces": _records(evaluation),
        "mean": {
            name: {"mean": found.mean, "low": found.low, "high": found.high, "count": found.count}
            for name, found in evaluation.means().items()
        },
        "level": LEVEL,
        "resamples": RESAMPLES,
        "seed": evaluation.seed,
        "skipped": [skipped_facts(member, row) for member, row in evaluation.skipped],
        "note": "; ".join(_remarks(evaluation)) or None,
    }


def check_output(path: Path, *, overwrite: bool) -> None:
    """Say before any work that a table cannot be written.

    Raises   InvalidInput for another suffix, AlreadyExists if the path is taken, MissingExtra without pyarrow
    """
    if path.suffix not in WRITERS:
        raise InvalidInput(f"cannot tell from {path.name!r} what to write; end it in {' or '.join(WRITERS)}")
    refuse_existing(path, overwrite=overwrite)
    if path.suffix == ".parquet":
        _parquet_library()


def save_table(evaluation: Evaluation, path: Path, *, overwrite: bool = False) -> None:
    """Write one row a trace, whole or not at all.

    Raises   as `check_output`
    """
    check_output(path, overwrite=overwrite)
    save_bytes(WRITERS[path.suffix](evaluation), path, overwrite=overwrite)


def _records(evaluation: Evaluation) -> list[Record]:
    return [
        {"trace": member.name, "id": row.id, **{name: row.values.get(name) for name in evaluation.metrics}, "path": str(member.path)}
        for member, row in evaluation.good
    ]


def _csv(evaluation: Evaluation) -> bytes:
    text = StringIO()
    writer = csv.DictWriter(text, ["trace", "id", *evaluation.metrics, "path"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_records(evaluation))
    return text.getvalue().encode()


def _parquet(evaluation: Evaluation) -> bytes:
    arrow, parquet = _parquet_library()
    texts, numbers = arrow.string(), arrow.float64()
    fields = [("trace", texts), ("id", texts), *((name, numbers) for name in evaluation.metrics), ("path", texts)]
    facts = {name: value for name, value in facts_of(evaluation).items() if name != "traces"}
    # What is NaN has no JSON; an interval of one trace is one.
    metadata = {"i2am": json.dumps(facts, default=str).replace("NaN", "null")}
    table = arrow.Table.from_pylist(_records(evaluation), schema=arrow.schema(fields, metadata=metadata))
    buffer = BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def _parquet_library() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra('writing .parquet needs pyarrow, which is not installed; pip install "i2am[parquet]", or write .csv') from error
    return pyarrow, pyarrow.parquet


def _mean_rows(evaluation: Evaluation) -> list[list[str]]:
    means = [evaluation.means()[name] for name in evaluation.metrics]
    rows = [
        ["mean", *(_number(found.mean) for found in means)],
        [f"{LEVEL:.0%} from", *(_number(found.low) for found in means)],
        [f"{LEVEL:.0%} to", *(_number(found.high) for found in means)],
    ]
    return [*rows, ["traces", *(str(found.count) for found in means)]]


def _remarks(evaluation: Evaluation) -> list[str]:
    noted = [row.note for _, row in evaluation.good if row.note]
    lines = []
    if noted:
        lines.append(noted[0] if len(evaluation.good) == 1 else f"{noted[0]} (the first of {len(noted)} such traces)")
    ids = [row.id for _, row in evaluation.good]
    if len(set(ids)) < len(ids):
        copies = len(ids) - len(set(ids))
        lines.append(f"note: {copies} of the {len(ids)} traces are copies of others; the interval takes them for recordings of their own")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    ]


WRITERS: Final[dict[str, Callable[[Evaluation], bytes]]] = {".csv": _csv, ".parquet": _parquet}
"""By suffix: the table as a file's bytes."""
