"""Each method of the literature step by step, as plain float64 loops over P and G: what `test_recipes.py` holds the rows to.

Nothing here comes from the analyzer: resampling is written out, and attention is worked out from q and k, or read from the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from i2am.schema.codec import decode_probability, encode_probability
from i2am.schema.trace import Layer
from traces import Synthetic, reference_layer, synthetic_trace

LATENT = (16, 12)
LAYERS = (
    reference_layer("down_blocks.0.attn2", (8, 6), heads=2, text=5),
    reference_layer("down_blocks.1.attn2", (16, 12), heads=3, text=5),
    reference_layer("down_blocks.2.attn2", (4, 3), heads=2, text=5, reference=(2, 3)),
    reference_layer("mid_block.attn2", (2, 2), heads=2, text=5),
    reference_layer("up_blocks.0.attn2", (4, 3), heads=3, text=5),
)
ABSENT = {(1, 1), (2, 0), (0, 3)}
MIDDLE = ("*mid_block*", "*middle_block*", "*bottleneck*")

Values = np.ndarray
Keep = tuple[str, ...]


@dataclass
class Calls:
    """One layer's calls of one sample and branch, as the trace keeps them: (step, head, y, x, token), NaN where absent."""

    layer: Layer
    P: Values
    G: Values

    @property
    def steps(self) -> list[int]:
        return [step for step in range(len(self.P)) if not np.isnan(self.P[step]).any()]

    def tokens(self, name: str) -> slice:
        group = next(g for g in self.layer.groups if g.name == name)
        return slice(group.start, group.stop)

    def placed(self, name: str = "reference") -> tuple[slice, tuple[int, int]]:
        """Tokens with a place, and their grid."""
        group = next(g for g in self.layer.groups if g.name == name)
        assert group.grid is not None
        return slice(group.start + group.specials, group.stop), group.grid


def method_trace(path: Path, encoding: str, **options: Any) -> Synthetic:
    """Grids, heads and reference grids that differ by layer, two branches, calls that are absent."""
    given = {"layers": LAYERS, "steps": 3, "branches": ("cond", "uncond"), "latent_grid": LATENT, "absent": ABSENT, **options}
    return synthetic_trace(path, encoding=encoding, image_size=(32, 24), reference_size=(12, 20), sharpness=2.0, **given)


def synthetic_calls(made: Synthetic, branch: int = 0) -> list[Calls]:
    """S from q and k, then both softmaxes; with stored probabilities, what float16 leaves of them."""
    found = []
    for index, layer in enumerate(made.trace.layers):
        scores = layer.scale * np.einsum("thyxc,thrc->thyxr", *(v[index][0, branch].astype(np.float64) for v in (made.query, made.key)))
        scores[np.isnan(made.scores[index][0, branch]).any((1, 2, 3, 4))] = np.nan
        a, b = lse(scores, -1), lse(scores, (-3, -2))
        P, G = np.exp(scores - a), np.exp(scores - b)
        if layer.encoding == "probabilities":
            P = decode_probability(encode_probability(P)).astype(np.float64)
            G = P * np.exp(a.astype(np.float32).astype(np.float64) - b.astype(np.float32))
        found.append(Calls(layer, P, G))
    return found


def stored_calls(path: Path, layers: Sequence[Layer]) -> list[Calls]:
    """What the files of a trace with factors say of its first sample and branch, read with xarray alone."""
    found = []
    for index, layer in enumerate(layers):
        stored = xr.open_zarr(path, group=f"layers/{index:03d}").isel(sample=0, branch=0)
        query, key = stored["query"].values.astype(np.float64), stored["key"].values[stored["key_step"].values].astype(np.float64)
        scores = layer.scale * np.einsum("thyxc,thrc->thyxr", query, key, optimize=True)
        found.append(Calls(layer, np.exp(scores - lse(scores, -1)), np.exp(scores - lse(scores, (-3, -2)))))
    return found


def lse(scores: Values, axes: Any) -> Values:
    top = scores.max(axes, keepdims=True)
    return top + np.log(np.exp(scores - top).sum(axes, keepdims=True))


# Resampling


def cubic(distance: float) -> float:
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def axis_matrix(source: int, target: int, mode: str) -> Values:
    matrix = np.zeros((target, source))
    for i in range(target):
        if mode == "nearest":
            matrix[i, min(int(np.float32(i) * np.float32(source / target)), source - 1)] = 1
            continue
        centre = (i + 0.5) * source / target - 0.5
        centre = max(centre, 0.0) if mode == "bilinear" else centre
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weight = cubic(centre - j) if mode == "bicubic" else max(0.0, 1 - abs(centre - j))
            matrix[i, min(max(j, 0), source - 1)] += weight
    return matrix


def resample(maps: Values, size: tuple[int, int], mode: str) -> Values:
    if maps.shape[-2:] == size:
        return maps
    down, across = (axis_matrix(n, m, mode) for n, m in zip(maps.shape[-2:], size, strict=True))
    return np.einsum("iy,...yx,jx->...ij", down, maps, across)


