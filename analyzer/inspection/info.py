"""What `i2am info` says of a trace, as plain values."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ...schema.journal import disk_bytes
from ..trace.reader import Trace
from .precision import precision_note

HALF: Final = 2
"""Bytes of a float16: what raw attention is counted in."""


def describe(trace: Trace) -> dict[str, Any]:
    """Everything a reader wants to know before asking for maps, as plain JSON."""
    record = trace.record
    disk, raw, lost = disk_bytes(trace.path), raw_bytes(trace), trace.lost
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
        "layers": [{**row, "column_mass_lost": share} for row, share in zip(trace.layer_table(), lost, strict=True)],
        "images": [
            {"name": image.name, "role": image.role, "frames": image.frames, "height": image.height, "width": image.width}
            for image in record.images
        ],
        "texts": [
            {"group": text.group, "branch": text.branch, "sample": text.sample, "text": text.text, "tokenizer": text.tokenizer}
            for text in record.texts
        ],
        "probes": _probes(trace),
        "timesteps": _ends(trace.steps["timestep"]),
        "bytes": disk,
        "bytes_raw_float16": raw,
        "compression": disk / raw if raw else None,
        "column_mass_lost": max((share for layer, share in zip(trace.layers, lost, strict=True) if not layer.is_resampler), default=0.0),
        "note": precision_note(trace),
        "model": record.model,
        "sampler": record.sampler,
        "inputs": record.inputs,
        "provenance": record.provenance,
    }


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


def _ends(values: np.ndarray[Any, np.dtype[Any]]) -> list[float]:
    return [float(values[0]), float(values[-1])] if len(values) else []
