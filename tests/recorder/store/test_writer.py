"""The writer: zarr reads back what was put; bytes are the same every time; the queue is bounded; nothing foreign is deleted."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.recorder.store.files import Storage, encode_files
from i2am.recorder.store.lock import TraceLock
from i2am.recorder.store.workers import Job, Workers
from i2am.recorder.store.writer import Writer
from i2am.schema.arrays.array import ArrayPlan
from i2am.schema.errors import AlreadyExists, InvalidInput
from i2am.schema.journal import decode_lines, decode_manifest
from i2am.schema.layout import layout
from i2am.schema.trace import Codec, Image, Layer, TraceRecord
from traces import Synthetic, default_layers, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def small(**options: object) -> dict[str, object]:
    return {"layers": default_layers()[1:2], "steps": 3, **options}


def record(steps: int = 3, **fields: object) -> TraceRecord:
    return TraceRecord("00000000-0000-4000-8000-000000000001", "recording", 1, ("cond",), steps, **fields)


def commit(writer: Writer, step: int) -> None:
    writer.commit(step, evaluation=step, timestep=1.0, sigma=float("nan"), scheduler_step=step)


def blocks(layer: Layer, value: float = 0.5) -> dict[str, np.ndarray]:
    shapes = {"probability": (*layer.grid, layer.tokens), "query_lse": layer.grid, "token_lse": (layer.tokens,)}
    return {k: np.full((layer.heads, *v), value, "float16" if k == "probability" else "float32") for k, v in shapes.items()}


# -- what is on disk -------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_zarr_reads_every_encoded_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    rows, inner, other = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    pieces = data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from(["float16", "float32", "uint8", "bool", "int32", "float64"]))
    codec = data.draw(st.sampled_from([None, Codec("lz4", 5), Codec("zstd", 1), Codec("lz4", 0)]))
    shape = (2, 3, rows * inner * pieces, other)
    chunk, shard = (1, 3, inner, other), (1, 3, inner * rows, other)
    fill = False if dtype == "bool" else 0
    plan = ArrayPlan("array", tuple("abcd"), shape, dtype, chunk, shard if rows > 1 else None, fill=fill, codec=codec)
    values = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
    root = tmp_path_factory.mktemp("encoded")
    storage = Storage(root)
    storage.write_document("array", plan.to_json())
    for first in range(2):
        storage.write_block(plan, (first,), values[first])
    np.testing.assert_array_equal(zarr.open_array(root / "array", mode="r")[:], values)
    assert len(storage.files) == plan.files + 1


def test_one_inner_chunk_of_a_shard_is_read_alone(tmp_path: Path) -> None:
    plan = ArrayPlan("a", ("x", "y"), (1, 8), "float32", (1, 2), (1, 8), codec=Codec())
    ((_, pieces, _),) = encode_files(plan, (0,), np.arange(8, dtype="float32"))
    Storage(tmp_path).write_document("a", plan.to_json())
    (tmp_path / "a" / "c.0.0").write_bytes(b"".join([b"\0" * len(pieces[0]), *pieces[1:]]))
    array = zarr.open_array(tmp_path / "a", mode="r")
    np.testing.assert_array_equal(array[0, 2:], np.arange(2, 8))
    with pytest.raises(ValueError, match="checksum"):
        array[0, :2]


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
def test_a_trace_holds_what_was_put(tmp_path: Path, encoding: str) -> None:
    t = synthetic_trace(
        tmp_path / "t.zarr", encoding=encoding, samples=2, branches=("cond", "uncond"), absent={(1, 0)}, planned=6, static_keys=False
    )
    group = zarr.open_group(t.path, mode="r")
    assert t.trace.steps == 4
    for i, layer in enumerate(t.trace.layers):
        here = t.probabilities[i][..., 0].all((0, 1, 3, 4, 5)) if i else np.array([True, False, True, True])
        if encoding == "probabilities":
            stored = group[f"layers/00{i}/probability"][:].astype(float) * 2.0**-15
            np.testing.assert_allclose(stored, t.probabilities[i], rtol=2**-10, atol=2**-40)
            np.testing.assert_array_equal(np.isnan(stored[0, 0, :, 0, 0, 0, 0]), ~here)
            np.testing.assert_array_equal(group[f"layers/00{i}/query_lse"][:][:, :, here], t.query_lse[i].astype("f4")[:, :, here])
            np.testing.assert_array_equal(group[f"layers/00{i}/token_lse"][:][:, :, here], t.token_lse[i].astype("f4")[:, :, here])
        else:
            np.testing.assert_array_equal(group[f"layers/00{i}/query"][:][:, :, here], t.query[i][:, :, here])
            np.testing.assert_array_equal(group[f"layers/00{i}/key"][:][:, :, here], t.key[i][:, :, here])
        assert layer.column_mass_lost == (0 if encoding == "factors" else pytest.approx(layer.column_mass_lost, abs=1e-2))
    for name, pixels in t.images.items():
        np.testing.assert_array_equal(group[f"images/{name}"][:], pixels)
    np.testing.assert_array_equal(group["present"][:], np.array([[1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]], bool))
    np.testing.assert_array_equal(group["step/timestep"][:], [1000.0, 990.0, 980.0, 970.0])
    np.testing.assert_array_equal(group["layers/000/branch"][:], [0, 1])
    np.testing.assert_allclose(group["layers/001/y"][:], [1 / 8, 3 / 8, 5 / 8, 7 / 8])


def test_partial_keys_keep_the_lse_of_the_whole_softmax(tmp_path: Path) -> None:
    layer = reference_layer(hidden=7)
    t = synthetic_trace(tmp_path / "t.zarr", layers=[layer], encoding="factors")
    stored = zarr.open_array(t.path / "layers/000/query_lse", mode="r")[:]
    np.testing.assert_array_equal(stored, t.query_lse[0].astype("f4"))


def test_the_manifest_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    t = synthetic_trace(tmp_path / "t.zarr", planned=7)
    trace_id, listed = decode_manifest((t.path / "manifest.json").read_bytes())
    disk = files(t.path)
    disk.pop("manifest.json")
    assert trace_id == t.trace.id
    assert {n: s[:2] for n, s in listed.items()} == {n: (len(data), hashlib.sha256(data).hexdigest()) for n, data in disk.items()}
    assert {plan.path for plan in layout(t.trace)} <= {name.rpartition("/")[0] for name in listed}


def test_the_journal_names_each_steps_files(tmp_path: Path) -> None:
    t = synthetic_trace(tmp_path / "t.zarr", **small(status="recording", absent={(1, 0)}))
    entries = decode_lines((t.path / "journal.jsonl").read_bytes())
    assert [entry.present for entry in entries] == [(0,), (), (0,)]
    assert sorted(entries[2].files) == [f"layers/000/{n}/c.0.0.2.0.0{e}" for n, e in (("probability", ".0.0"), ("query_lse", ".0"))] + [
        "layers/000/token_lse/c.0.0.2.0.0"
    ]
    for entry in entries:
        for name, (size, digest, _) in entry.files.items():
            data = (t.path / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)


# -- laws ------------------------------------------------------------------------------------------------------------------------


def test_the_same_recording_gives_the_same_bytes(tmp_path: Path) -> None:
    one = synthetic_trace(tmp_path / "one", encoding="factors", samples=2, workers=1)
    two = synthetic_trace(tmp_path / "two", encoding="factors", samples=2, workers=3, queue_bytes=1)
    assert files(one.path) == files(two.path)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 4))
def test_a_key_is_stored_when_it_changes_and_only_then(tmp_path_factory: pytest.TempPathFactory, which: list[int], workers: int) -> None:
    layer = dataclasses.replace(reference_layer(grid=(1, 2), heads=1, reference=(1, 1)), encoding="factors")
    writer = Writer(tmp_path_factory.mktemp("keys") / "t", record(len(which)), workers=workers)
    writer.add_layer(layer)
    keys = np.arange(3 * 16, dtype="float32").reshape(3, 1, 2, 8)
    for step, k in enumerate(which):
        writer.put(0, 0, "cond", step, {"query": np.zeros((1, 1, 2, 8), "float32"), "key": keys[k].copy()})
        commit(writer, step)
    writer.finish()
    group = zarr.open_group(writer.path / "layers/000", mode="r")
    position = group["key_step"][0, 0]
    assert all(position[i] == (i if i == 0 or which[i] != which[i - 1] else position[i - 1]) for i in range(len(which)))
    np.testing.assert_array_equal(group["key"][0, 0][position], keys[which])
    assert len(list((writer.path / "layers/000/key").glob("c.*"))) == len(set(position))


class Slow:
    """A block that comes late, and says how many are alive."""

    def __init__(self, array: np.ndarray) -> None:
        self.nbytes, self._array = array.nbytes, array

    def __call__(self) -> np.ndarray:
        time.sleep(0.002)
        return self._array


@pytest.mark.parametrize("bound", [0, 700, 10_000])
def test_the_queue_stays_within_its_bound_or_one_block(tmp_path: Path, bound: int) -> None:
    layer = reference_layer()
    writer = Writer(tmp_path / "t", record(20), queue_bytes=bound)
    writer.add_layer(layer)
    size = sum(block.nbytes for block in blocks(layer).values())
    for step in range(20):
        writer.put(0, 0, "cond", step, {name: Slow(block) for name, block in blocks(layer).items()})
        commit(writer, step)
    writer.finish()
    assert size <= writer._workers.peak <= max(bound, size)


def test_a_full_queue_lets_go_when_a_block_is_written() -> None:
    workers, gate, seen = Workers(1, 10), threading.Event(), []
    workers.submit(Job(gate.wait, 10, 0))
    thread = threading.Thread(target=lambda: seen.append(workers.submit(Job(lambda: None, 1, 0))))
    thread.start()
    time.sleep(0.02)
    assert not seen
    gate.set()
    thread.join(5)
    assert seen == [None]
    workers.drain()
    workers.close()


def test_steps_are_committed_in_order_whatever_ends_first(tmp_path: Path) -> None:
    layer, gate = reference_layer(), threading.Event()
    writer = Writer(tmp_path / "t", record(2), workers=3)
    writer.add_layer(layer)

    class Held(Slow):
        def __call__(self) -> np.ndarray:
            gate.wait(5)
            return super().__call__()

    first = {name: Held(block) for name, block in blocks(layer).items()}
    writer.put(0, 0, "cond", 0, first)
    commit(writer, 0)
    writer.put(0, 0, "cond", 1, blocks(layer))
    commit(writer, 1)
    while not list((tmp_path / "t/layers/000/token_lse").glob("c.0.0.1.*")):
        time.sleep(0.001)
    assert writer.committed == 0
    gate.set()
    writer.finish()
    assert [e.step for e in decode_lines((tmp_path / "t/journal.jsonl").read_text())] == [0, 1]


# -- bad input -------------------------------------------------------------------------------------------------------------------


def test_a_taken_path_is_left_alone(tmp_path: Path) -> None:
    t = synthetic_trace(tmp_path / "t.zarr", **small())
    before = files(t.path)
    with pytest.raises(AlreadyExists, match=r"exists already.*overwrite=True"):
        synthetic_trace(t.path, **small(seed=1))
    assert files(t.path) == before
    again = synthetic_trace(t.path, **small(seed=1, overwrite=True))
    assert again.trace.id != t.trace.id


@pytest.mark.parametrize("status", ["recording", "interrupted"])
def test_a_partial_trace_may_be_overwritten(tmp_path: Path, status: str) -> None:
    synthetic_trace(tmp_path / "t", **small(status=status))
    assert synthetic_trace(tmp_path / "t", **small(overwrite=True)).trace.status == "complete"


def test_nothing_foreign_is_ever_deleted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.tex").write_text("mine")
    (tmp_path / "zarr").mkdir()
    (tmp_path / "zarr/zarr.json").write_text('{"attributes": {}}')
    mixed = synthetic_trace(tmp_path / "mixed", **small()).path
    (mixed / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    before = files(tmp_path)
    reasons = {"file": "not a trace", "folder": "thesis.tex", "zarr": "not a trace", "mixed": "notes.txt", "link": "not a trace"}
    for name, words in reasons.items():
        with pytest.raises(AlreadyExists, match=words):
            synthetic_trace(tmp_path / name, **small(overwrite=True))
    assert files(tmp_path) == before


def test_parents_are_made_and_a_path_below_a_file_is_an_error(tmp_path: Path) -> None:
    synthetic_trace(tmp_path / "a/b/t.zarr", **small())
    with pytest.raises(InvalidInput, match="cannot make the folder"):
        synthetic_trace(tmp_path / "a/b/t.zarr/zarr.json/t", **small())


def test_what_cannot_be_put(tmp_path: Path) -> None:
    layer = reference_layer()
    with pytest.raises(InvalidInput, match="starts from"):
        Writer(tmp_path / "t", record(layers=(layer,)))
    writer = Writer(tmp_path / "t", record())
    writer.add_layer(layer)
    with pytest.raises(InvalidInput, match="takes the blocks probability, query_lse, token_lse, got query"):
        writer.put(0, 0, "cond", 0, {"query": np.zeros(1)})
    for at in ((1, "cond", 0), (0, "uncond", 0), (0, "cond", 3)):
        with pytest.raises(InvalidInput, match="is not open: samples 1, branches cond, steps 0 to 2"):
            writer.put(0, *at, blocks(layer))
    with pytest.raises(InvalidInput, match="step 0 of 3 is next"):
        commit(writer, 1)
    commit(writer, 0)
    with pytest.raises(InvalidInput, match="steps 1 to 2"):
        writer.put(0, 0, "cond", 0, blocks(layer))
    with pytest.raises(InvalidInput, match="not JSON"):
        writer.finish(inputs={"prompt": object()})
    writer.interrupt("bad input")
    assert writer.trace.status == "interrupted"
    assert writer.trace.reason == "bad input"
    with pytest.raises(InvalidInput, match="is interrupted"):
        commit(writer, 1)


def test_a_wrong_block_is_named_at_the_next_call(tmp_path: Path) -> None:
    layer = reference_layer()
    writer = Writer(tmp_path / "t", record())
    writer.add_layer(layer)
    writer.put(0, 0, "cond", 0, blocks(layer) | {"token_lse": np.zeros((2, 3), "float32")})
    writer._workers.drain()
    for call in (lambda: commit(writer, 0), writer.finish):
        with pytest.raises(InvalidInput, match=r"layers/000/token_lse takes float32 of shape \(2, 16\), got float32 of shape \(2, 3\)"):
            call()
    writer.interrupt("wrong block")
    assert not list((tmp_path / "t").rglob("c.*"))


def test_a_picture_of_another_shape(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "t", record())
    with pytest.raises(InvalidInput, match=r"images/mask takes uint8 of shape \(2, 3, 1\)"):
        writer.finish(images=[(Image("mask", "mask", 2, 3, 1), np.zeros((3, 2, 1), "uint8"))])
    assert writer.finish().steps == 0


def test_layers_may_be_added_late_and_steps_skip_them(tmp_path: Path) -> None:
    one, two = default_layers()[1:]
    writer = Writer(tmp_path / "t", record())
    writer.add_layer(one)
    commit(writer, 0)
    writer.add_layer(two)
    writer.put(1, 0, "cond", 1, blocks(two), lost=lambda: 0.25)
    commit(writer, 1)
    trace = writer.finish(latent_grid=(8, 6))
    assert (trace.steps, trace.latent_grid) == (2, (8, 6))
    assert [layer.column_mass_lost for layer in trace.layers] == [0.0, 0.25]
    assert zarr.open_array(tmp_path / "t/present", mode="r")[:].tolist() == [[False, False], [False, True]]


def test_the_oracle_is_the_softmax(tmp_path: Path) -> None:
    t: Synthetic = synthetic_trace(tmp_path / "t", layers=[reference_layer(text=3)], steps=1)
    np.testing.assert_allclose(t.probabilities[0].sum(-1), 1)
    np.testing.assert_allclose(t.generated[0].sum((-3, -2)), 1)


def test_a_folder_that_another_process_makes_or_removes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AlreadyExists, match="is wanted by another process too, which removed it"):
        TraceLock(tmp_path / "gone")
    (tmp_path / "made").mkdir()
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(AlreadyExists, match="was made by another process just now"):
        Writer(tmp_path / "made", record())
