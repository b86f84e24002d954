"""Datasets on a dask.distributed cluster: one task a trace, done where the trace is read.

What travels is a path and a question one way and a row of numbers the other; no attention does. Each task runs in one thread of
one worker and holds what a scan holds, a few megabytes and the maps, whatever the trace's size.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...schema.errors import InvalidInput, MissingExtra, NoCluster
from ...schema.layout import ROOT
from ...schema.messages import option
from ..store.discovery import Member
from .rows import Question, Row, evaluate_trace

if TYPE_CHECKING:
    from distributed import Client

ANSWER_SECONDS: Final = 5
"""How long a scheduler may take to answer."""
WORKER_SECONDS: Final = 30
"""How long there may be no worker, at first or after the last one went."""
ADDRESS: Final = re.compile(r"(?:\w+://)?(?:\[[^\s/\]]+\]|[^\s/:]+):\d{1,5}/?")
SHARE: Final = "workers read traces themselves, so put them where all machines find them by the same path"
EXTRA: Final = 'a cluster needs dask.distributed, which is not installed; install it: pip install "i2am[cluster]"'


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the scheduler at this address, closed at the end.

    Raises   MissingExtra without dask.distributed, InvalidInput for what is no address, NoCluster if nothing answers there
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingExtra(EXTRA, name="distributed") from error
    if not ADDRESS.fullmatch(address):
        raise InvalidInput(
            f"{address!r} is no address of a scheduler; expected one such as tcp://10.0.0.1:8786, as `dask scheduler` prints"
        )
    with quiet():
        try:
            asyncio.run(_greet(address))
            client = Client(address, timeout=ANSWER_SECONDS, set_as_default=False)
        except Exception as error:  # what speaks another language, or is another part of a cluster, is met with errors of every kind
            raise NoCluster(
                f"no dask scheduler answered at {address} within {ANSWER_SECONDS} s{_why(error)}; start one with `dask scheduler`, "
                f"or leave {option('scheduler')} out to work in this process"
            ) from error
        with client:
            yield client


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what distributed logs: its complaints about a scheduler that is not there would come beside ours."""
    # Each of its loggers has a level and a handler of its own.
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]
    heard = [log for log in loggers if not log.disabled]
    for log in heard:
        log.disabled = True
    try:
        yield
    finally:
        for log in heard:
            log.disabled = False


async def _greet(address: str) -> None:
    """See whether anything at the address speaks dask's language; a Client would wait on a silent one far longer."""
    from distributed.comm import connect
    from distributed.security import Security

    arguments = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=ANSWER_SECONDS, **arguments), ANSWER_SECONDS)
    await comm.close()


def evaluate_there(client: Client, members: Sequence[Member], question: Question) -> Iterator[tuple[int, Row]]:
    """Rows and their positions, as the workers finish them.

    Raises   NoCluster if no worker can do it, or the scheduler goes away
    """
    from distributed import as_completed

    paths = [member.path.resolve() for member in members]
    question = _seen_from_afar(question)
    require_workers(client, next((path for path in paths if _is_seen(path)), paths[0]))
    futures = client.map(_work, paths, [question] * len(paths), pure=False, retries=0)
    place = {future.key: index for index, future in enumerate(futures)}
    with _watched(client, futures) as deserted:
        for done, future in enumerate(as_completed(futures, loop=client.loop)):
            if future.status == "finished":
                row = _found_here(future.result(), paths[place[future.key]])
            elif future.status == "error":
                row = _lost(future.exception(), paths[place[future.key]])
            elif deserted.is_set():
                raise NoCluster(
                    f"the cluster lost its last worker after {done} of {len(paths)} traces, and none came for {WORKER_SECONDS} s; "
                    "the workers' logs say why, a lack of memory among other things"
                )
            else:
                raise NoCluster(f"the dask scheduler went away after {done} of {len(paths)} traces; start it again and repeat the command")
            yield place[future.key], row


@contextmanager
def _watched(client: Client, futures: Sequence[Any]) -> Iterator[threading.Event]:
    """Cancel what is left at the end, or when no worker has been there for a while, which dask would wait for without end."""
    over, deserted = threading.Event(), threading.Event()

    def watch() -> None:
        seen = time.monotonic()
        while not over.wait(WORKER_SECONDS / 10):
            try:
                workers = client.nthreads()
            except Exception:  # a scheduler that went away ends the futures by itself
                return
            if workers:
                seen = time.monotonic()
            elif time.monotonic() - seen > WORKER_SECONDS:
                deserted.set()
                client.cancel(futures)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield deserted
    finally:
        over.set()
        watcher.join()
        client.cancel(futures)


def require_workers(client: Client, path: Path) -> None:
    """Wait for a worker; each must run this release and see the first trace.

    Raises   NoCluster saying which worker lacks what
    """
    address = client.scheduler.address
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError as error:
        raise NoCluster(
            f"the dask scheduler at {address} has had no worker for {WORKER_SECONDS} s; start some: dask worker {address}"
        ) from error
    for worker, found in client.run(look, str(path), on_error="return").items():
        if isinstance(found, BaseException):
            raise NoCluster(f"the worker {worker} cannot run i2am ({_line(found)}); install i2am {version('i2am')} where it runs")
        there, sees = found
        if there != version("i2am"):
            raise NoCluster(f"the worker {worker} has i2am {there}, this is {version('i2am')}; install the same release in both places")
        if not sees and _is_seen(path):
            raise NoCluster(f"the worker {worker} does not see {path}; {SHARE}")


def look(path: str) -> tuple[str, bool]:
    """Task: the worker's release of i2am, and whether it sees a trace."""
    return version("i2am"), os.path.isfile(Path(path, ROOT))


def _work(path: Path, question: Question) -> Row:
    """Task: one trace, in this thread alone; a worker has others for other traces."""
    return evaluate_trace(path, question, "synchronous")


def _seen_from_afar(question: Question) -> Question:
    """The question with masks from files named in full: a worker stands in another folder."""
    mask, reference_mask = (None if name is None else _in_full(name) for name in (question.mask, question.reference_mask))
    return dataclasses.replace(question, mask=mask, reference_mask=reference_mask)


def _in_full(name: str) -> str:
    # A bare word is the name of an image in the trace first.
    return str(Path(name).resolve()) if Path(name).suffix and Path(name).is_file() else name


def _is_seen(path: Path) -> bool:
    return (path / ROOT).is_file()


def _found_here(row: Row, path: Path) -> Row:
    """The row, with the true reason if a trace that is here was not there."""
    if row.kind != "NotATrace" or not _is_seen(path):
        return row
    return dataclasses.replace(row, error=f"{path} is here, but the worker that was to read it does not see it; {SHARE}")


def _lost(error: Any, path: Path) -> Row:
    text = f"{path} cost the cluster its workers ({_line(error)}); they may be short of memory: see their logs"
    return Row(kind=type(error).__name__, error=text, code=1)


def _why(error: BaseException) -> str:
    return "" if isinstance(error, TimeoutError) and not str(error) else f" ({_line(error)})"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
