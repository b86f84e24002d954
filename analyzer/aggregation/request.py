"""One map that is asked for: its calls and keys, the axes that are kept, the grid and the picture it lies on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.trace import Image, Role, Softmax
from ..facts import MapFacts, picture_facts
from ..methods.recipes import Grid, Recipe, Weight, get_recipe
from ..trace.calls import Calls
from ..trace.images import find_image, key_image
from ..trace.reader import Trace
from ..trace.softmax import Columns
from ..trace.views import centres
from .reduction import Cells
from .selection import Select, Selection, choose, split
from .weights import Weighting

AXES: Final = ("time", "layer", "head")
LEVELS: Final = {"time": "TLAM", "layer": "LLAM", "head": "HLAM"}
Direction: TypeAlias = Literal["r2g", "g2r", "sram", "tokens"]
MEANING: Final[dict[Direction, str]] = {
    "r2g": "R2G: what came from the reference",
    "g2r": "G2R: what of the reference was used",
    "sram": "SRAM: where the patch looked",
    "tokens": "attention to the tokens",
}
WEIGHTS: Final[dict[Weight, str]] = {
    "attention": "",
    "norm": ", attention times norms of values",
    "contribution": ", contributions to the layers' outputs",
    "knock-out": ", effects of losing single tokens on the layers' outputs",
}
"""What a weight makes of a map."""
PLACES: Final = {
    "y": ("from the top", "share of the height"),
    "x": ("from the left", "share of the width"),
    "ref_y": ("from the reference's top", "share of its height"),
    "ref_x": ("from the reference's left", "share of its width"),
    "frame": ("from the start", "share of the length"),
}
"""What the coordinates of places are called and counted in, as xarray's plots label them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRequest:
    """One map that is asked for."""

    trace: Trace
    direction: Direction
    row: Recipe
    chosen: Selection
    axes: tuple[str, ...]
    """What is kept, in the order of `AXES`."""
    times: tuple[tuple[int, ...], ...]
    """Steps of each time group."""
    called: tuple[tuple[tuple[int, ...], ...], ...]
    """Of each layer, those of them at which it was called."""
    places: tuple[str, ...]
    """Axes of one map: the last of frame, row and column, or tokens without a place."""
    target: Cells
    """The common grid: an image is one frame, tokens without a place are one row."""
    image: Image | None
    """The picture that the map lies on."""
    columns: tuple[Columns, ...]
    """The keys that count in each layer, and what their softmax runs over."""
    weights: Weighting = field(default_factory=Weighting)
    """How generated positions count in G2R."""
    at: tuple[int, ...] | None = None
    """The latent patch that SRAM is of."""
    each: bool = False
    """Whether every token of `columns` has a map of its own."""

    def heads(self, i: int) -> tuple[int, ...]:
        """Where the selected heads stand on the head axis of the i-th selected layer."""
        there = self.trace.layers[self.chosen.layers[i]].heads_kept
        return tuple(there.index(number) for number in self.chosen.pairs[i])

    @property
    def pools(self) -> bool:
        """Whether generated positions of all layers are averaged together, not those of each layer."""
        by_head = self.direction == "g2r" and "head" in self.axes and "layer" not in self.axes
        return by_head and self.row.pool_positions and self.row.queries == "mean"

    def labels(self) -> dict[str, str]:
        """What xarray's plots write beside the colours."""
        row, by_time = self.row, "time" in self.axes
        sums = (row.time_groups if by_time else row.time, row.heads, row.layers, row.queries if self.direction == "g2r" else row.tokens)
        how, plain = ("sum", "mean")["sum" not in sums], row.weight == "attention"
        units = f"{how}, in units of the layers' outputs" if not plain else "sum of probabilities" if how == "sum" else "mean probability"
        said, own = MEANING[self.direction], self.chosen.groups[0].role == "self"
        said = said.replace("the reference", "the picture itself") if own else said
        return {"long_name": f"{said}{WEIGHTS[row.weight]}", "units": units}

    def facts(self) -> MapFacts:
        """What the map says of itself."""
        chosen = self.chosen
        return MapFacts(
            direction=self.direction,
            levels="+".join(LEVELS[axis] for axis in self.axes) or "ULAM",
            recipe=self.row.label,
            weight=None if self.row.weight == "attention" else self.row.weight,
            trace=self.trace.id,
            group=chosen.groups[0].name,
            sample=chosen.sample,
            branch=self.trace.record.branches[chosen.branch],
            heads=chosen.picked or None,
            calls=sum(len(steps) for i, heads in enumerate(chosen.pairs) if heads for steps in self.called[i]),
            unproven=len(set(chosen.layers) & set(self.trace.unproven)) or None,
            **picture_facts(self.image),
        )

    def coordinates(self) -> dict[str, Any]:
        """Labels of the kept axes and of the places, and how many (layer, head) pairs each map is made of."""
        times, chosen, steps = self.times, self.chosen, self.trace.steps
        shape = self.target[-len(self.places) :]
        coords: dict[str, Any] = {
            dim: (dim, centres(n), dict(zip(("long_name", "units"), PLACES[dim], strict=True)))
            for dim, n in zip(self.places, shape, strict=True)
            if dim != "token"
        }
        if "time" in self.axes:
            coords["time"] = np.arange(len(times))
            coords |= {"first_step": ("time", [t[0] for t in times]), "last_step": ("time", [t[-1] for t in times])}
            coords["timestep"] = ("time", [float(np.mean(steps["timestep"][list(t)])) for t in times])
        if "layer" in self.axes:
            # Strings of any length: those of a fixed one have no settled form in Zarr v3.
            names = np.array([self.trace.layers[i].name for i in chosen.layers], object)
            coords |= {"layer": list(chosen.layers), "layer_name": ("layer", names)}
        if "head" in self.axes:
            coords["head"] = list(chosen.heads)
        pairs = np.array([[[n in own for n in chosen.heads] for own in chosen.pairs]] * len(times), np.int64)
        pairs *= np.array([[bool(steps) for steps in called] for called in self.called]).T[..., None]
        counts = pairs.sum(tuple(i for i, axis in enumerate(AXES) if axis not in self.axes))
        return coords | {"pairs": (self.axes, counts) if self.axes else int(counts)}


