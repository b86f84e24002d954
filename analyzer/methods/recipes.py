"""Recipes: published attribution methods as rows of one table, any field of which can be changed in the call.

    r2g(trace, recipe="i2am-official")
    r2g(trace, recipe=recipe("i2am-official", resize="bilinear", skip=""))

A map is made in this order: softmax, times the weight; sums or means over tokens (R2G) or positions (G2R), steps, heads; resampling of
each layer, where `before` says which of these came first; the rest of them; layers. Then the picture: mask, scale, upsample, scale,
invert, cut.
`docs/methods.md` shows the rows side by side.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from ...schema.errors import InvalidInput
from ...schema.messages import guess
from ...schema.trace import Softmax
from ..numerics.resize import MODES

Reduction: TypeAlias = Literal["sum", "mean"]
Axis: TypeAlias = Literal["token", "query", "time", "head"]
Scaling: TypeAlias = Literal["none", "minmax", "max"]
Grid: TypeAlias = str | tuple[int, int]
Weight: TypeAlias = Literal["attention", "norm", "contribution", "knock-out"]

GRIDS: Final = ("latent", "largest", "first", "image")
TARGETS: Final = ("target", "reference_target", "sram_target")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One method."""

    name: str
    source: str
    r2g: Softmax = "generated"
    """Axis of the softmax under R2G and maps of tokens, which lie on the generated image."""
    g2r: Softmax | Literal["none"] = "keys"
    """Axis of the softmax under G2R and SRAM, which lie on the reference; `none`: the method has no such maps."""
    weight: Weight = "attention"
    """What every softmax value is multiplied by before any sum: 1, or what values say that its token gives (docs/influence.md)."""
    branch: str = "cond"
    """Guidance branch that is taken where the caller names none."""
    skip: str = ""
    """Globs, with commas between, of layers that are left out where the caller names none."""
    reference_layers: str = ""
    """Glob of the only layers that G2R and SRAM take where the caller names none; of no effect where the trace has none of these."""
    factors: tuple[int, ...] = ()
    """Only layers whose grid is this many times coarser than the latent's, where the caller names none; empty is all."""
    choose_heads: bool = False
    """Whether the method is nothing without a choice of heads."""
    specials: bool = True
    """Whether tokens without a place (CLS) count in R2G; they never do in G2R and SRAM, which show places."""
    renormalize: bool = False
    """Whether the softmax over keys runs over the tokens that count alone, as if the others had been dropped before it."""
    padding: bool = True
    """Whether the padding of a probe's text counts in the softmax over its tokens."""
    query_mask: bool = False
    """Whether G2R counts positions by the trace's mask of the generated image where the caller gives none (v1, Eq. 17)."""
    tokens: Reduction = "mean"
    queries: Reduction = "mean"
    pool_positions: bool = False
    """Whether G2R that keeps heads and not layers takes its mean over the positions of all layers together: a layer counts by its size."""
    time: Reduction = "sum"
    time_groups: Reduction = "sum"
    """Over the steps of one group, where time is kept."""
    shared_ends: bool = False
    """Whether a time group also holds the first step of the next one, so that neighbours overlap (v1, Eq. 10)."""
    heads: Reduction = "mean"
    layers: Reduction = "mean"
    """Means are pooled: over all (step, layer, head) that the reductions say `mean` of; a layer counts as often as it has heads."""
    before: tuple[Axis, ...] = ("token", "query")
    """What is reduced before resampling. It matters for `clamp` alone: resampling is linear."""
    resize: str = "bicubic"
    """How a layer's map is brought to the common grid; a map that is on it is left as it is."""
    clamp: bool = True
    """Whether what resampling brings under 0 is set to 0."""
    target: Grid = "latent"
    """Common grid on the generated image: `latent`, the `largest` or `first` selected layer's, the `image`'s, or (rows, columns)."""
    reference_target: Grid = "largest"
    """Common grid on the reference, likewise."""
    sram_target: Grid = "g2r"
    """Common grid of SRAM, likewise; `g2r` is that of G2R."""
    pre_mask: bool = False
    """Whether the reference's mask multiplies G2R before the picture is scaled."""
    scale_before: Scaling = "none"
    upsample: str = "bicubic"
    scale_after: Scaling = "minmax"
    invert: bool = False
    """Whether the picture of R2G shows the complement."""
    threshold: float = 0.0
    """Numbers of the picture up to this become 0."""

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            value = getattr(self, field)
            if not isinstance(value, str) or value not in allowed:
                raise InvalidInput(f"recipe {self.name}: {field} is {value!r}; expected {', '.join(allowed)}")
        for field in FLAGS:
            _require(self, field, isinstance(getattr(self, field), bool), "True or False")
        for field in ("skip", "reference_layers", "branch"):
            _require(self, field, isinstance(getattr(self, field), str), "text")
        for field in TARGETS:
            names = (*GRIDS, "g2r") if field == "sram_target" else GRIDS
            _require(self, field, _is_grid(getattr(self, field), names), f"{', '.join(names)} or (rows, columns)")
        before = isinstance(self.before, tuple) and set(self.before) <= set(get_args(Axis))
        _require(self, "before", before, f"a tuple of {', '.join(get_args(Axis))}")
        factors = isinstance(self.factors, tuple) and all(type(n) is int and n > 0 for n in self.factors)
        _require(self, "factors", factors, "a tuple of positive whole numbers")
        _require(self, "threshold", type(self.threshold) in (int, float) and 0 <= self.threshold < 1, "0 <= threshold < 1")

    @property
    def label(self) -> str:
        """The name and, of a row that was changed, what was: `get_recipe(label)` gives the same row."""
        known = RECIPES.get(self.name)
        changed = {f: getattr(self, f) for f in FIELDS if known and getattr(self, f) != getattr(known, f)}
        return f"{self.name}({', '.join(f'{f}={write(value)}' for f, value in changed.items())})" if changed else self.name


