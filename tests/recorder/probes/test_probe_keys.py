"""Keys of probes and token strings on disk: exact, durable with the first commit, in partial traces, and never taken on trust."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from i2am.analyzer import open_trace
from i2am.analyzer.inspection.verify import verify
from i2am.recorder.store.writer import Writer
from i2am.schema.errors import CorruptTrace, InvalidInput, UnknownSelection
from i2am.schema.journal import decode_manifest
from i2am.schema.text import Text, Word
from i2am.schema.trace import Layer, TokenGroup, TraceRecord
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

PROBES = (TokenGroup("concepts", "text", 0, 5), TokenGroup("cat", "reference", 5, 21, grid=(4, 4)))
TEXTS = (
    Text("text", "a dog", ("<s>", "a", "dog"), (Word("a", 1, 2), Word("dog", 2, 3)), branch="cond", tokenizer="CLIPTokenizer"),
    Text("concepts", "zebra", ("<s>", "zeb", "ra", "</s>"), (Word("zebra", 1, 3),)),
)


def layers() -> list[Layer]:
    return [
        reference_layer("unet.a.attn2", text=3, reference=None, probes=PROBES),
        reference_layer("unet.b.attn2", heads=3),
        reference_layer("unet.c.attn2", heads=4, head_dim=4, text=3, reference=None, probes=PROBES[:1]),
    ]


@pytest.fixture(params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Synthetic:
    return synthetic_trace(tmp_path / "t.zarr", layers=layers(), encoding=request.param, texts=TEXTS, dtype="float16")


def probe_keys(made: Synthetic) -> list[np.ndarray]:
    return [key for key in made.probe_key if key is not None]


def test_probe_keys_come_back_exactly(made: Synthetic) -> None:
    trace = open_trace(made.path)
    for index in (0, 2):
        expected = made.probe_key[index]
        assert expected is not None
        np.testing.assert_array_equal(trace.probe_key(index), expected)
        assert trace.probe_key(index).dtype == np.float16
        np.testing.assert_array_equal(zarr.open_array(made.path / f"layers/00{index}/probe_key", mode="r")[:], expected)
        np.testing.assert_array_equal(trace.probe_key(index, "concepts"), expected[:, :5])
    np.testing.assert_array_equal(trace.probe_key("unet.a.attn2", "cat"), probe_keys(made)[0][:, 5:])
    assert verify(made.path).ok
    listed = decode_manifest((made.path / "manifest.json").read_bytes())[1]
    assert len([name for name in listed if "/probe_key/c." in name]) == 2 + 4


def test_texts_come_back_as_they_were(made: Synthetic) -> None:
    assert open_trace(made.path).record.texts == TEXTS


def test_unknown_probes_are_told_what_there_is(made: Synthetic) -> None:
    trace = open_trace(made.path)
    with pytest.raises(UnknownSelection, match=r"unet\.a\.attn2 has no probe 'dogs'; it has concepts, cat; probes are made while"):
        trace.probe_key(0, "dogs")
    with pytest.raises(UnknownSelection, match=r"unet\.b\.attn2 has no probes; it has none"):
        trace.probe_key(1)


@pytest.mark.parametrize("status", ["interrupted", "recording"])
def test_a_partial_trace_has_probes_and_texts(tmp_path: Path, status: str) -> None:
    made = synthetic_trace(tmp_path / "cut.zarr", layers=layers(), encoding="factors", planned=7, status=status, texts=TEXTS)
    trace = open_trace(made.path, partial=True)
    assert trace.record.texts == TEXTS
    np.testing.assert_array_equal(trace.probe_key(2), made.probe_key[2])
    assert verify(made.path, partial=True).ok
    (made.path / "layers/002/probe_key/c.3.0.0").unlink()
    with pytest.raises(CorruptTrace, match=r"layers/002/probe_key/c\.3\.0\.0 is missing"):
        open_trace(made.path, partial=True)


def test_a_missing_or_changed_probe_key_is_an_error(made: Synthetic, tmp_path: Path) -> None:
    path = Path(shutil.copytree(made.path, tmp_path / "copy.zarr"))
    file = path / "layers/000/probe_key/c.1.0.0"
    content = file.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 16
        file.write_bytes(changed)
        with pytest.raises(CorruptTrace, match=r"layers/000/probe_key/c\.1\.0\.0"):
            open_trace(path).probe_key(0)
        assert not verify(path).ok
    file.unlink()
    with pytest.raises(CorruptTrace, match=r"layers/000/probe_key/c\.1\.0\.0 is missing"):
        open_trace(path)


def test_probe_keys_are_on_disk_before_the_step_that_counts_on_them(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "t.zarr", TraceRecord("00000000-0000-4000-8000-000000000001", "recording", 1, ("cond",), 2))
    keys = np.ones((2, 21, 8), np.float32)
    writer.add_layer(layers()[0], keys)
    writer.add_texts(TEXTS)
    writer.commit(0, evaluation=0, timestep=1.0, sigma=1.0, scheduler_step=0)
    writer._workers.drain()
    trace = open_trace(tmp_path / "t.zarr", partial=True)
    assert (len(trace.present), trace.record.texts) == (1, TEXTS)
    np.testing.assert_array_equal(trace.probe_key(0), keys)
    writer.interrupt("test")


def test_a_writer_refuses_keys_that_do_not_fit_the_layer(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "t.zarr", TraceRecord("00000000-0000-4000-8000-000000000001", "recording", 1, ("cond",), 2))
    with pytest.raises(InvalidInput, match="21 tokens of probes; their keys come with it"):
        writer.add_layer(layers()[0])
    with pytest.raises(InvalidInput, match="0 tokens of probes"):
        writer.add_layer(layers()[1], np.ones((3, 1, 8), np.float32))
    with pytest.raises(InvalidInput, match=r"layers/000/probe_key takes float32 of shape \(2, 21, 8\), got float64"):
        writer.add_layer(layers()[0], np.ones((2, 21, 8)))
    assert writer.trace.layers == ()
    assert not (tmp_path / "t.zarr/layers").exists() or not list((tmp_path / "t.zarr/layers").glob("000"))
    writer.interrupt("test")