def request_map(
    trace: Trace,
    direction: Direction,
    select: Select,
    *,
    recipe: str | Recipe,
    keep: Iterable[str] | str,
    time_groups: int | None,
    specials: bool | None = None,
    role: Role = "reference",
    probe: str | None = None,
) -> MapRequest:
    """What a call of a map function asks for; `specials` says whether tokens without a place count in R2G, None as the recipe does."""
    row, on_reference = get_recipe(recipe), direction in ("g2r", "sram")
    if row.weight == "contribution":  # signed: what is under 0 is no overshoot of the resampling
        row = get_recipe(row, clamp=False)
    if probe is not None and row.weight != "attention":
        raise InvalidInput(f"a probe has keys and no values, so its maps have no weight; leave out {option('weight', row.weight)}")
    if on_reference and row.g2r == "none":
        raise InvalidInput(f"recipe {row.name} has no maps on the reference; it has R2G and maps of tokens, or change its field g2r")
    kept = kept_axes(keep, time_groups)
    chosen = choose(trace, select, recipe=row, on_reference=on_reference, role=role, probe=probe)
    if on_reference:
        image = key_image(trace, chosen.groups[0], chosen.sample)
        field = "reference_target" if direction == "g2r" or row.sram_target == "g2r" else "sram_target"
        target, places = _reference_cells(trace, getattr(row, field), field, chosen, image)
        softmax: Softmax = "generated" if row.g2r == "generated" else "keys"
        # Those with a place, or all where none has one.
        counted = [range(g.start + g.specials if g.grid else g.start, g.stop) for g in chosen.groups]
    else:
        image, softmax = find_image(trace, f"generated_{chosen.sample}", "generated"), row.r2g
        grids = [trace.layers[i].grid for i in chosen.layers]
        target = (max(trace.latent_frames, 1), *_common_grid(trace, row.target, grids, image, "generated image", "target"))
        places = ("frame", "y", "x") if trace.latent_frames else ("y", "x")
        counted = _counted(trace, chosen, row.specials if specials is None else specials)
    alone = row.renormalize and softmax == "keys"
    times = split(chosen.steps, time_groups, row.shared_ends) if "time" in kept else (chosen.steps,)
    present = [Calls.of(trace, index).where[chosen.sample, chosen.branch] >= 0 for index in chosen.layers]
    return MapRequest(
        trace=trace,
        direction=direction,
        row=row,
        chosen=chosen,
        axes=tuple(axis for axis in AXES if axis in kept),
        times=times,
        called=tuple(tuple(tuple(step for step in steps if there[step]) for steps in times) for there in present),
        places=places,
        target=target,
        image=image,
        columns=tuple(Columns(softmax, tuple(tokens), tuple(tokens) if alone else None) for tokens in counted),
    )


