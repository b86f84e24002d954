"""Softmax values of chosen keys, a few positions at a time: for maps that need each token, or each position, by itself.

Keys are the call's own, or a probe's: keys of texts and pictures that the run was not given, which its queries meet here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.codec import decode_probability
from ...schema.trace import Softmax
from .calls import At, Calls, generated_from, logsumexp, logsumexps, score_rows

Values: TypeAlias = NDArray[Any]
Rows: TypeAlias = Iterator[tuple[int, slice, Values]]
"""Position on the head axis, generated positions, softmax values (position, token)."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which keys, and what their softmax runs over."""

    softmax: Softmax
    tokens: tuple[int, ...]
    """Positions on the key axis, or on the probes' one."""
    among: tuple[int, ...] | None = None
    """With the softmax over keys: the only keys it runs over; None is all that the call had, or all of `tokens` of a probe."""
    probe: bool = False


def softmax_rows(calls: Calls, at: At, columns: Columns, heads: tuple[int, ...]) -> Rows:
    """The columns of one present call.

    Raises   CorruptTrace if a file was changed
    """
    if columns.probe or calls.layer.encoding == "factors":
        return _computed(calls, at, columns, heads)
    return _stored(calls, at, columns, heads)


def _stored(calls: Calls, at: At, columns: Columns, heads: tuple[int, ...]) -> Rows:
    layer = calls.layer
    width = layer.grid[1]  # of a row; those of all frames follow each other
    pick, among = _index(columns.tokens), None if columns.among is None else _index(columns.among)
    query_lse, token_lse = calls.normalizers(at) if columns.softmax == "generated" else (None, None)
    for first, chunk in calls.arrays["probability"].chunks(at):
        positions = slice(first * width, (first + chunk.shape[1]) * width)
        for head in heads:
            stored = chunk[head].reshape(-1, layer.tokens)
            values: Values = decode_probability(stored[:, pick])
            if query_lse is not None and token_lse is not None:
                values = generated_from(values, query_lse[head, positions, None], token_lse[head, pick])
            elif among is not None:
                values /= decode_probability(stored[:, among]).sum(-1, dtype=np.float32, keepdims=True)
            yield head, positions, values


def _computed(calls: Calls, at: At, columns: Columns, heads: tuple[int, ...]) -> Rows:
    query, key = calls.factors(at, columns.probe)
    tokens, among = columns.tokens, columns.among
    if columns.probe and among is None:
        among = tokens
    kept = calls.arrays["query_lse"][at].reshape(len(query), -1) if "query_lse" in calls.arrays and among is None else None
    # Only what the result needs is multiplied: the tokens, and what their softmax runs over.
    needed = tokens if columns.softmax == "generated" or kept is not None else among
    pick = _index(tokens if needed is None else tuple(needed.index(t) for t in tokens))
    for head in heads:
        keys = key[head] if needed is None else key[head][_index(needed)]
        lse = logsumexps(query[head], keys)[1] if columns.softmax == "generated" else None
        for positions, scores in score_rows(query[head], keys):
            normalizer = lse if lse is not None else logsumexp(scores)[:, None] if kept is None else kept[head, positions, None]
            yield head, positions, np.exp(scores[:, pick] - np.asarray(normalizer, scores.dtype))


def _index(tokens: tuple[int, ...]) -> Any:
    """A slice where the tokens follow each other, which copies nothing."""
    first, stop = tokens[0], tokens[-1] + 1
    return slice(first, stop) if tokens == tuple(range(first, stop)) else list(tokens)
