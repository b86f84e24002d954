"""What is checked before any attention is read: that the folder holds a trace, whole, unchanged, and laid out as planned.

Nothing in a trace is trusted: sizes are bounded before they are used, links are refused, and every document has to equal the one
that the record plans.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import CorruptTrace, IncompleteTrace
from ...schema.journal import FileSums, decode_lines, decode_manifest, present_of, steps_of
from ...schema.layout import (
    JOURNAL,
    MANIFEST,
    ROOT,
    ArrayPlan,
    data_plans,
    documents,
    image_layout,
    layer_documents,
    layer_layout,
    layer_path,
    probe_layout,
    root_document,
    step_layout,
)
from ...schema.messages import option
from ...schema.trace import TraceRecord
from .chunks import LEADING, Blocks, read_table
from .files import list_files, read_file, read_json, read_root, require_equal, require_files, require_known, require_sums

MOST_CHUNK: Final = 2**30
"""Largest chunk that is unpacked, in bytes; the recorder's own stay under a few megabytes."""
MOST_CALLS: Final = 4 * 10**6
"""Most calls of a whole trace: samples x branches x steps x layers."""
MOST_LENGTH: Final = 2**20
"""Longest axis of one call."""


@dataclass(frozen=True, eq=False)
class Contents:
    """A trace that passed its checks: its record, which calls are there, and the arrays that hold them."""

    path: Path
    """Where it lies."""
    record: TraceRecord
    """As on disk; for a partial trace its steps are the planned ones."""
    steps: dict[str, NDArray[Any]]
    """evaluation, timestep, sigma and scheduler_step of each step that counts, in execution order."""
    present: NDArray[np.bool_]
    """(step, layer): whether the layer was called."""
    call_steps: tuple[NDArray[np.int32], ...]
    """Per layer, (sample, branch, step): the step position on disk, -1 where absent."""
    key_steps: tuple[NDArray[np.int32] | None, ...]
    """Per layer of encoding `factors`, (sample, branch, step): the step position whose key serves."""

    @property
    def token(self) -> str:
        """What tells this trace, as opened, from any other: names in task graphs are made of it."""
        facts = f"{self.path.resolve()} {self.record.id} {self.record.status} {len(self.present)}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def blocks(self, layer: int, name: str) -> Blocks:
        """A recorded array of a layer, such as `probability` or `key`, as it is stored."""
        where = self.key_steps[layer] if name == "key" else self.call_steps[layer]
        assert where is not None  # only layers with factors have keys, and inspect read their key_step
        return Blocks(str(self.path), data_plans(self.record, layer)[name], where, self.record.layers[layer].name)


def inspect(path: str | os.PathLike[str], partial: bool = False) -> Contents:
    """Check a trace without reading its attention, and say what is in it.

    Raises   NotATrace, UnknownVersion, IncompleteTrace unless `partial`, CorruptTrace
    """
    root = Path(path)
    document = read_root(root)
    record = TraceRecord.from_json(document["attributes"]["i2am"])
    _require_bounded(record)
    if record.status == "complete":
        return _complete(root, record, document)
    entries = decode_lines(read_file(root, JOURNAL)) if (root / JOURNAL).is_file() else []
    if not partial:
        why = f": {record.reason}" if record.reason else ""
        raise IncompleteTrace(
            f"the recording in {root} did not finish ({record.status}{why}); {len(entries)} of {record.steps} planned steps are whole. "
            f"Read those with {option('partial', True)}, or record again"
        )
    return _partial(root, record, entries)


def _complete(root: Path, record: TraceRecord, document: dict[str, Any]) -> Contents:
    listing = list_files(root)
    if MANIFEST not in listing:
        raise CorruptTrace(
            f"{MANIFEST} of the trace {root} is missing, though the trace says it is complete; copy the trace again, all files of it"
        )
    trace_id, files = decode_manifest(read_file(root, MANIFEST))
    if trace_id != record.id:
        raise CorruptTrace(
            f"{MANIFEST} of the trace {root} belongs to the trace {trace_id}, not to {record.id}; two traces were mixed, copy it again"
        )
    require_files(root, files, listing)
    strangers = sorted(set(listing) - set(files) - {MANIFEST})
    if strangers:
        raise CorruptTrace(
            f"{strangers[0]} in the trace {root} is not in its manifest ({len(strangers)} such files); remove it, or copy the trace again"
        )
    blocks = tuple(f"{plan.path}/" for plan in _large(record))
    require_sums(root, {n: v for n, v in files.items() if n.endswith(ROOT) or not n.startswith((*blocks, "images/"))})
    require_known(root, [name for plan in _probe_plans(record) for name in plan.file_names if name not in files])
    require_equal(root, ROOT, document, root_document(record))
    for folder, expected in documents(record).items():
        require_equal(root, f"{folder}/{ROOT}", read_json(root, f"{folder}/{ROOT}"), expected)
    *columns, present = (read_table(str(root), plan) for plan in step_layout(record.steps, len(record.layers)))
    steps = dict(zip(("evaluation", "timestep", "sigma", "scheduler_step"), columns, strict=True))
    keys = tuple(_key_steps(root, record, i) for i in range(len(record.layers)))
    return _contents(root, record, steps, present, keys, files)


