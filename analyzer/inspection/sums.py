"""The law that recorded attention obeys: rows of P and columns of G sum to 1. One pass over each call gives both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import CorruptTrace
from ..trace.calls import Calls, Steps, SummedCalls
from ..trace.scan import scan

At: TypeAlias = tuple[int, int, int]
"""Sample, branch and step."""

BLOCK_BYTES: Final = 2**24
"""P that one thread holds at once, in bytes of float64."""
NORMS: Final = {"value_norm": "values", "residual_norm": "the residual stream"}
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


def sum_calls(index: int, calls: Calls, at: tuple[int, int], steps: Steps) -> list[CallSums]:
    """The sums of present calls that share files; what cannot be read is said, not raised."""
    found: list[CallSums] = []
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not 1
            sums = scan(calls, at, steps, "keys", "generated", np.ones((1, *calls.layer.places)))
        for step, each in zip(steps, sums, strict=True):
            rows, columns = each.generated.sum(0, dtype=np.float64), each.token[0].astype(np.float64)
            if not columns.all() and isinstance(calls, SummedCalls):  # a sum of 0 is that of a key that the model hid
                columns[columns == 0] = 1.0
            elif not columns.all():
                columns = _unhide(calls, (*at, step), columns)
            found.append(CallSums(index, (*at, step), _ends(rows), _ends(columns), _look_at_norms(calls, at, step)))
    except CorruptTrace as error:
        found.append(CallSums(index, (*at, steps[0]), (np.nan, np.nan), (np.nan, np.nan), str(error)))
    return found


def _look_at_norms(calls: Calls, at: tuple[int, int], step: int) -> str:
    """What is wrong with a call's norms; nothing where it has none."""
    for name, what in NORMS.items():
        if name in calls.arrays and not (calls.arrays[name].part(at, [step]) >= 0).all():
            return f"step {step}: norms of {what} are negative, or no numbers"
    return ""


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _unhide(calls: Calls, at: At, columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of G with 1 for those keys that the model hid from every position, which are 0 throughout; other zeros are summed exactly.

    Dims     (head, token) -> (head, token)
    """
    zero = np.flatnonzero((columns == 0).any(0))
    per_position, per_token = shifts(*(each[0] for each in calls.normalizers(at[:2], at[2:])))
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
        block = calls.region("probability", at[:2], at[2:], rows=slice(start, start + height))[0]
        yield slice(start * width, min((start + height) * width, end)), block.reshape(layer.heads, -1, layer.tokens)