def skipped(calls: Calls, globs: Sequence[str] = MIDDLE) -> bool:
    return any(fnmatchcase(calls.layer.name, glob) for glob in globs)


def factor(calls: Calls, latent: tuple[int, int]) -> int:
    return round(max(latent[0] / calls.layer.grid[0], latent[1] / calls.layer.grid[1]))


def largest(layers: Sequence[Calls]) -> tuple[int, int]:
    return max((calls.layer.grid for calls in layers), key=math.prod)


# Maps on the generated image: (token, ...) columns of one group, chosen by `pick`

Pick = Callable[[Calls], Any]


def i2am(layers: Sequence[Calls], pick: Pick, latent: tuple[int, int]) -> Values:
    """Mean over tokens, bicubic, clamp, sum over steps, mean over (layer, head)."""
    pairs = []
    for calls in layers:
        for head in range(calls.layer.heads):
            total = np.zeros(latent)
            for step in calls.steps:
                total += np.maximum(resample(calls.G[step, head][..., pick(calls)].mean(-1), latent, "bicubic"), 0)
            pairs.append(total)
    return np.mean(pairs, 0)


def i2am_v1(layers: Sequence[Calls], pick: Pick, latent: tuple[int, int]) -> Values:
    """Eq. 4 to 7 as printed: the softmax runs over keys."""
    return i2am([Calls(calls.layer, calls.G, calls.P) for calls in layers], pick, latent)


def i2am_official(layers: Sequence[Calls], pick: Pick, latent: tuple[int, int]) -> Values:
    """Running sum over steps of every head's and token's map; bicubic to the latent, clamp; mean over (layer, head), then over tokens."""
    pairs = []
    for calls in (c for c in layers if not skipped(c)):
        for head in range(calls.layer.heads):
            total = sum(np.moveaxis(calls.G[step, head][..., pick(calls)], -1, 0) for step in calls.steps)
            pairs.append(np.maximum(resample(np.asarray(total), latent, "bicubic"), 0))
    return np.mean([pair.mean(0) for pair in pairs], 0)


def daam(
    layers: Sequence[Calls], pick: Pick, latent: tuple[int, int], pairs: dict[str, list[int]] | None = None, all_layers: bool = False
) -> Values:
    """Up and down blocks; sum over steps; bicubic to the largest, clamp; means over the word's pieces and over (layer, head)."""
    used = [c for c in layers if (not skipped(c) and factor(c, latent) != 8) or all_layers]
    used = [c for c in used if pairs is None or c.layer.name in pairs]
    to, maps = largest(used), []
    for calls in used:
        for head in range(calls.layer.heads):
            if pairs is None or head in pairs[calls.layer.name]:
                total = np.nansum(calls.P[:, head][..., pick(calls)], 0)
                maps.append(np.maximum(resample(np.moveaxis(total, -1, 0), to, "bicubic"), 0).mean(0))
    return np.mean(maps, 0)


