"""Where the recorder's own time goes: clocks around its parts for the length of one run, each without the parts inside it."""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from i2am.recorder.capture import hooks as capture
from i2am.recorder.encoding import transfer
from i2am.recorder.session import run
from i2am.recorder.store import files as storage
from i2am.recorder.store import workers, writer

SAMPLING = (
    # (what it is, where it lives, names) in the thread that samples
    ("labels: step, branch, layer, keys", run.Run, ("begin", "hear", "close_evaluation", "end")),
    ("labels: step, branch, layer, keys", capture.Capture, ("_attend",)),
    ("encode: softmax, log-sum-exps, rounding", run, ("encode_scores", "sum_rows")),
    ("norms of values", run, ("value_norms",)),
    ("copy off the device", transfer.Outbox, ("block",)),
    ("wait for the queue", workers.Workers, ("submit",)),
    ("wait for the last writes", workers.Workers, ("drain", "close")),
    ("root, journal, manifest, pictures", writer.Writer, ("finish", "add_layer", "add_images")),
)
WRITING = (
    # The same in the threads that write.
    ("hash keys", writer.Writer, ("_place",)),
    ("compress and write", storage.Storage, ("write_block",)),
    ("sync", storage, ("_sync", "sync_folder")),
    ("sync", storage.Storage, ("settle",)),
    ("journal", storage.Storage, ("append",)),
)


class Clocks:
    """Seconds of each part, by whether the sampling thread spent them; a part that is called from another counts there no more."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, bool], float] = defaultdict(float)
        self._main, self._lock, self._own = threading.get_ident(), threading.Lock(), threading.local()

    def clock(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a clock around it."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            stack = self._own.__dict__.setdefault("stack", [])
            stack.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                inside = stack.pop()
                if stack:
                    stack[-1] += spent
                with self._lock:
                    self.seconds[part, threading.get_ident() == self._main] += spent - inside

        return timed


@contextmanager
def clocked() -> Iterator[Clocks]:
    """Clocks on every part of the recorder while the block lasts."""
    clocks, originals = Clocks(), []
    for part, owner, names in (*SAMPLING, *WRITING):
        for name in names:
            originals.append((owner, name, getattr(owner, name)))
            setattr(owner, name, clocks.clock(part, getattr(owner, name)))
    try:
        yield clocks
    finally:
        for owner, name, original in reversed(originals):
            setattr(owner, name, original)


def shares(record: Callable[[], object]) -> list[tuple[str, str, str, str]]:
    """Rows (part, thread, milliseconds, share of the recorded run) of one recording; the model's own work is the row of the rest."""
    with clocked() as clocks:
        start = time.perf_counter()
        record()
        whole = time.perf_counter() - start
    rows = [(part, "sampling" if main else "writing", seconds) for (part, main), seconds in clocks.seconds.items()]
    rows.sort(key=lambda row: (row[1], -row[2]))
    rest = whole - sum(seconds for _, thread, seconds in rows if thread == "sampling")
    rows.insert(0, ("the model, and hooks on it", "sampling", rest))
    return [(part, thread, f"{1000 * seconds:.0f}", f"{seconds / whole:.1%}") for part, thread, seconds in rows]
