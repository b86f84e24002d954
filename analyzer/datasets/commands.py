"""A command of the caller's that is run after each finished row, such as one that uploads the trace and deletes it here.

It is split as a shell would, and no shell sees it: `{path}` and `{trace}` become part of one argument, whatever a trace is called.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ..store.discovery import Member
from .row_files import RowFile

TOGETHER: Final = 4
"""Commands that run at once; they mostly wait for a network."""


class AfterEach:
    """Runs a command after each row, beside the work; ended with the block."""

    def __init__(self, command: str, kept: RowFile | None = None) -> None:
        self.command, self._kept = command, kept
        self._running: dict[str, Future[str]] = {}
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise InvalidInput(f"{option('after', command)} cannot be split into words: {error}") from error
        if not self._words:
            raise InvalidInput(f"{option('after', command)} names no command; give one such as 'rclone move {{path}} remote:{{trace}}'")

    def __enter__(self) -> AfterEach:
        self._pool = ThreadPoolExecutor(TOGETHER)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)

    def run(self, member: Member) -> None:
        """Run it for a trace whose row is finished, unless it has been run for that row."""
        if self._kept is None or self._kept.told.get(member.place) != self.command:
            self._running[member.name] = self._pool.submit(self._run, member)

    @property
    def failures(self) -> dict[str, str]:
        """By name of the trace, what went wrong; waits for those that still run."""
        return {name: problem for name, future in self._running.items() if (problem := future.result())}

    def _run(self, member: Member) -> str:
        """Why it failed; empty if it did not."""
        if member.name.startswith("-"):
            return "the trace's name could be taken for an option; rename it"
        path = os.path.abspath(member.path) if isinstance(member.path, Path) else str(member.path)
        named = {"{path}": path, "{trace}": member.name}
        words = [re.sub(r"\{path\}|\{trace\}", lambda found: named[found[0]], word) for word in self._words]
        try:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        except OSError as error:
            return f"{words[0]} could not be run ({error.strerror})"
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            return f"{words[0]} ended with exit code {done.returncode}{': ' if said else ''}{said[-1] if said else ''}"
        if self._kept is not None:
            self._kept.tell(member, self.command)
        return ""
