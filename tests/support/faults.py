"""A disk that fails: the n-th call that writes, syncs, renames, truncates or removes raises, once or from then on."""

from __future__ import annotations

import errno
import os
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import Tally

from i2am.analyzer import open_trace
from i2am.recorder.store import completion, files
from i2am.recorder.store.writer import Writer
from i2am.schema.errors import NoSpace, TraceError
from traces import default_layers, reference_layer, synthetic_trace

LAYERS = (*default_layers()[:1], reference_layer("unet.b.attn2", (4, 3), encoding="factors"))
CODES = (errno.ENOSPC, errno.EIO)


class Disk:
    """Counts the calls, and raises from the wanted one on."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, code: int, once: bool) -> None:
        self.calls, self._at, self._code, self._once = 0, at, code, once
        for owner, name in (
            (files, "write_all"),
            (files, "_sync"),
            (os, "replace"),
            (os, "truncate"),
            (Path, "unlink"),
            (files, "sync_folder"),
        ):
            patch.setattr(owner, name, self._failing(getattr(owner, name)))
        patch.setattr(completion, "sync_folder", files.sync_folder)

    def _failing(self, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._at or (self.calls > self._at and not self._once):
                raise OSError(self._code, os.strerror(self._code))
            return real(*args, **kwargs)

        return call


def recorded(path: Path, patch: pytest.MonkeyPatch, writers: list[Writer]) -> None:
    """A recording of 4 of 6 planned steps; its writer is kept so that it can be interrupted as a session would."""
    real = Writer.__init__

    def kept(self: Writer, *args: Any, **kwargs: Any) -> None:
        writers.append(self)
        real(self, *args, **kwargs)

    patch.setattr(Writer, "__init__", kept)
    synthetic_trace(path, layers=LAYERS, encoding=None, steps=4, planned=6, seed=9, workers=1)


def faults(whole: Path, target: Path, seed: int, cases: int) -> Tally:
    """Recordings on a failing disk; `whole` is the same recording on a good one."""
    chance, tally = random.Random(seed), Tally()
    expected = open_trace(whole).probabilities(0).values
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, 10**9, errno.EIO, once=True)
        recorded(target, patch, [])
        total = disk.calls
    for case in range(cases):
        shutil.rmtree(target, ignore_errors=True)
        at, code, once = chance.randrange(1, total + 1), CODES[case % 2], chance.random() < 0.5
        what = f"{os.strerror(code)} at call {at}{' alone' if once else ''}"
        tally.add(what, partial(_one, target, at, code, once, expected))
    return tally


def _one(target: Path, at: int, code: int, once: bool, expected: np.ndarray) -> str:
    writers: list[Writer] = []
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, at, code, once)
        try:
            recorded(target, patch, writers)
        except (OSError, TraceError) as error:
            if isinstance(error, TraceError) and not writers:
                return "right"
            if code == errno.ENOSPC and not isinstance(error, NoSpace):
                return f"raised {type(error).__name__}, expected NoSpace"
            if hasattr(writers[0], "_workers"):
                writers[0].interrupt("the disk failed")
    committed = len(writers[0]._committed) if writers and hasattr(writers[0], "_committed") else 0
    try:
        trace = open_trace(target, partial=True)
    except TraceError as error:
        return "right" if not committed else f"lost {committed} steps: {error}"
    if len(trace.present) < committed:
        return f"lost {committed - len(trace.present)} steps"
    found = trace.probabilities(0).values[:, :, :committed] if trace.layers else np.empty(0)
    return "right" if not committed or np.array_equal(found, expected[:, :, :committed]) else "silent and wrong"
