"""One pass over the calls of some steps: every sum that R2G and G2R need, while each chunk is in cache.

    R2G  sum_r G[x,r] = exp(a[x]) * sum_r P[x,r] exp(-b[r])      one matrix-vector product a head and stretch of tokens
    G2R  sum_x w[x] P[x,r]                                       one a head and query weighting

A stored chunk is unpacked, its float16 bits are moved into float32's places in a reused buffer, both products run on it, and the
next one comes. Nothing larger than a map leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.sums import token_segments
from ...schema.trace import Layer, Softmax
from ..numerics.products import row_products, weighted_sum
from .calls import At, Calls, Steps, SummedCalls
from .softmax import Values

Visit: TypeAlias = Callable[[int, int, slice, Values, float], None]
"""What is told of each block of a scan, as `Sweep` gives it."""

SPREAD: Final = 60.0
"""Largest range of exponents that float32 sums can hold beside P itself, in nats; wider ones are summed in float64."""
HEADROOM: Final = 2.0**23
"""Room left for a sum over tokens, under float32's greatest value."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What one call adds to maps on its own grids. Divide by counts for means."""

    generated: NDArray[np.float32]
    """(segment, head, [frame,] y, x): softmax values summed over the tokens of each segment."""
    token: NDArray[np.float32]
    """(weighting, head, token): softmax values summed over generated positions, weighted."""


def scan(calls: Calls, at: At, steps: Steps, r2g: Softmax, g2r: Softmax, weights: Values, visit: Visit | None = None) -> list[Sums]:
    """All sums of each of some present calls; `visit` sees each block of P while it is in cache.

    Dims     weights (weighting, [frame,] y, x)
    Raises   CorruptTrace if a file was changed
    """
    if isinstance(calls, SummedCalls):
        return _kept(calls, at, steps, r2g, g2r)
    query_lse, token_lse, blocks = calls.sweep(at, steps)
    flat, parts = np.asarray(weights, np.float64).reshape(len(weights), -1), token_segments(calls.layer.groups)
    sums = [_Accumulator(a, b, r2g, g2r, flat, parts) for a, b in zip(query_lse, token_lse, strict=True)]
    for i, head, positions, block, factor in blocks:
        sums[i].add(head, positions, block, factor)
        if visit is not None:
            visit(i, head, positions, block, factor)
    return [each.finish(calls.layer) for each in sums]


def _kept(calls: SummedCalls, at: At, steps: Steps, r2g: Softmax, g2r: Softmax) -> list[Sums]:
    """The sums that a layer of maps keeps; of weightings, those of all positions and of the masks that were recorded."""
    generated, token = calls.sums(at, steps, "position_sum", r2g), calls.sums(at, steps, "token_sum", g2r)
    shape = (generated.shape[1], calls.layer.heads, *calls.layer.places)
    return [Sums(each.reshape(shape), own) for each, own in zip(generated, token, strict=True)]


class _Accumulator:
    """The sums of one call, to which blocks of its P are added."""

    def __init__(self, query_lse: Values, token_lse: Values, r2g: Softmax, g2r: Softmax, weights: Values, parts: tuple[slice, ...]) -> None:
        self.right, self.per_position = _right(r2g, query_lse, token_lse)
        self.left, self.per_token = _left(g2r, query_lse, token_lse, weights)
        self.wide = max(_spread(token_lse) if r2g == "generated" else 0, _spread(query_lse) if g2r == "generated" else 0) > SPREAD
        self.parts = parts
        self.generated = np.zeros((len(parts), *query_lse.shape))
        self.token = np.zeros((len(weights), *token_lse.shape))

    def add(self, head: int, positions: slice, block: Values, factor: float) -> None:
        """Add a block of numbers which `factor` makes P."""
        values = block.astype(np.float64) if self.wide else block
        for i, part in enumerate(self.parts):
            self.generated[i, head, positions] = row_products(values[:, part], (self.right[head, part] * factor).astype(values.dtype))
        for i, left in enumerate(self.left):
            self.token[i, head] += weighted_sum((left[head, positions] * factor).astype(values.dtype), values)

    def finish(self, layer: Layer) -> Sums:
        """The sums, once every block was added."""
        with np.errstate(invalid="ignore"):
            generated, token = self.generated * self.per_position, self.token * self.per_token
        return Sums(generated.reshape(-1, layer.heads, *layer.places).astype(np.float32), token.astype(np.float32))


def _right(softmax: Softmax, query_lse: Values, token_lse: Values) -> tuple[Values, Values]:
    """Weights of tokens, and what then multiplies each position.

    Dims     (head, token), (head, position)
    """
    if softmax == "keys":
        return np.full_like(token_lse, HEADROOM), np.full_like(query_lse, 1 / HEADROOM)
    least = np.where(np.isfinite(token_lse), token_lse, np.inf).min(1, keepdims=True)
    return _exp(least - token_lse) * HEADROOM, _exp(query_lse - least) / HEADROOM


def _left(softmax: Softmax, query_lse: Values, token_lse: Values, weights: Values) -> tuple[Values, Values]:
    """Weights of positions, and what then multiplies each token.

    Dims     (weighting, head, position), (head, token)
    """
    if softmax == "keys":
        return weights[:, None] * np.where(np.isnan(query_lse), np.nan, 1.0), np.ones_like(token_lse)
    greatest = query_lse.max(1, keepdims=True)
    return weights[:, None] * _exp(query_lse - greatest), _exp(greatest - token_lse)


def _exp(exponent: Values) -> Values:
    """exp, and 0 where a token or a position is masked out of the whole call: its logsumexp is -inf and its P is 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(np.isposinf(exponent), 0.0, np.exp(exponent))


def _spread(lse: Values) -> float:
    finite = lse[np.isfinite(lse)]
    return float(np.ptp(finite)) if finite.size else 0.0
