"""The folder of an experiment: its record, and a file for each cell that was tried; what is there is gone on with."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numcodecs.blosc import Blosc
from numpy.typing import NDArray

from ...schema.errors import AlreadyExists, CorruptTrace, InvalidInput, NotATrace, TraceError
from ...schema.experiments.effects import EffectRecord
from ...schema.layout import MOST_ROOT_BYTES, ROOT, image_layout
from ...schema.messages import option
from ...schema.record import parse_json
from ...schema.trace import TraceRecord
from .files import Storage, check_local, read_record
from .lock import TraceLock

HEADER: Final = 16
"""Bytes of a blosc header; those from 4 to 8 say how many it unpacks to."""


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
        self.record = record if known is None or overwrite else known

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Cells that were not tried yet, row by row."""
        plan, (rows, columns) = self.record.plan, self.record.cells
        every = itertools.product(range(rows), range(columns))
        return [cell for cell in every if self._new or not (self._storage.root / plan.key(*cell, 0, 0)).is_file()]

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
            if self._new:
                self._storage.write_document("effect", self.record.plan.to_json())
                self._storage.write_document("", self.record.to_json())
                self._storage.settle()
                self._new = False
            yield
        finally:
            lock.release()

    def put(self, cell: tuple[int, int], effect: NDArray[np.float32]) -> None:
        """Keep the effect of one cell, durably; only while `opened`.

        Dims     effect (y, x)
        """
        self._storage.settle(self._storage.write_block(self.record.plan, cell, effect))


def _find_record(root: Path) -> EffectRecord:
    """The record of a folder that is there.

    Raises   AlreadyExists if it holds anything else
    """
    refused = f"{root} exists and holds no effects, so nothing is written there; remove it yourself or choose another path"
    try:
        if root.is_symlink() or (root / ROOT).stat().st_size > MOST_ROOT_BYTES:
            raise AlreadyExists(refused)
        return EffectRecord.from_json(parse_json((root / ROOT).read_bytes(), str(root)), str(root))
    except (OSError, TraceError) as error:
        raise AlreadyExists(refused) from error


def read_run(root: Path) -> TraceRecord:
    """The record of a local trace.

    Raises   NotATrace, CorruptTrace, UnknownVersion
    """
    check_local(root)
    if (found := read_record(root)) is None:
        raise NotATrace(f"{root} is no trace; give the folder that `i2am record` wrote, unpacked and on this machine")
    return TraceRecord.from_json(found)


def read_generated(root: Path, trace: TraceRecord, sample: int) -> NDArray[np.uint8] | None:
    """The picture that a run painted; None if its trace does not have it.

    Dims     (y, x, rgb)
    Raises   InvalidInput for a sample that there is not, CorruptTrace
    """
    if sample not in range(trace.samples):
        raise InvalidInput(f"{option('sample', sample)}; the trace {root} has samples 0 to {trace.samples - 1}")
    image = next((image for image in trace.images if image.name == f"generated_{sample}" and not image.frames), None)
    if image is None:
        return None
    plan = image_layout(image)
    name = plan.file_names[0]
    try:
        packed = (root / name).read_bytes()[:-4]  # a checksum follows
    except OSError as error:
        raise CorruptTrace(f"{name} of the trace {root} cannot be read ({error.strerror}); copy the trace again") from error
    if len(packed) < HEADER or int.from_bytes(packed[4:8], "little") != plan.nbytes:
        raise CorruptTrace(f"{name} of the trace {root} does not hold a picture of {image.height} x {image.width}; copy the trace again")
    unpacked = Blosc().decode(packed)
    return np.frombuffer(unpacked, np.uint8).reshape(plan.shape)
