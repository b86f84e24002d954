"""The law that recorded attention obeys: rows of P and columns of G sum to 1. One pass over each call gives both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import CorruptTrace
from ..trace.calls import At, Calls
from ..trace.scan import scan

BLOCK_BYTES: Final = 2**24
"""P that one thread holds at once, in bytes of float64."""
MOST_SHIFT: Final = 700.0
"""exp of more would overflow; no P that is not 0 goes with it."""


@dataclass(frozen=True, slots=True)
class CallSums:
    """What the probabilities of one call sum to."""

    layer: int
    at: At
    """(sample, branch, step)."""
    rows: tuple[float, float]
    """Least and greatest sum of a row of P over the stored keys."""
    columns: tuple[float, float]
    """Least and greatest sum of a column of G over the generated positions."""
    problem: str = ""
    """Why the call could not be read."""


def sum_call(index: int, calls: Calls, at: At) -> CallSums:
    """The sums of one call; what cannot be read is said, not raised."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not 1
            found = scan(calls, *at, "keys", "generated", np.ones((1, *calls.layer.places)))
        rows, columns = found.generated.sum(0, dtype=np.float64), found.token[0].astype(np.float64)
        if not columns.all():
            columns = _unhide(calls, at, columns)
    except CorruptTrace as error:
        return CallSums(index, at, (np.nan, np.nan), (np.nan, np.nan), str(error))
    return CallSums(index, at, (float(rows.min()), float(rows.max())), (float(columns.min()), float(columns.max())))


def _unhide(calls: Calls, at: At, columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of G with 1 for those keys that the model hid from every position, which are 0 throughout; other zeros are summed exactly.

    Dims     (head, token) -> (head, token)
    """
    zero = np.flatnonzero((columns == 0).any(0))
    per_position, per_token = shifts(*calls.normalizers(at))
    exact = np.zeros((len(columns), len(zero)))
    for part, block in blocks(calls, at):
        # Not a product of BLAS, which would start threads in each of ours.
        exact += np.einsum("hx,hxt->ht", per_position[:, part], block[..., zero], dtype=np.float64, casting="safe")
    columns[:, zero] = np.where(exact == 0, 1.0, exact * per_token[:, zero])
    return columns


def shifts(query_lse: NDArray[np.float64], token_lse: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What P is multiplied with to become G: one factor a position, one a token.

    Dims     (head, position), (head, token) -> the same
    """
    top = query_lse.max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.exp(query_lse - top), np.exp(np.minimum(top - token_lse, MOST_SHIFT))


def blocks(calls: Calls, at: At) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Positions and their P, a few rows of whole inner chunks at a time, so that none is unpacked twice.

    Dims     (head, position, token)
    """
    layer, width = calls.layer, calls.layer.grid[1]
    most = BLOCK_BYTES // (8 * layer.heads * width * layer.tokens)
    height, end = max(1, most // calls.chunk_rows) * calls.chunk_rows, math.prod(layer.places)
    for start in range(0, end // width, height):
        block = calls.region("probability", at, rows=slice(start, start + height))
        yield slice(start * width, min((start + height) * width, end)), block.reshape(layer.heads, -1, layer.tokens)