FIELDS: Final = tuple(f.name for f in dataclasses.fields(Recipe) if f.name not in ("name", "source"))
"""What can be changed in a row."""

FLAGS: Final = tuple(f.name for f in dataclasses.fields(Recipe) if isinstance(f.default, bool))
CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "r2g": get_args(Softmax),
    "g2r": (*get_args(Softmax), "none"),
    "weight": get_args(Weight),
    **dict.fromkeys(("tokens", "queries", "time", "time_groups", "heads", "layers"), get_args(Reduction)),
    **dict.fromkeys(("resize", "upsample"), MODES),
    **dict.fromkeys(("scale_before", "scale_after"), get_args(Scaling)),
}


def _require(row: Recipe, field: str, holds: bool, expected: str) -> None:
    if not holds:
        raise InvalidInput(f"recipe {row.name}: {field} is {getattr(row, field)!r}; expected {expected}")


def _is_grid(value: Any, names: tuple[str, ...]) -> bool:
    pair = isinstance(value, tuple) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
    return pair or (isinstance(value, str) and value in names)


MIDDLE: Final = "*mid_block*,*middle_block*,*bottleneck*"
# fmt: off
OFFICIAL: Final = Recipe(
    name="i2am-official", source="hook of the StableVITON repository",
    skip=f"{MIDDLE},*warp_flow_blks*", reference_layers="*warp_flow_blks.4.*", before=("time",),
    pre_mask=True, scale_before="minmax", invert=True, threshold=0.4,
)
DAAM: Final = Recipe(
    name="daam", source="Tang et al., ACL 2023; repository castorini/daam",
    r2g="keys", g2r="none", skip=MIDDLE, factors=(1, 2, 4), before=("time",), target="largest",
)
RECIPES: Final = {
    row.name: row
    for row in (
        Recipe(name="i2am", source="Park et al., ICLR 2025; axes as in the released code", threshold=0.4),
        # Taken literally, v1's mean runs over the very axis of its softmax: R2G is 1/R and G2R is 1/HW everywhere. For comparison only.
        Recipe(
            name="i2am-v1", source="Park et al. 2024, arXiv v1, Eq. 4, 10 and 12 as printed; R2G and G2R are constant",
            r2g="keys", g2r="generated", shared_ends=True, threshold=0.4,
        ),
        OFFICIAL,
        # One key, the CLS token, which has no place: what there is on the reference is one number.
        dataclasses.replace(
            OFFICIAL, name="i2am-official-pbe", source="hook of the Paint-by-Example repository",
            skip=MIDDLE, reference_layers="", time_groups="mean", pre_mask=False,
        ),
        dataclasses.replace(
            OFFICIAL, name="i2am-custom", source="the author's patch-level try-on code (VITON-v1)",
            skip=MIDDLE, reference_layers="", query_mask=True, pool_positions=True, reference_target="latent", sram_target="largest",
            pre_mask=False, invert=False,
        ),
        DAAM,
        Recipe(
            name="attention-map-diffusers", source="repository wooyeolbaek/attention-map-diffusers",
            r2g="keys", g2r="none", time="mean", time_groups="mean", heads="sum", before=("head",),
            resize="bilinear", clamp=False, target="first", scale_after="none", upsample="bilinear",
        ),
        Recipe(
            name="ovam", source="Marcos-Manchon et al., CVPR 2024; repository vpulab/ovam",
            r2g="keys", g2r="none", branch="uncond", skip=MIDDLE, padding=False, heads="sum", layers="sum", before=("time", "head"),
            resize="bilinear", clamp=False, target="largest", upsample="bilinear",
        ),
        Recipe(
            name="prompt-to-prompt", source="Hertz et al., ICLR 2023; aggregate_attention at a quarter of the latent, up and down blocks",
            r2g="keys", g2r="none", skip=MIDDLE, factors=(4,), time="mean", time_groups="mean", before=("time", "head"),
            resize="nearest", clamp=False, target="largest", scale_before="max", scale_after="none",
        ),
        dataclasses.replace(
            DAAM, name="hrv-selective", source="Park et al. 2026, arXiv 2604.05906: DAAM over the heads that matter most",
            skip="", factors=(), choose_heads=True,
        ),
    )
}
# fmt: on
"""Recipes by name; `get_recipe` changes fields of one."""


