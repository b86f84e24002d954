"""The law that recorded attention obeys: rows of P and columns of G sum to 1. Call by call, in blocks, several calls at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import CorruptTrace
from ..trace.calls import At, Calls
from ..trace.reader import Trace

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


def sum_calls(trace: Trace) -> Iterator[CallSums]:
    """The sums of every call there is, in order of layers."""
    calls = [Calls.of(trace, index) for index in range(len(trace.layers))]
    jobs = [(index, found, at) for index, found in enumerate(calls) for at in _present(found)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(lambda job: sum_call(*job), jobs)


def sum_call(index: int, calls: Calls, at: At) -> CallSums:
    """The sums of one call; what cannot be read is said, not raised."""
    try:
        rows, columns = _sums(calls, at)
    except CorruptTrace as error:
        return CallSums(index, at, (np.nan, np.nan), (np.nan, np.nan), str(error))
    return CallSums(index, at, (float(rows.min()), float(rows.max())), (float(columns.min()), float(columns.max())))


def _present(calls: Calls) -> list[At]:
    return [(int(sample), int(branch), int(step)) for sample, branch, step in np.argwhere(calls.where >= 0)]


def _sums(calls: Calls, at: At) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of the rows of P and of the columns of G.

    Dims     (head, position), (head, token)
    """
    layer = calls.layer
    query_lse, token_lse = calls.normalizers(at)
    top = query_lse.max(1, keepdims=True)
    weight = np.exp(query_lse - top)  # (head, position)
    rows, columns = np.empty(query_lse.shape), np.zeros(token_lse.shape)
    height = _height(calls)
    for start in range(0, query_lse.shape[1] // layer.grid[1], height):
        block = calls.region("probability", at, slice(None), slice(start, start + height), slice(None))
        block = block.reshape(layer.heads, -1, layer.tokens)
        part = slice(start * layer.grid[1], start * layer.grid[1] + block.shape[1])
        rows[:, part] = block.sum(2, dtype=np.float64)
        columns += _weighed(weight[:, part], block)
    with np.errstate(invalid="ignore"):
        columns *= np.exp(np.minimum(top - token_lse, MOST_SHIFT))
    # A column that is 0 throughout belongs to a key that the model hid from every position.
    return rows, np.where(columns == 0, 1.0, columns)


def _height(calls: Calls) -> int:
    """Rows of a block: whole inner chunks, so that none is unpacked twice."""
    layer = calls.layer
    most = max(1, BLOCK_BYTES // (8 * layer.heads * layer.grid[1] * layer.tokens))
    chunk = calls.arrays["probability"].chunk_rows if "probability" in calls.arrays else 1
    return max(chunk, most // chunk * chunk)


def _weighed(weight: NDArray[np.float64], block: NDArray[Any]) -> NDArray[np.float64]:
    """sum over positions of weight * block, in float64 and in this thread alone.

    Dims     (head, position), (head, position, token) -> (head, token)
    """
    total: NDArray[np.float64] = np.einsum("hx,hxt->ht", weight, block, dtype=np.float64, casting="safe")
    return total
