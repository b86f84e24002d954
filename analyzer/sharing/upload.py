"""Writes a trace to an address: files to a folder of an object store, or one zip file; each request is tried again while that may help."""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ...schema.errors import AlreadyExists, CorruptTrace, InvalidInput, NoAnswer
from ...schema.journal import FileSum
from ...schema.layout import JOURNAL, MANIFEST, ROOT
from ...schema.messages import option
from ..storage.address import attempt
from ..storage.location import is_archive
from ..storage.server import CREDENTIALS, Temporary, open_file_system, scheme_of, shown, why
from .encoding import File
from .target import Target, ZipTarget

OURS: Final = ("layers/", "images/", "step/", "present/", ROOT, MANIFEST, JOURNAL)
"""How names of a trace's files begin."""
THREADS: Final = 8
AGAIN: Final = "copy again, which goes on where this stopped"


class Upload(Target):
    """Files of a trace below an address; the manifest and the root come last, so that a half copy never passes for a trace."""

    def __init__(self, address: str, fs: Any, there: dict[str, int]) -> None:
        super().__init__(Path())
        self.address, self._fs, self._there = address, fs, there
        self._pool, self._waiting = ThreadPoolExecutor(THREADS), deque[Future[None]]()

    def add(self, file: File) -> None:
        self.sizes[file.name] = len(file.data)
        self._settle(0 if file.name in (MANIFEST, ROOT) else 2 * THREADS)
        self._waiting.append(self._pool.submit(self._put, file))

    def keep(self, name: str, given: FileSum) -> bool:
        if self._there.get(name) != given.nbytes:
            return False
        data = ask(self.address, lambda: self._fs.cat_file(self._at(name)))
        if hashlib.sha256(data).hexdigest() != given.sha256:
            return False
        self.sizes[name] = given.nbytes
        return True

    def finish(self) -> None:
        self._settle(0)
        there = list_sizes(self._fs, self.address)
        if wrong := [name for name, size in self.sizes.items() if there.get(name) != size]:
            self._fs.rm_file(self._at(ROOT))
            raise CorruptTrace(f"{wrong[0]} did not arrive whole at {shown(self.address)}; {AGAIN}")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _settle(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft().result()

    def _put(self, file: File) -> None:
        ask(self._at(file.name), lambda: self._fs.pipe_file(self._at(file.name), file.data))

    def _at(self, name: str) -> str:
        return f"{self.address}/{name}"


class ZipUpload(ZipTarget):
    """One zip file at an address, made in a temporary file first, so that it is there whole or not at all."""

    def __init__(self, address: str, fs: Any, place: Path) -> None:
        super().__init__(place)
        self.address, self._fs = address, fs

    def finish(self) -> None:
        super().finish()
        ask(self.address, lambda: self._fs.put_file(str(self.place), self.address))
        if (size := self._fs.info(self.address)["size"]) != self.place.stat().st_size:
            raise CorruptTrace(f"{size} bytes of {self.place.stat().st_size} arrived at {shown(self.address)}; copy again")


@contextmanager
def new_upload(address: str, names: Collection[str], overwrite: bool) -> Iterator[Target]:
    """A target at an address for the files of these names; what an earlier copy brought there can be kept.

    Raises   InvalidInput for an address that cannot be written to, MissingExtra, AlreadyExists if it is taken, NoAnswer
    """
    address = address.rstrip("/")
    _require_writable(address)
    fs = open_file_system(address)
    if is_archive(address):
        if not overwrite and ask(address, lambda: fs.exists(address)):
            raise _taken(address)
        with tempfile.TemporaryDirectory(prefix="i2am-") as folder:
            target: Target = ZipUpload(address, fs, Path(folder, "trace.zip"))
            with _closing(target):
                yield target
        return
    there = ask(address, lambda: list_sizes(fs, address))
    if foreign := sorted(name for name in there if not name.startswith(OURS)):
        raise AlreadyExists(f"{shown(address)} holds {foreign[0]}, which is no part of a trace; choose another address")
    strangers = sorted(set(there) - set(names))
    if (strangers or ROOT in there) and not overwrite:
        raise _taken(address)
    for name in [*([ROOT] if ROOT in there else []), *strangers]:  # the root first, since what lacks it is no trace
        ask(address, lambda name=name: fs.rm_file(f"{address}/{name}"))  # type: ignore[misc]
        there.pop(name, None)
    target = Upload(address, fs, there)
    with _closing(target):
        yield target


@contextmanager
def _closing(target: Target) -> Iterator[None]:
    try:
        yield
        target.finish()
    finally:
        target.close()


def list_sizes(fs: Any, address: str) -> dict[str, int]:
    """The files below an address, and their sizes."""
    root = str(fs._strip_protocol(address)).rstrip("/")
    try:
        found = fs.find(root, detail=True)
    except FileNotFoundError:
        return {}
    return {str(path).removeprefix(root).lstrip("/"): int(facts["size"]) for path, facts in found.items()}


def ask(address: str, request: Callable[[], Any]) -> Any:
    """Do one request, again while that may help.

    Raises   NoAnswer, FileNotFoundError
    """

    def once() -> Any:
        try:
            return request()
        except FileNotFoundError as error:
            raise NoAnswer(f"{shown(address)} cannot be written to ({why(error)}); is there such a bucket?") from error
        except PermissionError as error:
            raise NoAnswer(f"{shown(address)} may not be written to ({why(error)}); {CREDENTIALS}") from error
        except OSError as error:
            raise Temporary(why(error)) from error
        except Exception as error:  # each library has its own
            raise NoAnswer(f"{shown(address)} cannot be written to ({why(error)}); {CREDENTIALS}") from error

    return attempt(address, once, "written", AGAIN)


def _taken(address: str) -> AlreadyExists:
    return AlreadyExists(f"{shown(address)} exists already; choose another address, or add {option('overwrite', True)} to replace it")


def _require_writable(address: str) -> None:
    scheme = scheme_of(address)
    if scheme in ("http", "https"):
        raise InvalidInput(
            f"{shown(address)} is on a web server, which takes no files; copy to a folder, or to an object store such as s3://"
        )
    if not is_archive(address) and not address.endswith(".zarr"):
        raise InvalidInput(f"cannot tell from {shown(address)} what to write; end it in .zarr for a folder or .zip for one file")
    if scheme == "hf" and not is_archive(address):
        raise InvalidInput(f"each file would be a commit of its own at {shown(address)}; copy to one file there, ending in .zarr.zip")
