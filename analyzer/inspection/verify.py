"""Whether a trace is what was recorded: every file by its hash, every table by the plan, every number by its law."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from ...schema.arrays.array import STEP
from ...schema.arrays.layers import data_plans, fixed_layout
from ...schema.codec import MANTISSA
from ...schema.errors import CorruptTrace, NoAnswer, TraceError
from ...schema.journal import MANIFEST_VERSIONS, Bounds, FileSum, FileSums, bounds_of, decode_lines, decode_manifest, encode_manifest
from ...schema.layout import JOURNAL, MANIFEST, ROOT
from ..progress import hidden
from ..storage.location import Location, locate
from ..storage.storage import Listing, Storage
from ..store.chunks import read_heads, read_table
from ..store.files import hash_file, read_file
from ..trace.calls import At, Calls, Steps
from ..trace.reader import Trace, open_trace
from .info import caution
from .sums import CallSums, sum_calls

TOLERANCE: Final = 2e-3
"""How far a sum of probabilities may be from 1: float16 rounds each by up to 2**-11, and the model may have worked in bfloat16. Those that
were rounded to fewer bits may be as far as that besides."""

UNKNOWN: Final = Bounds(2**17, 2**20, 2**17)
"""What the ledger of a trace may hold whose record cannot be read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    where: str
    """File or array, from the trace's root."""
    problem: str


@dataclass(frozen=True, slots=True)
class Job:
    """What one thread does at a time."""

    names: list[str]
    """Files to hash."""
    calls: tuple[int, Calls, At, Steps] | None = None
    """The layer's position, its calls, and those to sum, whose files these are."""


@dataclass(frozen=True, slots=True)
class Report:
    """What verifying a trace found."""

    trace: str
    """The trace's id; empty if it could not be opened."""
    complete: bool
    steps: int
    """Committed denoiser evaluations."""
    files: int
    """Files whose bytes were compared with their recorded hash."""
    nbytes: int
    row_error: float
    """Worst distance of a row of P, summed over all keys of its call, from 1; NaN if no layer keeps all its keys."""
    column_lost: float
    """Worst distance of a column of G, summed over generated positions, from 1."""
    findings: tuple[Finding, ...]
    note: str | None = None
    """What is sound but not exact."""
    ignored: tuple[str, ...] = ()
    """Files that a desktop or a repository keeps in the trace."""
    leftovers: tuple[str, ...] = ()
    """Files of an unfinished recording that belong to no committed step; `seal` removes them."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def rows(self) -> str:
        """How near the rows of P are to 1, in words."""
        if np.isfinite(self.row_error):
            return f"rows of P within {self.row_error:.1e} of 1"
        return "rows of P not summed, as every softmax also ran over keys that are not stored"

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON."""
        findings = [{"where": finding.where, "problem": finding.problem} for finding in self.findings]
        names = ("trace", "ok", "complete", "steps", "files", "nbytes", "row_error", "column_lost", "rows", "note")
        files = {"ignored": list(self.ignored), "leftovers": list(self.leftovers)}
        return {**{name: getattr(self, name) for name in names}, **files, "findings": findings}


def verify(path: Location | Storage, *, partial: bool = False, progress: bool = False) -> Report:
    """Check structure, hashes, completeness and sums; memory stays within a few shards whatever the trace's size.

    Raises   NotATrace, UnknownVersion, IncompleteTrace; what is wrong inside a trace is in the report
    """
    root = locate(path)
    trace, findings = _open(root, partial)
    complete = trace.complete if trace else not partial or root.has(MANIFEST)
    try:
        sums, listing = _sums(root, complete, bounds_of(trace.record) if trace else UNKNOWN), root.list_files()
    except CorruptTrace as error:
        where = MANIFEST if complete else JOURNAL
        return Report(trace.id if trace else "", complete, 0, 0, 0, np.nan, np.nan, (Finding(where, str(error)),))
    wrong, found = _read(root, _jobs(trace, sums) if trace else [], sums, progress)
    foreign, leftovers = _check_beside(sums, listing, complete)
    # What keeps it from opening is said only where no file says it better.
    findings = wrong + foreign or findings or (_check_tables(trace) if trace else [])
    rows = columns = np.nan
    if trace and not findings:
        rows, columns, findings = _check_numbers(trace, found)
    return Report(
        trace.id if trace else "",
        complete,
        len(trace.present) if trace else 0,
        len(sums),
        sum(given.nbytes for given in sums.values()),
        rows,
        columns,
        tuple(findings),
        caution(trace) if trace else None,
        tuple(sorted(listing.ignored)) if listing else (),
        tuple(leftovers),
    )