def kept_axes(keep: Iterable[str] | str, time_groups: int | None) -> tuple[str, ...]:
    """The axes that are kept.

    Raises   InvalidInput for an axis that maps do not have, or time groups without a time axis
    """
    if not isinstance(keep, Iterable):
        raise InvalidInput(f"cannot keep {keep!r}; a map keeps any of {', '.join(AXES)}, or () for none")
    kept = (keep,) if isinstance(keep, str) else tuple(keep)
    if unknown := [axis for axis in kept if axis not in AXES]:
        raise InvalidInput(f"cannot keep {unknown[0]!r}; a map keeps any of {', '.join(AXES)}")
    if time_groups is not None and "time" not in kept:
        raise InvalidInput(f"{option('time_groups')} splits the time axis, which is not kept; add {option('keep', 'time')}")
    return kept


def _counted(trace: Trace, chosen: Selection, specials: bool) -> list[range]:
    """The tokens of each layer that count in R2G."""
    found = [range(group.start if specials else group.start + group.specials, group.stop) for group in chosen.groups]
    for index, group, counted in zip(chosen.layers, chosen.groups, found, strict=True):
        if not counted:
            name = trace.layers[index].name
            raise InvalidInput(f"token group {group.name} has nothing but specials in layer {name}; take {option('specials', True)}")
    return found


def _reference_cells(trace: Trace, wanted: Grid, field: str, chosen: Selection, image: Image | None) -> tuple[Cells, tuple[str, ...]]:
    """The common grid on the reference, or one row of the tokens where they have no place, and its axes."""
    grids = [group.grid for group in chosen.groups if group.grid]
    if len(grids) == len(chosen.groups):
        grid = _common_grid(trace, wanted, grids, image, "reference image", field)
        return (1, *grid), ("ref_y", "ref_x")
    counts = {group.tokens for group in chosen.groups}
    if grids or len(counts) > 1:
        what = ", ".join(f"{trace.layers[i].name}: {g.tokens} tokens" for i, g in list(zip(chosen.layers, chosen.groups, strict=True))[:4])
        raise InvalidInput(
            f"the layers' {chosen.groups[0].name} tokens cannot be laid over each other ({what}); "
            f"select layers that agree with {option('layers')}"
        )
    return (1, 1, counts.pop()), ("token",)


def _common_grid(
    trace: Trace, wanted: Grid, grids: Sequence[tuple[int, int]], image: Image | None, picture: str, field: str
) -> tuple[int, int]:
    """The grid that the recipe brings the layers' grids to."""
    if isinstance(wanted, tuple):
        return wanted
    if wanted == "image":
        if image is None:
            raise InvalidInput(f"the trace holds no {picture} whose size maps could have; set {field} to (rows, columns)")
        return image.height, image.width
    largest = max(grids, key=lambda grid: (math.prod(grid), grid))
    return {"latent": trace.latent_grid, "first": grids[0], "largest": largest}[wanted]
