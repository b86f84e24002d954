"""The files of a trace on disk: encoded, written whole under a temporary name, made durable, renamed, and remembered by hash.

The bytes are those that zarr-python reads; encoding them here costs a third of what its writing path does (one copy, one thread, no
comparison with the fill value), and the hash is taken from the bytes on their way out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Final

import google_crc32c
import numpy as np
from numcodecs.blosc import BITSHUFFLE, Blosc
from numpy.typing import NDArray

from ...schema.arrays.array import ArrayPlan
from ...schema.errors import AlreadyExists, InvalidInput
from ...schema.journal import FileSum, FileSums
from ...schema.layout import JOURNAL, MANIFEST, MOST_DOCUMENT_BYTES, MOST_ROOT_BYTES, ROOT
from ...schema.messages import refuse_taken
from .lock import TraceLock

TEMPORARY: Final = ".partial"
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an operating system says when a disk, a quota or a file is full."""
SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""The first part of s3://bucket/run.zarr; a drive has one letter."""
LONGEST: Final = 255
"""Bytes of a file's name."""

BINARY: Final = getattr(os, "O_BINARY", 0)
"""Windows would write a carriage return before each line's end."""

_OURS: Final = {ROOT, JOURNAL, MANIFEST, "layers", "step", "present", "images"}
_sync = getattr(os, "fdatasync", os.fsync)


class Storage:
    """The files under one root; safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._base = os.path.join(root, "")
        self.files: FileSums = {}
        self._lock = Lock()
        self._folders: set[str] = set()
        """Those that are known to be there."""
        self._unsettled: set[str] = set()
        self._appended: dict[str, tuple[int, Any]] = {}

    def write(self, name: str, pieces: Iterable[bytes], *, durable: bool = True, crcs: str = "") -> FileSum:
        """Write one file whole; without `durable` it is safe only after `settle`."""
        path = f"{self._base}{name}"
        temporary = path + TEMPORARY
        size, digest = 0, hashlib.sha256()
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
            try:
                for piece in pieces:
                    write_all(handle, piece)
                    digest.update(piece)
                    size += len(piece)
                if durable:
                    _sync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
        with self._lock:
            self.files[name] = FileSum(size, digest.hexdigest(), crcs)
            if not durable:
                self._unsettled.add(name)
        return self.files[name]

    def write_block(self, plan: ArrayPlan, start: tuple[int, ...], block: NDArray[Any], *, durable: bool = True) -> FileSums:
        """Write the files of one block of an array, whose first axes are fixed at `start`."""
        return {n: self.write(n, pieces, durable=durable, crcs=crcs) for n, pieces, crcs in encode_files(plan, start, block)}

    def write_document(self, folder: str, document: dict[str, Any], *, durable: bool = False) -> None:
        """Write the `zarr.json` of a folder, which is made if need be; one that stands there as it should is left alone.

        One that replaces another is durable before it does: the names of files can reach a disk before what is in them.
        """
        if folder not in self._folders:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            self._folders.add(folder)
        name, data = f"{folder}/{ROOT}" if folder else ROOT, encode_document(document)
        if len(data) > (MOST_DOCUMENT_BYTES if folder else MOST_ROOT_BYTES):
            raise InvalidInput(f"{name} would have {len(data)} bytes, more than readers accept; record fewer layers, texts or inputs")
        known = self.files.get(name)
        if known is None or known[:2] != (len(data), hashlib.sha256(data).hexdigest()):
            self.write(name, [data], durable=durable or os.path.exists(self._base + name))
            with self._lock:
                self._unsettled.add(name)  # its name is not yet durable

    def append(self, name: str, line: str) -> None:
        """Add one durable line; if that fails, the file ends where it ended before."""
        length, digest = self._appended.get(name, (0, hashlib.sha256()))
        data = line.encode()
        handle = os.open(self.root / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            write_all(handle, data)
            _sync(handle)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, length)
            raise
        finally:
            os.close(handle)
        if not length:
            sync_folder(self.root)
        digest.update(data)
        self._appended[name] = (length + len(data), digest)
        self.files[name] = FileSum(length + len(data), digest.hexdigest())

    def trim(self, name: str) -> None:
        """Take away what an `append` that failed may have left after the last line."""
        length, _ = self._appended.get(name, (0, None))
        path = self.root / name
        if path.exists() and path.stat().st_size > length:
            os.truncate(path, length)

    def settle(self, names: Iterable[str] = ()) -> None:
        """Make every file that is not yet durable so, and the folders of these and of `names`."""
        with self._lock:
            unsettled, self._unsettled = self._unsettled, set()
        for name in sorted(unsettled):
            _sync_path(self._base + name)
        touched = {above for name in unsettled for above in _folders_of(name)} | {name.rpartition("/")[0] for name in names}
        for folder in sorted(touched, reverse=True):
            sync_folder(self.root / folder)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that came to nothing."""
        for name in names:
            (self.root / name).unlink(missing_ok=True)
            self.files.pop(name, None)


def _folders_of(name: str) -> Iterator[str]:
    """The folders that a file lies in, up to the root, which is ""."""
    while name:
        name = name.rpartition("/")[0]
        yield name


def encode_document(document: dict[str, Any]) -> bytes:
    """Strict JSON, the same bytes for the same document.

    Raises   InvalidInput if something in it is not JSON
    """
    try:
        # Without indentation, which json does in Python, a hundred times a recording.
        return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"what the trace should say of itself is not JSON: {error}; pass plain numbers, text, lists, dicts") from error


