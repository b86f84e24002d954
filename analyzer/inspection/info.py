"""What `i2am info` says of a trace, as plain values, and what the encoding did to its R2G."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from ...schema.codec import MANTISSA
from ...schema.trace import LOSSY
from ..trace.calls import own_tokens
from ..trace.reader import Trace
from ..trace.tables import layer_rows

HALF: Final = 2
"""Bytes of a float16: what raw attention is counted in."""


def describe(trace: Trace) -> dict[str, Any]:
    """Everything a reader wants to know before asking for maps, as plain JSON."""
    record = trace.record
    disk, raw, lost = stored_bytes(trace), raw_bytes(trace), trace.lost
    return {
        "path": str(trace.path),
        "trace": record.id,
        "status": record.status,
        "reason": record.reason,
        "created": record.created,
        "steps": len(trace.present),
        "steps_planned": record.steps,
        "samples": record.samples,
        "branches": list(record.branches),
        "latent_grid": list(record.latent_grid) if record.latent_grid else None,
        "latent_frames": trace.latent_frames,
        "layers": layer_rows(trace),
        "images": [
            {"name": image.name, "role": image.role, "frames": image.frames, "height": image.height, "width": image.width}
            for image in record.images
        ],
        "texts": [
            {"group": text.group, "branch": text.branch, "sample": text.sample, "text": text.text, "tokenizer": text.tokenizer}
            for text in record.texts
        ],
        "probes": _probes(trace),
        "timesteps": trace.steps["timestep"][[0, -1] if len(trace.present) else []].astype(float).tolist(),
        "bytes": disk,
        "bytes_raw_float16": raw,
        "compression": disk / raw if raw else None,
        "column_mass_lost": max((share for layer, share in zip(trace.layers, lost, strict=True) if not layer.is_resampler), default=0.0),
        "note": caution(trace),
        "keeps": "maps" if record.maps_only else "attention",
        "token_maps": max((len(own_tokens(layer)) for layer in record.layers), default=0),
        "model": record.model,
        "sampler": record.sampler,
        "inputs": record.inputs,
        "provenance": record.provenance,
    }


def stored_bytes(trace: Trace) -> int:
    """Bytes of the trace's files, or of those that its ledger lists where they cannot be listed."""
    listing = trace.storage.list_files()
    return sum(listing.sizes.values()) if listing else sum(int(files.sizes[files.there].sum()) for files in trace.arrays.values())


def _probes(trace: Trace) -> dict[str, dict[str, Any]]:
    """Each probe with its role, its tokens (the most that a layer has), and in how many layers it has keys."""
    found: dict[str, dict[str, Any]] = {}
    for layer in trace.layers:
        for group in layer.probes:
            row = found.setdefault(group.name, {"role": group.role, "tokens": 0, "layers": 0})
            row.update(tokens=max(row["tokens"], group.tokens), layers=row["layers"] + 1)
    return found


def raw_bytes(trace: Trace) -> int:
    """Bytes of the recorded calls' attention as bare float16 numbers."""
    record = trace.record
    calls = trace.present.sum(axis=0)
    sizes = [layer.heads * math.prod(layer.places) * layer.tokens * HALF for layer in record.layers]
    return int(sum(int(n) * size for n, size in zip(calls, sizes, strict=True))) * record.samples * len(record.branches)


def caution(trace: Trace, layers: Iterable[int] | None = None, *, columns: bool = True) -> str | None:
    """What to read before trusting maps of these layers, by default all, or None: what the encoding lost, and what rests on trust.

    Without `columns` the maps are made of rows of P, from which the encoding takes nothing.
    """
    used = tuple(range(len(trace.layers)) if layers is None else layers)
    bad = [index for index in trace.unproven if index in used]
    said = [precision_note(trace, used) if columns else None]
    if bad:
        named = f"{trace.layers[bad[0]].name}{f' and {len(bad) - 1} more' if len(bad) > 1 else ''}"
        said.append(f"note: {len(bad)} of {len(used)} layers ({named}) rest on trust or samples; `info --json` says why, under provenance")
    return "; ".join(filter(None, said)) or None


def precision_note(trace: Trace, layers: Iterable[int] | None = None) -> str | None:
    """The one sentence to read before trusting R2G of these layers, by default all; None if their columns are whole.

    G2R and SRAM come from rows, which the encoding keeps.
    """
    lost = trace.lost
    # Nobody takes R2G over the tokens of an adapter.
    used = [lost[index] for index in (range(len(lost)) if layers is None else layers) if not trace.layers[index].is_resampler]
    bad = [share for share in used if share > LOSSY]
    if not bad:
        return None
    bits = trace.record.codec.keep_bits
    what = "float16 lost" if bits == MANTISSA else f"rounding to {bits} bits changed"
    return (
        f"note: {what} up to {max(bad):.0%} of one token's column in {len(bad)} of {len(used)} layer{'s' if len(used) > 1 else ''}, "
        "so R2G is approximate; record with encoding factors for exact maps"
    )
