"""`i2am words`: the words of a trace's texts, with their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import answer, document, example, json_option, trace_argument

if TYPE_CHECKING:
    from ...maps.words import WordSpan

HEAD = ("word", "tokens", "pieces", "in", "branch", "sample")


@click.command(
    "words",
    short_help="List the words of the run, or of a probe, and their tokens.",
    epilog=example(
        "i2am words run.zarr",
        "i2am words run.zarr --probe concepts",
        "i2am words run.zarr --branch uncond --json",
        "i2am map run.zarr --word dog#2 -o dog.png",
    ),
)
@trace_argument
@click.option("--probe", metavar="NAME", help="Words of a probe, by default those of the prompts.")
@click.option("--branch", help="Guidance branch: cond or uncond.")
@click.option("--sample", type=int, help="Generated image, from 0.")
@json_option
def words_command(trace: Path, partial: bool, probe: str | None, branch: str | None, sample: int | None, as_json: bool) -> None:
    """List the words that the run was given, or those of a probe, and the tokens each is made of; `i2am map --word` draws one."""
    from ...maps.words import list_words
    from ...trace.reader import open_trace

    rows = list_words(open_trace(trace, partial=partial), probe=probe, branch=branch, sample=sample)
    answer(document([row.to_json() for row in rows]) if as_json else write_words(rows), None)


def write_words(rows: Sequence[WordSpan]) -> str:
    """The words as a table for people; one that comes several times is numbered as --word takes it."""
    again = {(row.word.casefold(), row.group, row.branch, row.sample) for row in rows if row.occurrence > 1}
    table = [HEAD]
    for row in rows:
        several = (row.word.casefold(), row.group, row.branch, row.sample) in again
        word = f"{row.word}#{row.occurrence}" if several else row.word
        sample = "all" if row.sample is None else str(row.sample)
        table.append((word, ",".join(map(str, row.tokens)), " ".join(row.pieces), row.group, row.branch or "all", sample))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table)
