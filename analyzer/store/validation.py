"""What is checked before any attention is read: that the folder holds a trace, whole, unchanged, and laid out as planned.

Nothing in a trace is trusted: sizes are bounded before they are used, links are refused, and every document has to equal the one
that the record plans.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.array import STEP, ArrayPlan
from ...schema.arrays.layers import ONCE, data_plans, fixed_layout, layer_path, step_tables
from ...schema.errors import CorruptTrace, IncompleteTrace, InvalidInput
from ...schema.journal import (
    FileSum,
    FileSums,
    Step,
    bounds_of,
    decode_lines,
    decode_manifest,
    present_of,
    require_bounded,
    steps_of,
    table_of,
)
from ...schema.layout import JOURNAL, MANIFEST, ROOT, documents, image_layout, layout, record_sum, root_document, step_layout
from ...schema.messages import option, plain
from ...schema.trace import TraceRecord
from ..storage.location import Location, locate
from ..storage.storage import Storage
from .chunks import LEADING, Blocks, read_table
from .files import read_file, read_root, require_equal, require_files, require_known, require_sums
from .ledger import ArrayFiles, group_files, index_array


@dataclass(frozen=True, eq=False)
class Contents:
    """A trace that passed its checks: its record, which calls are there, and the arrays that hold them."""

    storage: Storage
    """Where its files lie."""
    record: TraceRecord
    """As on disk; for a partial trace its steps are the planned ones."""
    steps: dict[str, NDArray[Any]]
    """evaluation, timestep, sigma and scheduler_step of each step that counts, in execution order."""
    present: NDArray[np.bool_]
    """(step, layer): whether the layer was called."""
    lost: tuple[float, ...]
    """Per layer, the worst share of one token's column of G that the encoding changed."""
    arrays: dict[str, ArrayFiles]
    """By path, the files of every array."""
    call_steps: tuple[NDArray[np.int32], ...]
    """Per layer, (sample, branch, step): the step position on disk, -1 where absent."""
    serving: tuple[dict[str, NDArray[np.int32]], ...]
    """Per layer, by name (`key_step` of factors, `value_step`), (sample, branch, step): the step position whose block serves."""

    @property
    def path(self) -> Path | str:
        """Where it lies: a path, or an address."""
        return self.storage.place

    @property
    def token(self) -> str:
        """What tells this trace, as opened, from any other: names in task graphs are made of it."""
        facts = f"{self.storage.identity} {self.record.id} {self.record.status} {len(self.present)}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def blocks(self, layer: int, name: str) -> Blocks:
        """A recorded array of a layer, such as `probability` or `key`, as it is stored."""
        where = self.serving[layer][ONCE[name]] if name in ONCE else self.call_steps[layer]
        files = self.arrays[f"{layer_path(layer)}/{name}"]
        return Blocks(self.storage, files, where, self.record.layers[layer].name)

    def table(self, path: str) -> NDArray[Any]:
        """An array that is one file, such as a coordinate or a picture.

        Raises   CorruptTrace naming the file
        """
        return read_table(self.storage, self.arrays[path])


def inspect(location: Location | Storage, partial: bool = False) -> Contents:
    """Check a trace without reading its attention, and say what is in it.

    Raises   NotATrace, UnknownVersion, IncompleteTrace unless `partial`, CorruptTrace
    """
    root = locate(location)
    document, record = _read_record(root)
    if record.status == "complete":
        return _complete(root, record, document)
    entries = decode_lines(read_file(root, JOURNAL, bounds_of(record).nbytes), bounds_of(record)) if root.has(JOURNAL) else []
    # A recorder may be at work: what the journal lists, the root that is read after it names.
    document, record = _read_record(root)
    if record.status == "complete":
        return _complete(root, record, document)
    if not partial:
        why = f": {record.reason}" if record.reason else ""
        raise IncompleteTrace(
            f"the recording in {root} did not finish ({record.status}{why}); {len(entries)} of {record.steps} planned steps are whole. "
            f"Read those with {option('partial', True)}, make a complete trace of them with `i2am seal`, or record again"
        )
    return _partial(root, record, document, entries)


def _read_record(root: Storage) -> tuple[dict[str, Any], TraceRecord]:
    document = read_root(root)
    record = TraceRecord.from_json(document["attributes"]["i2am"])
    try:
        require_bounded(record)
    except InvalidInput as error:
        raise CorruptTrace(f"the trace {root} is not one that i2am writes: {error}") from error
    return document, record


