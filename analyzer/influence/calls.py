"""Calls whose softmax values are multiplied by what their tokens give: P, or G, times a factor for each head, position and token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
import xarray as xr

from ...schema.arrays.layers import layer_path
from ...schema.errors import UnknownSelection
from ...schema.messages import option
from ...schema.trace import Layer
from ..methods.recipes import Weight
from ..numerics.products import product
from ..store.chunks import read_heads
from ..store.ledger import ArrayFiles
from ..trace.calls import ALL, At, Calls, Kind, Rows, Steps, Sweep, require_attention
from ..trace.reader import Trace
from ..trace.softmax import Columns, Values, generated_from
from ..trace.views import lazy_array
from .factors import directions, knock_outs, norms

Blocks: TypeAlias = Iterator[tuple[int, int, Any, Values]]
"""P of some positions of calls: position among the steps, head, positions, P (position, token), all tokens."""
Factors: TypeAlias = Callable[[int, int, Any, Values], Values]
"""Position among the steps, head, positions, P there (position, token) -> what multiplies it."""

NEEDS: Final[dict[Weight, tuple[str, ...]]] = {"norm": ("norms", "full"), "contribution": ("full",), "knock-out": ("full",)}
"""What a layer must keep of its values."""
POSITIONS: Final = 2**10
"""Positions whose outputs of the layer are worked on at once."""


def weigh_calls(trace: Trace, index: int, weight: Weight) -> Calls:
    """The calls of the layer at `index`, their softmax values weighted; for attention they are as they are.

    Raises   UnknownSelection where the layer does not keep what the weight needs
    """
    calls = Calls.of(trace, index)
    if weight == "attention":
        return calls
    require_attention([calls.layer], option("weight", weight))
    _require(calls.layer, weight)
    return WeightedCalls(calls.layer, calls.arrays, weight=weight, given=calls, output=trace.arrays.get(f"{layer_path(index)}/output"))


def weighted_array(trace: Trace, index: int, kind: Kind, weight: Weight) -> xr.DataArray:
    """P or G of the layer at `index`, weighted; dims as `lazy_array`, raises as `weigh_calls`."""
    return lazy_array(trace, index, kind, weigh_calls(trace, index, weight), "" if weight == "attention" else f"-{weight}")


def _require(layer: Layer, weight: Weight) -> None:
    needed, lacks = NEEDS[weight], ""
    if layer.values not in needed:
        kept = "norms of values only" if layer.values == "norms" else "no values"
        lacks = f"it has {kept}; record them with {option('values', needed[0])}"
    elif weight != "norm" and layer.partial_keys:
        lacks = f"{layer.tokens} of its {layer.call_tokens} keys were kept, and all are needed; record with {option('keys', 'all')}"
    elif weight == "contribution" and layer.call_heads:
        lacks = f"{layer.heads} of its {layer.call_heads} heads were kept, and all are needed; record all heads"
    if lacks:
        other = option("weight", "norm" if weight != "norm" and layer.values != "none" else "attention")
        raise UnknownSelection(
            f"layer {layer.name} has no weight {weight}: {lacks}, or leave it out with {option('layers')}, or take {other}"
        )


@dataclass(frozen=True, eq=False)
class WeightedCalls(Calls):
    """Calls whose softmax values are multiplied by a factor that P and the values give."""

    weight: Weight = field(kw_only=True)
    given: Calls = field(kw_only=True)
    """As they were recorded."""
    output: ArrayFiles | None = field(kw_only=True)
    """Where the output projection is; None where norms of values were kept."""

    @property
    def file_rows(self) -> tuple[int, ...]:
        return self.given.file_rows

    @property
    def chunk_rows(self) -> int:
        return self.given.chunk_rows

    def patch(self, at: At, steps: Steps, y: int, x: int, kind: Kind, among: tuple[int, ...] | None) -> Values:
        factors = self._at(at, steps, slice(y, y + 1), slice(x, x + 1))
        return self.given.patch(at, steps, y, x, kind, among) * factors[:, :, 0, 0]

    def region(self, kind: Kind, at: At, steps: Steps, heads: Any = ALL, rows: Any = ALL, columns: Any = ALL) -> Values:
        return self.given.region(kind, at, steps, heads, rows, columns) * self._at(at, steps, rows, columns)[:, heads]

    def sweep(self, at: At, steps: Steps) -> tuple[Values, Values, Sweep]:
        query_lse, token_lse, blocks = self.given.sweep(at, steps)
        return query_lse, token_lse, self._weighted(at, steps, blocks)

    def _weighted(self, at: At, steps: Steps, blocks: Sweep) -> Sweep:
        factors = self._factors(at, steps, lambda: self._blocks(at, steps), math.prod(self.layer.places))
        for i, head, positions, block in whole(blocks):
            yield i, head, positions, (block * factors(i, head, positions, block)).astype(block.dtype, copy=False), 1.0

    def softmax_rows(self, at: At, steps: Steps, columns: Columns, heads: tuple[int, ...]) -> Rows:
        query_lse, token_lse, blocks = self.given.sweep(at, steps)
        factors = self._factors(at, steps, lambda: self._blocks(at, steps), math.prod(self.layer.places))
        pick = list(columns.tokens)
        for i, head, positions, block in whole(blocks):
            if head not in heads:
                continue
            values: Values = block[:, pick]
            if columns.softmax == "generated":
                values = generated_from(values, query_lse[i, head, positions, None], token_lse[i, head, pick])
            elif columns.among is not None:
                values /= block[:, list(columns.among)].sum(1, keepdims=True)
            yield i, head, positions, values * factors(i, head, positions, block)[..., pick]

    def _blocks(self, at: At, steps: Steps) -> Blocks:
        return whole(self.given.sweep(at, steps)[2])

    def _at(self, at: At, steps: Steps, rows: Any, columns: Any) -> Values:
        """What multiplies the softmax values of a part of calls.

        Dims     (step, head, row, x, token)
        """
        probability = self.given.region("probability", at, steps, ALL, rows, columns)
        flat = probability.reshape(*probability.shape[:2], -1, self.layer.tokens)
        blocks = [(i, head, ALL, flat[i, head]) for i, head in np.ndindex(flat.shape[:2])]
        found, factors = np.empty(flat.shape, np.float32), self._factors(at, steps, lambda: iter(blocks), flat.shape[2])
        for i, head, positions, block in blocks:
            found[i, head] = factors(i, head, positions, block)
        return found.reshape(probability.shape)

    def _factors(self, at: At, steps: Steps, blocks: Callable[[], Blocks], positions: int) -> Factors:
        """What multiplies the softmax values of blocks, which hold so many positions of each call."""
        if self.weight == "norm":
            lengths = self._norms(at, steps)
            return lambda i, head, _, block: lengths[i, head]
        value, output = self.arrays["value"].part(at, steps), self._output()

        @lru_cache(maxsize=1)  # blocks of a head follow each other
        def exact(i: int, head: int) -> Values:
            one: Values = value[i, head].astype(np.float64)
            return one

        if self.weight == "knock-out":
            grams = output @ output.swapaxes(1, 2)
            return lambda i, head, _, block: knock_outs(block.astype(np.float64), exact(i, head), grams[head])
        toward = np.empty((*value.shape[:2], positions, value.shape[-1]), np.float32)
        for i, head, part, block in blocks():
            toward[i, head, part] = product(block.astype(np.float64), exact(i, head))
        for step in toward:
            for part in (slice(start, start + POSITIONS) for start in range(0, positions, POSITIONS)):
                step[:, part] = directions(step[:, part].astype(np.float64), output)
        return lambda i, head, part, block: product(toward[i, head, part].astype(np.float64), exact(i, head).T)

    def _norms(self, at: At, steps: Steps) -> Values:
        if "value_norm" in self.arrays:
            return self.arrays["value_norm"].part(at, steps)
        return norms(self.arrays["value"].part(at, steps).astype(np.float64), self._output()).astype(np.float32)

    def _output(self) -> Values:
        """The output projection, the layer's gain in it.

        Dims     (head, channel, output channel), float64
        """
        assert self.output is not None  # `weigh_calls` saw to it
        output: Values = self.layer.gain * read_heads(self.arrays["value"].storage, self.output).astype(np.float64)
        return output


def whole(blocks: Sweep) -> Blocks:
    """P of a sweep's blocks, each times its factor."""
    for i, head, positions, block, factor in blocks:
        yield i, head, positions, block * block.dtype.type(factor)
