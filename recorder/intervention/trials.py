"""Trials of an experiment: what each leaves out of attention, which cells come first by an order, and what a trace allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ...schema.experiments.effects import TRIALS, EffectRecord, Trials
from ...schema.messages import guess, listed, option
from ...schema.selection import match_layers
from ...schema.trace import Image, Layer, TraceRecord
from .request import Cell, Intervention

Place: TypeAlias = tuple[int, ...]
"""Of a trial, in its array."""
Rank: TypeAlias = Callable[[str], NDArray[np.float64]]
"""Gives the importance of each cell by an order."""


def ranked_cells(record: EffectRecord, place: Place, rank: Rank) -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
    """The cells that come first by the order and up to the share of a place of curves, and all others.

    Of equal cells those further up and further left come first, and a NaN comes last.
    """
    order, share = record.orders[place[0]], record.shares[place[1]]
    rows, columns = np.unravel_index(np.argsort(-rank(order).ravel(), kind="stable"), record.cells)
    cells: list[Cell] = list(zip(rows.tolist(), columns.tolist(), strict=True))
    count = max(1, round(share * len(cells)))
    return tuple(cells[:count]), tuple(cells[count:])


def left_out(record: EffectRecord, name: str, place: Place, rank: Rank) -> Intervention:
    """What the trial of an array at a place leaves out."""
    return _WHAT[name](record, place, rank)


def _cells(record: EffectRecord, cells: tuple[Cell, ...]) -> Intervention:
    where = record.layers or None
    return Intervention(record.kind, group=record.group, cells=cells, lattice=record.cells, layers=where, branches=record.branches)


def _silence(record: EffectRecord, layers: tuple[str, ...], head: int | None = None) -> Intervention:
    return Intervention("zero", group=record.group, layers=layers or None, heads=head, branches=record.branches)


def _module(record: EffectRecord, layer: int) -> tuple[str, ...]:
    return (record.layer_names[layer].partition("#")[0],)


_WHAT: Final[Mapping[str, Callable[[EffectRecord, Place, Rank], Intervention]]] = {
    "effect": lambda record, place, rank: _cells(record, ((place[0], place[1]),)),
    "without": lambda record, place, rank: _silence(record, record.layers),
    "layers": lambda record, place, rank: _silence(record, _module(record, place[0])),
    "heads": lambda record, place, rank: _silence(record, _module(record, place[0]), place[1]),
    "deletion": lambda record, place, rank: _cells(record, ranked_cells(record, place, rank)[0]),
    "insertion": lambda record, place, rank: _cells(record, ranked_cells(record, place, rank)[1]),
}


def read_trials(text: str) -> tuple[Trials, ...]:
    """The trials that are asked for, in the order in which they are made; all keys at once are always tried, and cells before curves.

    Raises   InvalidInput for another name
    """
    asked = {name.strip() for name in text.split(",")}
    if unknown := sorted(asked - set(TRIALS)):
        raise InvalidInput(
            f"{option('trials', text)}: {unknown[0]!r} is none of {', '.join(TRIALS)}; {guess(unknown[0], TRIALS)}".rstrip("; ")
        )
    asked |= {"without"} | ({"cells"} if "curves" in asked else set())
    return tuple(name for name in TRIALS if name in asked)


def reference_group(trace: TraceRecord, name: str | None) -> str:
    """The token group of a trace whose cells are left out; None is its only reference with places.

    Raises   InvalidInput if there is none, or several
    """
    groups = [group for layer in trace.layers if not layer.is_resampler for group in layer.groups]
    placed = sorted({group.name for group in groups if group.grid is not None and group.role == "reference"})
    if name is None and len(placed) == 1:
        return placed[0]
    if name not in placed:
        asked = "" if name is None else f"{option('group', name)}: "
        way = f"choose one with {option('group')}" if placed else f"record one with {option('keys', 'reference')}"
        raise InvalidInput(f"{asked}cells need a reference whose tokens have places, and the trace has {listed(placed)}; {way}")
    return name


def reading_layers(trace: TraceRecord, group: str, layers: tuple[str, ...]) -> list[Layer]:
    """The chosen layers of a trace that read a group.

    Raises   InvalidInput, UnknownSelection for layers that there are not, or of which none reads it
    """
    paths = list(dict.fromkeys(layer.path for layer in trace.layers))
    chosen = {paths[index] for index in match_layers(layers or None, paths, numbered=False)}
    read = [layer for layer in trace.layers if not layer.is_resampler and any(one.name == group for one in layer.groups)]
    found = [layer for layer in read if layer.path in chosen]
    if not found:
        raise InvalidInput(f"{option('layers')} chooses none that reads {group}; these do: {listed([layer.path for layer in read])}")
    return found


def check_trials(trace: TraceRecord, layers: list[Layer], group: str, cells: tuple[int, int], trials: tuple[Trials, ...]) -> None:
    """Raise InvalidInput for cells finer than a group's tokens in any of the layers, and for trials that a trace does not allow."""
    grids = {found.grid for layer in layers for found in layer.groups if found.name == group and found.grid is not None}
    if coarse := [grid for grid in sorted(grids) if cells[0] > grid[0] or cells[1] > grid[1]]:
        raise InvalidInput(
            f"{option('cells', f'{cells[0]}x{cells[1]}')} is finer than the {coarse[0][0]} x {coarse[0][1]} tokens of {group}; ask for "
            "fewer cells"
        )
    if "curves" in trials and cells == (1, 1):
        raise InvalidInput(f"curves leave out some of the cells, and {option('cells', '1x1')} is all of them; ask for more")
    if "pixels" in trials and group_image(trace, group) is None:
        raise InvalidInput(
            f"the trace does not have the picture of {group}, so its pixels cannot be altered; leave pixels out of {option('trials')}"
        )


def patch_grid(trace: TraceRecord) -> tuple[int, int]:
    """(rows, columns) of the grid that maps of a trace are brought to."""
    grids = (layer.grid for layer in trace.layers if not layer.is_resampler)
    return trace.latent_grid or max(grids, key=lambda grid: grid[0] * grid[1])


def group_image(trace: TraceRecord, group: str) -> Image | None:
    """The picture that the tokens of a group were made of; None if the trace does not have it."""
    names = {found.image for layer in trace.layers for found in layer.groups if found.name == group}
    return next((image for image in trace.images if image.name in names), None)
