"""The lock that a process holds on the folder of a trace while it records it, so that no other one replaces it meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from pathlib import Path
from typing import Final

from ...schema.errors import AlreadyExists

UNSUPPORTED: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What file systems without locks say; there the check before each commit is all there is."""


class TraceLock:
    """Held from construction until `release`, or until the process ends, however it ends.

    Raises   AlreadyExists if another recorder holds it
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1
        if os.name == "nt":  # an open file cannot be removed there
            return
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:  # it was there a moment ago
            raise AlreadyExists(f"{path} is wanted by another process too, which removed it; give each recording its own path") from error
        self._close = weakref.finalize(self, os.close, self._handle)
        import fcntl  # POSIX alone has it

        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                self._close()
                raise AlreadyExists(
                    f"{path} is being recorded by another process or thread; wait until it ends, stop it, or choose another path"
                ) from error

    def check(self) -> None:
        """Raise AlreadyExists if the folder is no longer the one that was locked."""
        if self._handle < 0:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._handle)):
                return
        raise AlreadyExists(
            f"{self._path} was removed or replaced while it was recorded, so this recording cannot go on; give each run its own path"
        )

    def release(self) -> None:
        """Let others have the folder."""
        if self._handle >= 0:
            self._handle = -1
            self._close()
