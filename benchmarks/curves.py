"""Deletion and insertion curves of the demo model: cells dropped in the order of a map, or all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from effects import cell_tokens, drop_tokens

from i2am.analyzer import get_recipe
from i2am.analyzer.intervention.cells import Asked
from i2am.analyzer.trace.reader import Trace
from i2am.recorder.demo.pairs import HELD_OUT, draw_pair
from i2am.recorder.demo.pipeline import TryOnPipeline
from i2am.schema.experiments.effects import SHARES

MAPS: Final[tuple[tuple[str, Any, bool], ...]] = (
    ("attention", "attention", False),
    ("attention, painted positions", "attention", True),
    ("norm, painted positions", "norm", True),
    ("knock-out, painted positions", "knock-out", True),
)


def curves_of(pipeline: TryOnPipeline, folder: Path, index: int, steps: int, trace: Trace, effects: xr.Dataset) -> xr.Dataset:
    """Curves of one pair, measured where they are not there yet.

    Dims     deletion, insertion (order, share, y, x)
    """
    cells = effects.sizes["cell_y"]
    kept = folder / f"{index:03d}-{steps}-{cells}.curves.npz"
    if not kept.exists():
        part = kept.with_suffix(".part.npz")
        np.savez(part, **_measure(pipeline, index, steps, _orders(trace, effects), cells))
        part.rename(kept)
    with np.load(kept) as arrays:
        dims = ("order", "share", "y", "x")
        coords = {"order": arrays["orders"].tolist(), "share": list(SHARES)}
        return xr.Dataset({name: (dims, arrays[name]) for name in ("deletion", "insertion")}, coords)


def _orders(trace: Trace, effects: xr.Dataset) -> dict[str, np.ndarray]:
    """Importance of each cell: by chance, by each map, and by what dropping it alone changes."""
    asked = Asked.of(effects.assign_attrs(group="reference"))
    shape = (effects.sizes["cell_y"], effects.sizes["cell_x"])
    found = {"random": np.random.default_rng(0).random(shape)}
    for name, weight, masked in MAPS:
        found[name] = asked.g2r(trace, get_recipe("i2am", query_mask=masked), weight).values
    return {**found, "measured, cell by cell": effects["effect"].mean(("y", "x")).values}


def _measure(pipeline: TryOnPipeline, index: int, steps: int, orders: dict[str, np.ndarray], cells: int) -> dict[str, np.ndarray]:
    side = pipeline.size // pipeline.block
    first: list[list[tuple[int, int]]] = []
    for values in orders.values():
        ranked = [divmod(int(cell), cells) for cell in np.argsort(-values.ravel(), kind="stable")]
        first += [ranked[: max(1, round(share * len(ranked)))] for share in SHARES]
    every = {(row, column) for row in range(cells) for column in range(cells)}
    trials = [cell_tokens(pipeline, some, cells) for some in first] + [cell_tokens(pipeline, every - {*some}, cells) for some in first]
    found = np.stack(list(drop_tokens(pipeline, draw_pair(HELD_OUT + index, pipeline.size), steps, trials, (side, side))))
    deletion, insertion = found.reshape(2, len(orders), len(SHARES), side, side)
    return {"deletion": deletion, "insertion": insertion, "orders": np.array(list(orders))}
