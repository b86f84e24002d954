"""What a caller selects of a trace, as the keyword arguments that map functions share, and the positions that it means in one."""

from __future__ import annotations

import fnmatch
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

import numpy as np

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import listed, option
from ...schema.selection import Layers, Selector, extent
from ...schema.selection import Positions as Positions
from ...schema.selection import pick_positions as pick_positions
from ...schema.selection import whole as whole
from ...schema.trace import Layer, Role, TokenGroup
from ..methods.recipes import Recipe, Weight, get_recipe
from ..numerics.resize import middle
from ..trace.heads import pick_heads
from ..trace.reader import Trace

Heads: TypeAlias = Positions | Mapping[Selector, Positions | Mapping[int, float]]
"""Heads by the model's numbers: the same in each layer, or those of each layer that is named, and no other layer; with a weight each,
a map is their weighted mean or sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """What a caller selects of a trace, before it is held against one."""

    layers: Layers = None
    steps: Positions = None
    heads: Heads = None
    sample: int = 0
    branch: str | None = None
    group: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Select:
        """Keyword arguments as a record, which can be read more than once.

        Raises   TypeError for an argument that selects nothing
        """
        found: dict[str, Any] = {name: list(value) if isinstance(value, Iterator) else value for name, value in options.items()}
        return cls(**found)

    def options(self) -> SelectOptions:
        """The keyword arguments that become this record."""
        return SelectOptions(
            layers=self.layers, steps=self.steps, heads=self.heads, sample=self.sample, branch=self.branch, group=self.group
        )


class SelectOptions(TypedDict, total=False):
    """The fields of `Select` as keyword arguments: `**options: Unpack[SelectOptions]`."""

    layers: Layers
    steps: Positions
    heads: Heads
    sample: int
    branch: str | None
    group: str | None


class MapOptions(SelectOptions, total=False):
    """The keyword arguments that all maps share."""

    keep: Iterable[str] | str
    time_groups: int | None
    recipe: str | Recipe
    weight: Weight | None


@dataclass(frozen=True, slots=True)
class Selection:
    """The calls and tokens a map is made of."""

    layers: tuple[int, ...]
    """In trace order; all of them have the token group."""
    groups: tuple[TokenGroup, ...]
    """The token group as each of those layers has it."""
    steps: tuple[int, ...]
    heads: tuple[int, ...]
    """The model's head numbers, of all layers together."""
    pairs: tuple[tuple[int, ...], ...]
    """Those of each layer: what is selected, of what it has."""
    head_weights: tuple[tuple[float, ...], ...]
    """How much each of those counts; 1 unless heads are weighted."""
    sample: int
    branch: int
    picked: str = ""
    """Short form of the heads, if they were picked layer by layer: `3:0,2 7:1*0.5` is heads 0 and 2 of layer 3 and head 1 of layer 7, which
    counts by half."""


def choose(
    trace: Trace,
    select: Select,
    *,
    recipe: str | Recipe | None = None,
    on_reference: bool = False,
    role: Role = "reference",
    probe: str | None = None,
) -> Selection:
    """Turn the public selections into positions.

    The recipe says which layers and branch count where none is named; `on_reference`, whether the map lies there. Without a group it
    is the only one of the role. A `probe` stands in the place of a group.

    Raises   UnknownSelection naming what the trace has, InvalidInput for something that selects nothing
    """
    row, heads, sample = None if recipe is None else get_recipe(recipe), select.heads, whole(select.sample, "a sample")
    if select.group is not None and probe is not None:
        raise InvalidInput(f"keys are those of a group or a probe; leave out {option('group')} or {option('probe')}")
    by_layer = _by_layer(trace, heads) if isinstance(heads, Mapping) else None
    if row is not None and row.choose_heads and heads is None:
        raise InvalidInput(f"recipe {row.name} is a mean over chosen heads; choose them with {option('heads')}")
    of_recipe = row if select.layers is None and by_layer is None else None
    asked = trace.select(select.layers) if of_recipe is None else recipe_layers(trace, of_recipe, on_reference)
    if by_layer is not None and not (asked := tuple(i for i in asked if i in by_layer)):
        raise InvalidInput(f"{option('heads')} names none of the layers that {option('layers')} selects")
    asked = _places(trace, asked)
    found = find_groups(trace, asked, select.group, role) if probe is None else _find_probe(trace, asked, probe)
    if not 0 <= sample < trace.record.samples:
        raise UnknownSelection(f"the trace has no sample {sample}; it has {extent(trace.record.samples)}")
    layers = tuple(i for i, _ in found)
    if by_layer is None:
        assert not isinstance(heads, Mapping)
        wanted = dict.fromkeys(pick_heads(heads, [trace.layers[i] for i in layers]), 1.0)
    counted = [wanted if by_layer is None else by_layer[i] for i in layers]
    pairs = tuple(tuple(n for n in trace.layers[i].heads_kept if n in own) for i, own in zip(layers, counted, strict=True))
    return Selection(
        layers,
        tuple(g for _, g in found),
        pick_positions(select.steps, len(trace.present), "step"),
        tuple(sorted({n for own in pairs for n in own})),
        pairs,
        tuple(tuple(weights[n] for n in own) for own, weights in zip(pairs, counted, strict=True)),
        sample,
        find_branch(trace, select.branch, row.branch if row else "cond"),
        " ".join(_write_heads(i, own) for i, own in zip(layers, counted, strict=True)) if by_layer is not None else "",
    )


