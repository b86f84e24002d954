"""Where the numbers of a new trace come from: calls of another one, as they are or rounded, or computed from its factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.layers import ONCE, layer_path, step_tables
from ...schema.codec import MANTISSA, decode_probability, encode_probability
from ...schema.errors import InvalidInput
from ...schema.trace import Layer
from ..store.chunks import read_heads
from ..store.validation import Contents
from ..trace.calls import ALL, At, Calls

MOST_SHIFT: Final = 700.0
"""exp of more would overflow; no P that is not 0 goes with it."""


@dataclass(frozen=True, eq=False)
class Origin:
    """The calls that one layer of a new trace is made of."""

    contents: Contents
    index: int
    """Of the layer in the trace that is read."""
    layer: Layer
    """As the new trace has it."""
    heads: tuple[int, ...]
    """Positions on the head axis that is read."""
    steps: tuple[int, ...]
    """Those that are read, one for each of the new ones."""
    keep_bits: int = MANTISSA

    @cached_property
    def calls(self) -> Calls:
        """The calls that are read."""
        return Calls.of(self.contents, self.index)

    @property
    def changes(self) -> bool:
        """Whether stored probabilities are others than those that are read."""
        known = self.contents.record
        anew = known.layers[self.index].encoding != self.layer.encoding
        return self.layer.encoding == "probabilities" and (anew or known.codec.keep_bits != self.keep_bits)

    @cached_property
    def called(self) -> NDArray[np.bool_]:
        """Dims (sample, branch, step): whether the call happened."""
        found: NDArray[np.bool_] = self.contents.call_steps[self.index][:, :, list(self.steps)] >= 0
        return found

    @cached_property
    def serving(self) -> dict[str, NDArray[np.int32]]:
        """By name of the table, (sample, branch, step): the first step whose block serves a call, -1 where the call is absent."""
        tables = {}
        for name in step_tables(self.layer):
            given = self.contents.serving[self.index][name][:, :, list(self.steps)]
            tables[name] = found = np.full(self.called.shape, -1, np.int32)
            for at in np.ndindex(found.shape[:2]):
                for step in np.flatnonzero(self.called[at]):
                    found[at][step] = np.argmax((given[at] == given[at][step]) & self.called[at])
        return tables

    def stored(self, name: str) -> NDArray[np.bool_]:
        """Dims (sample, branch, step): whether an array has numbers there; a key, or a value, is stored once while it does not change."""
        if name not in ONCE:
            return self.called
        found: NDArray[np.bool_] = self.serving[ONCE[name]] == np.arange(len(self.steps))
        return found

    def take(self, name: str, dtype: str, at: At, steps: Sequence[int], rows: slice) -> NDArray[Any]:
        """Rows of an array in some of the new steps, all of them stored.

        Dims     (step, head, row, ...), rows counted through the frames
        Raises   CorruptTrace, InvalidInput for a factor that float16 cannot hold
        """
        calls, given = self.calls, [self.steps[step] for step in steps]
        if name in calls.arrays:
            stored = calls.arrays[name]
            found = stored.part(at, given, list(self.heads) if "head" in stored.plan.dims else ALL, rows)
        elif name == "probability":
            found = encode_probability(calls.region("probability", at, given, list(self.heads), rows))
        else:
            whole = calls.normalizers(at, given)[name == "token_lse"][:, list(self.heads)]
            found = whole.reshape(*whole.shape[:2], *([-1] if name == "token_lse" else [-1, self.layer.grid[1]]))[:, :, rows]
        if name == "probability" and self.changes:
            return round_mantissa(found, self.keep_bits)
        return cast_factors(found, dtype, self.layer)

    def columns(self, at: At, steps: Sequence[int], rows: slice, stored: NDArray[Any]) -> NDArray[np.float64]:
        """What stored rows add to the sums of G's columns.

        Dims     stored (step, head, row, x, token) -> (step, head, token)
        """
        query, token = (v[:, list(self.heads)] for v in self.calls.normalizers(at, [self.steps[step] for step in steps]))
        top, width = query.max(2, keepdims=True), self.layer.grid[1]
        with np.errstate(invalid="ignore"):
            per_position = np.exp(query - top)[:, :, rows.start * width : rows.stop * width]
            per_token = np.exp(np.minimum(top - token, MOST_SHIFT))
        block = decode_probability(stored).reshape(*stored.shape[:2], -1, stored.shape[-1])
        found: NDArray[np.float64] = np.einsum("shx,shxt->sht", per_position, block, dtype=np.float64, casting="safe") * per_token
        # A column of no mass belongs to a key that the model hid from every position: nothing of it is lost.
        return np.where(np.isneginf(token), 1.0 if rows.start == 0 else 0.0, found)

    def coordinate(self, name: str) -> NDArray[Any]:
        """A small array of the new layer."""
        if name in self.serving:
            return self.serving[name]
        if name == "called":
            return self.called
        if name == "head":
            return np.array(self.layer.head_numbers, np.int32)
        found = self.contents.table(f"{layer_path(self.index)}/{name}")
        return found[list(self.steps)] if name in ("step", "timestep") else found

    def fixed(self, name: str) -> NDArray[Any]:
        """An array that no step changes: keys of the layer's probes, or its output projection.

        Dims     (head, ...)
        """
        files = self.contents.arrays[f"{layer_path(self.index)}/{name}"]
        return cast_factors(read_heads(self.contents.storage, files)[list(self.heads)], self.layer.factor_dtype, self.layer)


def round_mantissa(stored: NDArray[np.float16], keep_bits: int) -> NDArray[np.float16]:
    """Non-negative float16 rounded, half to even, to `keep_bits` of its 10 mantissa bits; NaN stays.

    Error    relative 2**-(keep_bits + 1) for normal numbers, absolute 2**-(keep_bits + 15) for subnormal ones
    Source   Kloewer et al. 2021, Nature Computational Science 1, 713: bit rounding before lossless compression
    """
    drop = MANTISSA - keep_bits
    if drop <= 0:
        return stored
    bits = stored.view(np.uint16).astype(np.uint32)  # their order is that of the numbers, so a carry into the exponent is right
    rounded = (bits + ((bits >> drop) & 1) + ((1 << (drop - 1)) - 1)) & np.uint32(0x10000 - (1 << drop))
    return np.where(np.isnan(stored), stored, rounded.astype(np.uint16).view(np.float16))


def cast_factors(values: NDArray[Any], dtype: str, layer: Layer) -> NDArray[Any]:
    """Numbers in another dtype.

    Raises   InvalidInput where a finite one becomes infinite
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        found = values.astype(dtype)
    if (np.isinf(found) & np.isfinite(values)).any():
        raise InvalidInput(f"factors of layer {layer.name} are beyond what {dtype} holds; leave them in {values.dtype}")
    return found
