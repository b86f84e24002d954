"""From what a caller asks for to positions in a trace, with a message that lists what there is for whatever there is not."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..schema.errors import InvalidInput, UnknownSelection
from ..schema.trace import Layer, TokenGroup
from .reader import Selector, Trace, head_numbers, listed
from .recipes import Recipe
from .wording import option

Positions: TypeAlias = int | slice | Iterable[int] | None
"""Positions on an axis, Python's way: one, a range, several, a boolean each; None is all."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The calls and tokens a map is made of."""

    layers: tuple[int, ...]
    """In trace order; all of them have the token group."""
    groups: tuple[TokenGroup, ...]
    """The token group as each of those layers has it."""
    steps: tuple[int, ...]
    heads: tuple[int, ...]
    """The model's head numbers; a layer with fewer heads gives those it has."""
    sample: int
    branch: int


def choose(
    trace: Trace,
    *,
    layers: Selector | Iterable[Selector] | None = None,
    steps: Positions = None,
    heads: Positions = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
) -> Selection:
    """Turn the public selections into positions.

    Raises   UnknownSelection naming what the trace has, InvalidInput for something that selects nothing
    """
    record, asked = trace.record, _places(trace, trace.select(layers))
    name = group or _only_reference(trace, asked)
    found = [(i, g) for i in asked for g in trace.layers[i].groups if g.name == name]
    if not found:
        raise UnknownSelection(f"no selected layer has the token group {name!r}; there are {listed(_groups(trace, asked))}")
    if not 0 <= whole(sample, "a sample") < record.samples:
        raise UnknownSelection(f"the trace has no sample {sample}; it has {_range(record.samples)}")
    if branch is not None and branch not in record.branches:
        raise UnknownSelection(f"the trace has no branch {branch!r}; it has {', '.join(record.branches)}")
    wanted = branch or ("cond" if "cond" in record.branches else record.branches[0])
    return Selection(
        tuple(i for i, _ in found),
        tuple(g for _, g in found),
        _positions(steps, len(trace.present), "step"),
        _heads(heads, [trace.layers[i] for i, _ in found]),
        whole(sample, "a sample"),
        record.branches.index(wanted),
    )


def _places(trace: Trace, asked: tuple[int, ...]) -> tuple[int, ...]:
    """The layers whose queries are places of the generated image."""
    found = tuple(index for index in asked if not trace.layers[index].queries)
    if asked and not found:
        layer = trace.layers[asked[0]]
        raise UnknownSelection(
            f"the queries of {layer.name} are the {layer.queries} tokens of an adapter and no places of the image, so it has no maps; "
            "it serves to carry maps back to patches"
        )
    return found


def used(trace: Trace, layers: Selector | Iterable[Selector] | None, row: Recipe) -> Selector | Iterable[Selector] | None:
    """The layers a recipe takes where the caller names none: all but those it skips."""
    if layers is not None or not row.skip:
        return layers
    return [i for i, layer in enumerate(trace.layers) if not fnmatch.fnmatchcase(layer.name, row.skip)]


def split(steps: Sequence[int], groups: int | None) -> tuple[tuple[int, ...], ...]:
    """Disjoint groups of steps in execution order, of lengths that differ by one at most; None makes each step a group.

    Raises   InvalidInput if there are more groups than steps
    """
    count = len(steps) if groups is None else whole(groups, "a number of time groups")
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


def whole(number: Any, what: str) -> int:
    """The number if it is a whole one, and neither a truth value nor a fraction that would be cut off.

    Raises   InvalidInput
    """
    try:
        if not isinstance(number, (bool, np.bool_)):
            return operator.index(number)
    except TypeError:
        pass
    raise InvalidInput(f"{number!r} is not {what}; expected a whole number")


def _heads(wanted: Positions, layers: Sequence[Layer]) -> tuple[int, ...]:
    """Selected heads by the model's numbers; those named one by one must have been kept, of a range those that were."""
    kept = sorted({number for layer in layers for number in head_numbers(layer)})
    most = max(layer.call_heads or layer.heads for layer in layers)
    found = _positions(wanted, most, "head", kept)
    if gone := [number for number in found if number not in kept]:
        raise UnknownSelection(f"head {gone[0]} was not recorded; of {most} the trace has {listed(map(str, kept))}")
    return found


def _positions(wanted: Positions, length: int, what: str, kept: Sequence[int] | None = None) -> tuple[int, ...]:
    """Positions in order, each once; a range or None takes those `kept`, or all."""
    if wanted is None or isinstance(wanted, slice):
        try:
            asked = range(length)[wanted or slice(None)]
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"{wanted} is no range of {what}s: {error}") from error
        found = {i for i in asked if kept is None or i in kept}
    else:
        given = _listed_positions(wanted, length, what)
        bad = [i for i in given if not -length <= i < length]
        if bad:
            raise UnknownSelection(f"the trace has no {what} {bad[0]}; it has {_range(length)}")
        found = {i % length for i in given}
    if not found:
        raise InvalidInput(f"the selection of {what}s is empty; the trace has {_range(length)}")
    return tuple(sorted(found))


def _listed_positions(wanted: int | Iterable[int], length: int, what: str) -> list[int]:
    """The positions that are named one by one, or by a boolean for each that there is."""
    if not isinstance(wanted, Iterable) or isinstance(wanted, str) or (isinstance(wanted, np.ndarray) and wanted.ndim == 0):
        return [whole(wanted, f"a {what}")]
    given = list(wanted)
    if not given or not all(isinstance(i, (bool, np.bool_)) for i in given):
        return [whole(i, f"a {what}") for i in given]
    if len(given) != length:
        raise InvalidInput(f"the mask of {what}s has {len(given)} values; expected one for each of {length} {what}s")
    return [i for i, there in enumerate(given) if there]


def _range(length: int) -> str:
    return f"0 to {length - 1}" if length > 1 else "only 0" if length else "none"


def _groups(trace: Trace, layers: Iterable[int]) -> list[str]:
    return list(dict.fromkeys(g.name for i in layers for g in trace.layers[i].groups))


def _only_reference(trace: Trace, layers: Iterable[int]) -> str:
    names = list(dict.fromkeys(g.name for i in layers for g in trace.layers[i].groups if g.role == "reference"))
    if len(names) == 1:
        return names[0]
    if names:
        raise UnknownSelection(f"the trace has {len(names)} references, {listed(names)}; say which with {option('group')}")
    raise UnknownSelection(
        f"no selected layer sees a reference; say which tokens with {option('group')}, of {listed(_groups(trace, layers))}"
    )
