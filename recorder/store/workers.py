"""Threads that work off a queue bounded in bytes; they know nothing of traces."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Final

WORTH_WAKING: Final = 2**20
"""Bytes of small jobs that wait for more of their step: each time a thread wakes, the one that samples waits for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One thing to do for one step."""

    run: Callable[[], None]
    nbytes: int
    """Memory it holds until it is done."""
    step: int
    order: Hashable | None = None
    """Jobs of one order run one at a time, first come first served."""
    closing: bool = False
    """Runs only when all other jobs of its step are done."""


class Workers:
    """Runs jobs in threads; after a failure, jobs of that step and of later ones are dropped, earlier steps go on."""

    def __init__(self, count: int, limit: int) -> None:
        self.peak = 0
        """Most bytes that were held at once."""
        self._limit = limit
        self._held = 0
        self._jobs: list[Job] = []
        self._running: dict[Hashable, Job] = {}
        self._unfinished: Counter[int] = Counter()
        self._error: BaseException | None = None
        self._failed: int | None = None
        self._open = True
        self._hurried = False
        self._rest_until = 0.0
        self._silent = 0
        """Bytes submitted since the threads were last woken."""
        self._change = Condition()
        self._threads = [Thread(target=self._work, name=f"i2am-writer-{i}", daemon=True) for i in range(max(1, count))]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job, waiting while the queue is full; a single job larger than the limit waits for an empty queue.

        Raises   what a worker raised
        """
        with self._change:
            if not self._fits(job):
                self._change.notify_all()
                self._change.wait_for(lambda: self._fits(job))
            self.check()
            self._jobs.append(job)
            self._held += job.nbytes
            self.peak = max(self.peak, self._held)
            self._unfinished[job.step] += not job.closing
            self._silent += job.nbytes
            if job.closing or self._silent >= WORTH_WAKING:
                self._silent = 0
                self._change.notify_all()

    def _fits(self, job: Job) -> bool:
        return self._error is not None or not self._held or self._held + job.nbytes <= self._limit

    def check(self) -> None:
        """Raise what a worker raised, if one did."""
        if self._error is not None:
            raise self._error

    def drain(self) -> None:
        """Wait until nothing is queued or running."""
        with self._change:
            self._hurried = True
            self._change.notify_all()
            self._change.wait_for(lambda: not self._jobs and not self._running)
            self._hurried = False

    def rest(self, seconds: float) -> None:
        """Let closing jobs wait this long from now, or until `drain`, so that the next one closes several steps."""
        self._rest_until = time.monotonic() + seconds

    def close(self) -> None:
        """Let the threads end once the queue is empty."""
        with self._change:
            self._open = False
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._take()) is not None:
            error: BaseException | None = None
            try:
                job.run()
            except BaseException as raised:  # whatever it is, the recording thread must hear of it
                error = raised
            self._done(job, error)
            del job

    def _take(self) -> Job | None:
        with self._change:
            while True:
                job = self._first_ready()
                if job is not None:
                    self._jobs.remove(job)
                    self._running[id(job) if job.order is None else job.order] = job
                    return job
                if not self._open and not self._jobs:
                    return None
                self._change.wait(max(0.0, self._rest_until - time.monotonic()) or None)

    def _first_ready(self) -> Job | None:
        waiting = set(self._running)  # a job also waits for those of its order that came before it
        rests = self._open and not self._hurried and time.monotonic() < self._rest_until
        for job in self._jobs:
            if job.order not in waiting and not (job.closing and (rests or self._unfinished[job.step])):
                return job
            if job.order is not None:
                waiting.add(job.order)
        return None

    def _done(self, job: Job, error: BaseException | None) -> None:
        with self._change:
            del self._running[id(job) if job.order is None else job.order]
            self._forget(job)
            if error is not None and (self._failed is None or job.step < self._failed):
                self._error, self._failed = self._error or error, job.step
                for dropped in [other for other in self._jobs if other.step >= job.step]:
                    self._jobs.remove(dropped)
                    self._forget(dropped)
            self._change.notify_all()

    def _forget(self, job: Job) -> None:
        self._held -= job.nbytes
        self._unfinished[job.step] -= not job.closing
