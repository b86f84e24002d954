"""A power cut at any moment loses no step that the journal had committed, however the disk reordered what was not yet synced."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from powercut import Log, after_cut, logged

from i2am.analyzer import open_trace
from i2am.schema.errors import TraceError
from traces import Synthetic, default_layers, reference_layer, synthetic_trace

pytestmark = [pytest.mark.analyzer, pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs the names of open files")]

CASES = int(os.environ.get("I2AM_CASES", "60"))
LAYERS = (*default_layers()[:1], reference_layer("unet.b.attn2", (4, 3), encoding="factors"))


@pytest.fixture(params=[None, 7], ids=["whole", "cut short"])
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Log, Synthetic]:
    patch = pytest.MonkeyPatch()
    with logged(patch, tmp_path / "run") as log:
        made = synthetic_trace(tmp_path / "run", layers=LAYERS, encoding=None, steps=4, planned=request.param, workers=1)
    return log, made


def test_no_committed_step_is_lost(recorded: tuple[Log, Synthetic], tmp_path: Path) -> None:
    log, made = recorded
    chance, lost, states = random.Random(7), [], 0
    for case in range(CASES):
        end = chance.randrange(len(log.events) + 1) if case % 3 else chance.randrange(len(log.events) * 3 // 4, len(log.events) + 1)
        target = tmp_path / "after"
        committed = after_cut(log, end, chance, target)
        states += 1
        try:
            trace = open_trace(target, partial=True)
            np.testing.assert_allclose(
                trace.probabilities(0).values[:, :, :committed], made.probabilities[0][:, :, :committed], rtol=1e-3, atol=1e-9
            )
            if len(trace.present) < committed:
                lost.append((end, len(trace.present), committed))
        except TraceError as error:
            if committed:
                lost.append((end, str(error), committed))
        shutil.rmtree(target, ignore_errors=True)
    assert states == CASES
    assert not lost
