"""Writes a trace from another one's numbers: attention layer by layer, then pictures, tables and documents, the manifest last.

One job reads the rows that a few of the new files hold, each chunk that is read once, and encodes them in a thread; a handful of
jobs are held at a time. In a zip file all that has to be read to open the trace lies together at the end.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.array import STEP, ArrayPlan
from ...schema.arrays.layers import data_plans, fixed_layout, layer_layout, layer_path
from ...schema.journal import FileSums, encode_manifest, require_bounded
from ...schema.layout import MANIFEST, MOST_DOCUMENT_BYTES, MOST_ROOT_BYTES, ROOT, documents, layout, root_document
from ...schema.trace import TraceRecord
from ..store.validation import Contents
from ..trace.calls import At
from .encoding import Chunk, File, encode_array, encode_document, encode_steps, join_chunks, rows_of
from .origin import Origin
from .target import Target

WORKERS: Final = os.cpu_count() or 1
AHEAD: Final = 2
AHEAD_BYTES: Final = 2**28
"""Jobs that are held beside those that run, and bytes of all, if more than one."""


@dataclass(frozen=True, eq=False)
class Job:
    """Some steps and rows of one array, which fill whole files."""

    plan: ArrayPlan
    name: str
    origin: Origin
    at: At
    steps: range
    rows: range
    band: int
    """Rows that are read at once."""


@dataclass(frozen=True, eq=False)
class Done:
    """What became of a job."""

    job: Job
    files: list[File]
    columns: NDArray[np.float64] | None
    """(step, head, token): what its rows add to the columns of G, where they were changed."""


def rewrite(target: Target, source: Contents, record: TraceRecord, origins: Sequence[Origin], tell: Callable[[int], object]) -> TraceRecord:
    """Write every file of the trace that `record` plans, and return the record as it was written; `tell` hears of bytes that were encoded.

    Raises   InvalidInput for a record that no reader would open, CorruptTrace for a file that was changed
    """
    require_bounded(record)
    sums: FileSums = {}

    def add(files: Iterable[File]) -> None:
        for file in files:
            target.add(file)
            sums[file.name] = file.sum

    def whole(plan: ArrayPlan, values: NDArray[Any]) -> list[File]:
        # Not in the main thread, where blosc packs with several, which write their blocks in the order in which they end.
        return pool.submit(lambda: list(encode_array(plan, values))).result()

    lost = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for index, origin in enumerate(origins):
            columns: dict[tuple[At, int], NDArray[np.float64]] = {}
            for done in run_jobs(pool, layer_jobs(record, index, origin)):
                add(done.files)
                _add_columns(columns, done)
                tell(job_bytes(done.job))
            worst = max((float(np.abs(1 - column).max()) for column in columns.values()), default=origin.layer.column_mass_lost)
            lost.append(min(1.0, worst) if math.isfinite(worst) else 1.0)
            for name, plan in fixed_layout(record, index).items():
                add(whole(plan, origin.fixed(name)))
        layers = tuple(dataclasses.replace(layer, column_mass_lost=share) for layer, share in zip(record.layers, lost, strict=True))
        record = dataclasses.replace(record, layers=layers)
        plans = {plan.path: plan for plan in layout(record)}
        for path, plan in plans.items():
            if path.startswith("images/"):
                add(whole(plan, source.table(path)))
        for path, values in tables(source, record, origins).items():
            add(whole(plans[path], values.astype(plans[path].dtype)))
    add(encode_document(f"{folder}/{ROOT}", found, MOST_DOCUMENT_BYTES) for folder, found in documents(record).items())
    root = encode_document(ROOT, root_document(record), MOST_ROOT_BYTES)
    target.add(File(MANIFEST, encode_manifest(record.id, sums | {ROOT: root.sum}).encode()))
    target.add(root)
    return record


def layer_jobs(record: TraceRecord, index: int, origin: Origin) -> Iterator[Job]:
    """The jobs of a layer, in the order in which its files lie in an archive."""
    calls = origin.calls
    for name, plan in data_plans(record, index).items():
        read = calls.arrays[name].plan if name in calls.arrays else plan
        size, (rows, height, step), chunk = plan.chunks[STEP], rows_of(plan), rows_of(read)[2]
        many, tall = size * max(1, read.chunks[STEP] // size), height * max(1, chunk // height)
        band, stored = min(tall, step * max(1, chunk // step)), origin.stored(name)
        for at in product(range(record.samples), range(len(record.branches))):
            for first, top in product(range(0, record.steps, many), range(0, rows, tall)):
                steps = range(first, min(first + many, record.steps))
                if stored[at][first : steps.stop].any():
                    yield Job(plan, name, origin, at, steps, range(top, min(top + tall, rows)), band)


def run_job(job: Job) -> Done:
    """Read and encode the files of a job; steps of which none is stored have none."""
    plan, size = job.plan, job.plan.chunks[STEP]
    _, height, step = rows_of(plan)
    stored = job.origin.stored(job.name)[job.at][job.steps.start : job.steps.stop]
    here = [job.steps[i] for i in np.flatnonzero(stored)]
    groups = [range(first, min(first + size, len(stored))) for first in range(0, len(stored), size)]
    chunks: dict[tuple[int, int], list[Chunk]] = {}
    columns: list[NDArray[np.float64]] = []
    for top in range(job.rows.start, job.rows.stop, job.band):
        rows = slice(top, min(top + job.band, job.rows.stop))
        found = job.origin.take(job.name, plan.dtype, job.at, here, rows)
        if job.name == "probability" and job.origin.changes:
            columns.append(job.origin.columns(job.at, here, rows, found))
        whole = np.full((len(stored), *found.shape[1:]), plan.fill, plan.dtype)
        whole[stored] = found
        for group, first in product(groups, range(0, rows.stop - top, step)):
            if stored[group.start : group.stop].any():
                place = ((job.steps.start + group.start) // size, (top + first) // height)
                chunks.setdefault(place, []).append(encode_steps(plan, whole[group.start : group.stop, :, first : first + step]))
    files = [join_chunks(plan, _name(plan, job.at, *place), chunks.pop(place)) for place in sorted(chunks)]
    return Done(job, files, np.sum(columns, axis=0) if columns else None)


def _name(plan: ArrayPlan, at: At, group: int, file: int) -> str:
    grid = [n // m for n, m in zip(plan.shape[STEP + 2 :], plan.file_shape[STEP + 2 :], strict=True)]
    return plan.key(*at, group, 0, *(int(i) for i in np.unravel_index(file, grid)))


def _add_columns(columns: dict[tuple[At, int], NDArray[np.float64]], done: Done) -> None:
    if done.columns is not None:
        stored = np.flatnonzero(done.job.origin.stored("probability")[done.job.at][done.job.steps.start : done.job.steps.stop])
        for step, found in zip(stored, done.columns, strict=True):
            place = (done.job.at, int(done.job.steps[step]))
            columns[place] = columns.get(place, 0) + found


def job_bytes(job: Job) -> int:
    """Bytes that a job encodes, before they are packed."""
    rows = math.prod(job.plan.shape[: STEP + 1]) * rows_of(job.plan)[0]
    return len(job.steps) * len(job.rows) * (job.plan.nbytes // rows)


def data_bytes(record: TraceRecord, origins: Sequence[Origin]) -> int:
    """Bytes of all attention that jobs encode, before it is packed."""
    jobs = (job for index, origin in enumerate(origins) for job in layer_jobs(record, index, origin))
    return sum(map(job_bytes, jobs))


def tables(source: Contents, record: TraceRecord, origins: Sequence[Origin]) -> dict[str, NDArray[Any]]:
    """Every array that is neither attention nor picture nor fixed with its layer, by path."""
    steps = list(origins[0].steps) if origins else list(range(record.steps))
    found: dict[str, NDArray[Any]] = {}
    for index, origin in enumerate(origins):
        data = {*data_plans(record, index), *fixed_layout(record, index)}
        for name in (plan.path.rsplit("/", 1)[1] for plan in layer_layout(record, index)):
            if name not in data:
                found[f"{layer_path(index)}/{name}"] = origin.coordinate(name)
    found |= {f"step/{name}": column[steps] for name, column in source.steps.items()}
    return found | {"present": source.present[steps][:, [origin.index for origin in origins]]}


def run_jobs(pool: ThreadPoolExecutor, jobs: Iterable[Job]) -> Iterator[Done]:
    """What becomes of each job, in order, worked out by threads that are never far ahead."""
    waiting: deque[tuple[Future[Done], int]] = deque()
    try:
        for job in jobs:
            size = job_bytes(job)
            while waiting and (len(waiting) >= WORKERS + AHEAD or sum(held for _, held in waiting) + size > AHEAD_BYTES):
                yield waiting.popleft()[0].result()
            waiting.append((pool.submit(run_job, job), size))
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        for late, _ in waiting:
            late.cancel()
