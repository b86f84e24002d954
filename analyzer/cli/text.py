"""What commands print: aligned tables, notes, JSON; whatever a trace says goes through `say`, which lets no control character out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ...schema.messages import SHOWN, plain


def say(text: str, *, err: bool = False) -> None:
    """Print lines of text; a terminal shows what would act on it as escapes."""
    click.echo("\n".join(map(plain, text.split("\n"))), err=err)


def answer(facts: Any, text: str, note: str | None = None, *, as_json: bool) -> None:
    """Print the facts as JSON, or the text, and then on stderr what to bear in mind."""
    say(document(facts) if as_json else text)
    if note and not as_json:
        say(note, err=True)


def align(rows: Iterable[Sequence[object]], *, right: bool = False) -> str:
    """A table for a terminal; the first column is flush left, the others too or flush right."""
    texts = [[plain(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    sides = [str.ljust, *[str.rjust if right else str.ljust] * (len(widths) - 1)]
    return "\n".join("  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip() for row in texts)


def write_skipped(skipped: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Lines on the traces of a dataset that were left out, and why."""
    lines = [plain(f"skipped {row['trace']}: {row['message']}") for row in skipped[:SHOWN]]
    if len(skipped) > SHOWN:
        lines.append(f"skipped {len(skipped) - SHOWN} more (--json lists all)")
    return [*lines, f"{len(skipped)} of {count} traces were skipped"] if skipped else []


def document(value: Any) -> str:
    """One document of strict JSON: numpy's numbers become plain ones, NaN and infinity null."""
    return json.dumps(json_value(value), indent=2, allow_nan=False).replace("\x7f", "\\u007f")  # the one control character that json leaves


def json_value(value: Any) -> Any:
    """A value as JSON has them."""
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if hasattr(value, "tolist"):  # of numpy, which --help does not load
        return json_value(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
