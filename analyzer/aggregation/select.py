"""Which calls a map is made of, as a caller says it: the keyword arguments that map functions share, and the record of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        """Those of a map's keyword arguments that select calls."""
        return cls(**{name: options[name] for name in SelectOptions.__annotations__ if name in options})


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
