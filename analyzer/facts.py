"""What a map says of itself: the attributes that name its trace, recipe, tokens, and the picture it lies on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ..schema.trace import Image

Edges: TypeAlias = tuple[float, float, float, float]
ALWAYS: Final = ("image", "image_shape", "window")
"""Attributes that every map has, None where it lies on no picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFacts:
    """The attributes of a map; of a plain array, or of a map that lacks some, the defaults."""

    direction: str | None = None
    levels: str | None = None
    """Which axes are kept, as the paper abbreviates it."""
    recipe: str = "i2am"
    """Label of the recipe."""
    trace: str | None = None
    group: str | None = None
    """Token group, or probe."""
    sample: int = 0
    branch: str | None = None
    heads: str | None = None
    """The heads, if they were picked layer by layer: `3:0,2 7:1`."""
    calls: int | None = None
    image: str | None = None
    """Name of the picture that the map lies on."""
    image_shape: tuple[int, int] | None = None
    """(height, width) of that picture."""
    window: Edges | None = None
    """(top, left, bottom, right) of what the map covers of it, in pixels; None is all of it."""
    column_mass_lost: float | None = None
    """What the encoding took from one column of G at worst; None for maps that do not depend on it."""

    @classmethod
    def of(cls, map: object) -> MapFacts:
        """The facts of a map, or of any array."""
        attrs = getattr(map, "attrs", {})
        return cls(**{name: attrs[name] for name in FIELDS if attrs.get(name) is not None})

    @property
    def on_reference(self) -> bool:
        """Whether the map lies on the reference."""
        return self.direction in ("g2r", "sram")

    def to_attrs(self) -> dict[str, Any]:
        """The facts as attributes of a map."""
        found = {name: getattr(self, name) for name in FIELDS}
        return {name: value for name, value in found.items() if value is not None or name in ALWAYS}


FIELDS: Final = tuple(field.name for field in dataclasses.fields(MapFacts))


def picture_facts(image: Image | None) -> dict[str, Any]:
    """The facts that say which picture a map lies on."""
    if image is None:
        return dict.fromkeys(ALWAYS)
    return {"image": image.name, "image_shape": (image.height, image.width), "window": image.window}
