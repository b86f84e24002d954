"""Scores of maps against measured effects: one for each recipe, weight, layer and head, with the controls of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ..metrics.masks import binarize
from ..numerics.resize import middle
from ..trace.images import load_mask, own_mask
from ..trace.reader import Trace
from .agreement import Agreement, Drawing, agree, agree_by_patch
from .cells import LEVELS, Direction

Against: TypeAlias = Literal["keys", "pixels", "layers", "heads"]
"""What was left out: keys of a cell, its pixels, a layer, a head."""
CELLS: Final[dict[Against, str]] = {"keys": "effect", "pixels": "pixels"}
"""Effects of cells, and the variable that holds them."""
SILENCED: Final[dict[Against, str]] = {"layers": "layer", "heads": "head"}
"""Effects of parts of the model, and the level of maps that is held against them."""
FEWEST: Final = 8
"""Cells whose order says something."""
FEWEST_PARTS: Final = 3
"""Layers or heads, likewise; a recipe may take fewer."""

Values: TypeAlias = NDArray[np.float64]
Place: TypeAlias = tuple[str, int | None]
"""Layer and head, "" and None for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One map against one kind of effects."""

    map: str
    """SRAM, G2R, or G2R of each layer or head as a whole: `totals`."""
    against: Against
    recipe: str
    weight: str
    layer: str = ""
    """Empty for all together."""
    head: int | None = None
    agreement: Agreement
    other: float = np.nan
    """Rank correlation of the same map of another trace: of the run with another reference."""

    @property
    def clear(self) -> bool:
        """Whether the score lies above what shuffled cells reach, and its interval above 0."""
        found = self.agreement.spearman
        return bool(found.mean > self.agreement.random[1] and found.low > 0)


@dataclass(frozen=True, slots=True)
class Truth:
    """Effects of cells as maps are held against them."""

    tried: NDArray[np.bool_]
    """(cell_y, cell_x)"""
    inside: NDArray[np.bool_]
    """(y, x): patches that count in SRAM."""
    effects: Values
    """(y, x, cell), of cells that were tried."""

    @classmethod
    def of(cls, effect: xr.DataArray, inside: NDArray[np.bool_], name: str) -> Truth:
        """Of one array of effects.

        Raises   InvalidInput for too few cells
        """
        values = effect.transpose("y", "x", "cell_y", "cell_x").values.astype(np.float64)
        tried = np.asarray(np.isfinite(values).all((0, 1)))
        if tried.sum() < FEWEST:
            raise InvalidInput(
                f"{tried.sum()} of {tried.size} cells of {name!r} were tried, and an order of fewer than {FEWEST} says nothing; go on with "
                "`i2am faithfulness`, or ask it for more cells"
            )
        return cls(tried, inside, values[..., tried])

    def judge(self, direction: Direction, map: xr.DataArray, drawing: Drawing) -> Agreement:
        """One map without kept axes, computed."""
        values = np.asarray(map.values, np.float64)[..., self.tried]
        if direction == "G2R":
            return agree(values, self.effects.mean((0, 1)), drawing)
        return agree_by_patch(values[self.inside], self.effects[self.inside], drawing)


def patches_inside(trace: Trace, sample: int, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Patches whose middle lies in the trace's own mask, outside of which nothing is painted; all where it has none.

    Dims     (y, x)
    """
    name = own_mask(trace, sample)
    if name is None:
        return np.ones(grid, bool)
    mask = binarize(load_mask(trace, name))
    rows, columns = (middle(size, count) for size, count in zip(mask.shape, grid, strict=True))
    return mask[rows][:, columns]


def score_cells(
    maps: Mapping[Direction, xr.DataArray],
    others: Mapping[Direction, xr.DataArray],
    truths: Mapping[Against, Truth],
    drawing: Drawing,
    names: tuple[str, str],
) -> Iterator[Score]:
    """Scores of computed maps of one recipe, weight and level, those of another trace beside them."""
    for direction, map in maps.items():
        for against, truth in truths.items():
            for (layer, head), one in places(map):
                if np.isnan(one.values).all():  # a layer has fewer heads than another
                    continue
                other = others.get(direction)
                beside = np.nan
                if other is not None:
                    at = {dim: one[dim] for dim in LEVELS["head"] if dim in one.coords}
                    beside = truth.judge(direction, other.sel(at), drawing).spearman.mean
                agreement = truth.judge(direction, one, drawing)
                yield Score(
                    map=direction,
                    against=against,
                    recipe=names[0],
                    weight=names[1],
                    layer=layer,
                    head=head,
                    agreement=agreement,
                    other=beside,
                )


def score_parts(map: xr.DataArray, against: Against, effects: xr.DataArray, drawing: Drawing, names: tuple[str, str]) -> Iterator[Score]:
    """How well the total of each layer's or head's G2R orders what switching it off changes; nothing where there are too few."""
    moved = {place_of(one): float(one.mean()) for one in each(effects)}
    totals = {place: float(one.sum(skipna=False)) for place, one in places(map)}
    known = [place for place, value in totals.items() if np.isfinite(value) and np.isfinite(moved.get(place, np.nan))]
    if len(known) >= FEWEST_PARTS:
        first, second = (np.array([values[place] for place in known]) for values in (totals, moved))
        yield Score(map="totals", against=against, recipe=names[0], weight=names[1], agreement=agree(first, second, drawing))


def places(map: xr.DataArray) -> Iterator[tuple[Place, xr.DataArray]]:
    """Maps of each layer and head, by the layer's name and the head's number."""
    return ((place_of(one), one) for one in each(map))


def each(map: xr.DataArray) -> Iterator[xr.DataArray]:
    """What lies at each place on the axes of layers and heads."""
    kept = [dim for dim in LEVELS["head"] if dim in map.dims]
    if not kept:
        yield map
        return
    for at in np.ndindex(*(map.sizes[dim] for dim in kept)):
        yield map.isel(dict(zip(kept, at, strict=True)))


def place_of(one: xr.DataArray) -> Place:
    """Name of the layer and number of the head that a map is of."""
    name = one.coords.get("layer_name", one.coords.get("layer"))
    head = one.coords.get("head")
    return "" if name is None else str(name.values), None if head is None else int(head.values)
