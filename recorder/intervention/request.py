"""What an intervention leaves out of a model's attention, as the caller asks for it. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Final, Literal, TypeAlias, get_args

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import option
from ...schema.selection import Layers, Positions, extent, pick_positions, whole, write_positions
from ...schema.trace import TokenGroup
from ..plan.options import select_branches

Kind: TypeAlias = Literal["drop", "zero", "off"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
Cell: TypeAlias = tuple[int, int]
"""(row, column) on a lattice, from its top left."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """What is left out of the attention of some layers, heads and steps.

    `drop` takes keys out of the softmax, so that the other keys share what they had; `zero` leaves the softmax as it is and the keys'
    values out of the sum; `off` lets heads give zeros.
    """

    kind: Kind
    _: KW_ONLY
    layers: Layers = None
    """Attention modules by name, glob or "re:" and a regular expression, as `record` takes them, kept as a list; None is all."""
    heads: Positions = None
    """Heads, from 0; None is all."""
    group: str = ""
    """Token group of the keys, such as `reference`; needed to drop or zero keys. `off` is then for calls that read it only."""
    tokens: Positions = None
    """Tokens of the group, from 0, those without a place (CLS) first; None is all."""
    cells: tuple[Cell, ...] = ()
    """Cells of the lattice whose tokens are meant; empty for no such choice."""
    lattice: tuple[int, int] | None = None
    """(rows, columns) that the group's picture is cut into; None is the grid of its own tokens."""
    steps: Positions = None
    """Evaluations of the denoiser, from 0; None is all."""
    branches: str = "cond"
    """Guidance branches: `cond`, `uncond` or `both`."""
    samples: Positions = None
    """Generated images of the batch, from 0; None is all."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInput(f"an intervention of kind {self.kind!r}; use {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        select_branches(self.branches)
        for name, what in (("heads", "head"), ("tokens", "token"), ("steps", "step"), ("samples", "sample")):
            object.__setattr__(self, name, write_positions(getattr(self, name), what))
        if self.layers is not None:
            one = isinstance(self.layers, str) or not isinstance(self.layers, Iterable)
            object.__setattr__(self, "layers", [self.layers] if one else list(self.layers))  # type: ignore[arg-type]
        if self.lattice is not None:
            object.__setattr__(self, "lattice", _pair(self.lattice, "lattice", 1))
        object.__setattr__(self, "cells", tuple(_pair(cell, "cells", 0) for cell in self.cells))
        chosen = self.tokens is not None or bool(self.cells)
        if self.kind == "off" and chosen:
            raise InvalidInput("`off` is for whole heads; to leave out tokens or cells use drop or zero")
        if self.kind != "off" and not self.group:
            raise InvalidInput(f"`{self.kind}` needs the token group whose keys are meant: {option('group', 'reference')}")
        if self.tokens is not None and self.cells:
            raise InvalidInput(f"{option('tokens')} and {option('cells')} both choose keys; give one of them")
        if self.lattice is not None and not self.cells:
            raise InvalidInput(f"{option('lattice')} is what cells lie on; say which: {option('cells')}")

    def positions(self, group: TokenGroup, layer: str) -> tuple[int, ...]:
        """Tokens of a layer's group that are meant, from the first of the group.

        Raises   InvalidInput, UnknownSelection for cells or tokens that the group does not have
        """
        where = f"{group.name} of {layer}"
        if not self.cells:
            return pick_positions(self.tokens, group.tokens, "token", where)
        if group.grid is None:
            raise InvalidInput(f"tokens of {where} have no places, so there are no cells; choose them by number: {option('tokens')}")
        (rows, columns), (height, width) = self.lattice or group.grid, group.grid
        if rows > height or columns > width:
            raise InvalidInput(
                f"{option('lattice', (rows, columns))} is finer than the {height} x {width} tokens of {where}; use a coarser one"
            )
        require_cells(self.cells, (rows, columns), where)
        places = ((index // width * rows // height, index % width * columns // width) for index in range(height * width))
        chosen = frozenset(self.cells)
        return tuple(group.specials + index for index, cell in enumerate(places) if cell in chosen)


def require_cells(cells: Iterable[Cell], lattice: tuple[int, int], where: str) -> None:
    """Raise UnknownSelection for a cell that the lattice does not have."""
    for row, column in cells:
        if not (0 <= row < lattice[0] and 0 <= column < lattice[1]):
            raise UnknownSelection(
                f"{where} has no cell {(row, column)}; its lattice has rows {extent(lattice[0])} and columns {extent(lattice[1])}"
            )


def _pair(value: object, name: str, least: int) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InvalidInput(f"{option(name)}{value!r} is not made of (row, column) pairs")
    row, column = (whole(number, "a row or column") for number in value)
    if min(row, column) < least:
        raise InvalidInput(f"{option(name)}{value!r}; rows and columns count from {least}")
    return row, column
