"""Smaller traces made of others: some layers, steps and heads, rounded numbers, or probabilities in place of factors."""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ...schema.codec import MANTISSA
from ...schema.errors import InvalidInput
from ...schema.layout import MANIFEST
from ...schema.messages import option
from ...schema.record import canonical
from ...schema.selection import Layers, Positions, pick_positions
from ...schema.trace import Encoding, Layer, TraceRecord
from ..store.files import hash_file
from ..trace.calls import require_attention
from ..trace.heads import pick_heads
from ..trace.reader import Trace
from .origin import Origin


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a derived trace is to hold; all None is the same trace."""

    layers: Layers = None
    steps: Positions = None
    heads: Positions = None
    keep_bits: int | None = None
    encoding: Encoding | None = None
    factor_dtype: str | None = None

    @property
    def something(self) -> bool:
        """Whether anything is asked for."""
        return any(getattr(self, field.name) is not None for field in dataclasses.fields(self))


def derive(trace: Trace, wanted: Wanted) -> tuple[TraceRecord, list[Origin]]:
    """The record of a derived trace, and where each of its layers comes from.

    Raises   UnknownSelection, InvalidInput for what cannot be had from this trace
    """
    record, bits = trace.record, _bits(trace, wanted)
    chosen = trace.select(wanted.layers)
    steps = pick_positions(wanted.steps, record.steps, "step") if wanted.steps is not None else tuple(range(record.steps))
    heads = None if wanted.heads is None else pick_heads(wanted.heads, [trace.layers[i] for i in chosen])
    if any(value is not None for value in (wanted.keep_bits, wanted.encoding, wanted.factor_dtype)):
        require_attention((trace.layers[index] for index in chosen), "another encoding or rounding")
    origins = []
    for index in chosen:
        layer = trace.layers[index]
        kept = tuple(i for i, number in enumerate(layer.heads_kept) if heads is None or number in heads)
        if kept:
            origins.append(Origin(trace, index, _layer(layer, kept, wanted), kept, steps, bits))
    if not wanted.something:
        return record, origins
    _require_sense(trace, wanted, origins)
    named = {group.name for origin in origins for group in (*origin.layer.groups, *origin.layer.probes)}
    said = {
        "i2am": version("i2am"),
        "trace": record.id,
        "manifest_sha256": hash_file(trace.storage, MANIFEST).sha256,
        "options": _options(wanted, [origin.layer.name for origin in origins], steps, heads),
    }
    before = record.provenance.get("derived")
    return dataclasses.replace(
        record,
        id=str(uuid.uuid5(uuid.NAMESPACE_OID, canonical(said))),
        layers=tuple(origin.layer for origin in origins),
        steps=len(steps),
        latent_grid=trace.latent_grid,
        texts=tuple(text for text in record.texts if text.group in named),
        codec=dataclasses.replace(record.codec, keep_bits=bits),
        provenance={**record.provenance, "derived": [*(before if isinstance(before, list) else []), said]},
    ), origins


def _layer(layer: Layer, kept: tuple[int, ...], wanted: Wanted) -> Layer:
    changes: dict[str, Any] = {}
    if len(kept) < layer.heads:
        numbers = tuple(layer.heads_kept[i] for i in kept)
        changes = {"heads": len(kept), "head_numbers": numbers, "call_heads": layer.model_heads}
    if wanted.encoding is not None:
        changes["encoding"] = wanted.encoding
    if wanted.factor_dtype is not None and (wanted.encoding or layer.encoding) == "factors":
        changes["factor_dtype"] = wanted.factor_dtype
    return dataclasses.replace(layer, **changes)


def _bits(trace: Trace, wanted: Wanted) -> int:
    before = trace.record.codec.keep_bits
    if wanted.keep_bits is None:
        return before
    if not 1 <= wanted.keep_bits <= MANTISSA:
        raise InvalidInput(f"{option('keep_bits', wanted.keep_bits)}: float16 has mantissa bits to keep from 1 to {MANTISSA}")
    if wanted.keep_bits > before:
        raise InvalidInput(f"{option('keep_bits', wanted.keep_bits)}: the trace's probabilities were rounded to {before} bits already")
    return wanted.keep_bits


def _require_sense(trace: Trace, wanted: Wanted, origins: list[Origin]) -> None:
    """Refuse options that have nothing to act on."""
    before = {trace.layers[origin.index].encoding for origin in origins}
    after = {origin.layer.encoding for origin in origins}
    if wanted.encoding == "factors" and "probabilities" in before:
        raise InvalidInput("q and k cannot be had from probabilities; record with the encoding factors")
    if wanted.keep_bits is not None and "probabilities" not in after:
        way = option("encoding", "probabilities")
        raise InvalidInput(f"{option('keep_bits', wanted.keep_bits)} rounds probabilities, and the trace has factors; add {way}")
    if wanted.factor_dtype is not None and "factors" not in after:
        raise InvalidInput(f"{option('factor_dtype', wanted.factor_dtype)} is of factors, and the trace has probabilities; leave it out")


def _options(wanted: Wanted, names: list[str], steps: tuple[int, ...], heads: tuple[int, ...] | None) -> dict[str, Any]:
    """What was asked for as plain JSON: layers by name, steps by the positions that they had, heads by the model's numbers."""
    given: dict[str, Any] = {name: getattr(wanted, name) for name in ("keep_bits", "encoding", "factor_dtype")}
    given["heads"] = None if heads is None else list(heads)
    given["layers"] = None if wanted.layers is None else names
    given["steps"] = None if wanted.steps is None else list(steps)
    return {name: value for name, value in given.items() if value is not None}
