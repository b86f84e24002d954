"""Methods of the literature as rows: what each fixes that others do otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from ..schema.errors import InvalidInput

Softmax: TypeAlias = Literal["generated", "keys"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One method. Both sum over time and take the mean over (layer, head) pairs."""

    name: str
    r2g: Softmax
    """Axis of the softmax under R2G, the map on the generated image."""
    g2r: Softmax
    """Axis of the softmax under G2R and SRAM, the maps on the reference."""
    resize: str
    """How a layer's map is brought to the common grid."""
    clamp: bool
    """Whether what resampling brings under 0 is set to 0. Done for each call's map, so that every sum after it is linear."""
    source: str
    by_token: bool = False
    """Whether R2G resamples and clamps each token's map, after its sum over steps, before the mean over tokens."""
    skip: str = ""
    """Glob of the layers that are left out where the caller names none."""


RECIPES: Final = {
    row.name: row
    for row in (
        Recipe("i2am", "generated", "keys", "bicubic", True, "Park et al., ICLR 2025; axes as in the released code"),
        # Taken literally, v1's mean runs over the very axis of its softmax: R2G is 1/R and G2R is 1/HW everywhere. For comparison only.
        Recipe(
            "i2am-v1", "keys", "generated", "bicubic", True, "Park et al. 2024, arXiv v1, Eq. 4 and 12 as printed; R2G and G2R are constant"
        ),
        # Where all references have one grid, G2R needs no resampling and is that of `i2am`.
        Recipe("i2am-official", "generated", "keys", "bicubic", True, "the released code's hook; no middle block", True, "*mid*block*"),
    )
}


def recipe(name: str) -> Recipe:
    """The row of that name.

    Raises   InvalidInput listing the names there are
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise InvalidInput(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]
