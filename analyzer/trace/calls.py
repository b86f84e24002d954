"""P, S and G of any call, from stored probabilities or from the factors q and k; of maps alone, the sums that were kept.

    S[x,r] = scale * (q_x . k_r)     P[x,r] = exp(S[x,r] - a[x])     G[x,r] = exp(S[x,r] - b[r])

a is the logsumexp of S over all keys of the call, b over all generated positions. With probabilities, P, a and b are stored and
the rest follows elementwise; with factors, all of it is computed from q and k, in rows, never a whole call at once.

Positions and rows are counted through the frames of a video, one below the other. Steps that share files are asked for together, so
that nothing is read or unpacked twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.array import STEP
from ...schema.arrays.layers import data_plans, layer_path
from ...schema.arrays.sums import SOFTMAXES
from ...schema.codec import decode_bits, decode_probability
from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.trace import Layer, Softmax
from ..store.chunks import ROWS, Blocks, read_heads
from ..store.ledger import ArrayFiles
from ..store.validation import Contents
from .softmax import Columns, Values, generated_from, logsumexp, logsumexps, score_rows

Kind: TypeAlias = Literal["probability", "score", "generated"]
At: TypeAlias = tuple[int, int]
"""Sample and branch."""
Steps: TypeAlias = Sequence[int]
"""Steps at which the layer was called."""
Rows: TypeAlias = Iterator[tuple[int, int, slice, Values]]
"""Position among the steps, position on the head axis, generated positions, softmax values (position, token)."""
Sweep: TypeAlias = Iterator[tuple[int, int, slice, Values, float]]
"""Position among the steps, head, positions, numbers in proportion to P (position, token), and the factor that makes them P. Overwritten
by the next one."""

BLOCK_BYTES: Final = 2**19
"""Float32 values of P that are worked on at once, in bytes: they stay in the second-level cache."""
VIEW_BYTES: Final = 2**26
"""P that is computed from factors for one chunk of a lazy array, in bytes."""
EXACT_SCORE: Final = 32.0
"""Scores that can pass this are computed in float64: float32 would leave an error of several 1e-6 in the exponent."""
ALL: Final = slice(None)


@dataclass(frozen=True, eq=False)
class Calls(ABC):
    """The calls of one layer, some steps of one (sample, branch) at a time."""

    layer: Layer
    arrays: dict[str, Blocks]
    probe: ArrayFiles | None = None
    """Where the keys of the layer's probes are, if it has any."""

    @staticmethod
    def of(contents: Contents, index: int) -> Calls:
        """The calls of the layer at `index`."""
        layer = contents.record.layers[index]
        arrays = {name: contents.blocks(index, name) for name in data_plans(contents.record, index)}
        kinds: dict[str, type[Calls]] = {"probabilities": StoredCalls, "factors": FactorCalls, "sums": SummedCalls}
        return kinds[layer.encoding](layer, arrays, contents.arrays.get(f"{layer_path(index)}/probe_key"))

    @property
    def where(self) -> NDArray[np.int32]:
        """(sample, branch, step): negative where the call is absent."""
        return next(iter(self.arrays.values())).where

    def groups(self, at: At, steps: Iterable[int]) -> list[tuple[int, ...]]:
        """Those of the steps at which the layer was called; those that share files stand together."""
        return next(iter(self.arrays.values())).groups(at, steps)

    @property
    def file_steps(self) -> int:
        """Steps that share files."""
        return next(iter(self.arrays.values())).plan.chunks[STEP]

    def normalizers(self, at: At, steps: Steps) -> tuple[Values, Values]:
        """a and b of present calls, stored or computed.

        Dims     (step, head, position), (step, head, token), float64
        """
        return self.sweep(at, steps)[:2]

    def patch(self, at: At, steps: Steps, y: int, x: int, kind: Kind, among: tuple[int, ...] | None) -> Values:
        """Task: one generated position's attention, as if its softmax ran `among` some tokens alone if these are given.

        Reads one inner chunk of each file.

        Dims     (step, head, token)
        """
        values = self.region(kind, at, steps, ALL, slice(y, y + 1), slice(x, x + 1))[:, :, 0, 0]
        return values if among is None else values / values[..., list(among)].sum(-1, dtype=np.float64, keepdims=True)

    @property
    @abstractmethod
    def file_rows(self) -> tuple[int, ...]:
        """Lengths of the axes ([frame,] y) of a piece that is read, or computed, at once."""

    @property
    @abstractmethod
    def chunk_rows(self) -> int:
        """Rows that are unpacked together."""

    @abstractmethod
    def region(self, kind: Kind, at: At, steps: Steps, heads: Any = ALL, rows: Any = ALL, columns: Any = ALL) -> Values:
        """A part of present calls, all tokens.

        Dims     (step, head, row, x, token)
        """

    @abstractmethod
    def sweep(self, at: At, steps: Steps) -> tuple[Values, Values, Sweep]:
        """a and b of present calls, and their P in blocks that stay in cache.

        Dims     (step, head, position), (step, head, token), float64
        """

    @abstractmethod
    def softmax_rows(self, at: At, steps: Steps, columns: Columns, heads: tuple[int, ...]) -> Rows:
        """Softmax values of chosen keys of present calls, a few positions at a time.

        Raises   CorruptTrace if a file was changed
        """


