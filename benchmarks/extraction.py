"""What the study needs of one recording, worked out once and kept beside it: every call's maps, and every recipe's.

Steps are thinned: maps of neighbouring steps hardly differ, and the study looks at fifths of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

from i2am.analyzer import g2r, looks, open_trace, r2g
from i2am.analyzer.inspection.truth import require_truth
from i2am.analyzer.maps.attribution import token_map
from i2am.analyzer.maps.looks import row_entropy
from i2am.analyzer.methods.recipes import RECIPES, get_recipe
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput

EVERY = ("time", "layer", "head")
FIFTHS = 5
CALLED = ("layer", "head")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one recording says, float32. Patches are those whose true place is known, n of them."""

    looks: np.ndarray
    """(fifth, layer, head, patch, cell): P of the patch over the reference's cells."""
    answers: np.ndarray
    """(layer, head, patch, y, x): G of the cell that the patch truly comes from; where that cell says it went."""
    shares: np.ndarray
    """(layer, head, patch, y, x): P of the same cell."""
    r2g: np.ndarray
    """(fifth, layer, head, y, x)."""
    g2r: np.ndarray
    """(fifth, layer, head, y, x), masked positions alone."""
    g2r_plain: np.ndarray
    """(y, x), all positions, all steps, layers and heads."""
    even: np.ndarray
    """(fifth, layer, head): evenness of rows."""
    place: np.ndarray
    """(patch, 2): row and column of the patch."""
    truth: np.ndarray
    """(patch, 2): its true place on the reference, in shares."""
    mask: np.ndarray
    reference_mask: np.ndarray
    image: np.ndarray
    """The generated image, in [0, 1]."""
    recipes_r2g: np.ndarray
    """(recipe, y, x), NaN where a recipe has none; in the order of RECIPES."""
    recipes_g2r: np.ndarray
    recipes_looks: np.ndarray
    """(recipe, patch, cell)."""
    recipes_answers: np.ndarray
    """(recipe, patch, y, x)."""
    layers: np.ndarray
    """Their names."""
    grids: np.ndarray
    """(layer, 2): rows and columns."""


def extract(path: Path, stride: int) -> Finding:
    """Read a recording, or what was made of it before."""
    kept = path.with_name(f"{path.stem}-{stride}.npz")
    if not kept.exists():
        found = _extract(open_trace(path), stride)
        part = kept.with_suffix(".part.npz")
        np.savez(part, **{field.name: getattr(found, field.name) for field in fields(found)})
        part.rename(kept)
    with np.load(kept) as arrays:
        return Finding(**{field.name: arrays[field.name] for field in fields(Finding)})


def _extract(trace: Trace, stride: int) -> Finding:
    steps = list(range(0, len(trace.present), stride))
    known = require_truth(trace)
    place, truth = np.argwhere(known.known), known.position[known.known]
    every = {"keep": EVERY, "time_groups": min(FIFTHS, len(steps)), "steps": steps}
    cells, inverse = np.unique(_cells(trace, truth), return_inverse=True)
    numbers = [int(cell) + _specials(trace) for cell in cells]
    lazy: dict[str, Any] = {
        "looks": looks(trace, **every),
        "r2g": r2g(trace, **every),
        "g2r": g2r(trace, query_mask="mask", **every),
        "plain": g2r(trace, steps=steps),
        "even": row_entropy(trace, **every),
        "answers": token_map(trace, numbers, group="reference", keep=(*CALLED, "token"), steps=steps, recipe="i2am"),
        "shares": token_map(trace, numbers, group="reference", keep=(*CALLED, "token"), steps=steps, recipe=get_recipe("i2am", r2g="keys")),
    }
    asked = {name: _ask_recipe(trace, name, numbers, steps) for name in RECIPES}
    found, made = dask.compute(lazy, asked)
    rows = found["looks"].values.reshape(*found["looks"].shape[:5], -1)
    return Finding(
        looks=np.moveaxis(rows, (3, 4), (0, 1))[place[:, 0], place[:, 1]].transpose(1, 2, 3, 0, 4).astype(np.float32),
        answers=found["answers"].values[:, :, inverse].astype(np.float32),
        shares=found["shares"].values[:, :, inverse].astype(np.float32),
        r2g=found["r2g"].values.astype(np.float32),
        g2r=found["g2r"].values.astype(np.float32),
        g2r_plain=found["plain"].values.astype(np.float32),
        even=found["even"].values.astype(np.float32),
        place=place,
        truth=truth,
        mask=trace.image("mask")[..., 0] > 127,
        reference_mask=trace.image("reference_mask")[..., 0] > 127,
        image=trace.image("generated_0").astype(np.float32) / 255,
        recipes_r2g=_gather(made, "r2g", lambda m: m.values),
        recipes_g2r=_gather(made, "g2r", lambda m: m.values),
        recipes_looks=_gather(made, "looks", lambda m: m.values[place[:, 0], place[:, 1]].reshape(len(place), -1)),
        recipes_answers=_gather(made, "answers", lambda m: m.values[inverse]),
        layers=np.array([layer.path.removeprefix("unet.").removesuffix(".transformer_blocks.0.attn2") for layer in trace.layers]),
        grids=np.array([layer.grid for layer in trace.layers]),
    )


def _ask_recipe(trace: Trace, name: str, numbers: list[int], steps: list[int]) -> dict[str, xr.DataArray]:
    """A recipe's maps; those it does not have are left out."""
    row = RECIPES[name]
    latent = {"steps": steps, "recipe": get_recipe(row, target="latent", reference_target="latent", sram_target="g2r")}
    found: dict[str, xr.DataArray] = {}
    ways: dict[str, Callable[[], xr.DataArray]] = {
        "r2g": lambda: r2g(trace, **latent),
        "answers": lambda: token_map(trace, numbers, group="reference", keep="token", **latent),
    }
    if row.g2r != "none":
        ways |= {"g2r": lambda: g2r(trace, query_mask="mask", **latent), "looks": lambda: looks(trace, **latent)}
    for what, ask in ways.items():
        try:
            found[what] = ask()
        except InvalidInput:  # no layer of the size it takes, or heads that somebody must choose
            continue
    return found


def _gather(made: dict[str, dict[str, xr.DataArray]], what: str, take: Callable[[xr.DataArray], np.ndarray]) -> np.ndarray:
    """One kind of map of every recipe, NaN where it has none."""
    values = {name: take(each[what]) for name, each in made.items() if what in each}
    blank = np.full(next(iter(values.values())).shape, np.nan)
    return np.stack([values.get(name, blank) for name in made]).astype(np.float32)


def _cells(trace: Trace, truth: np.ndarray) -> np.ndarray:
    """The reference's cell in which each true place lies."""
    rows, columns = _grid(trace)
    row, column = (np.clip((truth[:, i] * n).astype(int), 0, n - 1) for i, n in enumerate((rows, columns)))
    return np.asarray(row * columns + column)


def _grid(trace: Trace) -> tuple[int, int]:
    grid = trace.layers[0].groups[0].grid
    assert grid is not None  # the demo's tokens are patches
    return grid


def _specials(trace: Trace) -> int:
    return trace.layers[0].groups[0].specials
