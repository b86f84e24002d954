"""The plan of a trace: which arrays it has, and the exact Zarr v3 metadata of each. Integers and strings only.

The writer creates what `layout` plans and the reader checks what it finds against it, so the two cannot drift.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Final

from .arrays.array import ArrayPlan
from .arrays.layers import layer_layout, layer_path
from .record import canonical
from .trace import Codec, Image, TraceRecord

ROOT: Final = "zarr.json"
JOURNAL: Final = "journal.jsonl"
MANIFEST: Final = "manifest.json"

MOST_ROOT_BYTES: Final = 2**24
"""Largest root document; those of hundreds of layers have a quarter of it."""
MOST_DOCUMENT_BYTES: Final = 2**16
"""Largest `zarr.json` of a group or array below the root."""

CONVENTION: Final = {
    "uuid": "0acf0b5b-ac58-591d-9a51-812f46751a5b",
    "name": "i2am",
    "description": "Attention of a diffusion run, per step, layer and head",
    "spec_url": "schema/README.md",
}


def layout(trace: TraceRecord) -> tuple[ArrayPlan, ...]:
    """Every array of a complete trace, in the order they are written."""
    plans = [plan for index in range(len(trace.layers)) for plan in layer_layout(trace, index)]
    plans += step_layout(trace.steps, len(trace.layers))
    return (*plans, *(image_layout(image) for image in trace.images))


def step_layout(steps: int, layers: int) -> list[ArrayPlan]:
    """The table of denoiser evaluations, in execution order, and which layers took part in each."""

    def column(name: str, dtype: str, meaning: str, fill: float | int = 0) -> ArrayPlan:
        attributes = {"long_name": meaning}
        return ArrayPlan(f"step/{name}", ("step",), (steps,), dtype, (max(steps, 1),), fill=fill, attributes=attributes)

    nan = math.nan
    return [
        column("evaluation", "int32", "ordinal of the denoiser evaluation in the whole run, from 0", -1),
        column("timestep", "float64", "the scheduler's timestep", nan),
        column("sigma", "float64", "noise level of the scheduler; NaN if it has none", nan),
        column("scheduler_step", "int32", "calls of scheduler.step before this evaluation", -1),
        ArrayPlan("present", ("step", "layer"), (steps, layers), "bool", (max(steps, 1), max(layers, 1)), fill=False),
    ]


def image_layout(image: Image) -> ArrayPlan:
    """One picture, uint8, row-major, y down; its axes bear its name, so that pictures of any sizes open as one dataset."""
    dims: tuple[str, ...] = (f"{image.name}_y", f"{image.name}_x", "rgb" if image.channels == 3 else "grey")
    shape: tuple[int, ...] = (image.height, image.width, image.channels)
    chunks, shards = shape, None
    if image.frames:  # one file, of which a frame can be read alone
        dims, shape, chunks = (f"{image.name}_frame", *dims), (image.frames, *shape), (1, *shape)
        shards = shape if image.frames > 1 else None
    return ArrayPlan(f"images/{image.name}", dims, shape, "uint8", chunks, shards, codec=Codec("zstd", 5), attributes={"role": image.role})


def documents(trace: TraceRecord) -> dict[str, dict[str, Any]]:
    """Every `zarr.json` of a complete trace but the root's, by the folder it lies in."""
    groups = {"layers": _group(), "step": _group(), "images": _group()}
    for index in range(len(trace.layers)):
        groups |= layer_documents(trace, index)
    return {**groups, **{plan.path: plan.to_json() for plan in layout(trace)}}


def layer_documents(trace: TraceRecord, index: int) -> dict[str, dict[str, Any]]:
    """The `zarr.json` of one layer's group and of its arrays, by folder."""
    return {layer_path(index): _group(), **{plan.path: plan.to_json() for plan in layer_layout(trace, index)}}


def root_document(trace: TraceRecord) -> dict[str, Any]:
    """The root's `zarr.json`, which says what the trace is.

    Once complete it carries all other documents too (Zarr's consolidated metadata), so that plain xarray opens it in one read. Before
    that no manifest holds its hash, so it carries one of its own record.
    """
    record = trace.to_json()
    document = {**_group(), "attributes": {"zarr_conventions": [CONVENTION], "i2am": record}}
    if trace.status == "complete":
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": documents(trace)}
    else:
        document["attributes"]["i2am_sha256"] = record_sum(record)
    return document


def record_sum(record: dict[str, Any]) -> str:
    """The sha256 that an unfinished trace's root carries of its record."""
    return hashlib.sha256(canonical(json.loads(json.dumps(record, default=str))).encode()).hexdigest()


def _group() -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": {}}
