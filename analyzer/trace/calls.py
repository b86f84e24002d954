"""P, S and G of any call, whichever encoding keeps it, and the lazy arrays that show them.

    S[x,r] = scale * (q_x . k_r)     P[x,r] = exp(S[x,r] - a[x])     G[x,r] = exp(S[x,r] - b[r])

a is the logsumexp of S over all keys of the call, b over all generated positions. With probabilities, P, a and b are stored and
the rest follows elementwise; with factors, all of it is computed from q and k, in rows, never a whole call at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.codec import decode_probability
from ...schema.layout import ArrayPlan, probe_layout
from ...schema.trace import Layer
from ..numerics.products import product
from ..store.chunks import Blocks, read_heads

if TYPE_CHECKING:
    from .reader import Trace

Kind: TypeAlias = Literal["probability", "score", "generated"]
At: TypeAlias = tuple[int, int, int]
Values: TypeAlias = NDArray[Any]

ROW_BYTES: Final = 2**21
"""Scores that are worked on at once, in bytes; more would leave the cache."""
EXACT_SCORE: Final = 32.0
"""Scores that can pass this are computed in float64: float32 would leave an error of several 1e-6 in the exponent."""


@dataclass(frozen=True, eq=False)
class Calls:
    """The calls of one layer, one (sample, branch, step) at a time."""

    layer: Layer
    arrays: dict[str, Blocks]
    probe: ArrayPlan | None = None
    """Where the keys of the layer's probes are, if it has any."""

    @classmethod
    def of(cls, trace: Trace, index: int) -> Calls:
        """The calls of the layer at `index`."""
        layer = trace.layers[index]
        names = ["probability", "query_lse", "token_lse"] if layer.encoding == "probabilities" else ["query", "key"]
        names += ["query_lse"] if layer.encoding == "factors" and layer.partial_keys else []
        arrays = {name: dataclasses.replace(trace.blocks(index, name), flat=True) for name in names}
        return cls(layer, arrays, probe_layout(trace.record, index))

    @property
    def where(self) -> NDArray[np.int32]:
        """(sample, branch, step): negative where the call is absent."""
        return next(iter(self.arrays.values())).where

    def factors(self, at: At, probe: bool = False) -> tuple[Values, Values]:
        """q and k, or the keys of all probes, with the scale folded into q, in a dtype that holds their products well enough.

        Dims     (head, position, channel), (head, token, channel)
        """
        query = self.arrays["query"][at].astype(np.float32)
        keys = self.arrays["key"][at] if not probe or self.probe is None else read_heads(self.arrays["query"].root, self.probe)
        key = keys.astype(np.float32)
        query = query.reshape(self.layer.heads, -1, self.layer.head_dim)
        lengths = [float(np.sqrt(np.einsum("hnc,hnc->hn", v, v, dtype=np.float64).max())) for v in (query, key)]
        if abs(self.layer.scale) * lengths[0] * lengths[1] > EXACT_SCORE:
            query, key = query.astype(np.float64), key.astype(np.float64)
        query *= self.layer.scale
        return query, key

    def normalizers(self, at: At, factors: tuple[Values, Values] | None = None) -> tuple[Values, Values]:
        """a and b of one call, stored or computed.

        Dims     (head, position), (head, token), float64
        """
        heads = self.layer.heads
        stored = self.arrays["query_lse"][at].reshape(heads, -1).astype(np.float64) if "query_lse" in self.arrays else None
        if stored is not None and "token_lse" in self.arrays:
            return stored, self.arrays["token_lse"][at].astype(np.float64)
        query, key = factors or self.factors(at)
        query_lse, token_lse = np.empty(query.shape[:2]), np.empty(key.shape[:2])
        for head in range(heads):
            query_lse[head], token_lse[head] = logsumexps(query[head], key[head])
        return query_lse if stored is None else stored, token_lse

    def patch(self, at: At, y: int, x: int, kind: Kind = "probability") -> Values:
        """One generated position's attention, its row counted through the frames of a video; reads one inner chunk of each file.

        Dims     (head, token), float64
        """
        return self.region(kind, at, slice(None), slice(y, y + 1), slice(x, x + 1))[:, 0, 0]

    def region(self, kind: Kind, at: At, heads: Any, rows: Any, columns: Any) -> Values:
        """A part of one present call, all tokens; rows run through the frames of a video, one below the other.

        Dims     (head, row, x, token)
        """
        if self.layer.encoding == "factors":
            return self._region_of_factors(kind, at, heads, rows, columns)
        probability = decode_probability(self.arrays["probability"][(*at, heads, rows, columns)])
        if kind == "probability":
            return probability
        lse = self.arrays["query_lse"][(*at, heads, rows, columns)][..., None]
        if kind == "score":
            with np.errstate(divide="ignore"):
                scores: Values = np.log(probability) + lse
            return scores
        tokens = self.arrays["token_lse"][(*at, heads)][:, None, None, :]
        return generated_from(probability, lse, tokens)

    def _region_of_factors(self, kind: Kind, at: At, heads: Any, rows: Any, columns: Any) -> Values:
        query = self.arrays["query"][(*at, heads, rows, columns)].astype(np.float64)
        key = self.arrays["key"][(*at, heads)].astype(np.float64)
        scores: Values = np.matmul(query, key[:, None].swapaxes(2, 3)) * self.layer.scale
        if kind == "score":
            return scores
        if kind == "generated":
            lse = self.normalizers(at)[1][heads][:, None, None, :]
        elif "query_lse" in self.arrays:
            lse = self.arrays["query_lse"][(*at, heads, rows, columns)][..., None]
        else:
            top = scores.max(-1, keepdims=True)
            lse = top + np.log(np.exp(scores - top).sum(-1, keepdims=True))
        softmax: Values = np.exp(scores - lse)
        return softmax


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
