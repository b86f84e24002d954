"""The law that recorded attention obeys: rows of P and columns of G sum to 1. Call by call, in blocks, several calls at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import CorruptTrace
from ..trace.calls import Calls
from ..trace.reader import Trace

At: TypeAlias = tuple[int, int, int]
"""Sample, branch and step."""

BLOCK_BYTES: Final = 2**24
"""P that one thread holds at once, in bytes of float64."""
MOST_SHIFT: Final = 700.0
"""exp of more would overflow; no P that is not 0 goes with it."""


@dataclass(frozen=True, slots=True)
class CallSums:
    """What the probabilities of one call sum to."""

    layer: int
    at: At
    rows: tuple[float, float]
    """Least and greatest sum of a row of P over the stored keys."""
    columns: tuple[float, float]
    """Least and greatest sum of a column of G over the generated positions."""
    problem: str = ""
    """Why the call could not be read."""


def sum_calls(trace: Trace) -> Iterator[CallSums]:
    """The sums of every call there is, in order of layers."""
    calls = [Calls.of(trace, index) for index in range(len(trace.layers))]
    jobs = [(i, found, (s, b, step)) for i, found in enumerate(calls) for s, b, step in np.argwhere(found.where >= 0).tolist()]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(lambda job: sum_call(*job), jobs)


def sum_call(index: int, calls: Calls, at: At) -> CallSums:
    """The sums of one call; what cannot be read is said, not raised."""
    try:
        rows, columns = _sums(calls, at)
    except CorruptTrace as error:
        return CallSums(index, at, (np.nan, np.nan), (np.nan, np.nan), str(error))
    return CallSums(index, at, (float(rows.min()), float(rows.max())), (float(columns.min()), float(columns.max())))


def _sums(calls: Calls, at: At) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of the rows of P and of the columns of G.

    Dims     (head, position), (head, token)
    """
    per_position, per_token = shifts(*(each[0] for each in calls.normalizers(at[:2], at[2:])))
    rows, columns = np.empty(per_position.shape), np.zeros(per_token.shape)
    for part, block in blocks(calls, at):
        rows[:, part] = block.sum(2, dtype=np.float64)
        # Not a product of BLAS, which would start threads in each of ours.
        columns += np.einsum("hx,hxt->ht", per_position[:, part], block, dtype=np.float64, casting="safe")
    columns *= per_token
    # A column that is 0 throughout belongs to a key that the model hid from every position.
    return rows, np.where(columns == 0, 1.0, columns)


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
        block = calls.region("probability", at[:2], at[2:], rows=slice(start, start + height))[0]
        yield slice(start * width, min((start + height) * width, end)), block.reshape(layer.heads, -1, layer.tokens)
