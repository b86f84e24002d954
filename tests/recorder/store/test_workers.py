"""Threads of the writer: they are woken when it is worth it, and commit steps in rounds."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from i2am.recorder.store import files
from i2am.recorder.store.workers import Job, Workers
from i2am.recorder.store.writer import PAUSE, Writer
from i2am.schema.trace import TraceRecord
from traces import reference_layer

pytestmark = pytest.mark.analyzer


def test_small_jobs_wait_for_more_and_are_done_in_the_end() -> None:
    workers, done = Workers(2, 100), []
    for number in range(20):
        workers.submit(Job(lambda number=number: done.append(number), 10, 0, "in order"))
    workers.drain()
    assert done == list(range(20))
    workers.submit(Job(lambda: done.append(20), 10, 0, closing=True))
    deadline = time.monotonic() + 5
    while len(done) < 21 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert done[-1] == 20, "what closes a step is done at once"
    workers.close()


def test_a_pause_ends_by_itself_and_when_the_queue_is_drained() -> None:
    workers, done = Workers(1, 100), []
    workers.rest(60)
    workers.submit(Job(lambda: done.append("drained"), 0, 0, closing=True))
    workers.submit(Job(lambda: done.append("other"), 2**20, 0))
    workers.drain()
    assert done == ["other", "drained"]
    start = time.monotonic()
    workers.rest(0.05)
    workers.submit(Job(lambda: done.append("late"), 0, 1, closing=True))
    while len(done) < 3 and time.monotonic() < start + 5:
        time.sleep(0.001)
    assert done[-1] == "late"
    assert time.monotonic() - start >= 0.05
    workers.close()


def test_steps_in_quick_succession_share_the_syncs_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, real, steps = [], files.sync_folder, 60
    monkeypatch.setattr(files, "sync_folder", lambda folder: (synced.append(folder), real(folder)))
    writer = Writer(tmp_path / "t", TraceRecord("id", "recording", 1, ("cond",), steps))
    writer.add_layer(reference_layer(grid=(1, 1), heads=1))
    block = {"probability": np.ones((1, 1, 1, 16), "f2"), "query_lse": np.ones((1, 1, 1), "f4"), "token_lse": np.ones((1, 16), "f4")}
    start = time.monotonic()
    for step in range(steps):
        writer.put(0, 0, "cond", step, block)
        writer.commit(step, evaluation=step, timestep=1.0, sigma=1.0, scheduler_step=step)
    while writer.committed < steps and time.monotonic() < start + 30:  # no step after them is needed
        time.sleep(0.01)
    assert writer.committed == steps
    rounds = len([folder for folder in synced if folder.name == "probability"])
    assert rounds <= 2 + (time.monotonic() - start) / PAUSE
    writer.finish()
