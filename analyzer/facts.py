"""What a map says of itself: the attributes that name its trace, recipe, tokens, and the picture it lies on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any, Final, TypeAlias

from ..schema.errors import InvalidInput
from ..schema.trace import Image

Edges: TypeAlias = tuple[float, float, float, float]
PLACE: Final = ("image", "image_shape", "window")
"""Attributes that say which picture a map lies on, and on what part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFacts:
    """The attributes of a map; of a plain array, or of a map that lacks some, the defaults."""

    direction: str | None = None
    levels: str | None = None
    """Which axes are kept, as the paper abbreviates it."""
    recipe: str = "i2am"
    """Label of the recipe."""
    weight: str | None = None
    """What softmax values were multiplied by; None for attention as it is."""
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
    unproven: int | None = None
    """Layers of the map whose attention rests on trust or on samples; None if it was all compared with the model's own."""

    @classmethod
    def of(cls, map: object) -> MapFacts:
        """The facts of a map, whether it is fresh or was read from a file, or of any array."""
        attrs = getattr(map, "attrs", {})
        given = {name: attrs[name] for name in FIELDS if attrs.get(name) is not None}
        # Files give numbers back as numpy's, and tuples as lists or arrays.
        plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in given.items()}
        facts: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        return cls(**facts)

    @classmethod
    def of_placed(cls, map: object) -> MapFacts:
        """The facts of a map that is to be laid on its picture.

        Raises   InvalidInput for one of a reference that lost its attributes: what part it covers stands in no other place
        """
        if getattr(map, "dims", ())[-2:] == ("ref_y", "ref_x") and not getattr(map, "attrs", None):
            raise InvalidInput(
                "the map lost its attributes, which say what part of the reference it covers; keep them: "
                "xarray.set_options(keep_attrs=True) before the operation, or map.assign_attrs(original.attrs) after it"
            )
        return cls.of(map)

    @property
    def on_reference(self) -> bool:
        """Whether the map lies on the reference."""
        return self.direction in ("g2r", "sram")

    def to_attrs(self) -> dict[str, Any]:
        """The facts as attributes of a map: text, numbers and tuples of them, as every file format takes."""
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not None}


FIELDS: Final = tuple(field.name for field in dataclasses.fields(MapFacts))


def picture_facts(image: Image | None) -> dict[str, Any]:
    """The facts that say which picture a map lies on."""
    if image is None:
        return {}
    found = {"image": image.name, "image_shape": (image.height, image.width), "window": image.window}
    return {name: value for name, value in found.items() if value is not None}


def plain_attrs(facts: Mapping[Any, Any]) -> dict[str, Any]:
    """Facts as attributes that netCDF and Zarr both hold: None goes, tuples of numbers become lists, other tuples and records JSON text."""

    def plain(value: Any) -> Any:
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
            return list(value)
        return value if isinstance(value, (str, Number)) else json.dumps(value)

    return {str(name): plain(value) for name, value in facts.items() if value is not None}
