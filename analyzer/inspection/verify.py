"""Whether a trace is what was recorded: every file by its hash, every table by the plan, every number by its law."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from ...schema.errors import CorruptTrace, TraceError
from ...schema.journal import FileSums, decode_lines, decode_manifest, encode_manifest
from ...schema.layout import JOURNAL, MANIFEST, ROOT, data_plans, documents, probe_layout
from ..progress import hidden
from ..store.files import is_litter
from ..trace.reader import Trace, open_trace
from .precision import column_mass_lost, precision_note
from .sums import CallSums, sum_calls

TOLERANCE: Final = 2e-3
"""How far a sum of probabilities may be from 1: float16 rounds each by up to 2**-11, and the model may have worked in bfloat16."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    where: str
    """File or array, from the trace's root."""
    problem: str


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
    """Files that a desktop left in the trace."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON."""
        findings = [{"where": finding.where, "problem": finding.problem} for finding in self.findings]
        names = ("trace", "ok", "complete", "steps", "files", "nbytes", "row_error", "column_lost", "note")
        return {**{name: getattr(self, name) for name in names}, "ignored": list(self.ignored), "findings": findings}


def verify(path: str | os.PathLike[str], *, partial: bool = False, progress: bool = False) -> Report:
    """Check structure, hashes, completeness and sums; memory stays within a few shards whatever the trace's size.

    Raises   NotATrace, UnknownVersion, IncompleteTrace; what is wrong inside a trace is in the report
    """
    root = Path(path)
    trace, findings = _open(root, partial)
    complete = trace.complete if trace else True
    try:
        sums = _sums(root, complete)
    except CorruptTrace as error:
        return Report(
            trace.id if trace else "", complete, 0, 0, 0, np.nan, np.nan, (Finding(MANIFEST if complete else JOURNAL, str(error)),)
        )
    # What keeps it from opening is said only where no file says it better.
    findings = _check_files(root, sums, trace, progress) or findings
    rows = columns = np.nan
    if trace and not findings:
        rows, columns, findings = _check_numbers(trace, progress)
    size = sum(nbytes for nbytes, _ in sums.values())
    ignored = tuple(sorted(name for name, plain in _walk(root) if plain and is_litter(Path(name).name)))
    return Report(
        trace.id if trace else "",
        complete,
        len(trace.present) if trace else 0,
        len(sums),
        size,
        rows,
        columns,
        tuple(findings),
        precision_note(trace) if trace else None,
        ignored,
    )


