"""What the ledger of a trace, its manifest or its journal, says of the files of each array: which are there, and their chunks' checksums.

The checksum that stands after a chunk guards its bytes; the same number in the ledger ties those bytes to their place in this trace, so
that a file of another step, layer or recording is an error when it is first read, without hashing it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.array import ArrayPlan
from ...schema.errors import CorruptTrace
from ...schema.journal import FileSum

Crcs: TypeAlias = NDArray[np.uint32]
Named: TypeAlias = Sequence[tuple[str, FileSum]]


@dataclass(frozen=True, eq=False)
class ArrayFiles:
    """The files of one array that a ledger lists."""

    plan: ArrayPlan
    sizes: NDArray[np.int64]
    """Dims (grid of files): bytes of the file, -1 where none is listed."""
    crcs: Crcs | None
    """Dims (grid of files, chunk in the file): crc32c of each chunk; None in traces older than ledgers of version 2."""

    @property
    def there(self) -> NDArray[np.bool_]:
        """Dims (grid of files): whether the file is listed."""
        listed: NDArray[np.bool_] = self.sizes >= 0
        return listed

    def missing(self, *lead: int) -> str:
        """Name of the first file that is not listed among those whose first positions are `lead`."""
        return self.plan.key(*lead, *(int(i) for i in np.argwhere(~self.there[lead])[0]))


def file_grid(plan: ArrayPlan) -> tuple[int, ...]:
    """How many files an array has along each axis."""
    return tuple(-(-n // m) for n, m in zip(plan.shape, plan.file_shape, strict=True))


def group_files(files: Mapping[str, FileSum]) -> dict[str, list[tuple[str, FileSum]]]:
    """The files that a ledger lists, by folder."""
    folders: dict[str, list[tuple[str, FileSum]]] = defaultdict(list)
    for name, given in files.items():
        folder, _, file = name.rpartition("/")
        folders[folder].append((file, given))
    return folders


def index_array(plan: ArrayPlan, named: Named, ledger: str) -> ArrayFiles:
    """The files of one array out of those that lie in its folder.

    Raises   CorruptTrace for a file that the layout does not plan, or a list of checksums that is not of its chunks
    """
    grid, count = file_grid(plan), plan.chunks_a_file
    sizes = np.full(grid, -1, np.int64)
    data = [(file, given) for file, given in named if file != "zarr.json"]
    crcs = np.zeros((*grid, count), np.uint32) if any(given.crcs for _, given in data) else None
    for file, given in data:
        at = tuple(int(part) if part.isdecimal() else -1 for part in file.split(".")[1:])
        if len(at) != len(grid) or not all(0 <= i < n for i, n in zip(at, grid, strict=True)) or plan.key(*at) != f"{plan.path}/{file}":
            raise CorruptTrace(f"{ledger} lists {plan.path}/{file}, which the layout does not plan; the trace was changed, copy it again")
        sizes[at] = given.nbytes
        if crcs is not None:
            if len(given.crcs) != 8 * count:
                raise CorruptTrace(f"{ledger} lists {len(given.crcs) // 8} chunks of {plan.path}/{file}, which has {count}; it was changed")
            crcs[at] = np.frombuffer(bytes.fromhex(given.crcs), ">u4")
    return ArrayFiles(plan, sizes, crcs)