def read_manifest(root: Storage, record: TraceRecord) -> tuple[str, FileSums]:
    """The id that a complete trace's manifest names, and the files that it lists.

    Raises   CorruptTrace
    """
    bounds = bounds_of(record)
    return decode_manifest(read_file(root, MANIFEST, bounds.nbytes), bounds)


def _complete(root: Storage, record: TraceRecord, document: dict[str, Any]) -> Contents:
    listing = root.list_files()
    if not (root.has(MANIFEST) if listing is None else MANIFEST in listing.sizes):
        raise CorruptTrace(
            f"{MANIFEST} of the trace {root} is missing, though the trace says it is complete; copy the trace again, all files of it"
        )
    trace_id, files = read_manifest(root, record)
    if trace_id != record.id:
        raise CorruptTrace(
            f"{MANIFEST} of the trace {root} belongs to the trace {plain(trace_id[:99])}, not to {record.id}; two traces were mixed"
        )
    require_files(root, files, listing)
    if listing is not None and (strangers := sorted(set(listing.sizes) - set(files) - {MANIFEST})):
        raise CorruptTrace(
            f"{plain(strangers[0])} in the trace {root} is not in its manifest (in all {len(strangers)}); remove it, or copy it again"
        )
    arrays = _index(record, files, MANIFEST)
    _require_planned(root, record, files, arrays)
    large = tuple(f"{plan.path}/" for plan in _large(record))
    links = {} if listing is None else listing.links
    hub = {name for name, blob in links.items() if name != MANIFEST and blob != files[name].sha256}
    order = files if listing is None else [n for n in listing.sizes if n in files]  # as they lie, so that neighbours are read together
    small = {n: files[n] for n in order if n in hub or n.endswith(ROOT) or not n.startswith((*large, "images/"))}
    found = require_sums(root, small)
    require_equal(root, ROOT, document, root_document(record))
    for folder, expected in documents(record).items():
        require_equal(root, f"{folder}/{ROOT}", found[f"{folder}/{ROOT}"], expected)
    *columns, present = (read_table(root, arrays[plan.path]) for plan in step_layout(record.steps, len(record.layers)))
    steps = dict(zip(("evaluation", "timestep", "sigma", "scheduler_step"), columns, strict=True))
    serving = tuple(
        {name: read_table(root, arrays[f"{layer_path(i)}/{name}"]) for name in step_tables(layer)} for i, layer in enumerate(record.layers)
    )
    lost = tuple(layer.column_mass_lost for layer in record.layers)
    return _contents(root, record, steps, present, lost, arrays, serving)


def _partial(root: Storage, record: TraceRecord, document: dict[str, Any], entries: list[Step]) -> Contents:
    """Nothing but the root, the journal and the files that it lists is believed, or needed: the plan says the rest."""
    attributes = document["attributes"]
    if attributes.get("i2am_sha256", record_sum(attributes["i2am"])) != record_sum(attributes["i2am"]):
        raise CorruptTrace(f"{ROOT} of the trace {root} does not match its own checksum; the file was changed after the recording")
    files: FileSums = {name: given for entry in entries for name, given in entry.files.items()}
    listing = root.list_files()
    if listing is not None and listing.links:
        raise CorruptTrace(f"{next(iter(listing.links))} in the unfinished trace {root} is a link; copy it with its links resolved: cp -rL")
    require_files(root, files, listing)
    # The root names pictures, and layers with their fixed arrays, only once they are on disk.
    early = [*(image_layout(image) for image in record.images), *_fixed_plans(record)]
    for name in (name for plan in early for name in plan.file_names if name not in files):  # older journals do not list them
        require_known(root, [] if root.has(name) else [name])
        files[name] = FileSum(root.size(name), "")
    layers = len(record.layers)
    lost = tuple(max([0.0, *(entry.lost.get(str(index), 0.0) for entry in entries)]) for index in range(layers))
    shape = (record.samples, len(record.branches))
    serving = tuple({n: table_of(entries, n, i, *shape) for n in step_tables(layer)} for i, layer in enumerate(record.layers))
    return _contents(root, record, steps_of(entries), present_of(entries, layers), lost, _index(record, files, JOURNAL), serving)


def _index(record: TraceRecord, files: FileSums, ledger: str) -> dict[str, ArrayFiles]:
    """The listed files of every array, in which no file lies that the layout does not plan."""
    folders = group_files(files)
    return {plan.path: index_array(plan, folders.get(plan.path, ()), ledger) for plan in layout(record)}


