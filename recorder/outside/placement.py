"""What the queries and keys of a call are in a model that diffusers does not know, by what its caller says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.trace import TokenGroup
from ..capture.call import Call
from ..labels.layers import Layers, Site
from ..plan.options import Options
from .declaration import EXAMPLE, WHOLE, Declaration, Grid, Tokens

NEAR: Final = 1e-6
"""How far from a whole number a share of a grid's rows may be."""


def arrange(call: Call, order: tuple[int, ...]) -> Call:
    """The call with the panels of its sequence one after another."""
    if not order:
        return call
    index = _index(order, call.key.device)
    whole = call.query.shape[2] == call.key.shape[2]
    query, mask = call.query.index_select(2, index) if whole else call.query, call.mask
    if mask is not None and mask.shape[-1] > 1:
        mask = mask.index_select(-1, index)
    if mask is not None and whole and mask.ndim > 1 and mask.shape[-2] > 1:
        mask = mask.index_select(-2, index)
    value = None if call.value is None else call.value.index_select(2, index)
    return replace(call, query=query, key=call.key.index_select(2, index), value=value, mask=mask)


@lru_cache(maxsize=64)  # one for each resolution; sent to the device once
def _index(order: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(order, device=device)


class DeclaredSites:
    """Finds the site of each call of a model that its caller declared."""

    def __init__(self, declaration: Declaration, options: Options, pictures: set[str]) -> None:
        self._declaration, self._pictures = declaration, pictures
        self._sites: dict[tuple[Any, ...], Site | None] = {}
        self.layers = Layers(options)
        self.panel: tuple[float, float] = (WHOLE, WHOLE)
        """Rows and columns of the denoiser's own grid that are the image being made, as shares."""

    def find(self, call: Call) -> Site | None:
        """The site of a call; None if nothing of it is to be kept.

        Raises   InvalidInput if what was said does not fit the call, UnsupportedModel if it is not what it was before
        """
        key = (call.path, call.ordinal, call.own, call.around, call.scale, call.query.shape[1:], call.key.shape[1:])
        if key not in self._sites:
            self._sites[key] = self._make(call)
        return self._sites[key]

    def _make(self, call: Call) -> Site | None:
        name = call.path if call.ordinal == 0 else f"{call.path}#{call.ordinal}"
        rows, said = self._declaration.said_of(name)
        if call.own and not any(row.role == "self" for row in rows or ()):
            return None  # the image being made, attending to itself alone
        keys = call.key.shape[2]
        if rows is None:
            raise InvalidInput(f"{name} reads {keys} keys, and nothing says what they are; pass groups=[{EXAMPLE}], {_leave()}")
        canvas = said or call.around
        groups = self._with_pictures(name, cover(name, rows, keys, canvas))
        generated, grid = declared_queries(name, groups, call.query.shape[2], keys, canvas)
        order = panels(name, rows, keys, canvas)
        call = arrange(call, order)
        site = self.layers.site((call.path, call.ordinal), call, call.ordinal, groups, generated, grid, mask=call.mask, order=order)
        if site is not None and canvas is not None and any(group.role == "self" for group in groups):
            self.panel = grid[0] / canvas[0], grid[1] / canvas[1]
        return site

    def _with_pictures(self, name: str, groups: tuple[TokenGroup, ...]) -> tuple[TokenGroup, ...]:
        """Groups that name the picture they were made from, where it was given."""
        if absent := [group.image for group in groups if group.image and group.image not in self._pictures]:
            raise InvalidInput(
                f"groups: tokens of {name} are made from the picture {absent[0]!r}, which was not given; give it before sampling: "
                f"running.images({absent[0]}=...)"
            )
        named = {group.name for group in groups if group.role == "reference"} & self._pictures
        return tuple(replace(group, image=group.name) if group.image is None and group.name in named else group for group in groups)


def _leave() -> str:
    return f"or leave the module out through {option('layers')}"


def cover(name: str, rows: Sequence[Tokens], keys: int, canvas: Grid | None) -> tuple[TokenGroup, ...]:
    """The token groups of a call's keys, in order, all of them.

    Raises   InvalidInput if they do not add up
    """
    sized = [(row, *_measure(name, row, canvas)) for row in rows]
    known = sum(count for _, count, _ in sized if count is not None)
    left = keys - known
    if left < 0 or (left > 0) != any(count is None for _, count, _ in sized):
        told = " + ".join(f"{row.name} {'the rest' if count is None else count}" for row, count, _ in sized)
        raise InvalidInput(
            f"{name} reads {keys} keys, but its groups add up to {known} ({told}); make them cover the keys in order, {_leave()}"
        )
    groups, start = [], 0
    for row, count, grid in sized:
        stop = start + (left if count is None else count)
        groups.append(TokenGroup(name=row.name, role=row.role, start=start, stop=stop, specials=row.specials, grid=grid, image=row.image))
        start = stop
    return tuple(groups)


def _measure(name: str, row: Tokens, canvas: Grid | None) -> tuple[int | None, Grid | None]:
    """How many tokens a row has, None being what is left, and their rows and columns."""
    if row.grid is not None or not row.shared:
        return row.count, row.grid
    if canvas is None:
        raise InvalidInput(
            f"groups: {row.name} is as large as the grid of {name}, but no enclosing module sees an image; "
            f'say its rows and columns: grid={{"{name}": (rows, columns)}}'
        )
    shares = row.rows or WHOLE, row.columns or WHOLE
    sides = [share * length for share, length in zip(shares, canvas, strict=True)]
    grid = round(sides[0]), round(sides[1])
    if max(abs(side - whole) for side, whole in zip(sides, grid, strict=True)) > NEAR or min(grid) < 1:
        raise InvalidInput(
            f"groups: {row.name} would have {sides[0]:g} x {sides[1]:g} of the {canvas[0]} x {canvas[1]} places of {name}; say its grid"
        )
    return grid[0] * grid[1] + row.specials, grid


def declared_queries(name: str, groups: Sequence[TokenGroup], positions: int, keys: int, canvas: Grid | None) -> tuple[slice, Grid]:
    """Which queries of a call are places of the generated image, and their rows and columns.

    Raises   InvalidInput if that cannot be told
    """
    own = next((group for group in groups if group.role == "self"), None)
    grid = canvas if own is None or own.grid is None else own.grid
    asked = slice(0, positions)
    if own is not None:
        places = slice(own.start + own.specials, own.stop)
        asked = places if positions == keys else slice(0, places.stop - places.start) if positions == own.tokens else asked
    if grid is None or prod(grid) != asked.stop - asked.start:
        seen = "no enclosing module sees an image" if canvas is None else f"the image around it has {canvas[0]} x {canvas[1]}"
        raise InvalidInput(
            f"{name} asks from {positions} positions, but {seen}{'' if own is None else f' and group self {own.tokens} tokens'}; "
            f'say the rows and columns of the image being made: grid={{"{name}": (rows, columns)}}, {_leave()}'
        )
    return asked, grid


def panels(name: str, rows: Sequence[Tokens], keys: int, canvas: Grid | None) -> tuple[int, ...]:
    """The order that brings panels, which stand beside each other in every row of one grid, one after another; empty if there are none.

    Raises   InvalidInput if they are not panels of one grid
    """
    shares = [row.columns or WHOLE for row in rows]
    if canvas is None or min(shares) == WHOLE:
        return ()
    height, width = canvas
    ends = [0]
    for share in shares:
        ends.append(ends[-1] + round(share * width))
    if ends[-1] != width or keys != height * width or any(row.specials or (row.rows or WHOLE) != WHOLE or row.count for row in rows):
        told = ", ".join(f"{row.name} {share:g}" for row, share in zip(rows, shares, strict=True))
        raise InvalidInput(f"groups: the panels of {name} ({told}) do not make up its {height} x {width} places side by side")
    return tuple(y * width + x for left, right in pairwise(ends) for y in range(height) for x in range(left, right))
