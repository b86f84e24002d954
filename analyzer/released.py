"""The order of operations of I2AM's released code, where it differs from the paper's text.

It resamples and clamps every token's map, after its sum over steps, and only then takes the mean over tokens; and it shows, and
scores, the complement of R2G.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .attention import Calls
from .metrics import upsample
from .reader import Trace
from .recipes import Recipe
from .reduction import Graph, Keys, Lift, pick_patch
from .resize import resize
from .selection import Selection

Values = NDArray[Any]
EPSILON: Final = 1e-8
"""Keeps the released normalisation from dividing by 0."""


def average_tokens(
    calls: Calls, sample: int, branch: int, steps: tuple[int, ...], tokens: tuple[int, int], target: tuple[int, int], mode: str
) -> Values:
    """Task: one layer's R2G over some steps, each token's map resampled and clamped by itself.

    Dims     -> (head, y, x) on the latent grid, float64
    Source   the released code's hook: sum over steps, bicubic, clamp at 0, mean over tokens
    """
    whole = slice(None)
    total: Values | float = 0.0
    for step in steps:
        total = total + calls.region("generated", (sample, branch, step), whole, whole, whole)[..., slice(*tokens)].astype(np.float64)
    maps = np.moveaxis(np.asarray(total), -1, 1)  # (head, token, y, x)
    mean: Values = np.maximum(resize(maps, target, mode), 0).mean(1)
    return mean


def tasks_by_token(
    trace: Trace, chosen: Selection, row: Recipe, times: tuple[tuple[int, ...], ...], called: Keys, lifts: list[Lift], specials: bool
) -> tuple[tuple[dict[str, Graph], Keys], list[Lift]]:
    """Tasks that make one layer's finished map of one time group; they stand at the group's first called step."""
    graphs: dict[str, Graph] = {}
    keys: Keys = {}
    for index, tokens in zip(chosen.layers, chosen.groups, strict=True):
        stretch = (tokens.start if specials else tokens.start + tokens.specials, tokens.stop)
        name = f"i2am-token-{trace.token}-{row.name}-{index}-{chosen.sample}-{chosen.branch}-{stretch}-{times}"
        groups = [there for there in (tuple(s for s in group if s in called[index]) for group in times) if there]
        given = (Calls.of(trace, index), chosen.sample, chosen.branch)
        graphs[name] = {(name, s[0]): (average_tokens, *given, s, stretch, trace.latent_grid, row.resize) for s in groups}
        keys[index] = {steps[0]: (name, steps[0]) for steps in groups}
    finished = [Lift(pick_patch, (), lift.heads, 1, None, lift.target, lift.target, row.resize, False) for lift in lifts]
    return (graphs, keys), finished


def heatmap(values: xr.DataArray, shape: tuple[int, int], threshold: float = 0.4) -> xr.DataArray:
    """The picture that the released code draws and scores: normalised, upsampled, normalised; R2G inverted; cut at `threshold`.

    Dims     (row, column) -> `shape`
    Range    [0, 1]
    Source   the released code's hook; the paper mentions neither the complement nor the second normalisation
    """
    picture = _stretch(upsample(_stretch(values), shape))
    if values.attrs.get("direction") == "r2g":
        picture = 1 - picture
    return picture.where(picture > threshold, 0.0).assign_attrs(values.attrs)


def _stretch(values: xr.DataArray) -> xr.DataArray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low + EPSILON)
