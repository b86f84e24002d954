"""Maps as plain float64 loops over what is stored: what `test_attribution.py` and `test_selection.py` hold the analyzer to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from i2am.analyzer import g2r, r2g, sram
from i2am.analyzer.numerics.resize import resize
from i2am.analyzer.trace.reader import Trace
from i2am.schema.codec import decode_probability, encode_probability
from i2am.schema.trace import TokenGroup
from traces import Synthetic, reference_layer, synthetic_trace

LATENT = (8, 6)
LAYERS = (
    reference_layer("down.attn2", (8, 6), heads=2, text=4),
    reference_layer("mid.attn2", (4, 3), heads=3),
    reference_layer("up.attn2", (8, 6), heads=2, reference=(2, 3), specials=0),
    reference_layer("up.attn2", (8, 6), heads=2, call=1, reference=None, text=5),
)
AXES = ("time", "layer", "head")
KEEPS = [tuple(a for a, k in zip(AXES, bits, strict=True) if k) for bits in np.ndindex(2, 2, 2)]
DIRECTIONS = ("r2g", "g2r", "sram")
AT = (5, 4)
Weigh = Callable[[np.ndarray, Synthetic, int, tuple[int, int, int]], np.ndarray]
"""What P of a call (head, y, x, token) is multiplied by, from P, the trace, the layer and (sample, branch, step)."""


def attribution_trace(path: Path, encoding: str) -> Synthetic:
    """Grids, heads, token groups and reference grids that differ by layer; several samples and branches; keys that change."""
    return synthetic_trace(
        path, layers=LAYERS, encoding=encoding, steps=4, samples=2, branches=("cond", "uncond"), latent_grid=LATENT, static_keys=False
    )


def softmaxes(made: Synthetic, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """P and G in float64, as exactly as the encoding keeps them."""
    if made.trace.layers[layer].encoding == "factors":
        return made.probabilities[layer], made.generated[layer]
    scores, exact = made.scores[layer], made.probabilities[layer]
    stored = decode_probability(encode_probability(exact)).astype(np.float64)
    with np.errstate(divide="ignore"):
        a = (scores - np.log(exact))[..., :1].astype(np.float32).astype(np.float64)
        b = (scores - np.log(made.generated[layer]))[:, :, :, :, :1, :1].astype(np.float32).astype(np.float64)
    return stored, stored * np.exp(a - b)


def call_map(
    made: Synthetic,
    direction: str,
    layer: int,
    at: tuple[int, int, int],
    group: TokenGroup,
    weights: np.ndarray,
    to: Any,
    weigh: Weigh | None = None,
    signed: bool = False,
) -> np.ndarray:
    """One call's maps on the common grid: (head, row, column)."""
    P, G = (softmax[at] for softmax in softmaxes(made, layer))
    if weigh is not None:
        P, G = (softmax * weigh(P, made, layer, at) for softmax in (P, G))
    grid = made.trace.layers[layer].grid
    if direction == "r2g":
        picture = G[..., group.start : group.stop].mean(-1)
    else:
        tokens = slice(group.start + group.specials, group.stop) if group.grid else slice(group.start, group.stop)
        if direction == "g2r":
            row = (P[..., tokens] * resize(weights, grid, "nearest")[:, :, None]).mean((1, 2))
        else:
            row = P[:, AT[0] * grid[0] // LATENT[0], AT[1] * grid[1] // LATENT[1], tokens]
        if group.grid is None:
            return row
        picture = row.reshape(-1, *group.grid)
    return resize(picture, to, "bicubic") if signed else np.maximum(resize(picture, to, "bicubic"), 0)


def oracle(
    made: Synthetic,
    direction: str,
    keep: Sequence[str] = (),
    groups: Sequence[Sequence[int]] | None = None,
    steps: Sequence[int] = (0, 1, 2, 3),
    layers: Sequence[int] = (0, 1, 2),
    heads: Sequence[int] = (0, 1, 2),
    at: tuple[int, int] = (0, 0),
    name: str = "reference",
    weights: np.ndarray | None = None,
    **weighed: Any,
) -> np.ndarray:
    """(time, layer, head) of maps, then means over pairs: sums over time, what is absent left out."""
    times = groups or ([[s] for s in steps] if "time" in keep else [list(steps)])
    to = LATENT if direction == "r2g" else (3, 5)
    cells: np.ndarray | None = None
    weights = np.ones(LATENT) if weights is None else weights
    for t, members in enumerate(times):
        for i, layer in enumerate(layers):
            group = next(g for g in made.trace.layers[layer].groups if g.name == name)
            for step in members:
                if np.isnan(made.scores[layer][(*at, step)]).any():
                    continue
                maps = call_map(made, direction, layer, (*at, step), group, weights, to, **weighed)
                if cells is None:
                    cells = np.full((len(times), len(layers), len(heads), *maps.shape[1:]), np.nan)
                for h, head in enumerate(heads):
                    if head < len(maps):
                        cells[t, i, h] = np.nan_to_num(cells[t, i, h]) + maps[head]
    assert cells is not None
    gone = tuple(i for i, axis in enumerate(AXES) if axis not in keep and axis != "time")
    count = (~np.isnan(cells)).sum(gone)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(cells, gone) / np.where(count, count, np.nan)
    return mean if "time" in keep else mean[0]


def ask(trace: Trace, direction: str, **options: Any) -> xr.DataArray:
    return sram(trace, AT, **options) if direction == "sram" else {"r2g": r2g, "g2r": g2r}[direction](trace, **options)


def assert_close(found: Any, truth: np.ndarray, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(found), truth, rtol=rtol, atol=rtol * np.nanmax(np.abs(truth)))