def encode_files(plan: ArrayPlan, start: tuple[int, ...], block: NDArray[Any]) -> Iterator[tuple[str, list[bytes], str]]:
    """The files of a block, their bytes in pieces, and the checksums of their chunks; the block's axes are the array's after `start`."""
    lead = len(start)
    cell = plan.file_shape[lead:]
    ranges = [range(-(-n // m)) for n, m in zip(block.shape, cell, strict=True)]
    for index in itertools.product(*ranges):
        part = block[tuple(slice(i * m, (i + 1) * m) for i, m in zip(index, cell, strict=True))]
        outer = (i // m for i, m in zip(start, plan.file_shape, strict=False))
        yield plan.key(*outer, *index), *_file_pieces(plan, part, plan.chunks[lead:])


def _file_pieces(plan: ArrayPlan, part: NDArray[Any], chunk: tuple[int, ...]) -> tuple[list[bytes], str]:
    grid = [range(n // m) for n, m in zip(part.shape, chunk, strict=True)] if plan.shards else [range(1)] * part.ndim
    cell = chunk if plan.shards else part.shape
    pieces, entries, offset, crcs = [], [], 0, ""
    for index in itertools.product(*grid):
        pair = _chunk_pieces(plan, part[tuple(slice(i * m, (i + 1) * m) for i, m in zip(index, cell, strict=True))])
        size = sum(map(len, pair))
        pieces += pair
        crcs += f"{int.from_bytes(pair[1], 'little'):08x}"
        entries += [offset, size]
        offset += size
    if plan.shards is None:
        return pieces, crcs
    table = struct.pack(f"<{len(entries)}Q", *entries)
    return [*pieces, table, _checksum(table)], crcs


def _chunk_pieces(plan: ArrayPlan, part: NDArray[Any]) -> list[bytes]:
    data = np.ascontiguousarray(part, dtype=np.dtype(plan.dtype).newbyteorder("<"))
    raw = data.tobytes() if plan.codec is None else Blosc(plan.codec.name, plan.codec.level, BITSHUFFLE, 0).encode(data)
    return [raw, _checksum(raw)]


def _checksum(*pieces: bytes) -> bytes:
    value = 0
    for piece in pieces:
        value = google_crc32c.extend(value, piece)
    return struct.pack("<I", value)


def write_all(handle: int, data: bytes) -> None:
    """Write every byte; the system may take a large piece in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system lets a folder be opened."""
    if os.name == "nt":
        return
    _sync_path(folder)


def _sync_path(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY | BINARY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_output(path: Path, overwrite: bool) -> None:
    """Raise AlreadyExists if a path is taken and may not, or must not, be replaced; InvalidInput if it can be no folder here."""
    check_local(path)
    refuse_taken(path, overwrite)
    if path.is_symlink() or path.exists():
        _check_ours(path)


def address_of(path: Path) -> str:
    """The address, such as s3://bucket/run.zarr, of which `Path` made a folder `s3:`; empty for a path."""
    return str(path).replace(":/", "://", 1) if SCHEME.fullmatch(next(iter(path.parts), "")) else ""


def check_local(path: Path) -> None:
    """Raise InvalidInput for an address, and for names that no file system takes."""
    if address := address_of(path):
        raise InvalidInput(f"{address} is an address, and traces are written to local folders only; record to a folder, then copy it there")
    if "\0" in str(path):
        raise InvalidInput(f"the path {str(path)!r} has a character that no file name can have; choose another")
    if long := next((name for name in path.parts if len(os.fsencode(name)) > LONGEST), None):
        raise InvalidInput(
            f"the name {long[:40]}... has {len(os.fsencode(long))} bytes, and file systems take {LONGEST}; choose a shorter one"
        )


def prepare(path: Path, overwrite: bool) -> None:
    """Make the new, empty folder of a trace.

    Raises   AlreadyExists, also where another process records there now; InvalidInput if it cannot be made
    """
    check_output(path, overwrite)
    try:
        if path.exists():
            lock = TraceLock(path)
            shutil.rmtree(path)
            lock.release()
        made = [parent for parent in (path, *path.parents) if not parent.exists()]
        path.mkdir(parents=True)
        for folder in made:
            sync_folder(folder.parent)
    except OSError as error:
        if isinstance(error, AlreadyExists) or error.errno in FULL:
            raise
        if isinstance(error, FileExistsError):
            raise AlreadyExists(f"{path} was made by another process just now; give each recording its own path") from error
        raise InvalidInput(f"cannot make the folder {path} ({error.strerror}); choose a path in a folder that you can write to") from error


def _check_ours(path: Path) -> None:
    """Refuse to remove what is not a trace, whole or in part."""
    refused = f"{path} is not a trace, so it is not overwritten; remove it yourself or choose another path"
    if path.is_symlink() or not path.is_dir():
        raise AlreadyExists(refused)
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name.removesuffix(TEMPORARY) not in _OURS)
    if foreign:
        raise AlreadyExists(f"{path} holds {foreign[0]}, which is not part of a trace, so it is not overwritten; remove it yourself")
    # A recording that was killed at its very first write has left nothing but that.
    if any(entry.name != ROOT + TEMPORARY for entry in path.iterdir()) and read_record(path) is None:
        raise AlreadyExists(refused)


def read_record(path: Path) -> dict[str, Any] | None:
    """What the folder at a path says of itself as a trace, unchecked; None if it says nothing."""
    try:
        record = json.loads((path / ROOT).read_bytes())["attributes"]["i2am"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