def _require_planned(root: Storage, record: TraceRecord, files: FileSums, arrays: dict[str, ArrayFiles]) -> None:
    """Refuse a manifest that lists less than the plan, or more; calls, which may be absent, are looked at one by one."""
    known = {f"{folder}/{ROOT}" for folder in documents(record)} | {ROOT}
    require_known(root, sorted(known - set(files)))
    calls = {plan.path for index in range(len(record.layers)) for plan in data_plans(record, index).values()}
    require_known(root, [array.missing() for path, array in arrays.items() if path not in calls and not array.there.all()])
    foreign = [name for name in files if name not in known and name != JOURNAL and name.rpartition("/")[0] not in arrays]
    if foreign:
        raise CorruptTrace(f"{MANIFEST} of the trace {root} lists {foreign[0]}, which the layout does not plan; do not use this trace")


def _contents(
    root: Storage,
    record: TraceRecord,
    steps: dict[str, NDArray[Any]],
    present: NDArray[np.bool_],
    lost: tuple[float, ...],
    arrays: dict[str, ArrayFiles],
    serving: tuple[dict[str, NDArray[np.int32]], ...],
) -> Contents:
    calls = tuple(_calls(root, record, i, present[:, i], serving[i], arrays) for i in range(len(record.layers)))
    return Contents(root, record, steps, present, lost, arrays, calls, serving)


def _calls(
    root: Storage,
    record: TraceRecord,
    index: int,
    present: NDArray[np.bool_],
    serving: dict[str, NDArray[np.int32]],
    arrays: dict[str, ArrayFiles],
) -> NDArray[np.int32]:
    """Where each call lies. A call has all of its files or none; where files hold several steps, a table says which were called."""
    table = read_table(root, arrays[f"{layer_path(index)}/called"]) if record.chunk_steps > 1 else None
    name, steps = record.layers[index].name, len(present)
    for kind, served in serving.items():
        if ((served < -1) | (served > np.arange(steps))).any():
            raise CorruptTrace(f"{kind} of layer {name} points to a step that comes later; the trace was changed after the recording")
    listed = {plan: arrays[path] for plan, path in ((n, f"{layer_path(index)}/{n}") for n in data_plans(record, index))}
    some: dict[str, NDArray[np.bool_]] = {}
    every: dict[str, NDArray[np.bool_]] = {}
    for data, files in listed.items():
        parts = files.there.reshape(*files.there.shape[:LEADING], -1)
        some[data], every[data] = (
            _each_step(found, files.plan, steps) for found in (np.logical_or.reduce(parts, -1), np.logical_and.reduce(parts, -1))
        )
    called = functools.reduce(np.logical_or, [some[data] for data in some if data not in ONCE]) if table is None else table
    for data, files in listed.items():
        if data not in ONCE and (called & ~every[data]).any():
            sample, branch, step = (int(i) for i in np.argwhere(called & ~every[data])[0])
            require_known(root, [files.missing(sample, branch, step // files.plan.chunks[STEP])])
    for data in ONCE.keys() & listed.keys():
        steps_of_blocks, at = serving[ONCE[data]], np.argwhere(called)
        served = steps_of_blocks[called]
        whole = (served >= 0) & every[data][at[:, 0], at[:, 1], served]
        if not whole.all():
            sample, branch, step = (int(i) for i in at[np.argmin(whole)])
            plan = listed[data].plan
            file = int(steps_of_blocks[sample, branch, step]) // plan.chunks[STEP]
            require_known(root, [plan.key(sample, branch, file, *[0] * (len(plan.shape) - LEADING))])
    if not np.array_equal(called.any((0, 1)), present):
        step = int(np.argmax(called.any((0, 1)) != present))
        raise CorruptTrace(
            f"the trace {root} says that layer {name} was {'' if present[step] else 'not '}called in step {step}, "
            f"but its files say otherwise; the trace was changed after the recording"
        )
    where: NDArray[np.int32] = np.where(called, np.arange(steps, dtype=np.int32), np.int32(-1))
    return where


def _each_step(files: NDArray[np.bool_], plan: ArrayPlan, steps: int) -> NDArray[np.bool_]:
    """What holds of files, for the steps that they hold.

    Dims     (sample, branch, file) -> (sample, branch, step)
    """
    found: NDArray[np.bool_] = np.repeat(files, plan.chunks[STEP], 2)[:, :, :steps]
    return found


def _fixed_plans(record: TraceRecord) -> list[ArrayPlan]:
    return [plan for index in range(len(record.layers)) for plan in fixed_layout(record, index).values()]


def _large(record: TraceRecord) -> list[ArrayPlan]:
    """Arrays whose chunks have checksums in the ledger and are not hashed before they are needed."""
    return [plan for index in range(len(record.layers)) for plan in data_plans(record, index).values()] + _fixed_plans(record)
