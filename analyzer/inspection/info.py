"""What `i2am info` says of a trace: a record of plain values, and the same as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ...schema.journal import disk_bytes
from ...schema.messages import size_text
from ..trace.reader import Trace
from .precision import column_mass_lost, precision_note

HALF: Final = 2
"""Bytes of a float16: what raw attention is counted in."""


def describe(trace: Trace) -> dict[str, Any]:
    """Everything a reader wants to know before asking for maps, as plain JSON."""
    record = trace.record
    disk, raw, lost = disk_bytes(trace.path), raw_bytes(trace), column_mass_lost(trace)
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
        "column_mass_lost": max((share for layer, share in zip(trace.layers, lost, strict=True) if not layer.queries), default=0.0),
        "note": precision_note(trace),
        "model": record.model,
        "sampler": record.sampler,
        "inputs": record.inputs,
        "provenance": record.provenance,
    }


def write_summary(facts: dict[str, Any]) -> str:
    """The facts as text for a terminal."""
    done = f"{facts['steps']} steps" if facts["status"] == "complete" else f"{facts['steps']} of {facts['steps_planned']} planned steps"
    head = [
        ("trace", facts["trace"]),
        ("status", facts["status"] + (f" ({facts['reason']})" if facts["reason"] else "")),
        ("model", str(facts["model"].get("pipeline", facts["model"].get("class", "unknown")))),
        ("recorded", f"{done}, {facts['samples']} sample(s), {' and '.join(facts['branches'])}, timesteps {_arrow(facts['timesteps'])}"),
        ("images", ", ".join(f"{i['name']} {_by(i['frames'], i['height'], i['width'])}" for i in facts["images"]) or "none"),
        *_said(facts),
        ("size", _size(facts)),
        ("precision", f"at most {facts['column_mass_lost']:.2g} of one token's column lost by the encoding"),
    ]
    columns = ("layer", "grid", "heads", "keys", "calls", "encoding", "groups")
    rows = [
        (
            f"{row['index']}: {row['name']}",
            _by(row["frames"], *row["grid"]),
            f"{row['heads']} of {row['call_heads']}" if row["call_heads"] > row["heads"] else row["heads"],
            row["tokens"],
            row["calls"],
            row["encoding"],
            _groups(row),
        )
        for row in facts["layers"]
    ]
    return "\n".join([*(f"{name:<10}{text}" for name, text in head), "", *_table([columns, *rows])])


def _by(frames: int, rows: int, columns: int) -> str:
    """Rows x columns, frames before them in a video."""
    return f"{frames}x{rows}x{columns}" if frames else f"{rows}x{columns}"


def _probes(trace: Trace) -> dict[str, dict[str, Any]]:
    """Each probe with its role, its tokens (the most that a layer has), and in how many layers it has keys."""
    found: dict[str, dict[str, Any]] = {}
    for layer in trace.layers:
        for group in layer.probes:
            row = found.setdefault(group.name, {"role": group.role, "tokens": 0, "layers": 0})
            row.update(tokens=max(row["tokens"], group.tokens), layers=row["layers"] + 1)
    return found


def _said(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Prompts and probes, where the trace has any."""
    prompts = [text for text in facts["texts"] if text["group"] not in facts["probes"]]
    rows = [(f"{text['branch'] or 'text'}", repr(text["text"])) for text in prompts]
    probes = ", ".join(f"{name} ({row['tokens']} tokens)" for name, row in facts["probes"].items())
    return [*dict.fromkeys(rows), *([("probes", probes)] if probes else [])]


def raw_bytes(trace: Trace) -> int:
    """Bytes of the recorded calls' attention as bare float16 numbers."""
    record = trace.record
    calls = trace.present.sum(axis=0)
    sizes = [layer.heads * math.prod(layer.places) * layer.tokens * HALF for layer in record.layers]
    return int(sum(int(n) * size for n, size in zip(calls, sizes, strict=True))) * record.samples * len(record.branches)


def _groups(layer: dict[str, Any]) -> str:
    return ", ".join(f"{g['name']} " + ("{}x{}".format(*g["grid"]) if g["grid"] else str(g["tokens"])) for g in layer["groups"])


def _ends(values: np.ndarray[Any, np.dtype[Any]]) -> list[float]:
    return [float(values[0]), float(values[-1])] if len(values) else []


def _arrow(ends: list[float]) -> str:
    return " to ".join(f"{value:g}" for value in ends) or "none"


def _size(facts: dict[str, Any]) -> str:
    ratio, raw = facts["compression"], facts["bytes_raw_float16"]
    return size_text(facts["bytes"]) + (f", {ratio:.2f} times its attention as raw float16 ({size_text(raw)})" if ratio is not None else "")


def _table(rows: Sequence[Sequence[Any]]) -> list[str]:
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts]
