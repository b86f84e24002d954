"""Effects of interventions on disk: what each trial, a run with something left out, changes in each patch of the picture. A Zarr group.

zarr.json           the record, under `i2am_effects`
effect/zarr.json    float32 (cell_y, cell_x, y, x), NaN where a cell was not tried yet; so are the other arrays of `ARRAYS`
effect/c.R.C.0.0    one file for each trial, here of the cell (row, column), written once it is whole
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, TypeAlias, get_args

from ..arrays.array import ArrayPlan
from ..errors import NotATrace
from ..record import decode, require

Leaving: TypeAlias = Literal["drop", "zero"]
"""How the keys of a cell are left out: with their share of the softmax, or without."""
Trials: TypeAlias = Literal["cells", "pixels", "without", "layers", "heads", "curves"]
"""What is tried, each in turn."""
TRIALS: Final[tuple[Trials, ...]] = get_args(Trials)
"""In the order in which they are made: curves rank cells by what the first found."""
ARRAYS: Final[dict[str, tuple[Trials, tuple[str, ...]]]] = {
    # name: (which trials, one for each place on these axes)
    "effect": ("cells", ("cell_y", "cell_x")),  # the cell's keys left out
    "pixels": ("pixels", ("cell_y", "cell_x")),  # the cell's pixels of the reference inverted
    "without": ("without", ()),  # all keys of the reference zeroed
    "layers": ("layers", ("layer",)),  # the same in one layer
    "heads": ("heads", ("layer", "head")),  # the same in one head of a layer
    "deletion": ("curves", ("order", "share")),  # keys of the cells that an order ranks first left out
    "insertion": ("curves", ("order", "share")),  # keys of all other cells left out
}
"""Arrays of effects, whose last axes are the patches (y, x)."""
SHARES: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
"""Of all cells, those that curves leave out or keep."""
TRUTH: Final = "truth"
"""The order by the mean effect of each cell."""
ATTRIBUTE: Final = "i2am_effects"
VERSION: Final = 1
MOST_TRIALS: Final = 2**16
"""Of one array."""
MOST_PLACES: Final = 2**20
MOST_VALUES: Final = 2**28
"""Of one array; a reader fills what was not tried with NaN."""
UNITS: Final = "mean absolute difference of the picture, in shares of the way from black to white"


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
    """Library versions and the spec's text."""
    version: int = VERSION
    trials: tuple[Trials, ...] = ("cells",)
    """Those that were asked for, in the order of `TRIALS`."""
    batch: int = 1
    """Pictures in one run; where there are several, the first had nothing left out."""
    layer_names: tuple[str, ...] = ()
    """Of the axis `layer`: layers of the trace that read the group."""
    layer_heads: tuple[int, ...] = ()
    """Heads of each; the axis `head` has as many as the most, and is NaN where a layer has fewer."""
    orders: tuple[str, ...] = ()
    """What ranked the cells of curves: `truth`, `random`, or a map of the trace such as `attention`."""
    shares: tuple[float, ...] = ()
    """Of all cells, those that come first in curves."""

    def __post_init__(self) -> None:
        require(self.version == VERSION, f"effects of version {self.version}; this release reads {VERSION}")
        require(self.kind in get_args(Leaving), f"effects of kind {self.kind!r}; they are of drop or zero")
        require(self.trials == tuple(name for name in TRIALS if name in self.trials), f"trials {self.trials}; they are {', '.join(TRIALS)}")
        require(min(*self.cells, *self.grid) > 0, f"{self.cells} cells and {self.grid} patches must be positive")
        require(self.sample >= 0 and self.batch > 0, f"sample {self.sample} in batches of {self.batch}; both count up")
        require(math.prod(self.grid) <= MOST_PLACES, f"{self.grid} patches; there are at most {MOST_PLACES}")
        require(
            len(self.layer_names) == len(self.layer_heads) and all(heads > 0 for heads in self.layer_heads),
            f"{len(self.layer_names)} layers with heads {self.layer_heads}; each needs some",
        )
        for what, names in (("layer", self.layer_names), ("order", self.orders)):
            require(
                len(set(names)) == len(names) and all(name.isprintable() for name in names), f"two {what}s have one name, or an odd one"
            )
        require(all(a < b for a, b in itertools.pairwise((0.0, *self.shares, 1.0))), f"shares {self.shares} do not rise between 0 and 1")
        for plan in self.plans.values():
            require(
                0 < math.prod(plan.shape[:-2]) <= MOST_TRIALS, f"{plan.path} has {plan.shape[:-2]} trials; 1 to {MOST_TRIALS} are known"
            )
            require(math.prod(plan.shape) <= MOST_VALUES, f"{plan.path} has {plan.shape} values; there are at most {MOST_VALUES}")

    @property
    def plans(self) -> dict[str, ArrayPlan]:
        """The arrays by name, in the order in which they are measured."""
        lengths = dict(zip(("cell_y", "cell_x", "y", "x"), (*self.cells, *self.grid), strict=True))
        lengths |= {"layer": len(self.layer_names), "head": max(self.layer_heads, default=0)}
        lengths |= {"order": len(self.orders), "share": len(self.shares)}
        plans = {}
        for name, (trials, axes) in ARRAYS.items():
            dims = (*axes, "y", "x")
            chunk = (*(1 for _ in axes), *self.grid)
            if trials in self.trials:
                shape = tuple(lengths[dim] for dim in dims)
                plans[name] = ArrayPlan(name, dims, shape, "float32", chunk, fill=math.nan, attributes={"long_name": UNITS})
        return plans

    def places(self, name: str) -> Iterator[tuple[int, ...]]:
        """Where an array has a trial, in the order in which they are made; a head that a layer does not have is none."""
        for place in itertools.product(*map(range, self.plans[name].shape[:-2])):
            if name != "heads" or place[1] < self.layer_heads[place[0]]:
                yield place

    def to_json(self) -> dict[str, Any]:
        """The root's `zarr.json`."""
        record = dataclasses.asdict(self)
        return {"zarr_format": 3, "node_type": "group", "attributes": {ATTRIBUTE: record}}

    def same_experiment(self, other: EffectRecord) -> bool:
        """Whether trials of one may stand among trials of the other."""
        names = ("trace", "kind", "group", "cells", "grid", "sample", "layers", "branches")
        same = all(getattr(self, name) == getattr(other, name) for name in names)
        fits = not (self.shares and other.shares) or self.shares == other.shares
        return same and fits and self.provenance.get("spec") == other.provenance.get("spec")

    def joined(self, more: EffectRecord) -> Self:
        """The record of one experiment with the trials of another, whose orders come after its own."""
        orders = dict.fromkeys((*self.orders, *more.orders))
        trials = tuple(name for name in TRIALS if name in (*self.trials, *more.trials))
        taken = {name: getattr(more, name) or getattr(self, name) for name in ("layer_names", "layer_heads", "shares", "batch")}
        return dataclasses.replace(self, trials=trials, orders=tuple(orders), **taken)

    @classmethod
    def from_json(cls, document: dict[str, Any], where: str) -> Self:
        """Build from the root's `zarr.json`.

        Raises   NotATrace for another Zarr group, CorruptTrace for a record that is not well formed
        """
        attributes = document.get("attributes")
        if not isinstance(attributes, dict) or not isinstance(attributes.get(ATTRIBUTE), dict):
            raise NotATrace(f"{where} holds no effects: its zarr.json has no attribute `{ATTRIBUTE}`; `i2am faithfulness` makes them")
        return decode(cls, attributes[ATTRIBUTE], f"the record of {where}")
