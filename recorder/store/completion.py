"""Makes a trace complete out of the steps that its journal lists: tables, documents, manifest, and the root last."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from ...schema.arrays.array import ArrayPlan
from ...schema.errors import CorruptTrace, InvalidInput
from ...schema.journal import FileSum, Step, encode_manifest, require_bounded
from ...schema.layout import MANIFEST, MOST_ROOT_BYTES, ROOT, documents, layout, root_document
from ...schema.record import parse_json
from ...schema.trace import TraceRecord
from .coordinates import columns
from .files import Storage, encode_document, sync_folder


def complete(storage: Storage, trace: TraceRecord, steps: Sequence[Step], pixels: Mapping[str, NDArray[Any]]) -> TraceRecord:
    """Write all that a trace of these steps needs besides its attention, and return its final record.

    `pixels` are pictures that are not on disk yet, by path of their array. Nothing that a step wrote is touched, and until the root is
    replaced, which comes last, the trace is the unfinished one that it was.

    Raises   InvalidInput for pictures or facts that cannot be written, OSError
    """
    trace = _final(trace, steps)
    arrays = columns(trace, steps) | dict(pixels)
    plans = [plan for plan in layout(trace) if plan.path in arrays]
    for plan in plans:
        check_block(plan, arrays[plan.path], plan.shape)
    root = require_readable(trace)
    for folder, document in documents(trace).items():
        storage.write_document(folder, document)
    for plan in plans:
        storage.write_block(plan, (), arrays[plan.path], durable=False)
    storage.settle()
    files = {**storage.files, ROOT: FileSum(len(root), hashlib.sha256(root).hexdigest())}
    storage.write(MANIFEST, [encode_manifest(trace.id, files).encode()])
    sync_folder(storage.root)
    storage.write(ROOT, [root])
    sync_folder(storage.root)
    return trace


def require_readable(trace: TraceRecord) -> bytes:
    """The root of a trace once it is complete; raises InvalidInput unless readers will open it, now and then."""
    require_bounded(trace)
    whole = encode_document(root_document(dataclasses.replace(trace, status="complete")))
    if len(whole) > MOST_ROOT_BYTES:
        raise InvalidInput(f"the root would have {len(whole)} bytes, and readers take {MOST_ROOT_BYTES}; record fewer layers or probes")
    try:
        TraceRecord.from_json(parse_json(whole, ROOT)["attributes"]["i2am"])
    except CorruptTrace as error:
        raise InvalidInput(f"a trace cannot say of itself what it was given: {error}") from error
    return whole


def check_block(plan: ArrayPlan, data: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raise InvalidInput unless an array has this shape and the planned type."""
    if data.shape != shape or data.dtype != plan.dtype:
        raise InvalidInput(f"{plan.path} takes {plan.dtype} of shape {shape}, got {data.dtype} of shape {data.shape}")


def _final(trace: TraceRecord, steps: Sequence[Step]) -> TraceRecord:
    lost = [max([0.0, *(step.lost.get(str(index), 0.0) for step in steps)]) for index in range(len(trace.layers))]
    layers = tuple(dataclasses.replace(layer, column_mass_lost=min(1.0, share)) for layer, share in zip(trace.layers, lost, strict=True))
    return dataclasses.replace(trace, layers=layers, steps=len(steps), status="complete", reason="")