def find_branch(trace: Trace, branch: str | None, usual: str = "cond") -> int:
    """Position of a branch: the one named, or else the usual one, or the first where the trace lacks that.

    Raises   UnknownSelection listing the branches
    """
    there = trace.record.branches
    if branch is not None and branch not in there:
        raise UnknownSelection(f"the trace has no branch {branch!r}; it has {', '.join(there)}")
    return there.index(branch or (usual if usual in there else there[0]))


def _places(trace: Trace, asked: tuple[int, ...]) -> tuple[int, ...]:
    """The layers whose queries are places of the generated image."""
    found = tuple(index for index in asked if not trace.layers[index].is_resampler)
    if asked and not found:
        layer = trace.layers[asked[0]]
        raise UnknownSelection(
            f"the queries of {layer.name} are the {layer.queries} tokens of an adapter and no places of the image, so it has no maps; "
            "it serves to carry maps back to patches"
        )
    return found


def recipe_layers(trace: Trace, row: Recipe, on_reference: bool) -> tuple[int, ...]:
    """The layers a recipe takes where the caller names none.

    Raises   InvalidInput if it leaves out all of them
    """
    names = [layer.name for layer in trace.layers]
    only = tuple(i for i, name in enumerate(names) if on_reference and fnmatch.fnmatchcase(name, row.reference_layers))
    if only:
        return only
    skipped = [glob.strip() for glob in row.skip.split(",") if glob.strip()]
    found = [i for i, name in enumerate(names) if not any(fnmatch.fnmatchcase(name, glob) for glob in skipped)]
    if row.factors:
        found = [i for i in found if _factor(trace, trace.layers[i]) in row.factors]
    if not found:
        there = sorted({_factor(trace, layer) for layer in trace.layers if not layer.is_resampler})
        wanted, have = (" or ".join(map(str, numbers)) for numbers in (row.factors, there))
        sizes = f", and takes those {wanted} times coarser than the latent, of which there are {have}"
        raise InvalidInput(
            f"recipe {row.name} leaves out every layer of the trace: it skips {row.skip or 'none'}{sizes if row.factors else ''}; "
            f"name layers with {option('layers')}, or change the recipe's fields skip and factors"
        )
    return tuple(found)


def _factor(trace: Trace, layer: Layer) -> int:
    """How many times coarser a layer's rows and columns are than the latent's."""
    latent = trace.latent_grid
    return round(max(latent[0] / layer.grid[0], latent[1] / layer.grid[1]))


def find_groups(trace: Trace, layers: Sequence[int], group: str | None, role: Role) -> list[tuple[int, TokenGroup]]:
    """The layers whose keys have the group, and the group as each has it.

    Raises   UnknownSelection listing the groups there are
    """
    name = group or _only(trace, layers, role)
    found = [(i, g) for i in layers for g in trace.layers[i].groups if g.name == name]
    if not found:
        raise UnknownSelection(f"no selected layer has the token group {name!r}; there are {listed(_groups(trace, layers))}")
    return found


def _find_probe(trace: Trace, layers: Sequence[int], probe: str) -> list[tuple[int, TokenGroup]]:
    found = [(i, g) for i in layers for g in trace.layers[i].probes if g.name == probe]
    if not found:
        names = list(dict.fromkeys(g.name for i in layers for g in trace.layers[i].probes))
        there = f"there are {listed(names)}" if names else f"it was recorded without any; record with {option('probes')}"
        raise UnknownSelection(f"no selected layer has the probe {probe!r}; {there}")
    stored = [trace.layers[i].name for i, _ in found if trace.layers[i].encoding != "factors"]
    if stored:
        raise InvalidInput(
            f"probes need the queries, and layer {stored[0]} keeps probabilities; record with encoding factors, or select layers that do"
        )
    return found


