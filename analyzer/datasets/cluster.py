"""Work on a dask.distributed cluster: one task for each small trace, and many for a large one, each some steps of one layer.

What travels is a path and a request one way and a row of numbers the other, or sums of a call that are as large as its map; no
attention does. Each task runs in one thread of one worker and holds what a scan holds, whatever the trace's size.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dask.config

from ...schema.errors import InvalidInput, NoCluster, TraceError
from ...schema.layout import ROOT
from ...schema.messages import option
from ..storage.location import Location, describe_location, settle
from ..store.discovery import Member, Source, find_traces
from .rows import DEFERRED, LARGE, DatasetRequest, TraceScores, evaluate_trace

if TYPE_CHECKING:
    from distributed import Client, as_completed

ANSWER_SECONDS: Final = 5
"""How long a scheduler may take to answer."""
WORKER_SECONDS: Final = 30
"""How long there may be no worker, at first or after the last one went."""
ADDRESS: Final = re.compile(r"(?:\w+://)?(?:\[[^\s/\]]+\]|[^\s/:]+):\d{1,5}/?")
AHEAD: Final = 4
"""Traces that wait at the cluster, for each of its threads."""
KEPT_BYTES: Final = 2**28
"""Freed memory that a worker may keep for its next task."""
TRIM_THRESHOLD, MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD = -1, -3, 2**25
"""Of glibc's mallopt."""
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
            try:
                client = Client(address, timeout=ANSWER_SECONDS, set_as_default=False)
            except AssertionError:  # a busy machine did not start dask's own thread within its ten seconds
                client = Client(address, timeout=ANSWER_SECONDS, set_as_default=False)
            after.enter_context(client)
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


@contextmanager
def computing(address: str | None, *traces: Source) -> Iterator[None]:
    """Whatever dask computes in this block is computed by the cluster at this address, or without one by threads of this process.

    Raises   as `find_traces`, `connected` and `require_workers`
    """
    if address is None:
        yield
        return
    places = [_absolute(member.path) for member in find_traces(traces)]
    with connected(address) as client:
        require_workers(client, next((place for place in places if _is_seen(place)), places[0]))
        with dask.config.set(scheduler=partial(compute_there, client)):
            yield


def compute_there(client: Client, graph: Any, keys: Any, **_: Any) -> Any:
    """Compute a graph on the cluster; a scheduler as `dask.compute` takes one.

    Raises   NoCluster if no worker can do it, or the scheduler goes away; TraceError if the work costs workers their life
    """
    from distributed import KilledWorker, as_completed
    from distributed.client import futures_of

    with _reaching(lambda: "in the middle of the work"):
        packed = client.get(graph, keys, sync=False)
        futures = futures_of(packed)
        try:
            for _ in _ended(client, as_completed(futures, loop=client.loop), lambda: "in the middle of the work"):
                pass
            return client.gather(packed)
        except KilledWorker as error:
            raise TraceError(
                f"the work cost the cluster its workers ({_line(error)}); they may be short of memory: see their logs"
            ) from error
        finally:
            client.cancel(futures)


def evaluate_there(client: Client, members: Sequence[Member], request: DatasetRequest) -> Iterator[tuple[int, TraceScores]]:
    """Rows and their positions, as the workers finish them; large traces come last, and of each all workers do a part.

    Raises   NoCluster if no worker can do it, or the scheduler goes away
    """
    from distributed import as_completed

    if not members:
        return
    paths = [_absolute(member.path) for member in members]
    require_workers(client, next((path for path in paths if _is_seen(path)), paths[0]))
    # A worker stands in another folder. A bare word is the name of an image in the trace first.
    masks = {name: Path(getattr(request, name) or "") for name in ("mask", "reference_mask")}
    files: dict[str, Any] = {name: str(path.resolve()) for name, path in masks.items() if path.suffix and path.is_file()}
    request = dataclasses.replace(request, **files)
    place: dict[Any, int] = {}
    ended, large, done = as_completed(loop=client.loop), list[int](), list[int]()
    left = iter(range(len(paths)))

    def submit(indices: Iterable[int], most: float = LARGE) -> None:
        for index in indices:
            # A thread of its own for each trace: a worker has others for other traces.
            options = {"request": request, "scheduler": "synchronous", "most": most, "pure": False, "retries": 0}
            future = client.submit(evaluate_trace, paths[index], **options)
            place[future.key] = index
            ended.add(future)

    def so_far() -> str:
        return f"after {len(done)} of {len(paths)} traces"

    with _reaching(so_far):
        try:
            submit(islice(left, max(AHEAD, AHEAD * sum(client.nthreads().values()))))
            for future in _ended(client, ended, so_far):
                index = place.pop(future.key)
                row = _row(future, paths[index])
                submit(islice(left, 1))
                if row != DEFERRED:
                    done.append(index)
                    yield index, row
                elif _is_seen(paths[index]):
                    large.append(index)
                else:  # only the workers can open it
                    submit([index], math.inf)
        finally:
            client.cancel(list(ended.futures))
    for index in large:
        yield index, evaluate_trace(paths[index], request, partial(compute_there, client))


def _ended(client: Client, ended: as_completed, so_far: Callable[[], str]) -> Iterator[Any]:
    """Futures as they end.

    Raises   NoCluster where there is no worker for long: dask would wait without end, unless its scheduler was set up otherwise
    """
    seen, known = time.monotonic(), set[str]()
    while ended.count():
        if ended.has_ready():
            seen = time.monotonic()
            yield next(ended)
        elif workers := set(client.nthreads()):
            seen = time.monotonic()
            if new := workers - known:
                client.run(keep_memory, workers=list(new), on_error="ignore")
                known |= new
            time.sleep(0.05)
        elif time.monotonic() - seen > WORKER_SECONDS:
            what = f"the cluster lost its last worker {so_far()}, and none came for {WORKER_SECONDS} s"
            raise NoCluster(f"{what}; the workers' logs say why, a lack of memory among other things")
        else:
            time.sleep(0.1)


@contextmanager
def _reaching(so_far: Callable[[], str]) -> Iterator[None]:
    """Raise NoCluster in place of the errors of a scheduler that is gone."""
    try:
        yield
    except TraceError:
        raise
    except (CancelledError, OSError) as error:
        raise NoCluster(f"the dask scheduler went away {so_far()}; start it again and repeat the command") from error


def keep_memory() -> None:
    """Task: let a worker keep the memory that a task frees. Dask's nanny has it given back at once, and taken anew page by page."""
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (AttributeError, OSError):  # not of glibc
            return
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)


def require_workers(client: Client, path: Location) -> None:
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
    return version("i2am"), _is_seen(path)


def _absolute(path: Location) -> Location:
    """A path as every worker takes it; an address is one already."""
    place = settle(path)
    return place.resolve() if isinstance(place, Path) else place


def _is_seen(path: Location) -> bool:
    """Whether a trace is there, without opening it; an address is the same everywhere."""
    place = settle(path)
    return isinstance(place, str) or place.is_file() or (place / ROOT).is_file()


def _row(future: Any, path: Location) -> TraceScores:
    """What became of one trace; one that cost its workers, or that its worker does not see, is a row too."""
    if future.status == "error":
        error = future.exception()
        text = f"{describe_location(path)} cost the cluster its workers ({_line(error)}); they may be short of memory: see their logs"
        return TraceScores(kind=type(error).__name__, error=text, code=1)
    row: TraceScores = future.result()
    if row.kind == "NotATrace" and _is_seen(path):
        return dataclasses.replace(row, error=f"{path} is here, but the worker that was to read it does not see it; {SHARE}")
    return row


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
