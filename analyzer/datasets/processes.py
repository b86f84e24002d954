"""Local processes that evaluate traces, one each at a time: threads within a small trace wait for each other more than they work.

The first process loads what the work needs, and the others are forks of it, made while it has one thread. They never run the
caller's script, so a script needs no `if __name__ == "__main__"`. Only standard modules are loaded here: whoever starts them can load
the rest meanwhile.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import TYPE_CHECKING, Final

from ...schema.errors import InvalidInput
from ...schema.messages import option

if TYPE_CHECKING:
    from ..store.discovery import Member
    from .rows import DatasetRequest, TraceScores

FEW: Final = 3
"""Traces that are not worth starting processes for, unless their number is asked for."""

ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Environment in which what the work needs starts no thread when it is loaded: a fork takes none with it. pandas loads pyarrow."""


def choose_jobs(jobs: int | None, traces: int) -> int:
    """How many processes work on so many traces: the number asked for, by default one a core; 1 is this process.

    Raises   InvalidInput for less than 1
    """
    if jobs is not None and jobs < 1:
        raise InvalidInput(f"{option('jobs', jobs)} processes; expected 1 or more")
    from dask.system import CPU_COUNT  # counts what a container may use

    most = (CPU_COUNT if traces > FEW else 1) if jobs is None else jobs
    return min(most, traces) if hasattr(os, "fork") else 1


class Crew:
    """Processes that evaluate traces, started at once and ended with the block, whatever ends it."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._first: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Crew:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._first is not None
        self._control.close()
        with suppress(ProcessLookupError):
            os.killpg(self._first.pid, signal.SIGKILL)
        self._first.wait()

    def evaluate(self, members: Sequence[Member], request: DatasetRequest, threads: int) -> Iterator[tuple[int, TraceScores]]:
        """Rows and their positions, as the processes finish them; `threads` are shared by the traces that are worked on."""
        waiting, busy = deque(enumerate(members)), dict[Connection, int]()
        idle = [self._hire() for _ in range(min(self.jobs, len(members)))]
        while waiting or busy:
            while idle and waiting:
                share = max(1, threads // min(self.jobs, len(waiting) + len(busy)))
                index, member = waiting.popleft()
                line = idle.pop()
                busy[line] = index
                with suppress(OSError):  # if it is gone, it is found to be below
                    line.send((member.path, request, share))
            ready = wait(list(busy))
            for line in [line for line in busy if line in ready]:
                index = busy.pop(line)
                try:
                    row: TraceScores = line.recv()
                except (EOFError, OSError):
                    row = _lost(members[index])
                    line.close()
                    line = self._hire()
                idle.append(line)
                yield index, row

    def _start(self) -> None:
        """The first process, in a group of its own: Ctrl-C reaches only this one, which then ends the group."""
        self._control, theirs = socket.socketpair()
        environment = {**os.environ, **ONE_THREAD}
        with theirs:
            self._first = _call("serve", theirs.fileno(), environment, apart=True)

    def _hire(self) -> Connection:
        """A line to a new process."""
        assert self._first is not None
        if self._first.poll() is not None:
            self._start()
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"."], [theirs.fileno()])
        return Connection(ours.detach())


def _call(function: str, file: int, environment: dict[str, str] | None = None, *, apart: bool = False) -> subprocess.Popen[bytes]:
    """A new process that calls a function of this module, with modules found where this one finds them."""
    places, none = [os.path.abspath(place) for place in sys.path], subprocess.DEVNULL
    code = f"import sys; sys.path[:] = {places!r}; from {__name__} import {function} as run; run({file})"
    command = [sys.executable, "-P", "-c", code]
    return subprocess.Popen(command, pass_fds=[file], stdin=none, stdout=none, env=environment, start_new_session=apart)


def serve(control: int) -> None:
    """The first process: load what the work needs, then make a process for each line that comes."""
    from . import rows  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(fileno=control) as calls:
        while fds := socket.recv_fds(calls, 1, 1)[1]:
            if not _has_one_thread():
                _call("answer", fds[0])
            elif os.fork() == 0:
                calls.close()
                answer(fds[0])
                os._exit(0)
            os.close(fds[0])


def answer(line: int) -> None:
    """The others: a row for each trace that is asked for, until the line is closed."""
    from dask import config

    from .rows import evaluate_trace

    with Connection(line) as asked, suppress(EOFError, OSError):
        while True:
            path, request, threads = asked.recv()
            with config.set(num_workers=threads):
                asked.send(evaluate_trace(path, request))


def _has_one_thread() -> bool:
    """Whether a fork takes all of this process with it; unknown systems say no."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _lost(member: Member) -> TraceScores:
    from .rows import TraceScores

    text = f"{member.place} cost its process, which ended without a word; memory may be short: try fewer at a time with {option('jobs', 1)}"
    return TraceScores(kind="ProcessLost", error=text, code=1)
