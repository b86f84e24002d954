"""A reader beside the writer sees whole steps, never fewer than before, or is told in words."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from i2am.analyzer import open_trace
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.storage.folder import Folder
from i2am.analyzer.storage.storage import Bytes, Part
from i2am.analyzer.store.files import read_file
from i2am.schema.errors import CorruptTrace, TraceError
from traces import Synthetic, default_layers, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LAYERS = (*default_layers()[:1], reference_layer("unet.b.attn2", (4, 3), encoding="factors"))


def test_a_reader_beside_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.001))  # 500 of them take a minute on a busy disk, and no reader sees them
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


@pytest.mark.parametrize("other", [b"{}", b'{"a": [1, 2, 3, 4, 5, 6, 7, 8]}'])
def test_a_document_replaced_while_it_is_read_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bytes) -> None:
    """The size is asked first and the file opened after it, so the recorder may put another document in its place in between."""
    (tmp_path / "zarr.json").write_bytes(b'{"first": 1}')
    storage, fetch = Folder(tmp_path), Folder.fetch

    def replace_first(self: Folder, parts: Iterable[Part]) -> Iterator[Bytes]:
        (tmp_path / "zarr.json").write_bytes(other)
        return fetch(self, parts)

    monkeypatch.setattr(Folder, "fetch", replace_first)
    assert read_file(storage, "zarr.json", 1000) == other


def test_a_document_that_never_keeps_its_size_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zarr.json").write_bytes(b"{}")
    sizes = itertools.count(1)
    monkeypatch.setattr(Folder, "size", lambda self, name: 1 + next(sizes) % 2)
    with pytest.raises(CorruptTrace, match="changes while it is read"):
        read_file(Folder(tmp_path), "zarr.json", 1000)
