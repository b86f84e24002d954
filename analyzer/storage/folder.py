"""A trace in a local folder: files opened without following links, listed without opening them."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final

import numpy as np

from ...schema.errors import CorruptTrace
from ...schema.messages import plain
from .storage import BESIDE, LITTER, TEMPORARY, Bytes, Listing, Part, Storage

# Never waits for a pipe, never follows a link, never hands the file on to a child process.
_FLAGS: Final = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))
_HUB_BLOB: Final = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Folder(Storage):
    """The files under one folder."""

    root: Path

    def __reduce__(self) -> tuple[type[Folder], tuple[Path]]:
        return Folder, (self.root.resolve(),)  # who reads it may stand in another folder

    @property
    def place(self) -> Path:
        return self.root

    @property
    def identity(self) -> str:
        return str(self.root.resolve())

    def describe(self) -> str:
        if not os.path.lexists(self.root):
            return f"there is no {self}"
        return f"{self} is {'a folder without zarr.json' if self.root.is_dir() else 'a file'}, not a trace"

    def size(self, name: str) -> int:
        state = os.lstat(self.root / name)
        if stat.S_ISLNK(state.st_mode) and (blob := _hub_blob(self.root, self.root / name)) is not None:
            state = blob.stat()
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", name)
        return state.st_size

    def has(self, name: str) -> bool:
        return os.path.lexists(self.root / name)

    def fetch(self, parts: Iterable[Part]) -> Iterator[Bytes]:
        for name, stretches in groupby(parts, attrgetter("name")):
            with open_file(self.root, name) as file:
                for _, offset, length in stretches:
                    yield read_part(file, offset, length)

    def list_files(self) -> Listing:
        """Every file and its size; a link, pipe or device is refused, since nothing good can come of opening it.

        What vanishes while it is listed, as it does in a trace that is being recorded, is passed over.

        Raises   CorruptTrace
        """
        found = Listing()
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self.root / folder) as entries:
                    for entry in entries:
                        self._list(folder, entry, found, folders)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CorruptTrace(
                    f"{plain(folder[:99])} in the trace {self} cannot be listed ({error.strerror}); copy the trace again, all files of it"
                ) from error
        return dataclasses.replace(found, sizes=dict(sorted(found.sizes.items())))

    def _list(self, folder: str, entry: os.DirEntry[str], found: Listing, folders: list[str]) -> None:
        name = f"{folder}{entry.name}"
        if (not folder and entry.name in BESIDE) or entry.name in LITTER or entry.name.startswith("._"):
            found.ignored.append(name)
            return
        state = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(state.st_mode):
            folders.append(f"{name}/")
            return
        if stat.S_ISLNK(state.st_mode):
            blob = _hub_blob(self.root, self.root / name)
            if blob is None:
                raise CorruptTrace(f"{plain(name)} in the trace {self} is a link; a trace is plain files. Copy what it stands for: cp -rL")
            state, found.links[name] = blob.stat(), blob.name
        if stat.S_ISREG(state.st_mode) and name.endswith(TEMPORARY):
            found.temporary.append(name)
            return
        if not stat.S_ISREG(state.st_mode):
            raise CorruptTrace(f"{plain(name)} in the trace {self} is no regular file but a pipe, device or socket; do not use this trace")
        found.sizes[name] = state.st_size


def open_file(root: str | Path, name: str) -> io.FileIO:
    """A regular file below a folder, open for reading; a link is followed only inside the cache of a model hub.

    Raises   OSError, also for a pipe, a device or a folder
    """
    path = Path(root, name)
    try:
        handle = os.open(path, _FLAGS)
    except OSError as error:
        blob = _hub_blob(Path(root), path) if error.errno in (errno.ELOOP, errno.EMLINK) else None
        if blob is None:
            raise
        handle = os.open(blob, _FLAGS)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return io.FileIO(os.fspath(path), opener=lambda *_: handle)


def read_part(file: io.FileIO, offset: int, length: int) -> Bytes:
    """A stretch of an open file.

    Raises   ValueError if the file ends before it
    """
    if length > 2**20 and (size := os.fstat(file.fileno()).st_size) < offset + length:  # before so much is made room for
        raise ValueError(f"it ends {offset + length - size} bytes early")
    file.seek(offset)
    data = np.empty(length, np.uint8)
    done = 0
    while done < length:
        n = file.readinto(memoryview(data)[done:])  # type: ignore[arg-type]  # mypy does not see that arrays are buffers
        if not n:
            raise ValueError(f"it ends {length - done} bytes early")
        done += n
    return data


def _hub_blob(root: Path, link: Path) -> Path | None:
    """The file that a link in the cache of a model hub stands for: REPOSITORY/snapshots/COMMIT/... -> REPOSITORY/blobs/HASH."""
    target, parents = Path(os.path.realpath(link)), Path(os.path.realpath(root)).parents
    repository = target.parent.parent
    inside = target.parent.name == "blobs" and any(parent == repository / "snapshots" for parent in parents)
    return target if inside and _HUB_BLOB.fullmatch(target.name) else None