def hash_file(path: Path) -> tuple[int, str]:
    """Size and sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _open(root: Path, partial: bool) -> tuple[Trace | None, list[Finding]]:
    """The trace if it opens, else what is wrong with it."""
    try:
        return open_trace(root, partial=partial), []
    except CorruptTrace as error:
        return None, [Finding(".", str(error))]
    except TraceError:
        # A flipped byte can turn the root into another version's, or into no trace at all; the manifest knows better.
        if not (root / MANIFEST).is_file() or not (root / ROOT).is_file() or _promised(root).get(ROOT) in (None, hash_file(root / ROOT)):
            raise
        return None, []


def _promised(root: Path) -> FileSums:
    try:
        return decode_manifest((root / MANIFEST).read_bytes())[1]
    except TraceError:
        return {}


def _sums(root: Path, complete: bool) -> FileSums:
    """What the trace's own ledger says of its files: the manifest, or the journal of an unfinished recording.

    Raises   CorruptTrace if the ledger itself was changed
    """
    if not complete:
        journal = root / JOURNAL
        entries = decode_lines(journal.read_bytes()) if journal.is_file() else []
        return {name: sums for entry in entries for name, sums in entry["files"].items()}
    if not (root / MANIFEST).is_file():
        raise CorruptTrace(f"{MANIFEST} is missing, and without it nothing can be checked; copy the trace again, whole")
    text = (root / MANIFEST).read_bytes()
    identity, sums = decode_manifest(text)
    if encode_manifest(identity, sums).encode() != text:
        raise CorruptTrace(f"{MANIFEST} is not as it was written; the file was changed after the recording")
    return sums


def _check_files(root: Path, sums: FileSums, trace: Trace | None, progress: bool) -> list[Finding]:
    """Every listed file by size and hash, and no file besides."""
    found = dict(_walk(root))
    wrong = [Finding(name, "is a link; a trace holds plain files") for name, plain in found.items() if not plain]
    with _bar("verify files", sum(size for size, _ in sums.values()), progress, unit="B") as bar:
        for name, (size, digest) in sorted(sums.items()):
            wrong += _check_file(root / name, name, (size, digest), found)
            bar.update(size)
    strangers = sorted(set(found) - set(sums) - _unlisted(sums, trace, found))
    return wrong + [Finding(name, "is not part of the trace; remove it") for name in strangers if not is_litter(Path(name).name)]


def _check_file(path: Path, name: str, expected: tuple[int, str], found: dict[str, bool]) -> list[Finding]:
    if name not in found:
        return [Finding(name, "is missing; copy the trace again, whole")]
    if not found[name]:
        return []
    actual = hash_file(path)
    if actual[0] != expected[0]:
        return [Finding(name, f"has {actual[0]} bytes where {expected[0]} were written; copy the trace again, whole")]
    return (
        [] if actual[1] == expected[1] else [Finding(name, "was changed after the recording: its sha256 is another; copy the trace again")]
    )


def _unlisted(sums: FileSums, trace: Trace | None, found: dict[str, bool]) -> set[str]:
    """Files that rightly stand outside the ledger."""
    if trace is None or trace.complete:
        return {MANIFEST}
    # A recording that was cut off also has its documents, and pieces of steps that were not committed.
    known = {f"{folder}/{ROOT}" for folder in documents(trace.record)} | {ROOT, JOURNAL, MANIFEST}
    plans = [(*data_plans(trace.record, index).values(), probe_layout(trace.record, index)) for index in range(len(trace.record.layers))]
    arrays = {plan.path for each in plans for plan in each if plan is not None}
    return known | {name for name in found if name.rsplit("/", 1)[0] in arrays or name.endswith(".partial")}


def _walk(root: Path) -> Iterator[tuple[str, bool]]:
    """(path from the root, whether it is a plain file) of everything that is not a folder."""
    for folder, folders, files in os.walk(root):
        for name in [*files, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]:
            path = Path(folder, name)
            yield path.relative_to(root).as_posix(), path.is_file() and not path.is_symlink()


def _check_numbers(trace: Trace, progress: bool) -> tuple[float, float, list[Finding]]:
    """Worst row of P, worst column of G, and what lies outside the tolerance."""
    wrong: list[Finding] = []
    rows, columns = np.nan, np.nan
    lost = column_mass_lost(trace)
    total = sum(int((where >= 0).sum()) for where in trace.call_steps)
    with _bar("verify numbers", total, progress, unit="call") as bar:
        for sums in sum_calls(trace):
            wrong += _check_sums(sums, trace.layers[sums.layer].partial_keys, lost[sums.layer])
            if not trace.layers[sums.layer].partial_keys:
                rows = float(np.fmax(rows, _distance(sums.rows)))
            columns = float(np.fmax(columns, _distance(sums.columns)))
            bar.update(1)
    return rows, columns, wrong


def _check_sums(sums: CallSums, partial_keys: bool, lost: float) -> list[Finding]:
    where, step = f"layers/{sums.layer:03d}", f"step {sums.at[2]}"
    if sums.problem:
        return [Finding(where, sums.problem)]
    wrong = []
    below, above = 1 - sums.rows[0], sums.rows[1] - 1
    # Written so that NaN fails. Keys that were not kept take their part of a row.
    if not (above <= TOLERANCE and (below <= TOLERANCE or (partial_keys and sums.rows[0] >= 0))):
        wrong.append(Finding(where, f"{step}: rows of P sum to {sums.rows[0]:.4f} to {sums.rows[1]:.4f}; expected 1"))
    if not _distance(sums.columns) <= lost + TOLERANCE:
        said = f"expected 1, give or take {lost:.2g} that the encoding changed"
        wrong.append(Finding(where, f"{step}: columns of G sum to {sums.columns[0]:.4f} to {sums.columns[1]:.4f}; {said}"))
    return wrong


def _distance(ends: tuple[float, float]) -> float:
    return max(abs(ends[0] - 1), abs(ends[1] - 1))


def _bar(what: str, total: int, progress: bool, unit: str) -> tqdm[Any]:
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", leave=False, disable=hidden() if progress else True)
