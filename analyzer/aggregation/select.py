"""Which calls a map is made of, as a caller says it: the keyword arguments that map functions share, and the record of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

from ...schema.selection import Layers, Selector
from ...schema.selection import Positions as Positions
from ..methods.recipes import Recipe

Heads: TypeAlias = Positions | Mapping[Selector, Positions]
"""Heads by the model's numbers: the same in each layer, or those of each layer that is named, and no other layer."""


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