def _partial(root: Path, record: TraceRecord, entries: list[dict[str, Any]]) -> Contents:
    files: FileSums = {name: value for entry in entries for name, value in entry["files"].items()}
    listing = list_files(root)
    require_files(root, files, listing)
    # The root names pictures, and layers with their probes, only once they are on disk.
    require_known(root, [name for name in (image_layout(image).key(0, 0, 0) for image in record.images) if name not in listing])
    require_known(root, [name for plan in _probe_plans(record) for name in plan.file_names if name not in listing])
    for index in range(len(record.layers)):
        _require_layer_documents(root, record, index, len(entries))
    keys = tuple(_journalled_keys(record, i, entries) for i in range(len(record.layers)))
    return _contents(root, record, steps_of(entries), present_of(entries, len(record.layers)), keys, files)


def _contents(
    root: Path,
    record: TraceRecord,
    steps: dict[str, NDArray[Any]],
    present: NDArray[np.bool_],
    keys: tuple[NDArray[np.int32] | None, ...],
    files: FileSums,
) -> Contents:
    calls = tuple(_calls(root, record, i, present[:, i], keys[i], files) for i in range(len(record.layers)))
    return Contents(root, record, steps, present, calls, keys)


def _calls(
    root: Path, record: TraceRecord, index: int, present: NDArray[np.bool_], keys: NDArray[np.int32] | None, files: FileSums
) -> NDArray[np.int32]:
    """Where each call lies. A call has all of its files or none."""
    name = record.layers[index].name
    if keys is not None and ((keys < -1) | (keys > np.arange(keys.shape[2]))).any():
        raise CorruptTrace(f"key_step of layer {name} points to a step that comes later; the trace was changed after the recording")
    plans = [plan for name, plan in data_plans(record, index).items() if name != "key"]
    calls = np.full((record.samples, len(record.branches), len(present)), -1, np.int32)
    for at in np.ndindex(calls.shape):
        found = {file: file in files for plan in plans for file in _block_files(plan, at)}
        if any(found.values()):
            require_known(root, [file for file, there in found.items() if not there])
            calls[at] = at[2]
        if keys is not None and calls[at] >= 0:
            key = data_plans(record, index)["key"] if at[2] == 0 or keys[at] != keys[at[0], at[1], at[2] - 1] else None
            require_known(root, [file for file in _block_files(key, (*at[:2], int(keys[at]))) if file not in files] if key else [])
    if not np.array_equal((calls >= 0).any((0, 1)), present):
        step = int(np.argmax((calls >= 0).any((0, 1)) != present))
        raise CorruptTrace(
            f"the trace {root} says that layer {name} was {'' if present[step] else 'not '}called in step {step}, "
            f"but its files say otherwise; the trace was changed after the recording"
        )
    return calls


def _probe_plans(record: TraceRecord) -> list[ArrayPlan]:
    plans = (probe_layout(record, index) for index in range(len(record.layers)))
    return [plan for plan in plans if plan is not None]


def _large(record: TraceRecord) -> list[ArrayPlan]:
    """Arrays whose files have checksums of their own and are not hashed before they are needed."""
    return [plan for index in range(len(record.layers)) for plan in data_plans(record, index).values()] + _probe_plans(record)


def _block_files(plan: ArrayPlan, at: tuple[int, ...]) -> list[str]:
    grid = [n // m for n, m in zip(plan.shape[LEADING:], plan.file_shape[LEADING:], strict=True)]
    return [plan.key(*at, *cell) for cell in np.ndindex(*grid)]


def _key_steps(root: Path, record: TraceRecord, index: int) -> NDArray[np.int32] | None:
    path = f"{layer_path(index)}/key_step"
    return next((read_table(str(root), plan) for plan in layer_layout(record, index) if plan.path == path), None)


def _journalled_keys(record: TraceRecord, index: int, entries: list[dict[str, Any]]) -> NDArray[np.int32] | None:
    if record.layers[index].encoding != "factors":
        return None
    keys = np.full((record.samples, len(record.branches), len(entries)), -1, np.int32)
    for step, entry in enumerate(entries):
        table = entry["key_step"].get(str(index))
        if table is not None:
            try:
                keys[:, :, step] = table
            except (TypeError, ValueError) as error:
                raise CorruptTrace(
                    f"{JOURNAL}, line {step + 1}, has no table of key steps for layer {record.layers[index].name}"
                ) from error
    return keys


def _require_layer_documents(root: Path, record: TraceRecord, index: int, committed: int) -> None:
    """The arrays have the planned steps, or, if the recording was killed while it ended, the committed ones."""
    cut = layer_documents(dataclasses.replace(record, steps=committed), index)
    for folder, planned in layer_documents(record, index).items():
        found = read_json(root, f"{folder}/{ROOT}")
        if found != cut[folder]:
            require_equal(root, f"{folder}/{ROOT}", found, planned)


def _require_bounded(record: TraceRecord) -> None:
    """Refuse a record whose numbers alone could exhaust this machine."""
    lengths = [n for layer in record.layers for n in (layer.heads, layer.head_dim, layer.tokens, layer.probe_tokens, *layer.places)]
    calls = record.samples * len(record.branches) * record.steps * max(len(record.layers), 1)
    if calls > MOST_CALLS or max(lengths, default=0) > MOST_LENGTH:
        raise CorruptTrace(
            f"the trace record plans {calls} calls, with axes of up to {max(lengths, default=0)}, more than this release reads"
        )
    chunks = [math.prod(plan.chunks) * np.dtype(plan.dtype).itemsize for i in range(len(record.layers)) for plan in layer_layout(record, i)]
    pixels = [max(image.frames, 1) * image.height * image.width * image.channels for image in record.images]
    if max([*chunks, *pixels], default=0) > MOST_CHUNK:
        raise CorruptTrace(f"the trace record plans pieces of {max([*chunks, *pixels])} bytes, more than this release reads")
