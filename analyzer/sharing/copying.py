"""Copies of traces between folders, zip files and addresses: every file compared with the manifest on its way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...schema.arrays.layers import data_plans, fixed_layout
from ...schema.errors import CorruptTrace
from ...schema.journal import FileSum, FileSums
from ...schema.layout import MANIFEST, ROOT, documents, image_layout, layout
from ...schema.trace import TraceRecord
from ..progress import hidden
from ..storage.location import Location, describe_location, settle
from ..storage.storage import Part, Storage
from ..store.files import read_file
from ..store.validation import read_manifest
from ..trace.reader import open_trace
from .encoding import File
from .target import Target, new_trace, require_outside
from .upload import new_upload


@dataclass(frozen=True, slots=True)
class Copied:
    """A trace that was copied."""

    place: Path | str
    record: TraceRecord
    nbytes: int
    files: int
    kept: int
    """Files that an earlier copy had brought."""


def copy(path: Location | Storage, out: Location, *, overwrite: bool = False, progress: bool = False) -> Copied:
    """Copy a trace as it is: to a folder, if `out` ends in .zarr, or into one zip file, if it ends in .zip; either may be an address.

    A copy that ended early is taken up again: files that agree with the manifest are kept. Until it is whole, it has another name.

    Raises   NotATrace, UnknownVersion, IncompleteTrace, CorruptTrace for a file that was changed, AlreadyExists, InvalidInput
    """
    source, place = open_trace(path), settle(out)
    if isinstance(place, Path):
        require_outside(place, source.storage)
    sums = read_manifest(source.storage, source.record)[1]
    ledger = read_file(source.storage, MANIFEST, source.storage.size(MANIFEST))
    sums[MANIFEST] = FileSum(len(ledger), hashlib.sha256(ledger).hexdigest())
    names = in_order(source.record, sums)
    total = sum(given.nbytes for given in sums.values())
    bar: tqdm[Any] = tqdm(
        total=total,
        desc=f"copy to {describe_location(out)}",
        unit="B",
        unit_scale=True,
        leave=False,
        disable=hidden() if progress else True,
    )
    with bar, _open_target(place, names, overwrite) as target:
        wanted = list(_missing(target, names, sums, bar))
        for file in _read(source.storage, wanted, sums):
            target.add(file)
            bar.update(len(file.data))
    return Copied(place, source.record, total, len(names), len(names) - len(wanted))


def in_order(record: TraceRecord, sums: FileSums) -> list[str]:
    """Files as they lie in an archive: attention layer by layer, pictures, then all that opening the trace reads, the root last."""
    attention = [plan for i in range(len(record.layers)) for plan in (*data_plans(record, i).values(), *fixed_layout(record, i).values())]
    pictures = [image_layout(image) for image in record.images]
    first = {plan.path for plan in (*attention, *pictures)}
    tables = [plan for plan in layout(record) if plan.path not in first]
    names = [name for plan in (*attention, *pictures, *tables) for name in plan.file_names if name in sums]
    last = [f"{folder}/{ROOT}" for folder in documents(record)] + [MANIFEST, ROOT]
    return [*names, *sorted(set(sums) - set(names) - set(last)), *last]


def _open_target(place: Path | str, names: list[str], overwrite: bool) -> AbstractContextManager[Target]:
    return new_upload(place, names, overwrite) if isinstance(place, str) else new_trace(place, overwrite, resumable=True)


def _missing(target: Target, names: list[str], sums: FileSums, bar: tqdm[Any]) -> Iterator[str]:
    for name in names:
        if target.keep(name, sums[name]):
            bar.update(sums[name].nbytes)
        else:
            yield name


def _read(storage: Storage, names: list[str], sums: FileSums) -> Iterator[File]:
    """Files whose bytes are those that the manifest lists.

    Raises   CorruptTrace for the first that are not
    """
    data = storage.fetch(Part(name, 0, sums[name].nbytes) for name in names)
    for name in names:
        try:
            found = next(data).tobytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise CorruptTrace(f"{name} of the trace {storage} cannot be read ({why}); what was copied is kept, copy again") from error
        if hashlib.sha256(found).hexdigest() != sums[name].sha256:
            raise CorruptTrace(f"{name} of the trace {storage} was changed after the recording: its sha256 is another; copy another one")
        yield File(name, found)
