"""Where a trace is written to: a folder or a zip file, under a temporary name until it is whole and durable."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ...schema.errors import AlreadyExists, InvalidInput
from ...schema.journal import FileSum
from ...schema.layout import ROOT
from ...schema.messages import refuse_taken
from ..storage.storage import TEMPORARY, Storage
from .archive import Archive
from .encoding import File

FOLDER, ZIP = ".zarr", ".zip"
UNSUPPORTED: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What file systems without locks say."""


class Target(ABC):
    """Takes the files of a trace, and holds a lock meanwhile, so that two of one name never mix."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.sizes: dict[str, int] = {}

    @abstractmethod
    def add(self, file: File) -> None:
        """Take one file."""

    @abstractmethod
    def keep(self, name: str, given: FileSum) -> bool:
        """Take the next file from what a run that ended early left, if it has just these bytes."""

    @abstractmethod
    def finish(self) -> None:
        """Make all that was taken durable."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is open."""


class FolderTarget(Target):
    """A new folder of files."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        place.mkdir(exist_ok=True)
        self._handle = os.open(place, os.O_RDONLY)
        _lock(self._handle, place)

    def add(self, file: File) -> None:
        path = self.place / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        self.sizes[file.name] = len(file.data)

    def keep(self, name: str, given: FileSum) -> bool:
        path = self.place / name
        if not path.is_file() or path.stat().st_size != given.nbytes:
            return False
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == given.sha256
        if same:
            self.sizes[name] = given.nbytes
        return same

    def finish(self) -> None:
        for path in self.place.rglob("*"):  # what a run that ended early left
            if path.is_file() and path.relative_to(self.place).as_posix() not in self.sizes:
                path.unlink()
        paths = [self.place / name for name in self.sizes]
        folders = {parent for path in paths for parent in path.parents if parent.is_relative_to(self.place)}
        for path in [*paths, *sorted(folders, reverse=True)]:
            sync(path)

    def close(self) -> None:
        os.close(self._handle)


class ZipTarget(Target):
    """A new zip file of stored members."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        _lock(handle, place)
        self._file = os.fdopen(handle, "r+b")
        self._archive = Archive(self._file)
        self._agrees = True

    def add(self, file: File) -> None:
        if not self.sizes:
            self._file.truncate(0)  # what a run that ended early left
        self._agrees = False
        self._archive.add(file.name, file.data)
        self.sizes[file.name] = len(file.data)

    def keep(self, name: str, given: FileSum) -> bool:
        self._agrees = self._agrees and self._archive.resume(name, given.nbytes, given.sha256)
        if self._agrees:
            self.sizes[name] = given.nbytes
        return self._agrees

    def finish(self) -> None:
        self._archive.finish()
        self._file.truncate()
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@contextmanager
def new_trace(path: Path, overwrite: bool, *, resumable: bool = False) -> Iterator[Target]:
    """A target for the files of one trace, which has its name once the block ends without an error; else nothing is left.

    What is `resumable` is left under its temporary name, for a later run to keep what it can of it.

    Raises   as `check_target`; AlreadyExists where another process writes to it
    """
    check_target(path, overwrite)
    place = path.with_name(f".{path.name}{TEMPORARY}")
    target = (FolderTarget if path.suffix == FOLDER else ZipTarget)(place)
    try:
        yield target
        target.finish()
        refuse_taken(path, overwrite)  # by now
        _rename(place, path)
    except BaseException:
        if not resumable:
            shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
        raise
    finally:
        target.close()


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse an output path before any work.

    Raises   InvalidInput for a name that is neither a folder's nor a zip file's, or a folder that does not exist; AlreadyExists if the
             path is taken, or what is there is no trace
    """
    if path.suffix not in (FOLDER, ZIP):
        raise InvalidInput(f"cannot tell from {path.name!r} what to write; end it in {FOLDER} for a folder or {ZIP} for one file")
    if not path.parent.is_dir():
        raise InvalidInput(f"the folder {path.parent} does not exist; make it first, or choose another path")
    refuse_taken(path, overwrite)
    if path.is_symlink() or (path.exists() and path.is_dir() != (path.suffix == FOLDER)) or (path.is_dir() and not _is_trace(path)):
        raise AlreadyExists(f"{path} is not a trace, so it is not overwritten; remove it yourself or choose another path")


def require_outside(path: Path, source: Storage) -> None:
    """Raise InvalidInput for an output inside the folder of the trace that is read, where it would be a foreign file."""
    if isinstance(source.place, Path) and path.resolve().parent.is_relative_to(source.place.resolve()):
        raise InvalidInput(f"{path} lies in the trace {source} itself; choose a path beside it")


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(place: Path, path: Path) -> None:
    """Give what was written its name; a trace that has it is put aside first, and removed after."""
    aside = path.with_name(f".{path.name}.replaced")
    if path.is_dir():
        os.rename(path, aside)
    os.replace(place, path)
    sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _is_trace(path: Path) -> bool:
    try:
        return "i2am" in json.loads((path / ROOT).read_bytes())["attributes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _lock(handle: int, place: Path) -> None:
    """Hold a lock until the process ends, however it ends, or the handle is closed."""
    if os.name == "nt":
        return
    import fcntl  # POSIX alone has it

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            os.close(handle)
            raise AlreadyExists(
                f"{place} is being written by another process; wait until it ends, stop it, or choose another path"
            ) from error
