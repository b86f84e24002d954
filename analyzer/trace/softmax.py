"""Softmax arithmetic on blocks of scores: what both encodings of attention are computed with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.trace import Softmax
from ..numerics.products import product

Values: TypeAlias = NDArray[Any]

ROW_BYTES: Final = 2**21
"""Scores that are worked on at once, in bytes; more would leave the cache."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which keys, and what their softmax runs over."""

    softmax: Softmax
    tokens: tuple[int, ...]
    """Positions on the key axis, or on the probes' one."""
    among: tuple[int, ...] | None = None
    """With the softmax over keys: the only keys it runs over; None is all that the call had, or all of `tokens` of a probe."""
    probe: bool = False
    """Whether the keys are those of probes: of texts and pictures that the run was not given, which its queries meet here."""


def score_rows(query: Values, key: Values) -> Iterator[tuple[slice, Values]]:
    """S of one head from its factors, some positions at a time.

    Dims     query (position, channel), key (token, channel) -> positions, S (position, token)
    """
    count = max(1, ROW_BYTES // (key.itemsize * len(key)))
    for start in range(0, len(query), count):
        piece = slice(start, min(start + count, len(query)))
        yield piece, product(query[piece], key.T)


def generated_from(probability: Values, query_lse: Values, token_lse: Values) -> Values:
    """G from P, and from a and b shaped to multiply it."""
    # In logarithms: exp(a - b) alone may overflow where P is tiny.
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Values = np.exp(np.log(probability) + (query_lse - token_lse))
    result[probability == 0] = 0
    return result


def logsumexps(query: Values, key: Values) -> tuple[Values, Values]:
    """a and b of one head from its factors.

    Dims     query (position, channel), key (token, channel) -> (position,), (token,), float64
    """
    query_lse = np.empty(len(query))
    top, total = np.full(len(key), -np.inf), np.zeros(len(key))
    for positions, scores in score_rows(query, key):
        query_lse[positions] = logsumexp(scores)
        higher = np.maximum(top, scores.max(0))
        total = total * np.exp(top - higher) + np.exp(scores - higher.astype(scores.dtype)).sum(0, dtype=np.float64)
        top = higher
    return query_lse, top + np.log(total)


def logsumexp(scores: Values) -> Values:
    """Over the last axis.

    Dims     (position, token) -> (position,)
    """
    top = scores.max(1)
    result: Values = top + np.log(np.exp(scores - top[:, None]).sum(1, dtype=np.float64))
    return result