def _open(root: Storage, partial: bool) -> tuple[Trace | None, list[Finding]]:
    """The trace if it opens, else what is wrong with it."""
    try:
        return open_trace(root, partial=partial), []
    except CorruptTrace as error:
        return None, [Finding(".", str(error))]
    except TraceError:
        # A flipped byte can turn the root into another version's, or into no trace at all; the manifest knows better.
        promised = _promised(root) if root.has(MANIFEST) else None
        if promised is None or promised[:2] == hash_file(root, ROOT, promised.nbytes)[:2]:
            raise
        return None, []


def _promised(root: Storage) -> FileSum | None:
    """What the manifest says of the root."""
    try:
        return _sums(root, complete=True)[ROOT]
    except (KeyError, TraceError):
        return None


def _sums(root: Storage, complete: bool, bounds: Bounds = UNKNOWN) -> FileSums:
    """What the trace's own ledger says of its files: the manifest, or the journal of an unfinished recording.

    Raises   CorruptTrace if the ledger itself was changed
    """
    if not complete:
        entries = decode_lines(read_file(root, JOURNAL, bounds.nbytes), bounds) if root.has(JOURNAL) else []
        return {name: given for entry in entries for name, given in entry.files.items()}
    if not root.has(MANIFEST):
        raise CorruptTrace(f"{MANIFEST} is missing, and without it nothing can be checked; copy the trace again, whole")
    text = read_file(root, MANIFEST, bounds.nbytes)
    identity, sums = decode_manifest(text, bounds)
    forms = itertools.product(MANIFEST_VERSIONS, (None, 1))
    if text not in (encode_manifest(identity, sums, version, indent).encode() for version, indent in forms):
        raise CorruptTrace(f"{MANIFEST} is not as it was written; the file was changed after the recording")
    return sums


