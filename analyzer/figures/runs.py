"""Figures of runs as papers lay them out: what went in, what came out, and where patches of it looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from ...schema.errors import UnknownSelection
from ...schema.trace import ImageRole
from ..facts import MapFacts
from ..inspection.patches import Cell, choose_cells
from ..inspection.truth import find_truth
from ..maps.attribution import g2r, r2g, sram
from ..maps.flow import flow, warp_reference
from ..output.sheets import Mark, patch_mark
from ..trace.images import own_mask
from ..trace.reader import Trace
from .panels import Asked, Grid, Panel, image, shown, still, wrap

GIVEN: Final[dict[str, ImageRole]] = {"input": "input", "reference": "reference"}
"""Columns of pictures that a run was given, and which pictures stand there."""


def runs(asked: Asked) -> Grid:
    """A row for each run: input, reference, generated, R2G, G2R, SRAM of some patches."""
    rows = [_run(trace, asked) for trace in asked.traces]
    names = list(dict.fromkeys(name for row in rows for name, panel in row.items() if panel is not None))
    paths = [Path(str(trace.path)) for trace in asked.traces]
    titles = [path.name.removesuffix(".zip").removesuffix(".zarr") for path in paths]
    if len(set(titles)) < len(titles):  # as demo/run.zarr and other/run.zarr
        titles = [path.absolute().parent.name for path in paths]
    return Grid(
        rows=[[row.get(name) for name in names] for row in rows],
        column_names=names,
        row_names=titles if len(rows) > 1 else (),
    )


def patches(asked: Asked) -> Grid:
    """The generated image with its patches framed, then where each of them looked."""
    trace, cells = asked.trace, asked.at or _cells(asked.trace, asked.select.sample)
    generated = image(trace, f"generated_{asked.options.get('sample', 0)}")
    framed = [] if generated is None else [Panel(picture=generated, title="generated", marks=_frames(trace, cells))]
    return Grid(rows=wrap([*framed, *(_look(trace, cell, i, asked) for i, cell in enumerate(cells, 1))], asked.columns))


def warped(asked: Asked) -> Grid:
    """The generated image, the reference warped to it by the flow of attention, and the reference as it is.

    The warped one is pale where patches look widely, and their flow says nothing.
    """
    trace = asked.trace
    found = flow(trace, **asked.options)
    reference = image(trace, MapFacts.of(found["flow"]).image)
    pictures = {
        "generated": image(trace, f"generated_{asked.select.sample}"),
        "reference, warped": warp_reference(trace, found, fade=True),
        "reference": reference,
    }
    return Grid(rows=[[Panel(picture=pixels, title=title) for title, pixels in pictures.items() if pixels is not None]])


def _run(trace: Trace, asked: Asked) -> dict[str, Panel | None]:
    """The panels of a run by column; None where there is no such thing."""
    options, sample, placed = asked.options, asked.select.sample, asked.has_reference(trace)
    cells = (asked.at or _cells(trace, sample)) if placed else ()
    pictures = {column: [each.name for each in trace.images if each.role == role] for column, role in GIVEN.items()}
    found: dict[str, Panel | None] = {
        column: Panel(picture=image(trace, names[min(sample, len(names) - 1)])) if names else None for column, names in pictures.items()
    }
    generated = image(trace, f"generated_{sample}")
    found["generated"] = None if generated is None else Panel(picture=generated, marks=_frames(trace, cells))
    found["R2G"] = shown(trace, r2g(trace, **options), scale="R2G")
    found["G2R"] = shown(trace, g2r(trace, **options), scale="G2R") if placed else None
    looks = [replace(_look(trace, cell, i, asked), title="") for i, cell in enumerate(cells, 1)]
    return found | {f"SRAM {i}": look for i, look in enumerate(looks, 1)}


def _look(trace: Trace, cell: Cell, number: int, asked: Asked) -> Panel:
    """Where one patch looked, and a cross at its true place where that is known."""
    map, truth = sram(trace, cell, **asked.options), find_truth(trace)
    crosses: tuple[Mark, ...] = ()
    if truth is not None and np.isfinite(truth.position[cell[-2:]]).all():
        y, x = truth.position[cell[-2:]].tolist()
        crosses = (Mark(y, x, kind="truth"),)
    return shown(trace, map, scale="SRAM", title=f"{number}: patch {','.join(str(i) for i in cell)}", marks=crosses)


def _cells(trace: Trace, sample: int) -> tuple[Cell, ...]:
    """Patches spread over the mask, if there is one."""
    try:
        name = own_mask(trace, sample)
    except UnknownSelection:  # several, none of them the sample's
        name = None
    mask = still(None if name is None else trace.image(name))
    return tuple(choose_cells(trace, find_truth(trace), None if mask is None else mask[..., 0] > 0))


def _frames(trace: Trace, cells: Sequence[Cell]) -> tuple[Mark, ...]:
    return tuple(replace(patch_mark(cell, trace.latent_grid), label=str(i)) for i, cell in enumerate(cells, 1))
