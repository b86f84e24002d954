"""The order in which curves leave out cells: importance of each by G2R, attention as it is and weighted."""

from __future__ import annotations

from contextlib import suppress
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import InvalidInput, UnknownSelection
from ..methods.recipes import Weight, get_recipe
from ..trace.images import own_mask
from ..trace.reader import open_trace
from .cells import ROLLOUT, Asked
from .scores import patches_inside


def rank_cells(path: str, *, group: str, cells: tuple[int, int], sample: int, branch: str) -> dict[str, NDArray[np.float64]]:
    """How important each cell of a reference is by G2R of the trace's mask, or of all positions, for each weight that can be had.

    The rollout is among them where self-attention was recorded.

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
    row = get_recipe("i2am", query_mask=own_mask(trace, sample) is not None)
    for weight in get_args(Weight):
        try:
            found[weight] = np.asarray(asked.g2r(trace, row, weight).values, np.float64)
        except UnknownSelection:
            if weight == "attention":
                raise
    with suppress(InvalidInput):  # self-attention was not recorded
        *_, last = asked.rollouts(trace, patches_inside(trace, sample, trace.latent_grid)).values()  # that of the mask, if there is one
        found[ROLLOUT] = np.asarray(last["G2R"].values, np.float64)
    return found
