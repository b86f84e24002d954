"""Recordings that go to an address: made in a local folder, copied by `i2am copy` in a process of its own while the next one is sampled.

The local copy is removed once the other one is there and compared; if that fails it stays, and the message says how to copy it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Semaphore
from typing import Any, Final

from ...schema.errors import AlreadyExists, InvalidInput
from ...schema.messages import option
from ..store.files import address_of, check_local

WAITING: Final = 2
"""Recordings that wait to be copied or are being copied; a further one waits before it is sampled."""
UNWRITABLE: Final = ("file", "http", "https")
"""Schemes of addresses that take no traces: of the first the path itself does."""
NOT_THERE: Final = 3
"""How the command line ends where there is no trace."""
BROKEN: Final = 4
"""How it ends where a trace is not whole."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where recordings go."""

    local: Path
    """Where they are made."""
    address: str = ""
    """Where they are copied to, if anywhere."""


def find_output(given: Path, scratch: Path | None, *, one: bool, dry: bool) -> Output:
    """Where the recordings of an output are made: there, or, of an address, in a new folder. `one` is a trace by itself, `dry` writes none.

    Raises   InvalidInput
    """
    address = address_of(given).rstrip("/")
    if not address:
        check_local(given)
        if scratch is not None:
            raise InvalidInput(f"{option('scratch', scratch)} is for traces that are copied to an address; {given} is a folder here")
        return Output(given)
    if address.partition(":")[0].lower() in UNWRITABLE:
        raise InvalidInput(f"{address} is an address, and traces are written to local folders or object stores such as s3:// only")
    if one and not address.endswith((".zarr", ".zarr.zip")):
        raise InvalidInput(f"cannot tell from {address} what to write; end it in .zarr for a folder or .zarr.zip for one file")
    folder = scratch or Path(tempfile.gettempdir() if dry else tempfile.mkdtemp(prefix="i2am-record-"))
    return Output(folder / address.rpartition("/")[2].removesuffix(".zip") if one else folder, address)


def remove_empty(folder: Path) -> None:
    """Remove a folder in which no recording stayed."""
    with suppress(OSError):
        folder.rmdir()


class Uploads:
    """Copies of recordings to an address, one after the other."""

    def __init__(self, overwrite: bool) -> None:
        self._overwrite = overwrite
        self._room = Semaphore(WAITING)
        self._pool = ThreadPoolExecutor(1)
        self._copies: dict[str, Future[str]] = {}

    def submit(self, local: Path, address: str) -> None:
        """Copy a complete trace; waits while too many do."""
        self._room.acquire()
        self._copies[address] = self._pool.submit(self._copy, local, address)

    def finish(self) -> dict[str, str]:
        """Wait for all copies; by address, what went wrong, empty if nothing did."""
        found = {address: copy.result() for address, copy in self._copies.items()}
        self._pool.shutdown()
        return found

    def abandon(self) -> None:
        """Begin no further copy; what is here stays."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _copy(self, local: Path, address: str) -> str:
        arguments = ["copy", str(local), address, *(["--overwrite"] if self._overwrite else [])]
        try:
            code, answer = run_analyzer(*arguments)
            if code == 0:
                shutil.rmtree(local)
                return ""
            by_hand = shlex.join(["i2am", *arguments])
            return f"recorded, but not copied: {_message(answer)}; the recording stays in {local}, copy it with `{by_hand}`"
        finally:
            self._room.release()


def look_up(address: str) -> dict[str, Any] | None:
    """What a complete trace at an address says of itself; None if there is none.

    Raises   InvalidInput if the address cannot be asked
    """
    code, answer = run_analyzer("info", address)
    if code in (NOT_THERE, BROKEN):
        return None
    if code:
        raise InvalidInput(_message(answer))
    return answer


def require_free(address: str, overwrite: bool) -> None:
    """Raise AlreadyExists if there is a trace at an address that may not be replaced; InvalidInput if it cannot be asked."""
    if look_up(address) is not None and not overwrite:
        raise AlreadyExists(f"{address} exists already; choose another address, or add {option('overwrite', True)} to replace it")


def run_analyzer(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a command of the analyzer, which the recorder does not import; its exit code, and the document that it prints."""
    command = [sys.executable, "-m", "i2am.analyzer.cli", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"error": {"message": (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]}}
    return done.returncode, answer


def _message(answer: Mapping[str, Any]) -> str:
    return str(answer.get("error", {}).get("message", "for no reason that was given"))
