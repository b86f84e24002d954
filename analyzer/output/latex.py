"""Tables for papers, in LaTeX with the lines of booktabs: names escaped, means with their intervals, dashes where there is no number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final, TypeAlias

from ...schema.messages import plain
from ..numerics.statistics import Interval

Cell: TypeAlias = str | int | float | Interval | None

DIGITS: Final = 3
ARROWS: Final = {"higher": " ↑", "lower": " ↓", "": ""}
"""Behind the name of a metric: which way is better."""
SPECIAL: Final = str.maketrans(
    {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "|": r"\textbar{}", '"': r"\textquotedbl{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", **{c: f"\\{c}" for c in "&%$#_{}"},
    }
)  # fmt: skip


def write_latex(rows: Sequence[Mapping[str, Cell]], caption: str, label: str) -> str:
    """A tabular with a column for each name in the rows; how to float and caption it stands in comments.

    Raises   nothing: text of traces is escaped, control characters too
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [isinstance(row.get(name), str) for name in names for row in rows[:1]]
    lines = [
        f"% i2am {version('i2am')}; needs \\usepackage{{booktabs}}",
        "% \\begin{table}\\centering",
        f"% \\caption{{{escape(caption)}}}",
        f"% \\label{{tab:{''.join(c if c.isascii() and c.isalnum() else '-' for c in label)}}}",
        f"\\begin{{tabular}}{{{''.join('l' if text else 'r' for text in texts)}}}",
        "\\toprule",
        " & ".join(map(escape, names)) + r" \\",
        "\\midrule",
        *(" & ".join(write_cell(row.get(name)) for name in names) + r" \\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        "% \\end{table}",
    ]
    return "\n".join(lines) + "\n"


def write_cell(value: Cell) -> str:
    """Text escaped, a number to three digits, a mean with how far its interval reaches up and down."""
    if value is None or (isinstance(value, (float, Interval)) and math.isnan(value.mean if isinstance(value, Interval) else value)):
        return "--"
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"${value:.{DIGITS}f}$"
    mean, down, up = (f"{number:.{DIGITS}f}" for number in (value.mean, value.mean - value.low, value.high - value.mean))
    if math.isnan(value.low):
        return f"${mean}$"
    return f"${mean} \\pm {up}$" if up == down else f"${mean}^{{+{up}}}_{{-{down}}}$"


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return plain(text).translate(SPECIAL)
