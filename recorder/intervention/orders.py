"""Orders in which curves leave cells out: at random, by what each was found to change, and by maps of the trace."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import InvalidInput

GROUP: Final = "i2am.orders"
"""Entry points that rank the cells of a trace by its maps: function(path, group=, cells=, sample=, branch=) -> {order: importance}."""
SEED: Final = 0
"""Of the random order."""


def map_orders(trace: Path, group: str, cells: tuple[int, int], sample: int, branch: str) -> dict[str, NDArray[np.float64]]:
    """Importance of each cell by the maps that a trace gives; empty where nothing that ranks cells is installed.

    Dims     each (cell_y, cell_x)
    Raises   InvalidInput for a result of another shape; what the maps raise
    """
    found: dict[str, NDArray[np.float64]] = {}
    for entry in entry_points(group=GROUP):
        try:
            rank = entry.load()
        except ImportError:  # of what is not installed whole
            continue
        ranked: Mapping[str, NDArray[np.float64]] = rank(str(trace), group=group, cells=cells, sample=sample, branch=branch)
        found |= {name: np.asarray(values, np.float64) for name, values in ranked.items()}
    if odd := next((name for name, values in found.items() if values.shape != cells), None):
        raise InvalidInput(f"the order {odd} ranks {found[odd].shape} cells, expected {cells}; update what the entry point {GROUP} names")
    return found


def random_order(cells: tuple[int, int]) -> NDArray[np.float64]:
    """Importance of cells at random, the same each time.

    Dims     -> (cell_y, cell_x)
    """
    return np.random.default_rng(SEED).random(cells)