def _by_layer(trace: Trace, heads: Mapping[Selector, Positions | Mapping[int, float]]) -> dict[int, dict[int, float]]:
    """The heads of each layer that the mapping names, and how much each counts; those of weight 0 are left out."""
    if not heads:
        raise InvalidInput(f"the selection of heads names no layer; the trace has {listed(layer.name for layer in trace.layers)}")
    picked: dict[int, dict[int, float]] = {}
    for selector, given in heads.items():
        for index in trace.select([selector]):
            numbers = pick_heads(list(given) if isinstance(given, Mapping) else given, [trace.layers[index]])
            weights = {number: _weight(given[number]) if isinstance(given, Mapping) else 1.0 for number in numbers}
            picked.setdefault(index, {}).update({number: weight for number, weight in weights.items() if weight})
    if not any(picked.values()):
        raise InvalidInput(f"{option('heads')} gives every head the weight 0, so there is nothing to average; give some a weight above 0")
    return picked


def _weight(given: Any) -> float:
    """What a head counts."""
    if isinstance(given, (int, float, np.number)) and not isinstance(given, bool) and math.isfinite(given) and given >= 0:
        return float(given)
    raise InvalidInput(f"a head weighs {given!r}; expected a number of 0 or more")


def _write_heads(index: int, weights: Mapping[int, float]) -> str:
    return f"{index}:{','.join(str(n) if weights[n] == 1 else f'{n}*{weights[n]:g}' for n in sorted(weights))}"


def split(steps: Sequence[int], groups: int | None, shared_ends: bool = False) -> tuple[tuple[int, ...], ...]:
    """Groups of steps in execution order, of lengths that differ by one at most; None makes each step a group.

    They are disjoint, unless with `shared_ends` each also holds the first step of the next.

    Raises   InvalidInput if there are more groups than steps
    """
    count = len(steps) if groups is None else whole(groups, "a number of time groups")
    if not 1 <= count <= len(steps):
        raise InvalidInput(f"cannot make {count} time groups of {len(steps)} steps; expected 1 to {len(steps)}")
    parts = [tuple(int(s) for s in part) for part in np.array_split(np.asarray(steps, int), count)]
    if not shared_ends or groups is None:
        return tuple(parts)
    return (*(part + following[:1] for part, following in itertools.pairwise(parts)), parts[-1])


def cell(at: Any, latent: tuple[int, ...], grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """The (frame, row, column) of a layer's grid that contains a latent patch's centre; a patch of an image has no frame.

    Raises   UnknownSelection if the latent has no such patch
    """
    names = ("frame", "row", "column")[-len(latent) :]
    try:
        place = tuple(operator.index(i) for i in at)
        if len(place) != len(latent):
            raise ValueError
    except (TypeError, ValueError) as error:
        size = " x ".join(map(str, latent))
        raise InvalidInput(f"a patch is ({', '.join(names)}) on the latent grid of {size}, got {at!r}") from error
    if not all(0 <= i < n for i, n in zip(place, latent, strict=True)):
        from_where = {"frame": "from the start", "row": "from the top", "column": "from the left"}
        are = ("are ", "", "")
        ranges = (f"{name}s {verb}{extent(n)} {from_where[name]}" for name, n, verb in zip(names, latent, are, strict=False))
        raise UnknownSelection(f"the latent grid has no patch ({', '.join(map(str, place))}); {', '.join(ranges)}")
    frame, row, column = (middle(n, m)[i] for i, n, m in zip((0, *place)[-3:], grid, (1, *latent)[-3:], strict=True))
    return int(frame), int(row), int(column)


def _groups(trace: Trace, layers: Iterable[int]) -> list[str]:
    return list(dict.fromkeys(g.name for i in layers for g in trace.layers[i].groups))


def _only(trace: Trace, layers: Iterable[int], role: Role) -> str:
    """Name of the only token group of a role."""
    what = {"reference": "a reference", "text": "a text", "self": "the picture itself"}[role]
    names = list(dict.fromkeys(g.name for i in layers for g in trace.layers[i].groups if g.role == role))
    if len(names) == 1:
        return names[0]
    if names:
        raise UnknownSelection(f"the trace has {len(names)} {role}s, {listed(names)}; say which with {option('group')}")
    raise UnknownSelection(f"no selected layer sees {what}; say which tokens with {option('group')}, of {listed(_groups(trace, layers))}")


def has_places(chosen: Selection) -> bool:
    """Whether every selected token group has a grid: what G2R and SRAM are drawn on."""
    return all(group.grid is not None for group in chosen.groups)
