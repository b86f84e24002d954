"""Effects of interventions on disk: what leaving out each cell of a reference changes in each patch of the picture. A small Zarr group.

zarr.json           the record, under `i2am_effects`
effect/zarr.json    float32 (cell_y, cell_x, y, x), NaN where a cell was not tried yet
effect/c.R.C.0.0    one file for each cell (row, column), written once it is whole
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, TypeAlias, get_args

from ..arrays.array import ArrayPlan
from ..errors import NotATrace
from ..record import decode, require

Leaving: TypeAlias = Literal["drop", "zero"]
"""How the keys of a cell are left out: with their share of the softmax, or without."""
ATTRIBUTE: Final = "i2am_effects"
VERSION: Final = 1
MOST_CELLS: Final = 2**16
MOST_PLACES: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectRecord:
    """One experiment: whose run it repeats, and what was left out."""

    id: str
    """A UUID, new for each experiment."""
    trace: str
    """Id of the trace whose run was repeated."""
    kind: Leaving
    group: str
    """Token group whose keys were left out."""
    cells: tuple[int, int]
    """(rows, columns) that the group's picture was cut into."""
    grid: tuple[int, int]
    """(rows, columns) of the patches of the generated image."""
    sample: int = 0
    layers: tuple[str, ...] = ()
    """As asked for; empty is all that a recording takes."""
    branches: str = "cond"
    created: str = ""
    """ISO 8601, UTC."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Library versions, the spec's text, how far the repeated picture was from the recorded one."""
    version: int = VERSION

    def __post_init__(self) -> None:
        require(self.version == VERSION, f"effects of version {self.version}; this release reads {VERSION}")
        require(self.kind in get_args(Leaving), f"effects of kind {self.kind!r}; they are of drop or zero")
        require(min(*self.cells, *self.grid) > 0, f"{self.cells} cells and {self.grid} patches must be positive")
        require(math.prod(self.cells) <= MOST_CELLS, f"{self.cells} cells; there are at most {MOST_CELLS}")
        require(math.prod(self.grid) <= MOST_PLACES, f"{self.grid} patches; there are at most {MOST_PLACES}")

    @property
    def plan(self) -> ArrayPlan:
        """The one array."""
        attributes = {"long_name": "mean absolute difference of the picture, in shares of the way from black to white"}
        chunk = (1, 1, *self.grid)
        dims = ("cell_y", "cell_x", "y", "x")
        return ArrayPlan("effect", dims, (*self.cells, *self.grid), "float32", chunk, fill=math.nan, attributes=attributes)

    def to_json(self) -> dict[str, Any]:
        """The root's `zarr.json`."""
        record = dataclasses.asdict(self)
        return {"zarr_format": 3, "node_type": "group", "attributes": {ATTRIBUTE: record}}

    def same_experiment(self, other: EffectRecord) -> bool:
        """Whether cells of one may stand among cells of the other."""
        names = ("trace", "kind", "group", "cells", "grid", "sample", "layers", "branches")
        said = self.provenance.get("spec") == other.provenance.get("spec")
        return said and all(getattr(self, name) == getattr(other, name) for name in names)

    @classmethod
    def from_json(cls, document: dict[str, Any], where: str) -> Self:
        """Build from the root's `zarr.json`.

        Raises   NotATrace for another Zarr group, CorruptTrace for a record that is not well formed
        """
        attributes = document.get("attributes")
        if not isinstance(attributes, dict) or not isinstance(attributes.get(ATTRIBUTE), dict):
            raise NotATrace(f"{where} holds no effects: its zarr.json has no attribute `{ATTRIBUTE}`; `i2am faithfulness` makes them")
        return decode(cls, attributes[ATTRIBUTE], f"the record of {where}")
