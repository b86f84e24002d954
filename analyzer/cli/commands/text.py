"""What commands print: aligned tables, sizes, notes, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click


def answer(facts: Any, text: str, note: str | None = None, *, as_json: bool) -> None:
    """Print the facts as JSON, or the text, and then on stderr what to bear in mind."""
    click.echo(document(facts) if as_json else text)
    if note and not as_json:
        click.echo(note, err=True)


def align(rows: Iterable[Sequence[object]], *, right: bool = False) -> str:
    """A table for a terminal; the first column is flush left, the others too or flush right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    sides = [str.ljust, *[str.rjust if right else str.ljust] * (len(widths) - 1)]
    return "\n".join("  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip() for row in texts)


def document(value: Any) -> str:
    """One document of strict JSON: numpy's numbers become plain ones, NaN and infinity null."""
    return json.dumps(plain(value), indent=2, allow_nan=False)


def plain(value: Any) -> Any:
    """A value as JSON has them."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # of numpy, which --help does not load
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
