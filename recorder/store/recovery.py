"""Makes a complete trace of the steps that an unfinished recording committed; needs no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...schema.arrays.layers import fixed_layout
from ...schema.errors import CorruptTrace, InvalidInput, NotATrace
from ...schema.journal import FileSum, FileSums, Step, decode_lines
from ...schema.layout import JOURNAL, MANIFEST, MOST_ROOT_BYTES, ROOT, documents, image_layout, record_sum
from ...schema.messages import option, plain
from ...schema.record import parse_json
from ...schema.trace import TraceRecord
from .completion import complete
from .files import TEMPORARY, Storage
from .lock import TraceLock


@dataclass(frozen=True, slots=True)
class Sealed:
    """What was made of an unfinished trace."""

    trace: TraceRecord
    """The record of the complete one."""
    planned: int
    """Steps that the recording was to have."""
    removed: tuple[str, ...]
    """Files that belonged to no step that was kept, from the trace's root."""
    damaged: str = ""
    """The first file that was missing or changed, whose step and all later ones were left out."""


def seal(path: str | os.PathLike[str], *, drop_damaged: bool = False) -> Sealed:
    """Make a complete, smaller trace of the steps that an unfinished recording committed; their files are not touched.

    `drop_damaged` leaves out the first step of which a file is missing or changed, and all later ones, and removes their files.

    Raises   NotATrace, AlreadyExists if it is being recorded, InvalidInput if it is complete or holds no step, CorruptTrace
    """
    root = Path(path)
    if not (root / ROOT).is_file():
        raise NotATrace(f"{root} is no trace: it has no {ROOT}")
    lock = TraceLock(root)
    try:
        return _seal(root, drop_damaged)
    finally:
        lock.release()


def _seal(root: Path, drop_damaged: bool) -> Sealed:
    record = _read_record(root)
    journal = _read(root, JOURNAL) if (root / JOURNAL).exists() else b""
    steps = decode_lines(journal)
    damaged = _first_damaged(root, steps)
    if damaged is not None and not drop_damaged:
        step, name = damaged
        raise CorruptTrace(
            f"{name}, a file of step {step} of the trace {root}, is missing or was changed; bring it back, or keep the {step} steps "
            f"before it with {option('drop_damaged', True)}"
        )
    kept = steps if damaged is None else steps[: damaged[0]]
    if not kept:
        raise InvalidInput(f"no step of {root} is whole, so there is nothing to seal; remove it and record again")
    storage = Storage(root)
    storage.files = _early_files(root, record) | {name: given for step in kept for name, given in step.files.items()}
    whole = b"".join(line + b"\n" for line in journal.split(b"\n")[: len(kept)])
    if whole == journal:
        storage.files[JOURNAL] = FileSum(len(whole), hashlib.sha256(whole).hexdigest())
    else:  # a torn last line, or steps that are left out
        storage.write(JOURNAL, [whole])
    before = {"status": record.status, "reason": record.reason, "planned_steps": record.steps, "kept_steps": len(kept)}
    final = dataclasses.replace(record, provenance={**record.provenance, "sealed": before})
    leftovers = _leftovers(root, set(storage.files) | {f"{folder}/{ROOT}" for folder in documents(final)})
    storage.remove(leftovers)
    sealed = complete(storage, final, kept, {})
    return Sealed(sealed, record.steps, tuple(leftovers), "" if damaged is None else damaged[1])


def _read_record(root: Path) -> TraceRecord:
    document = parse_json(_read(root, ROOT), f"{ROOT} of the trace {root}")
    attributes = document.get("attributes")
    if not isinstance(attributes, dict) or not isinstance(attributes.get("i2am"), dict):
        raise NotATrace(f"{root} is a Zarr store but not a trace: its {ROOT} has no attribute `i2am`")
    record = TraceRecord.from_json(attributes["i2am"])
    if record.status == "complete":
        raise InvalidInput(f"{root} is complete already, so there is nothing to seal; `i2am verify` says whether it is as recorded")
    if attributes.get("i2am_sha256", record_sum(attributes["i2am"])) != record_sum(attributes["i2am"]):
        raise CorruptTrace(f"{ROOT} of the trace {root} does not match its own checksum; the file was changed after the recording")
    return record


def _read(root: Path, name: str) -> bytes:
    path = root / name
    if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > 4 * MOST_ROOT_BYTES:
        raise CorruptTrace(f"{name} of the trace {root} is no plain file, or larger than any of ours; the trace was changed")
    return path.read_bytes()


def _sum(path: Path) -> FileSum | None:
    """Size and sha256 of a plain file; None where there is none."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileSum(file.tell(), digest)
    except OSError:
        return None


def _first_damaged(root: Path, steps: Sequence[Step]) -> tuple[int, str] | None:
    """The first step of which a file is not as the journal says, and that file."""
    for step in steps:
        for name, given in step.files.items():
            found = _sum(root / name)
            if found is None or found[:2] != given[:2]:
                return step.step, name
    return None


def _early_files(root: Path, record: TraceRecord) -> FileSums:
    """Pictures, keys of probes and output projections, as they are: a journal of an older release does not list them."""
    fixed = (plan for index in range(len(record.layers)) for plan in fixed_layout(record, index).values())
    plans = [*(image_layout(image) for image in record.images), *fixed]
    found = {name: _sum(root / name) for plan in plans for name in plan.file_names}
    missing = [name for name, given in found.items() if given is None]
    if missing:
        raise CorruptTrace(f"{missing[0]} is missing from the trace {root}; copy the trace again, all files of it")
    return {name: given for name, given in found.items() if given is not None}


def _leftovers(root: Path, kept: set[str]) -> list[str]:
    """Files that the recorder left where it writes, and that belong to nothing that is kept."""
    found = []
    for folder, folders, names in os.walk(root):
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/") for name in [*names, *linked]]
    ours = ("layers/", "images/", "step/", "present/")
    left = sorted(name for name in found if name not in kept | {ROOT, JOURNAL})
    foreign = [name for name in left if not name.startswith(ours) and not name.endswith(TEMPORARY) and name != MANIFEST]
    if foreign:
        raise CorruptTrace(f"{plain(foreign[0])} in {root} is no file of a trace; move it elsewhere, then seal the trace")
    return left
