"""Datasets on a dask.distributed cluster: one task a trace, done where the trace is read.

What travels is a path and a request one way and a row of numbers the other; no attention does. Each task runs in one thread of
one worker and holds what a scan holds, a few megabytes and the maps, whatever the trace's size.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...schema.errors import InvalidInput, NoCluster
from ...schema.layout import ROOT
from ...schema.messages import option
from ..store.discovery import Member
from .rows import DatasetRequest, TraceScores, evaluate_trace

if TYPE_CHECKING:
    from distributed import Client

ANSWER_SECONDS: Final = 5
"""How long a scheduler may take to answer."""
WORKER_SECONDS: Final = 30
"""How long there may be no worker, at first or after the last one went."""
ADDRESS: Final = re.compile(r"(?:\w+://)?(?:\[[^\s/\]]+\]|[^\s/:]+):\d{1,5}/?")
SHARE: Final = "workers read traces themselves, so put them where all machines find them by the same path"


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the scheduler at this address, closed at the end. Nothing is logged meanwhile, so that what is wrong is said once.

    Raises   InvalidInput for what is no address, NoCluster if nothing answers there
    """
    from distributed import Client

    if not ADDRESS.fullmatch(address):
        raise InvalidInput(
            f"{address!r} is no address of a scheduler; expected one such as tcp://10.0.0.1:8786, as `dask scheduler` prints"
        )
    with ExitStack() as after:
        after.callback(logging.disable, logging.root.manager.disable)
        logging.disable()
        try:
            asyncio.run(_greet(address))
            client = after.enter_context(Client(address, timeout=ANSWER_SECONDS, set_as_default=False))
        except Exception as error:  # what speaks another language, or is another part of a cluster, is met with errors of every kind
            how = f"start one with `dask scheduler`, or leave {option('scheduler')} out to work in this process"
            raise NoCluster(f"no dask scheduler answered at {address} within {ANSWER_SECONDS} s ({_line(error)}); {how}") from error
        yield client


async def _greet(address: str) -> None:
    """Exchange greetings, which a Client does without a timeout: it would wait without end for what listens and says nothing."""
    from distributed.comm import connect
    from distributed.security import Security

    greeted = connect(address, timeout=ANSWER_SECONDS, **Security().get_connection_args("client"))
    await (await asyncio.wait_for(greeted, ANSWER_SECONDS)).close()


def evaluate_there(client: Client, members: Sequence[Member], request: DatasetRequest) -> Iterator[tuple[int, TraceScores]]:
    """Rows and their positions, as the workers finish them.

    Raises   NoCluster if no worker can do it, or the scheduler goes away
    """
    from distributed import as_completed

    paths = [member.path.resolve() for member in members]
    require_workers(client, next((path for path in paths if _is_seen(path)), paths[0]))
    # A worker stands in another folder. A bare word is the name of an image in the trace first.
    masks = {name: Path(getattr(request, name) or "") for name in ("mask", "reference_mask")}
    files: dict[str, Any] = {name: str(path.resolve()) for name, path in masks.items() if path.suffix and path.is_file()}
    request = dataclasses.replace(request, **files)
    # A thread of its own for each trace: a worker has others for other traces.
    futures = client.map(evaluate_trace, paths, request=request, scheduler="synchronous", pure=False, retries=0)
    place = {future.key: index for index, future in enumerate(futures)}
    ended, seen = as_completed(futures, loop=client.loop), time.monotonic()
    try:
        while left := ended.count():
            so_far = f"after {len(paths) - left} of {len(paths)} traces"
            if ended.has_ready() or client.nthreads():
                seen = time.monotonic()
            elif time.monotonic() - seen > WORKER_SECONDS:  # dask would wait without end, unless its scheduler was set up otherwise
                what = f"the cluster lost its last worker {so_far}, and none came for {WORKER_SECONDS} s"
                raise NoCluster(f"{what}; the workers' logs say why, a lack of memory among other things")
            if ended.has_ready():
                future = next(ended)
                yield place[future.key], _row(future, paths[place[future.key]])
            else:
                time.sleep(0.1)
    except NoCluster:
        raise
    except (CancelledError, OSError) as error:
        raise NoCluster(f"the dask scheduler went away {so_far}; start it again and repeat the command") from error
    finally:
        client.cancel(futures)


def require_workers(client: Client, path: Path) -> None:
    """Wait for a worker; each must run this release and see the first trace.

    Raises   NoCluster saying which worker lacks what
    """
    address, here = client.scheduler.address, version("i2am")
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError as error:
        what = f"the dask scheduler at {address} has had no worker for {WORKER_SECONDS} s"
        raise NoCluster(f"{what}; start some: dask worker {address}") from error
    for worker, found in client.run(look, str(path), on_error="return").items():
        if isinstance(found, BaseException):
            raise NoCluster(f"the worker {worker} cannot run i2am ({_line(found)}); install i2am {here} where it runs")
        there, sees = found
        if there != here:
            raise NoCluster(f"the worker {worker} has i2am {there}, this is {here}; install the same release in both places")
        if not sees and _is_seen(path):
            raise NoCluster(f"the worker {worker} does not see {path}; {SHARE}")


def look(path: str) -> tuple[str, bool]:
    """Task: the worker's release of i2am, and whether it sees a trace."""
    return version("i2am"), _is_seen(Path(path))


def _is_seen(path: Path) -> bool:
    return (path / ROOT).is_file()


def _row(future: Any, path: Path) -> TraceScores:
    """What became of one trace; one that cost its workers, or that its worker does not see, is a row too."""
    if future.status == "error":
        error = future.exception()
        text = f"{path} cost the cluster its workers ({_line(error)}); they may be short of memory: see their logs"
        return TraceScores(kind=type(error).__name__, error=text, code=1)
    row: TraceScores = future.result()
    if row.kind == "NotATrace" and _is_seen(path):
        return dataclasses.replace(row, error=f"{path} is here, but the worker that was to read it does not see it; {SHARE}")
    return row


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