def _jobs(trace: Trace, sums: FileSums) -> list[Job]:
    """The calls of each group of steps that share files, with these files."""
    jobs: list[Job] = []
    for index in range(len(trace.layers)):
        calls, files = Calls.of(trace, index), defaultdict(list)
        for plan in data_plans(trace.record, index).values():
            for sample, branch, file, *rest in np.argwhere(trace.arrays[plan.path].there).tolist():
                group = file * plan.chunks[STEP] // calls.file_steps
                files[sample, branch, group].append(plan.key(sample, branch, file, *rest))
        for at in np.ndindex(*calls.where.shape[:STEP]):
            for steps in calls.groups(at, range(calls.where.shape[STEP])):
                names = files[*at, int(calls.where[*at, steps[0]]) // calls.file_steps]
                # A trace that is being recorded may have changed since it was opened.
                jobs.append(Job([name for name in names if name in sums], (index, calls, at, steps)))
    return jobs


def _read(root: Storage, calls: list[Job], sums: FileSums, progress: bool) -> tuple[list[Finding], list[CallSums]]:
    """What is wrong with the files by size and hash, and what the calls sum to: each right after its files, which are then in memory."""
    jobs = calls + [Job([name]) for name in sorted(set(sums).difference(*(job.names for job in calls)))]

    def read(job: Job) -> tuple[list[Finding], list[CallSums]]:
        wrong = [finding for name in job.names for finding in _check_file(root, name, sums[name])]
        return wrong, sum_calls(*job.calls) if job.calls and not wrong else []

    total, shown = sum(given.nbytes for given in sums.values()), hidden() if progress else True
    wrong: list[Finding] = []
    found: list[CallSums] = []
    with (
        tqdm(total=total, desc="verify", unit="B", unit_scale=True, leave=False, disable=shown) as bar,
        ThreadPoolExecutor(max_workers=os.cpu_count()) as pool,
    ):
        for job, (findings, summed) in zip(jobs, pool.map(read, jobs), strict=True):
            wrong += findings
            found += summed
            bar.update(sum(sums[name].nbytes for name in job.names))
    return sorted(wrong, key=lambda finding: finding.where), found


def _check_beside(sums: FileSums, listing: Listing | None, complete: bool) -> tuple[list[Finding], list[str]]:
    """Files that are not part of the trace; and what an unfinished recording left."""
    listing = listing or Listing()
    strangers = sorted(set(listing.sizes) - set(sums) - {ROOT, MANIFEST, JOURNAL})
    places = () if complete else ("layers/", "images/", "step/", "present/")
    foreign = [name for name in strangers if not name.startswith(places)]
    left = [name for name in strangers if name not in foreign and not name.endswith(f"/{ROOT}")]
    return [Finding(name, "is not part of the trace; remove it") for name in foreign], sorted([*left, *listing.temporary])


def _check_file(root: Storage, name: str, expected: FileSum) -> list[Finding]:
    try:
        actual = hash_file(root, name, expected.nbytes)
    except FileNotFoundError:
        return [Finding(name, "is missing; copy the trace again, whole")]
    except NoAnswer:
        raise
    except (OSError, ValueError) as error:
        return [Finding(name, f"cannot be read ({getattr(error, 'strerror', None) or error}); copy the trace again, whole")]
    if actual.nbytes != expected.nbytes:
        return [Finding(name, f"has {actual.nbytes} bytes where {expected.nbytes} were written; copy the trace again, whole")]
    same = actual.sha256 == expected.sha256
    return [] if same else [Finding(name, "was changed after the recording: its sha256 is another; copy the trace again")]


def _check_tables(trace: Trace) -> list[Finding]:
    """Chunks of arrays other than calls, which the ledger sums too."""
    layers = range(len(trace.layers))
    calls = {plan.path for index in layers for plan in data_plans(trace.record, index).values()}
    fixed = {plan.path for index in layers for plan in fixed_layout(trace.record, index).values()}
    wrong = []
    for path, files in trace.arrays.items():
        try:
            if path not in calls:
                (read_heads if path in fixed else read_table)(trace.storage, files)
        except CorruptTrace as error:
            wrong.append(Finding(path, str(error)))
    return wrong


def _check_numbers(trace: Trace, found: list[CallSums]) -> tuple[float, float, list[Finding]]:
    """Worst row of P, worst column of G, and what lies outside the tolerance."""
    wrong: list[Finding] = []
    rows, columns = np.nan, np.nan
    bits = trace.record.codec.keep_bits
    allowed = TOLERANCE + (2.0 ** -(bits + 1) if bits < MANTISSA else 0)
    for sums in found:
        layer = trace.layers[sums.layer]
        wrong += _check_sums(sums, layer.partial_keys, trace.lost[sums.layer], allowed)
        if not layer.partial_keys:
            rows = float(np.fmax(rows, _distance(sums.rows)))
        columns = float(np.fmax(columns, _distance(sums.columns)))
    return rows, columns, wrong


def _check_sums(sums: CallSums, partial_keys: bool, lost: float, allowed: float) -> list[Finding]:
    where, step = f"layers/{sums.layer:03d}", f"step {sums.at[2]}"
    if sums.problem:
        return [Finding(where, sums.problem)]
    wrong = []
    below, above = 1 - sums.rows[0], sums.rows[1] - 1
    # Written so that NaN fails. Keys that were not kept take their part of a row.
    if not (above <= allowed and (below <= allowed or (partial_keys and sums.rows[0] >= 0))):
        wrong.append(Finding(where, f"{step}: rows of P sum to {sums.rows[0]:.4f} to {sums.rows[1]:.4f}; expected 1"))
    if not _distance(sums.columns) <= lost + TOLERANCE:
        said = f"expected 1, give or take {lost:.2g} that the encoding changed"
        wrong.append(Finding(where, f"{step}: columns of G sum to {sums.columns[0]:.4f} to {sums.columns[1]:.4f}; {said}"))
    return wrong


def _distance(ends: tuple[float, float]) -> float:
    return max(abs(ends[0] - 1), abs(ends[1] - 1))
