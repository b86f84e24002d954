"""What a figure shows, before it is drawn: panels in rows and columns, and which of them share a scale of colours."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ..aggregation.selection import Select, SelectOptions, choose, has_places
from ..facts import MapFacts
from ..inspection.patches import Cell
from ..methods.recipes import Recipe, get_recipe
from ..numerics.resize import middle
from ..output.illustration import picture
from ..output.sheets import Mark, axis_names, short_names
from ..trace.reader import Trace

T = TypeVar("T")

ACROSS: Final = 7
"""Panels in one row of a page, where they are no table of rows and columns."""


class CallOptions(SelectOptions, total=False):
    """Which calls a map is made of, and by which method."""

    recipe: str | Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a figure is asked to show."""

    traces: tuple[Trace, ...]
    direction: Literal["r2g", "g2r"] = "r2g"
    at: tuple[Cell, ...] = ()
    words: tuple[str, ...] = ()
    """Words of the prompt, or concepts of heads; none is all."""
    recipes: tuple[str, ...] = ()
    scores: xr.DataArray | None = None
    """Of heads."""
    keep: tuple[str, ...] = ()
    time_groups: int | None = None
    columns: int | None = None
    """Most panels in one row, where they are no table."""
    options: CallOptions

    @property
    def trace(self) -> Trace:
        """The only trace, or the first."""
        return self.traces[0]

    @property
    def recipe(self) -> Recipe:
        """The method."""
        return get_recipe(self.options.get("recipe", "i2am"))

    @property
    def select(self) -> Select:
        """The options without the method."""
        return Select.of({name: value for name, value in self.options.items() if name != "recipe"})

    def has_reference(self, trace: Trace) -> bool:
        """Whether maps on the reference can be drawn."""
        return self.recipe.g2r != "none" and has_places(choose(trace, self.select, recipe=self.recipe))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """One picture of a figure: a map over its picture, or a picture alone; an empty one says that nothing was recorded."""

    title: str = ""
    map: xr.DataArray | None = None
    """(row, column), lazy until the figure is computed."""
    picture: NDArray[np.uint8] | None = None
    scale: str = ""
    """Panels of one name share a scale of colours."""
    marks: tuple[Mark, ...] = ()
    number: tuple[str, xr.DataArray] | None = None
    """What is said behind the title."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Panels in rows and columns."""

    rows: Sequence[Sequence[Panel | None]]
    row_names: Sequence[str] = ()
    column_names: Sequence[str] = ()
    bars: Literal["below", "right"] = "below"
    """Where the colours are explained: below the columns, or beside the rows, that share them."""

    @property
    def panels(self) -> list[Panel]:
        """All panels, row by row."""
        return [panel for row in self.rows for panel in row if panel is not None]

    @property
    def scales(self) -> dict[str, list[Panel]]:
        """Panels that share a scale."""
        found: dict[str, list[Panel]] = {}
        for panel in self.panels:
            if panel.map is not None:
                found.setdefault(panel.scale, []).append(panel)
        return found

    def spans(self, axis: Literal["row", "column"]) -> dict[str, tuple[int, int]]:
        """The first and last row, or column, in which each scale is used."""
        found: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            for j, panel in enumerate(row):
                if panel is not None and panel.map is not None:
                    found.setdefault(panel.scale, []).append(i if axis == "row" else j)
        return {scale: (min(places), max(places)) for scale, places in found.items()}

    def compute(self) -> Grid:
        """The same with its maps and numbers computed, all in one pass."""
        lazy = [(panel.map, None if panel.number is None else panel.number[1]) for panel in self.panels]
        found = iter(compute(lazy)[0])  # type: ignore[no-untyped-call]

        def known(panel: Panel) -> Panel:
            map, number = next(found)
            return replace(panel, map=map, number=None if panel.number is None else (panel.number[0], number))

        return replace(self, rows=[[None if panel is None else known(panel) for panel in row] for row in self.rows])


@dataclass(frozen=True, slots=True)
class Chart:
    """A number for every head of every layer."""

    title: str
    values: xr.DataArray
    """(layer, head); NaN where a layer has no such head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charts:
    """Bars of heads, a chart each."""

    charts: Sequence[Chart]
    label: str
    layers: Sequence[str]
    even: float | None = None
    """The number that all heads would have if none stood out."""


def wrap(items: Sequence[T], columns: int | None) -> list[list[T | None]]:
    """Items in rows of about the same length, none longer than `columns`."""
    most = columns or ACROSS
    across = math.ceil(len(items) / math.ceil(len(items) / most))
    rows: list[list[T | None]] = [list(items[start : start + across]) for start in range(0, len(items), across)]
    return [[*row, *[None] * (across - len(row))] for row in rows]


def flat(map: xr.DataArray) -> xr.DataArray:
    """A map of rows and columns, of a video that of its middle frame.

    Raises   InvalidInput for tokens that have no place on a picture
    """
    if map.dims[-1] == "token":
        raise InvalidInput(
            f"the {map.sizes['token']} {MapFacts.of(map).group} tokens have no place on a picture, so there are no rows and columns to "
            "draw; R2G shows where they came in"
        )
    return map.isel(frame=int(middle(map.sizes["frame"], 1)[0])) if "frame" in map.dims else map


def still(pixels: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """A picture, of a video its middle frame."""
    return pixels if pixels is None or pixels.ndim < 4 else pixels[int(middle(len(pixels), 1)[0])]


def image(trace: Trace, name: str | None) -> NDArray[np.uint8] | None:
    """A picture of the trace, of a video its middle frame; None if it has none of that name."""
    return still(picture(trace, name))


def below(trace: Trace, map: xr.DataArray) -> NDArray[np.uint8] | None:
    """The picture that a map lies on."""
    return image(trace, MapFacts.of(map).image)


def shown(trace: Trace, map: xr.DataArray, **panel: Any) -> Panel:
    """The panel of a map over its picture."""
    return Panel(map=flat(map), picture=below(trace, map), **panel)


def spread(trace: Trace, map: xr.DataArray, dim: Hashable, *, scale: str, titles: Sequence[str] = ()) -> list[Panel]:
    """A panel for each place of a kept axis."""
    pixels, count = below(trace, map), map.sizes[dim]
    return [
        Panel(map=map.isel({dim: at}), picture=pixels, scale=scale, title=title)
        for at, title in zip(range(count), titles or [""] * count, strict=True)
    ]


def names_of(trace: Trace, map: xr.DataArray, dim: Hashable) -> list[str]:
    """What the places of a kept axis are called; layers by what sets them apart from all of the trace."""
    if dim == "layer":
        names = short_names([layer.name for layer in trace.layers])
        return [names[at] for at in map.coords["layer"].values]
    if dim == "time" and "timestep" in map.coords:
        first, last = (map.coords[name].values for name in ("first_step", "last_step"))
        return [f"step {a}" if a == b else f"steps {a}–{b}" for a, b in zip(first, last, strict=True)]
    return axis_names(map, dim)
