"""Tables of recipes: names for a terminal, every field of some, and the table of `docs/methods.md`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from .recipes import FIELDS, MIDDLE, RECIPES, Recipe, write

AXES: Final = {"generated": "positions", "keys": "keys"}
BEFORE: Final = {"token": "tokens", "query": "positions", "time": "steps", "head": "heads"}
GRIDS: Final = {"latent": "latent", "largest": "largest layer", "first": "first layer", "image": "image"}
SCALING: Final = {"none": "", "minmax": "min-max", "max": "/ max"}
HEADINGS: Final[tuple[tuple[str, Callable[[Recipe], str]], ...]] = (
    ("recipe", lambda row: f"`{row.name}`"),
    ("softmax under R2G, tokens", lambda row: f"over {AXES[row.r2g]}{'' if row.padding else ', of probes without padding'}"),
    ("under G2R, SRAM", lambda row: "no such maps" if row.g2r == "none" else f"over {AXES[row.g2r]}"),
    ("branch", lambda row: row.branch),
    ("layers", lambda row: _layers(row)),
    ("CLS in R2G", lambda row: "counts" if row.specials else "left out"),
    ("tokens; positions", lambda row: f"{row.tokens}; {_positions(row)}"),
    ("steps", lambda row: _steps(row)),
    ("heads; layers", lambda row: f"{'chosen, ' if row.choose_heads else ''}{row.heads}; {row.layers}"),
    ("resampling", lambda row: f"{row.resize}{', clamp at 0' if row.clamp else ''}"),
    ("after", lambda row: ", ".join(BEFORE[axis] for axis in row.before) or "nothing"),
    ("grid", lambda row: "; ".join(_grids(row))),
    ("picture", lambda row: _picture(row)),
    ("source", lambda row: row.source),
)


def write_names(rows: Sequence[Recipe]) -> str:
    """One line a row."""
    width = max(len(row.label) for row in rows)
    return "\n".join(f"{row.label:<{width}}  {row.source}" for row in rows)


def write_fields(rows: Sequence[Recipe]) -> str:
    """Every field of some rows, with a star where it is not that of `i2am`."""
    usual = RECIPES["i2am"]
    blocks = []
    for row in rows:
        lines = [f"  {'*' if getattr(row, f) != getattr(usual, f) else ' '} {f}={write(getattr(row, f))}" for f in FIELDS]
        blocks.append("\n".join([f"{row.label}: {row.source}", *lines]))
    return "\n\n".join(blocks)


def write_markdown(rows: Sequence[Recipe]) -> str:
    """Methods and their choices, one method a column: there are more choices than methods."""
    lines = ["| " + " | ".join([HEADINGS[0][0], *(HEADINGS[0][1](row) for row in rows)]) + " |", "|---" * (len(rows) + 1) + "|"]
    lines += ["| " + " | ".join([heading, *(cell(row) for row in rows)]) + " |" for heading, cell in HEADINGS[1:]]
    return "\n".join(lines)


def _layers(row: Recipe) -> str:
    skipped = row.skip.removeprefix(MIDDLE).strip(",")
    found = ["no middle block" if row.skip.startswith(MIDDLE) else "" if skipped else "all", f"not `{skipped}`" if skipped else ""]
    if row.factors:
        found.append(f"latent / {', '.join(map(str, row.factors))}")
    if row.reference_layers:
        found.append(f"G2R of `{row.reference_layers}` where there are such")
    return ", ".join(each for each in found if each)


def _positions(row: Recipe) -> str:
    return f"{row.queries}{' x mask' if row.query_mask else ''}{', by head of all layers together' if row.pool_positions else ''}"


def _steps(row: Recipe) -> str:
    of_group = "" if row.time == row.time_groups else f"; of a group {row.time_groups}"
    return f"{row.time}{of_group}{'; groups share ends' if row.shared_ends else ''}"


def _grids(row: Recipe) -> list[str]:
    on_reference = [] if row.g2r == "none" else [_grid(row.reference_target)]
    return [_grid(row.target), *on_reference, *([] if row.sram_target == "g2r" else [f"SRAM {_grid(row.sram_target)}"])]


def _grid(target: Any) -> str:
    return GRIDS[target] if isinstance(target, str) else "{} x {}".format(*target)


def _picture(row: Recipe) -> str:
    steps = ["x reference mask" if row.pre_mask else "", SCALING[row.scale_before], row.upsample, SCALING[row.scale_after]]
    steps += ["complement of R2G" if row.invert else "", f"> {row.threshold:g}" if row.threshold else ""]
    return ", ".join(step for step in steps if step)