def daam_released(layers: Sequence[Calls], pick: Pick, guided: bool) -> Values:
    """DAAM as its code runs a 512-pixel model at any size: factors of 64 x 64 alone; without guidance the second half of the heads."""
    maps = []
    for calls in layers:
        coarse = int(math.sqrt(4096 // math.prod(calls.layer.grid)))
        if coarse in (0, 1, 2, 4, 16, 32, 64) and not skipped(calls):
            for head in range(0 if guided else calls.layer.heads // 2, calls.layer.heads):
                total = np.nansum(calls.P[:, head][..., pick(calls)], 0)
                maps.append(np.maximum(resample(np.moveaxis(total, -1, 0), (64, 64), "bicubic"), 0).mean(0))
    return np.mean(maps, 0)


def attention_map_diffusers(layers: Sequence[Calls], pick: Pick, latent: tuple[int, int]) -> Values:
    """Sum over heads, bilinear to the first layer's size, mean over all (step, layer), then the mean over tokens."""
    to, total, number = layers[0].layer.grid, 0.0, 0
    for step in range(len(layers[0].P)):
        for calls in layers:
            if step in calls.steps:
                total = total + resample(np.moveaxis(calls.P[step][..., pick(calls)].sum(0), -1, 0), to, "bilinear").mean(0)
                number += 1
    return np.asarray(total / number)


def ovam(layers: Sequence[Calls], pick: Pick, latent: tuple[int, int]) -> Values:
    """Sum over steps, sum over heads, bilinear to the largest, sum over blocks; the mean over tokens is the word's."""
    used = [c for c in layers if not skipped(c)]
    to, total = largest(used), 0.0
    for calls in used:
        by_token = sum(calls.P[step][..., pick(calls)].sum(0) for step in calls.steps)
        total = total + resample(np.moveaxis(np.asarray(by_token), -1, 0), to, "bilinear").mean(0)
    return np.asarray(total)


def prompt_to_prompt(layers: Sequence[Calls], pick: Pick, latent: tuple[int, int]) -> Values:
    """The store's sum over steps divided by their number; up and down layers of one resolution; mean over (layer, head)."""
    maps = []
    for calls in (c for c in layers if not skipped(c) and factor(c, latent) == 4):
        assert len(calls.steps) == len(calls.P), "the store is indexed by call: none may be absent"
        store = sum(calls.P[step] for step in calls.steps) / len(calls.P)
        maps += [store[head][..., pick(calls)].mean(-1) for head in range(calls.layer.heads)]
    return np.mean(maps, 0)


# Maps on the reference


def g2r_i2am(layers: Sequence[Calls], weights: Values, direction: str = "P") -> Values:
    """Mean over positions, bicubic to the largest reference grid, clamp, sum over steps, mean over (layer, head)."""
    to, pairs = max((calls.placed()[1] for calls in layers), key=math.prod), []
    for calls in layers:
        tokens, grid = calls.placed()
        counts = resample(weights, calls.layer.grid, "nearest")[..., None]
        for head in range(calls.layer.heads):
            total = np.zeros(to)
            for step in calls.steps:
                row = (getattr(calls, direction)[step, head][..., tokens] * counts).mean((0, 1))
                total += np.maximum(resample(row.reshape(grid), to, "bicubic"), 0)
            pairs.append(total)
    return np.mean(pairs, 0)


def g2r_by_query(layers: Sequence[Calls], weights: Values, to: tuple[int, int]) -> Values:
    """CLS dropped after the softmax; sum over steps; every position's map bicubic, clamp; times the mask (Eq. 17); plain means."""
    pairs = []
    for calls in (c for c in layers if not skipped(c)):
        tokens, grid = calls.placed()
        mask = resample(weights, calls.layer.grid, "nearest")
        for head in range(calls.layer.heads):
            total = np.asarray(sum(calls.P[step, head][..., tokens] for step in calls.steps))
            maps = np.maximum(resample(total.reshape(*calls.layer.grid, *grid), to, "bicubic"), 0)
            pairs.append((maps * mask[..., None, None]).mean((0, 1)))
    return np.mean(pairs, 0)


def g2r_by_head(layers: Sequence[Calls], weights: Values, to: tuple[int, int]) -> Values:
    """By head, the hook lays the positions of all layers on one axis and takes their mean: a fine layer counts more than a coarse one."""
    used = [c for c in layers if not skipped(c)]
    maps = []
    for head in range(max(calls.layer.heads for calls in used)):
        laid = []
        for calls in (c for c in used if head < c.layer.heads):
            tokens, grid = calls.placed()
            total = np.asarray(sum(calls.P[step, head][..., tokens] for step in calls.steps)).reshape(-1, *grid)
            mask = resample(weights, calls.layer.grid, "nearest").reshape(-1, 1, 1)
            laid.append(np.maximum(resample(total, to, "bicubic"), 0) * mask)
        maps.append(np.concatenate(laid).mean(0))
    return np.stack(maps)


def sram_by_time(layers: Sequence[Calls], at: tuple[int, int], latent: tuple[int, int], to: tuple[int, int]) -> Values:
    """One position's row, CLS dropped, summed over steps, bicubic, clamp, mean over (layer, head)."""
    pairs = []
    for calls in (c for c in layers if not skipped(c)):
        tokens, grid = calls.placed()
        y, x = (int((at[i] + 0.5) * calls.layer.grid[i] / latent[i]) for i in (0, 1))
        for head in range(calls.layer.heads):
            total = np.asarray(sum(calls.P[step, head, y, x][tokens] for step in calls.steps))
            pairs.append(np.maximum(resample(total.reshape(grid), to, "bicubic"), 0))
    return np.mean(pairs, 0)


GENERATED: dict[str, Callable[..., Values]] = {
    "i2am": i2am,
    "i2am-v1": i2am_v1,
    "i2am-official": i2am_official,
    "i2am-official-pbe": i2am_official,
    "i2am-custom": i2am_official,
    "daam": daam,
    "attention-map-diffusers": attention_map_diffusers,
    "ovam": ovam,
    "prompt-to-prompt": prompt_to_prompt,
}


# Scores, as the hooks make them of a map


def hook_picture(map: Values, size: tuple[int, int], turned: bool) -> Values:
    """To its own range, bicubic to the image, to its own range again, turned over in the two CLS models; 0 up to 0.4."""
    scaled = resample((map - map.min()) / (map.max() - map.min() + 1e-8), size, "bicubic")
    scaled = (scaled - scaled.min()) / (scaled.max() - scaled.min() + 1e-8)
    shown = 1 - scaled if turned else scaled
    return shown * (shown > 0.4)


def hook_imacs(map: Values, mask: Values, turned: bool = False, hidden: bool = False) -> float:
    """Mean of the picture in the mask, less three times its mean elsewhere; `hidden` multiplies the map by the mask first."""
    inside = mask.astype(np.float64)
    shown = hook_picture(map * resample(inside, map.shape, "bicubic") if hidden else map, mask.shape, turned)  # type: ignore[arg-type]
    return float((shown * inside).sum() / inside.sum() - 3 * (shown * (1 - inside)).sum() / (1 - inside).sum())
