"""The folder of an experiment: its record, and a file for each trial; what is there is gone on with."""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numcodecs.blosc import Blosc
from numpy.typing import NDArray

from ...schema.errors import AlreadyExists, CorruptTrace, InvalidInput, NotATrace
from ...schema.experiments.effects import ARRAYS, EffectRecord
from ...schema.layout import MOST_ROOT_BYTES, ROOT, image_layout
from ...schema.messages import option
from ...schema.record import parse_json
from ...schema.trace import TraceRecord
from .files import Storage, check_local, read_record
from .lock import TraceLock

HEADER: Final = 16
"""Bytes of a blosc header; those from 4 to 8 say how many it unpacks to."""
CRC_BYTES: Final = 4
"""A checksum stands after each chunk."""
TABLE_BYTES: Final = 16
"""For each of several chunks in one file: where it begins, and how many bytes it has."""


class EffectStore:
    """Effects while they are measured. Nothing is written, and nothing removed, before `opened`."""

    def __init__(self, root: Path, record: EffectRecord, *, overwrite: bool = False) -> None:
        check_local(root)
        known = _find_record(root) if root.exists() or root.is_symlink() else None
        if known is not None and not overwrite and not known.same_experiment(record):
            raise AlreadyExists(
                f"{root} holds effects of another experiment or run; choose another path, or {option('overwrite', True)} to replace it"
            )
        self._new, self._storage = known is None or overwrite, Storage(root)
        self.record = record if known is None or overwrite else known.joined(record)
        self._asked = record.trials

    @property
    def missing(self) -> list[tuple[str, tuple[int, ...]]]:
        """Trials that are asked for now and have no whole file yet, in order, each by its array and its place there."""
        asked = (name for name in self.record.plans if ARRAYS[name][0] in self._asked)
        every = ((name, place) for name in asked for place in self.record.places(name))
        return [(name, place) for name, place in every if self._new or not self._is_whole(name, place)]

    def _is_whole(self, name: str, place: tuple[int, ...]) -> bool:
        file = self._file(name, place)
        return file.is_file() and file.stat().st_size == 4 * math.prod(self.record.grid) + CRC_BYTES

    def _file(self, name: str, place: tuple[int, ...]) -> Path:
        return self._storage.root / self.record.plans[name].key(*place, 0, 0)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder, made or emptied if need be, against other processes.

        Raises   AlreadyExists if another holds it
        """
        root = self._storage.root
        if self._new and root.exists():
            lock = TraceLock(root)
            shutil.rmtree(root)
            lock.release()
        root.mkdir(parents=True, exist_ok=True)
        lock = TraceLock(root)
        try:
            for name, plan in self.record.plans.items():
                self._storage.write_document(name, plan.to_json())
            self._storage.write_document("", self.record.to_json())
            self._storage.settle()
            self._new = False
            yield
        finally:
            lock.release()

    def put(self, name: str, place: tuple[int, ...], effect: NDArray[np.float32]) -> None:
        """Keep what one trial changed, durably; only while `opened`.

        Dims     effect (y, x)
        """
        self._storage.settle(self._storage.write_block(self.record.plans[name], place, effect))

    def read_cells(self) -> NDArray[np.float64]:
        """Mean effect of each cell.

        Dims     (cell_y, cell_x)
        Raises   CorruptTrace for a file that has another size
        """
        found, size = np.empty(self.record.cells), math.prod(self.record.grid)
        for place in self.record.places("effect"):
            file = self._file("effect", place)
            if len(data := file.read_bytes()) != 4 * size + CRC_BYTES:
                raise CorruptTrace(f"{file} was changed; remove that file and run the same command again")
            found[place] = np.frombuffer(data, "<f4", size).mean(dtype=np.float64)
        return found


def _find_record(root: Path) -> EffectRecord:
    """The record of a folder that is there.

    Raises   AlreadyExists if it holds anything else, or a record that cannot be read
    """
    refused = f"{root} exists and holds no effects, so nothing is written there; remove it yourself or choose another path"
    try:
        if root.is_symlink() or (root / ROOT).stat().st_size > MOST_ROOT_BYTES:
            raise AlreadyExists(refused)
        return EffectRecord.from_json(parse_json((root / ROOT).read_bytes(), str(root)), str(root))
    except (OSError, NotATrace) as error:
        raise AlreadyExists(refused) from error
    except CorruptTrace as error:
        raise AlreadyExists(f"nothing is written to {root}: {error}; remove it yourself or choose another path") from error


def read_run(root: Path) -> TraceRecord:
    """The record of a local trace.

    Raises   NotATrace, CorruptTrace, UnknownVersion
    """
    check_local(root)
    if (found := read_record(root)) is None:
        raise NotATrace(f"{root} is no trace; give the folder that `i2am record` wrote, unpacked and on this machine")
    return TraceRecord.from_json(found)


def read_generated(root: Path, trace: TraceRecord, sample: int) -> NDArray[np.uint8] | None:
    """The picture or video that a run painted; None if its trace does not have it.

    Dims     (frame, y, x, rgb); a picture is one frame
    Raises   InvalidInput for a sample that there is not, CorruptTrace
    """
    if sample not in range(trace.samples):
        raise InvalidInput(f"{option('sample', sample)}; the trace {root} has samples 0 to {trace.samples - 1}")
    image = next((image for image in trace.images if image.name == f"generated_{sample}"), None)
    if image is None:
        return None
    plan = image_layout(image)
    name, count = plan.file_names[0], plan.chunks_a_file
    try:
        data = (root / name).read_bytes()
    except OSError as error:
        raise CorruptTrace(f"{name} of the trace {root} cannot be read ({error.strerror}); copy the trace again") from error
    packed = [data[:-CRC_BYTES]]
    if plan.shards:  # a table at the file's end says where each chunk begins and how long it is
        table = data[-TABLE_BYTES * count - CRC_BYTES : -CRC_BYTES].ljust(TABLE_BYTES * count, b"\0")
        packed = [data[begin : begin + size - CRC_BYTES] for begin, size in struct.iter_unpack("<QQ", table)]
    if any(len(one) < HEADER or int.from_bytes(one[4:8], "little") * count != plan.nbytes for one in packed):
        raise CorruptTrace(f"{name} of the trace {root} does not hold what it was recorded as; copy the trace again")
    return np.stack([np.frombuffer(Blosc().decode(one), np.uint8) for one in packed]).reshape(count, *plan.shape[-3:])
