"""The order in which curves leave out cells: importance of each by G2R, attention as it is and weighted."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import InvalidInput, UnknownSelection
from ..maps.rollout import rollout
from ..methods.recipes import Weight
from ..trace.reader import open_trace
from .cells import ROLLOUT, Asked, to_cells

PLAIN: Final = "i2am"
"""The recipe of orders."""


def rank_cells(path: str, *, group: str, cells: tuple[int, int], sample: int, branch: str) -> dict[str, NDArray[np.float64]]:
    """How important each cell of a reference is by G2R, for each weight, and the rollout, that the trace has what is needed for.

    `path`    a trace
    `group`   token group of the reference
    `cells`   (rows, columns) that the reference is cut into
    `sample`  which generated image, from 0
    `branch`  guidance branch, cond or uncond; both is the recipe's own

    Dims     (cell_y, cell_x), by weight; larger is more important
    Raises   as `open_trace` and `g2r`
    """
    trace, found = open_trace(path), dict[str, NDArray[np.float64]]()
    asked = Asked(cells, {"group": group, "sample": sample, "branch": None if branch == "both" else branch})
    for weight in get_args(Weight):
        try:
            found[weight] = np.asarray(asked.g2r(trace, PLAIN, weight).values, np.float64)
        except UnknownSelection:
            if weight == "attention":
                raise
    with suppress(InvalidInput):  # self-attention was not recorded
        found[ROLLOUT] = np.asarray(to_cells(rollout(trace, **asked.options), cells).mean(("y", "x")).values, np.float64)
    return found
