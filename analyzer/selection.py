"""From what a caller asks for to positions in a trace, with a message that lists what there is for whatever there is not."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..schema.errors import InvalidInput, UnknownSelection
from ..schema.trace import TokenGroup
from .reader import Selector, Trace, listed

Positions: TypeAlias = int | slice | Iterable[int] | None
"""Positions on an axis, Python's way: one, a range, several; None is all."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The calls and tokens a map is made of."""

    layers: tuple[int, ...]
    """In trace order; all of them have the token group."""
    groups: tuple[TokenGroup, ...]
    """The token group as each of those layers has it."""
    steps: tuple[int, ...]
    heads: tuple[int, ...]
    """Head numbers; a layer with fewer heads gives those it has."""
    sample: int
    branch: int


def choose(
    trace: Trace,
    *,
    layers: Selector | Iterable[Selector] | None,
    steps: Positions,
    heads: Positions,
    sample: int,
    branch: str | None,
    group: str | None,
) -> Selection:
    """Turn the public selections into positions.

    Raises   UnknownSelection naming what the trace has, InvalidInput for something that selects nothing
    """
    record, asked = trace.record, trace.select(layers)
    name = group or _only_reference(trace, asked)
    found = [(i, g) for i in asked for g in trace.layers[i].groups if g.name == name]
    if not found:
        raise UnknownSelection(f"no selected layer has the token group {name!r}; there are {listed(_groups(trace, asked))}")
    most = max(trace.layers[i].heads for i, _ in found)
    if not 0 <= sample < record.samples:
        raise UnknownSelection(f"the trace has no sample {sample}; it has {_range(record.samples)}")
    if branch is not None and branch not in record.branches:
        raise UnknownSelection(f"the trace has no branch {branch!r}; it has {', '.join(record.branches)}")
    wanted = branch or ("cond" if "cond" in record.branches else record.branches[0])
    return Selection(
        tuple(i for i, _ in found),
        tuple(g for _, g in found),
        _positions(steps, len(trace.present), "step"),
        _positions(heads, most, "head"),
        int(sample),
        record.branches.index(wanted),
    )


def split(steps: Sequence[int], groups: int | None) -> tuple[tuple[int, ...], ...]:
    """Disjoint groups of steps in execution order, of lengths that differ by one at most; None makes each step a group.

    Raises   InvalidInput if there are more groups than steps
    """
    count = len(steps) if groups is None else operator.index(groups)
    if not 1 <= count <= len(steps):
        raise InvalidInput(f"cannot make {count} time groups of {len(steps)} steps; expected 1 to {len(steps)}")
    return tuple(tuple(int(s) for s in part) for part in np.array_split(np.asarray(steps, int), count))


def cell(at: Any, latent: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """The cell of a layer's grid that contains a latent patch's centre.

    Raises   UnknownSelection if the latent has no such patch
    """
    try:
        y, x = (operator.index(i) for i in at)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"a patch is (row, column) on the latent grid of {latent[0]} x {latent[1]}, got {at!r}") from error
    if not (0 <= y < latent[0] and 0 <= x < latent[1]):
        raise UnknownSelection(
            f"the latent grid has no patch ({y}, {x}); rows are {_range(latent[0])} from the top, columns {_range(latent[1])} from the left"
        )
    return (2 * y + 1) * grid[0] // (2 * latent[0]), (2 * x + 1) * grid[1] // (2 * latent[1])


def _positions(wanted: Positions, length: int, what: str) -> tuple[int, ...]:
    if wanted is None or isinstance(wanted, slice):
        found = tuple(range(length))[wanted or slice(None)]
    else:
        given = [wanted] if isinstance(wanted, (int, np.integer)) else list(wanted)
        bad = [i for i in given if not -length <= operator.index(i) < length]
        if bad:
            raise UnknownSelection(f"the trace has no {what} {bad[0]}; it has {_range(length)}")
        found = tuple(dict.fromkeys(int(i) % length for i in given))
    if not found:
        raise InvalidInput(f"the selection of {what}s is empty; the trace has {_range(length)}")
    return tuple(sorted(found))


def _range(length: int) -> str:
    return f"0 to {length - 1}" if length > 1 else "only 0" if length else "none"


def _groups(trace: Trace, layers: Iterable[int]) -> list[str]:
    return list(dict.fromkeys(g.name for i in layers for g in trace.layers[i].groups))


def _only_reference(trace: Trace, layers: Iterable[int]) -> str:
    names = list(dict.fromkeys(g.name for i in layers for g in trace.layers[i].groups if g.role == "reference"))
    if len(names) == 1:
        return names[0]
    if names:
        raise UnknownSelection(f"the trace has {len(names)} references, {listed(names)}; say which with group=")
    raise UnknownSelection(f"no selected layer sees a reference; say which tokens with group=, of {listed(_groups(trace, layers))}")
