"""A power cut at any moment loses no step that the journal had committed, however the disk reordered what was not yet synced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faults import LAYERS, faults
from powercut import power_cuts

from traces import synthetic_trace

pytestmark = [pytest.mark.analyzer, pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs the names of open files")]

CASES = int(os.environ.get("I2AM_CASES", "60"))


@pytest.mark.parametrize("planned", [None, 7], ids=["whole", "cut short"])
def test_no_committed_step_is_lost(tmp_path: Path, planned: int | None) -> None:
    tally = power_cuts(tmp_path, 7, CASES, planned)
    assert set(tally.results) == {"right"}, tally.wrong


def test_a_disk_that_fails_costs_no_committed_step(tmp_path: Path) -> None:
    whole = synthetic_trace(tmp_path / "whole.zarr", layers=LAYERS, encoding=None, steps=4, planned=6, seed=9)
    tally = faults(whole.path, tmp_path / "t.zarr", 3, CASES)
    assert set(tally.results) == {"right"}, tally.wrong
