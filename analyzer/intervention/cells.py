"""Maps brought to the cells of an experiment: the mean of a map's tokens in each cell, as interventions choose them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ..maps.attribution import g2r
from ..maps.looks import looks
from ..maps.rollout import rollout
from ..methods.recipes import Recipe, Weight
from ..trace.reader import Trace

Direction: TypeAlias = Literal["SRAM", "G2R"]
LEVELS: Final[dict[str, tuple[str, ...]]] = {"": (), "layer": ("layer",), "head": ("layer", "head")}
"""Axes that are kept apart: none, each layer, each head of each layer."""


ROLLOUT: Final = "rollout"
"""What stands among recipes for the rollout through reference and self-attention."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What maps are to be of, so that they are of what an experiment left out."""

    cells: tuple[int, int]
    options: Mapping[str, Any]
    """Keyword arguments of maps: group, sample, branch, layers."""

    @classmethod
    def of(cls, effects: xr.Dataset) -> Asked:
        """What an experiment says of itself."""
        told = effects.attrs
        branches = told.get("branches", "cond")
        options = {"group": told.get("group"), "sample": int(told.get("sample", 0)), "branch": None if branches == "both" else branches}
        return cls((effects.sizes["cell_y"], effects.sizes["cell_x"]), options | {"layers": list(told.get("layers", ())) or None})

    def maps(self, trace: Trace, recipe: Recipe, weight: Weight, level: str, patches: bool) -> dict[Direction, xr.DataArray]:
        """G2R and, for `patches`, SRAM of all of them, cell by cell.

        Dims     kept axes, then (cell_y, cell_x) and (y, x, cell_y, cell_x); lazy
        Raises   as `g2r`
        """
        found: dict[Direction, xr.DataArray] = {"G2R": self.g2r(trace, recipe, weight, level)}
        if patches:
            chosen: dict[str, Any] = {"keep": LEVELS[level], "recipe": recipe, "weight": weight, **self.options}
            found["SRAM"] = to_cells(looks(trace, **chosen), self.cells)
        return found

    def rollouts(self, trace: Trace, inside: NDArray[np.bool_]) -> dict[str, dict[Direction, xr.DataArray]]:
        """The rollout of a trace in the place of SRAM, and its means over all patches, and over those that are `inside`; by name.

        Raises   as `rollout`
        """
        found = to_cells(rollout(trace, **self.options), self.cells)
        whole: dict[str, dict[Direction, xr.DataArray]] = {ROLLOUT: {"G2R": found.mean(("y", "x")), "SRAM": found}}
        if inside.all():
            return whole
        return {**whole, f"{ROLLOUT}(query_mask=yes)": {"G2R": found.where(xr.DataArray(inside, dims=("y", "x"))).mean(("y", "x"))}}

    def g2r(self, trace: Trace, recipe: str | Recipe, weight: Weight, level: str = "") -> xr.DataArray:
        """G2R alone, as `maps` has it."""
        return to_cells(g2r(trace, keep=LEVELS[level], recipe=recipe, weight=weight, **self.options), self.cells)


def to_cells(map: xr.DataArray, cells: tuple[int, int]) -> xr.DataArray:
    """Mean of a map over each cell of a lattice; a token lies in one cell, as `Intervention.positions` has it.

    Dims     (..., ref_y, ref_x) -> (..., cell_y, cell_x)
    Raises   InvalidInput for a map without places, or one coarser than the lattice
    """
    if "ref_x" not in map.dims:
        raise InvalidInput("the tokens have no place on a picture, so their maps have no cells to compare with measured effects")
    shares = []
    for name, count in zip(("y", "x"), cells, strict=True):
        size = map.sizes[f"ref_{name}"]
        if size < count:
            raise InvalidInput(
                f"the effects are of {cells[0]} x {cells[1]} cells, more than the {map.sizes['ref_y']} x {map.sizes['ref_x']} places of "
                f"the map; measure them again with fewer {option('cells')}, or choose a recipe with finer maps"
            )
        lies = np.arange(size) * count // size == np.arange(count)[:, None]
        shares.append(xr.DataArray(lies / lies.sum(1, keepdims=True), dims=(f"cell_{name}", f"ref_{name}")))
    found: xr.DataArray = xr.dot(map.drop_vars(("ref_y", "ref_x")), *shares, dim=("ref_y", "ref_x"))
    return found
