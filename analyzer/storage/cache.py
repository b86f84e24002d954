"""Bytes that were read at addresses, kept in a folder: bounded, shared by processes, and checked before they are given back."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from ...schema.errors import InvalidInput
from .storage import Bytes

VARIABLE: Final = "I2AM_CACHE"
"""Environment variable that names the folder; `none` keeps nothing."""
MOST_BYTES: Final = 4 * 2**30
"""What the folder holds at most; what was used least recently goes first."""
_SWEEP: Final = 2**28
"""Bytes that a process adds before it looks again at how full the folder is."""
_SUM: Final = 32


class DiskCache:
    """Blocks of bytes by key, one file each: a checksum of key and bytes, then the bytes."""

    def __init__(self, folder: Path, most: int = MOST_BYTES) -> None:
        self.folder, self.most = folder, most
        self._added = self._sweep = min(_SWEEP, most // 8)

    def get(self, key: str) -> Bytes | None:
        """The bytes kept under a key; a block that does not match its checksum is removed."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if data[:_SUM] != _sum(key, memoryview(data)[_SUM:]):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)
        return np.frombuffer(data, np.uint8, offset=_SUM)

    def put(self, key: str, data: Bytes) -> None:
        """Keep bytes. A folder that cannot be written to keeps nothing, and nothing fails for it."""
        path, block = self._path(key), np.ascontiguousarray(data).data
        if len(block) > self.most // 8:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_sum(key, block))
                    file.write(block)
                os.replace(name, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise
        except OSError:
            return
        self._added += len(block)
        if self._added > self._sweep:
            self._added = 0
            self.sweep()

    def sweep(self) -> None:
        """Remove what was used least recently until a tenth of the folder is free, and what killed processes left half written."""
        found: list[tuple[float, int, str]] = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):
                    state = os.stat(os.path.join(folder, name), follow_symlinks=False)
                    found.append((state.st_mtime, state.st_size, os.path.join(folder, name)))
        total = sum(size for _, size, _ in found)
        if total <= self.most:
            return
        for _, size, path in sorted(found):
            with suppress(OSError):
                os.unlink(path)
                total -= size
            if total <= self.most * 9 // 10:
                return

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / digest[:2] / digest[2:]


def _sum(key: str, data: memoryview) -> bytes:
    found = hashlib.blake2b(key.encode(), digest_size=_SUM)
    found.update(b"\0")
    found.update(data)
    return found.digest()


def cache() -> DiskCache | None:
    """The cache of this process, as the environment says now."""
    return _cache(os.environ.get(VARIABLE, ""))


def require_folder(named: str) -> Path | None:
    """The folder that is named, the platform's for an empty name, None for `none`.

    Raises   InvalidInput for a file
    """
    if named.lower() == "none":
        return None
    folder = Path(named).expanduser() if named else default_folder()
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"the cache {folder} is a file; give a folder, or none, in its place or in the environment variable {VARIABLE}")
    return folder / "bytes-1"


@lru_cache(maxsize=8)
def _cache(named: str) -> DiskCache | None:
    folder = require_folder(named)
    return None if folder is None else DiskCache(folder)


def default_folder() -> Path:
    """Where this platform keeps what can be fetched again."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "i2am"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "i2am"
