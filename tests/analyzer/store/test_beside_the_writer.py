"""A reader beside the writer sees whole steps, never fewer than before, or is told in words."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from i2am.analyzer import open_trace
from i2am.analyzer.inspection.verify import verify
from i2am.schema.errors import TraceError
from traces import Synthetic, default_layers, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LAYERS = (*default_layers()[:1], reference_layer("unet.b.attn2", (4, 3), encoding="factors"))


def test_a_reader_beside_the_writer(tmp_path: Path) -> None:
    expected = synthetic_trace(tmp_path / "whole.zarr", layers=LAYERS, encoding=None, steps=40, seed=4)
    made: list[Synthetic] = []
    writer = threading.Thread(
        target=lambda: made.append(synthetic_trace(tmp_path / "t.zarr", layers=LAYERS, encoding=None, steps=40, planned=60, seed=4))
    )
    writer.start()
    seen, refused, opened = 0, [], 0
    while writer.is_alive() or not opened:
        try:
            trace = open_trace(tmp_path / "t.zarr", partial=True)
            report = verify(tmp_path / "t.zarr", partial=True)
        except TraceError as error:
            refused.append(str(error))
            continue
        opened += 1
        assert len(trace.present) >= seen
        assert report.ok, report.findings
        seen = len(trace.present)
        if seen:
            values = trace.probabilities(0).isel(step=slice(seen - 1, seen)).values
            np.testing.assert_allclose(values, expected.probabilities[0][:, :, seen - 1 : seen], rtol=1e-3, atol=1e-9)
    writer.join()
    assert opened
    assert not [text for text in refused if "there is no" not in text and "zarr.json, not a trace" not in text], refused
    assert len(open_trace(tmp_path / "t.zarr").present) == 40