def get_recipe(row: str | Recipe, /, *, weight: Weight | None = None, **changes: Any) -> Recipe:
    """The row of that name or label, or the row itself, with the fields that are named changed; a weight of None is the row's own.

    Raises   InvalidInput listing what there is, for a recipe, a field or a value that is not
    """
    changes |= {} if weight is None else {"weight": weight}
    _require_fields(changes)
    if isinstance(row, Recipe):
        return dataclasses.replace(row, **changes)
    if not isinstance(row, str):
        raise InvalidInput(f"there is no recipe {row!r}; there are {', '.join(RECIPES)}")
    name, _, written = row.removesuffix(")").partition("(")
    if name not in RECIPES:
        raise InvalidInput(f"there is no recipe {row!r}; {guess(name, RECIPES)}there are {', '.join(RECIPES)}")
    written_changes = read_changes(written.split(", ")) if written else {}
    return dataclasses.replace(RECIPES[name], **(written_changes | changes))


def read_changes(texts: Iterable[str]) -> dict[str, Any]:
    """Changes of fields that are written `field=value`: `resize=bilinear`, `clamp=no`, `target=64x64`, `factors=1+2`.

    Raises   InvalidInput for what is not written so, or names no field
    """
    changes: dict[str, Any] = {}
    for text in texts:
        field, sign, value = text.partition("=")
        if not sign:
            raise InvalidInput(f"{text!r} changes nothing; write field=value, such as resize=bilinear")
        _require_fields([field])
        changes[field] = _read(field, value)
    return changes


def _require_fields(names: Iterable[str]) -> None:
    if unknown := [name for name in names if name not in FIELDS]:
        raise InvalidInput(f"a recipe has no field {unknown[0]!r}; {guess(unknown[0], FIELDS)}it has {', '.join(FIELDS)}")


def write(value: Any) -> str:
    """A field's value as `read_changes` reads it."""
    if isinstance(value, tuple):
        # Two numbers are rows x columns or two factors; both are read back by the field they stand in.
        return "+".join(map(str, value))
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _read(field: str, text: str) -> Any:
    default = getattr(RECIPES["i2am"], field)
    try:
        if isinstance(default, bool):
            return {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
        if isinstance(default, float):
            return float(text)
        parts = [part.strip() for part in re.split(r"[+,x]" if field in TARGETS else "[+,]", text) if part.strip()]
        if field == "factors" or (field in TARGETS and all(part.isdecimal() for part in parts)):
            return tuple(int(part) for part in parts)
        return tuple(parts) if isinstance(default, tuple) else text
    except (ValueError, KeyError):
        expected = "yes or no" if isinstance(default, bool) else "a number" if isinstance(default, float) else "whole numbers"
        raise InvalidInput(f"{text!r} is no value of the field {field}; expected {expected}") from None
