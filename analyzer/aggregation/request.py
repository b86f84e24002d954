"""What is asked for, and the lazy map that answers it, with its coordinates and where it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import xarray as xr

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.trace import Image, Role, TokenGroup
from ..methods.recipes import Recipe, get_recipe
from ..trace.calls import Calls
from ..trace.reader import Trace
from ..trace.views import centres
from .reduction import Graph, Lift, Piece, Rule, reduce_maps
from .select import Select
from .selection import Selection, choose, split

AXES: Final = ("time", "layer", "head")
LEVELS: Final = {"time": "TLAM", "layer": "LLAM", "head": "HLAM"}


@dataclass(frozen=True, slots=True)
class Question:
    """One map that is asked for."""

    trace: Trace
    direction: str
    row: Recipe
    chosen: Selection
    axes: tuple[str, ...]
    """What is kept, in the order of `AXES`."""
    times: tuple[tuple[int, ...], ...]
    """Steps of each time group."""

    @property
    def layers(self) -> Iterator[tuple[int, TokenGroup, tuple[int, ...]]]:
        """Each layer, its token group, and where the selected heads stand on its head axis."""
        for index, group, numbers in zip(self.chosen.layers, self.chosen.groups, self.chosen.pairs, strict=True):
            there = self.trace.layers[index].heads_kept
            yield index, group, tuple(there.index(number) for number in numbers)

    @property
    def adds_heads(self) -> bool:
        """Whether heads are reduced at all."""
        return "head" not in self.axes

    def called(self, index: int) -> tuple[tuple[int, ...], ...]:
        """Steps of each time group at which the layer was called."""
        present = Calls.of(self.trace, index).where[self.chosen.sample, self.chosen.branch] >= 0
        return tuple(tuple(step for step in steps if present[step]) for steps in self.times)


@dataclass(slots=True)
class Sources:
    """Where a map's numbers come from, gathered layer by layer."""

    graphs: dict[str, Graph] = field(default_factory=dict)
    layers: dict[int, tuple[tuple[tuple[Hashable, ...], ...], Lift | None, bool]] = field(default_factory=dict)
    """Layer -> tasks of each time group, how they are lifted, and whether only after they are added."""

    def add(self, index: int, tasks: tuple[tuple[Hashable, ...], ...], lift: Lift | None, late: bool = False) -> None:
        """Note a layer's tasks."""
        self.layers[index] = (tasks, lift, late)


def question(
    trace: Trace,
    direction: str,
    select: Select,
    recipe: str | Recipe,
    keep: Iterable[str] | str,
    time_groups: int | None,
    role: Role = "reference",
    probe: str | None = None,
) -> Question:
    """What a call of a map function asks for.

    Raises   UnknownSelection, InvalidInput
    """
    row = get_recipe(recipe)
    on_reference = direction in ("g2r", "sram")
    if on_reference and row.g2r == "none":
        raise InvalidInput(f"recipe {row.name} has no maps on the reference; it has R2G and maps of tokens, or change its field g2r")
    kept = kept_axes(keep, time_groups)
    chosen = choose(trace, select, recipe=row, on_reference=on_reference, role=role, probe=probe)
    times = split(chosen.steps, time_groups) if "time" in kept else (chosen.steps,)
    return Question(trace, direction, row, chosen, tuple(axis for axis in AXES if axis in kept), times)


def build_map(
    asked: Question, sources: Sources, dims: tuple[str, ...], shape: tuple[int, ...], image: Image | None, **more: Any
) -> xr.DataArray:
    """The lazy map.

    Dims     kept axes in the order of `AXES`, then `dims`
    """
    trace, chosen, row = asked.trace, asked.chosen, asked.row
    called = {index: asked.called(index) for index in chosen.layers}
    groups = [
        [
            Piece(tasks[g] if heads else (), lift, tuple(chosen.heads.index(n) for n in numbers), len(called[index][g]), late)
            for (index, _, heads), numbers in zip(asked.layers, chosen.pairs, strict=True)
            for tasks, lift, late in (sources.layers[index],)
        ]
        for g in range(len(asked.times))
    ]
    facts = repr((trace.token, asked.direction, row, chosen, asked.axes, asked.times, groups, shape))
    name = f"i2am-{asked.direction}-{hashlib.sha256(facts.encode()).hexdigest()[:32]}"
    rule = Rule(row.time_groups if "time" in asked.axes else row.time, row.heads, row.layers)
    array, pairs = reduce_maps(name, sources.graphs, groups, len(chosen.heads), frozenset(asked.axes), shape, rule)
    calls = sum(piece.steps for group in groups for piece in group if piece.calls)
    attrs = {
        "direction": asked.direction,
        "levels": "+".join(LEVELS[axis] for axis in asked.axes) or "ULAM",
        "recipe": row.label,
        "trace": trace.id,
        "group": chosen.groups[0].name,
        "sample": chosen.sample,
        "branch": trace.record.branches[chosen.branch],
        **({"heads": chosen.picked} if chosen.picked else {}),
        "calls": calls,
        "image": image.name if image else None,
        "image_shape": (image.height, image.width) if image else None,
        "window": image.window if image else None,
        **more,
    }
    coords = _coordinates(asked, dims, shape) | ({"pairs": (asked.axes, pairs)} if asked.axes else {"pairs": int(pairs)})
    return xr.DataArray(array, dims=(*asked.axes, *dims), coords=coords, attrs=attrs, name=asked.direction)


def _coordinates(asked: Question, dims: tuple[str, ...], shape: tuple[int, ...]) -> dict[str, Any]:
    trace, times, chosen = asked.trace, asked.times, asked.chosen
    coords: dict[str, Any] = {dim: centres(n) for dim, n in zip(dims, shape, strict=True) if dim != "token"}
    if "time" in asked.axes:
        coords |= {
            "time": np.arange(len(times)),
            "first_step": ("time", [t[0] for t in times]),
            "last_step": ("time", [t[-1] for t in times]),
        }
        coords["timestep"] = ("time", [float(np.mean(trace.steps["timestep"][list(t)])) for t in times])
    if "layer" in asked.axes:
        coords |= {"layer": list(chosen.layers), "layer_name": ("layer", [trace.layers[i].name for i in chosen.layers])}
    if "head" in asked.axes:
        coords["head"] = list(chosen.heads)
    return coords


def kept_axes(keep: Iterable[str] | str, time_groups: int | None) -> tuple[str, ...]:
    """The axes that are kept.

    Raises   InvalidInput for an axis that maps do not have, or time groups without a time axis
    """
    if not isinstance(keep, Iterable):
        raise InvalidInput(f"cannot keep {keep!r}; a map keeps any of {', '.join(AXES)}, or () for none")
    kept = (keep,) if isinstance(keep, str) else tuple(keep)
    unknown = [axis for axis in kept if axis not in AXES]
    if unknown:
        raise InvalidInput(f"cannot keep {unknown[0]!r}; a map keeps any of {', '.join(AXES)}")
    if time_groups is not None and "time" not in kept:
        raise InvalidInput(f"{option('time_groups')} splits the time axis, which is not kept; add {option('keep', 'time')}")
    return kept