class StoredCalls(Calls):
    """P as float16, a and b beside it."""

    columns: ClassVar[str] = "probability"
    """The array of P."""

    @property
    def file_rows(self) -> tuple[int, ...]:
        return self.arrays["probability"].plan.file_shape[ROWS:-2]

    @property
    def chunk_rows(self) -> int:
        return self.arrays["probability"].chunk_rows

    def region(self, kind: Kind, at: At, steps: Steps, heads: Any = ALL, rows: Any = ALL, columns: Any = ALL) -> Values:
        probability = decode_probability(self.arrays["probability"].part(at, steps, heads, rows, columns))
        if kind == "probability":
            return probability
        lse = self.arrays["query_lse"].part(at, steps, heads, rows, columns)[..., None]
        if kind == "score":
            with np.errstate(divide="ignore"):
                scores: Values = np.log(probability) + lse
            return scores
        return generated_from(probability, lse, self.arrays["token_lse"].part(at, steps, heads)[:, :, None, None, :])

    def normalizers(self, at: At, steps: Steps) -> tuple[Values, Values]:
        query_lse, token_lse = (self.arrays[name].part(at, steps).astype(np.float64) for name in ("query_lse", "token_lse"))
        return query_lse.reshape(len(steps), self.layer.heads, -1), token_lse

    def sweep(self, at: At, steps: Steps) -> tuple[Values, Values, Sweep]:
        return *self.normalizers(at, steps), self._blocks(at, steps)

    def _blocks(self, at: At, steps: Steps) -> Sweep:
        width, tokens = self.layer.grid[1], self.layer.tokens
        rows = max(1, BLOCK_BYTES // (4 * width * tokens))
        buffer = np.empty((rows * width, tokens), np.float32)
        for i, first, chunk in self.arrays["probability"].chunks(at, steps):
            for head in range(self.layer.heads):
                for start in range(0, chunk.shape[1], rows):
                    stored = chunk[head, start : start + rows].reshape(-1, tokens)
                    block = buffer[: len(stored)]
                    factor = decode_bits(stored, block)
                    begin = (first + start) * width
                    yield i, head, slice(begin, begin + len(stored)), block, factor

    def softmax_rows(self, at: At, steps: Steps, columns: Columns, heads: tuple[int, ...]) -> Rows:
        width, pick = self.layer.grid[1], self.pick(columns.tokens)
        query_lse, token_lse = self.normalizers(at, steps) if columns.softmax == "generated" else (None, None)
        for i, first, chunk in self.arrays[self.columns].chunks(at, steps):
            positions = slice(first * width, (first + chunk.shape[1]) * width)
            for head in heads:
                stored = chunk[head].reshape(-1, chunk.shape[-1])
                values: Values = decode_probability(stored[:, pick])
                if query_lse is not None and token_lse is not None:
                    values = generated_from(values, query_lse[i, head, positions, None], token_lse[i, head, pick])
                elif columns.among is not None:
                    values /= decode_probability(stored[:, self.pick(columns.among)]).sum(-1, dtype=np.float32, keepdims=True)
                yield i, head, positions, values

    def pick(self, tokens: tuple[int, ...]) -> Any:
        """Where these tokens stand among the stored columns."""
        return _index(tokens)


class SummedCalls(StoredCalls):
    """Sums over tokens and over positions, and P of the tokens that have maps of their own."""

    columns = "token_probability"

    @property
    def file_rows(self) -> tuple[int, ...]:
        return self.arrays["position_sum"].plan.file_shape[ROWS:-3]

    @property
    def chunk_rows(self) -> int:
        return self.arrays["position_sum"].chunk_rows

    def region(self, kind: Kind, at: At, steps: Steps, heads: Any = ALL, rows: Any = ALL, columns: Any = ALL) -> Values:
        self._refuse()

    def sweep(self, at: At, steps: Steps) -> tuple[Values, Values, Sweep]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        require_attention([self.layer], "this")
        raise AssertionError

    def pick(self, tokens: tuple[int, ...]) -> Any:
        kept = own_tokens(self.layer)
        return _index(tuple(kept.index(token) for token in tokens))

    def sums(self, at: At, steps: Steps, name: str, softmax: Softmax) -> Values:
        """One softmax of `position_sum` or `token_sum` of present calls.

        Dims     (step, segment, head, row, x), (step, weighting, head, token)
        """
        return np.moveaxis(self.arrays[name].part(at, steps)[..., SOFTMAXES.index(softmax)], -1, 1)


class FactorCalls(Calls):
    """q and k, from which scores are multiplied; a beside them where not all keys of the call were kept."""

    @property
    def file_rows(self) -> tuple[int, ...]:
        row = self.file_steps * self.layer.heads * self.layer.grid[1] * self.layer.tokens * 4
        return (*(1 for _ in self.layer.places[2:]), max(1, min(self.layer.grid[0], VIEW_BYTES // row)))

    @property
    def chunk_rows(self) -> int:
        return 1

    def factors(self, at: At, steps: Steps, key: Values | None = None) -> list[tuple[Values, Values]]:
        """q and k of each step, or q and a probe's keys, with the scale folded into q, in a dtype that holds their products well enough.

        Dims     key (head, token, channel) -> (head, position, channel), (head, token, channel)
        """
        query = self.arrays["query"].part(at, steps).reshape(len(steps), self.layer.heads, -1, self.layer.head_dim)
        keys = self.arrays["key"].part(at, steps) if key is None else [key] * len(steps)
        return [self._scaled(*each) for each in zip(query, keys, strict=True)]

    def _scaled(self, query: Values, key: Values) -> tuple[Values, Values]:
        query, key = query.astype(np.float32), key.astype(np.float32)
        lengths = [float(np.sqrt(np.einsum("hnc,hnc->hn", v, v, dtype=np.float64).max())) for v in (query, key)]
        if abs(self.layer.scale) * lengths[0] * lengths[1] > EXACT_SCORE:
            query, key = query.astype(np.float64), key.astype(np.float64)
        query *= self.layer.scale
        return query, key

    def region(self, kind: Kind, at: At, steps: Steps, heads: Any = ALL, rows: Any = ALL, columns: Any = ALL) -> Values:
        query = self.arrays["query"].part(at, steps, heads, rows, columns).astype(np.float64)
        key = self.arrays["key"].part(at, steps, heads).astype(np.float64)
        scores: Values = np.matmul(query, key[:, :, None].swapaxes(3, 4)) * self.layer.scale
        if kind == "score":
            return scores
        if kind == "generated":
            lse = self.normalizers(at, steps)[1][:, heads][:, :, None, None, :]
        elif "query_lse" in self.arrays:
            lse = self.arrays["query_lse"].part(at, steps, heads, rows, columns)[..., None]
        else:
            top = scores.max(-1, keepdims=True)
            lse = top + np.log(np.exp(scores - top).sum(-1, keepdims=True))
        softmax: Values = np.exp(scores - lse)
        return softmax

    def sweep(self, at: At, steps: Steps) -> tuple[Values, Values, Sweep]:
        factors = self.factors(at, steps)
        found = [[logsumexps(*head) for head in zip(*each, strict=True)] for each in factors]
        query_lse, token_lse = (np.stack([[head[axis] for head in step] for step in found]) for axis in (0, 1))
        stored = self._stored_lse(at, steps)
        query_lse = query_lse if stored is None else stored
        return query_lse, token_lse, self._blocks(factors, query_lse)

    def _stored_lse(self, at: At, steps: Steps) -> Values | None:
        """a over all keys of each call, where some were not kept."""
        if "query_lse" not in self.arrays:
            return None
        return self.arrays["query_lse"].part(at, steps).reshape(len(steps), self.layer.heads, -1).astype(np.float64)

    def _blocks(self, factors: list[tuple[Values, Values]], query_lse: Values) -> Sweep:
        for i, (query, key) in enumerate(factors):
            for head in range(len(key)):
                for positions, scores in score_rows(query[head], key[head]):
                    scores -= query_lse[i, head, positions, None].astype(scores.dtype)
                    yield i, head, positions, np.exp(scores, out=scores), 1.0

    def softmax_rows(self, at: At, steps: Steps, columns: Columns, heads: tuple[int, ...]) -> Rows:
        given = read_heads(self.arrays["query"].storage, self.probe) if columns.probe and self.probe else None
        tokens = columns.tokens
        among = tokens if columns.probe and columns.among is None else columns.among
        kept = self._stored_lse(at, steps) if among is None else None
        # Only what the result needs is multiplied: the tokens, and what their softmax runs over.
        needed = tokens if columns.softmax == "generated" or kept is not None else among
        pick = _index(tokens if needed is None else tuple(needed.index(t) for t in tokens))
        for i, (query, key) in enumerate(self.factors(at, steps, given)):
            for head in heads:
                keys = key[head] if needed is None else key[head][_index(needed)]
                lse = logsumexps(query[head], keys)[1] if columns.softmax == "generated" else None
                for positions, scores in score_rows(query[head], keys):
                    normalizer = lse if lse is not None else logsumexp(scores)[:, None] if kept is None else kept[i, head, positions, None]
                    yield i, head, positions, np.exp(scores[:, pick] - np.asarray(normalizer, scores.dtype))


def own_tokens(layer: Layer) -> tuple[int, ...]:
    """The keys of a layer of maps that have maps of their own."""
    return layer.sums.tokens if layer.sums is not None else ()


def require_attention(layers: Iterable[Layer], what: str) -> None:
    """Raise InvalidInput if a layer keeps maps in place of its attention, which `what` needs."""
    if (layer := next((one for one in layers if one.encoding == "sums"), None)) is not None:
        raise InvalidInput(
            f"the trace holds maps only, and {what} needs the attention of layer {layer.name}; record with {option('keep', 'attention')}"
        )


def _index(tokens: tuple[int, ...]) -> Any:
    """A slice where the tokens follow each other, which copies nothing."""
    first, stop = tokens[0], tokens[-1] + 1
    return slice(first, stop) if tokens == tuple(range(first, stop)) else list(tokens)
