"""Packing changes where numbers lie and none of them; a pack that is killed on the way leaves nothing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import pytest
import xarray as xr
from golden import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import ZipStore

from i2am.analyzer import Trace, diagnose, g2r, open_trace, pack, r2g, sram, unpack
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.sharing import encoding
from i2am.schema import AlreadyExists, Codec, CorruptTrace, IncompleteTrace, InvalidInput, TokenGroup
from i2am.schema.arrays.layers import data_plans
from i2am.schema.layout import image_layout, layout
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

PROBES = (TokenGroup("dog", "text", 0, 3), TokenGroup("cat", "text", 3, 5))
LAYERS = (
    reference_layer("unet.a.attn2", (4, 3), heads=2, encoding="probabilities"),
    reference_layer("unet.b.attn2", (6, 2), heads=2, encoding="factors", hidden=3, head_numbers=(1, 3), call_heads=4),
    reference_layer("unet.c.attn2", (2, 5), heads=3, encoding="factors", probes=PROBES),
    reference_layer("unet.d.attn2", (4, 3), heads=1, encoding="probabilities", frames=3, text=4),
    reference_layer("unet.e.attn2", (3, 2), heads=2, encoding="factors", frames=4),
)


@st.composite
def recordings(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `synthetic_trace`: any encodings, branches, samples, videos, absent calls, keys that change or do not."""
    steps, layers = draw(st.integers(1, 11)), draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=3, unique=True))
    calls = st.tuples(st.integers(0, steps - 1), st.integers(0, len(layers) - 1))
    return {
        "layers": layers,
        "steps": steps,
        "encoding": None,
        "samples": draw(st.integers(1, 2)),
        "branches": draw(st.sampled_from([("cond",), ("cond", "uncond")])),
        "absent": draw(st.sets(calls, max_size=steps)),
        "static_keys": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["float16", "float32"])),
        "frames": draw(st.sampled_from([0, 2])),
        "seed": draw(st.integers(0, 99)),
    }


def require_same_arrays(one: Trace, other: Trace) -> None:
    """Every array that both plan has the same bytes, NaN included, and so has what says where calls are."""
    assert one.id == other.id
    for index in range(len(one.layers)):
        for name in data_plans(one.record, index):
            assert one.blocks(index, name)[...].tobytes() == other.blocks(index, name)[...].tobytes()
        np.testing.assert_array_equal(one.call_steps[index], other.call_steps[index])
        np.testing.assert_equal(one.serving[index], other.serving[index])
        if one.layers[index].probes:
            np.testing.assert_array_equal(one.probe_key(index), other.probe_key(index))
    data = {plan.path for index in range(len(one.layers)) for plan in data_plans(one.record, index).values()}
    for plan in layout(one.record):
        if plan.path not in data and not plan.path.endswith("probe_key"):
            np.testing.assert_array_equal(one.table(plan.path), other.table(plan.path))


@settings(max_examples=12, deadline=None)
@given(arguments=recordings(), chunk_steps=st.integers(2, 9), ending=st.sampled_from([".zarr", ".zip"]))
def test_every_array_is_the_same_bit_for_bit_there_and_back(arguments: dict[str, Any], chunk_steps: int, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, packed, back = Path(folder, "t.zarr"), Path(folder, f"packed{ending}"), Path(folder, "back.zarr")
        synthetic_trace(path, **arguments)
        made = pack(path, packed, chunk_steps=chunk_steps)
        source, other = open_trace(path), open_trace(packed)
        require_same_arrays(source, other)
        said = dict(other.record.provenance)
        assert said.pop("packed")["codec"] == {"name": "lz4", "level": 5}
        assert dataclasses.replace(other.record, codec=source.record.codec, provenance=said, chunk_steps=1) == source.record
        assert verify(packed).findings == ()
        assert made.record == other.record
        unpack(packed, back)
        for name in path.rglob("*"):  # every file but the ledgers, the journal among them, which tells how it was recorded
            if name.is_file() and name.name not in ("journal.jsonl", "manifest.json"):
                assert (back / name.relative_to(path)).read_bytes() == name.read_bytes(), name


@settings(max_examples=5, deadline=None)
@given(arguments=recordings(), chunk_steps=st.integers(2, 5))
def test_packing_is_the_same_bytes_again_and_does_not_add_up(arguments: dict[str, Any], chunk_steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, two, three, path = (Path(folder, name) for name in ("1.zip", "2.zip", "3.zip", "t.zarr"))
        synthetic_trace(path, **arguments)
        for source, out in ((path, one), (path, two), (one, three)):
            pack(source, out, chunk_steps=chunk_steps)
        assert one.read_bytes() == two.read_bytes() == three.read_bytes()


def test_nothing_is_packed_in_the_main_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # There blosc has threads of its own, which write their blocks in the order in which they end: a large picture would have other bytes
    # each time.
    seen, encode = set(), encoding.Blosc.encode
    synthetic_trace(tmp_path / "t.zarr", layers=LAYERS, steps=2, encoding=None)
    monkeypatch.setattr(encoding.Blosc, "encode", lambda self, data: seen.add(threading.current_thread()) or encode(self, data))
    pack(tmp_path / "t.zarr", tmp_path / "p.zip")
    assert seen and threading.main_thread() not in seen


def test_a_chunk_is_cut_along_rows_where_it_would_be_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = sys.modules["i2am.schema.arrays.array"]
    monkeypatch.setattr(bounds, "CHUNK_BYTES", (256, 1024))
    monkeypatch.setattr(bounds, "SHARD_BYTES", 2048)
    synthetic_trace(tmp_path / "t.zarr", layers=LAYERS, steps=7, encoding=None, branches=("cond", "uncond"), absent={(3, 0)})
    pack(tmp_path / "t.zarr", tmp_path / "p.zarr", chunk_steps=3)
    source, other = open_trace(tmp_path / "t.zarr"), open_trace(tmp_path / "p.zarr")
    cut = [plan for index in range(len(LAYERS)) for plan in data_plans(other.record, index).values() if plan.files > 3 * 2]
    assert cut and all(plan.shards is None for plan in cut)
    assert any(plan.shards for index in range(len(LAYERS)) for plan in data_plans(source.record, index).values())
    require_same_arrays(source, other)
    unpack(tmp_path / "p.zarr", tmp_path / "back.zarr")
    require_same_arrays(source, open_trace(tmp_path / "back.zarr"))


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
def test_maps_are_the_same(tmp_path: Path, encoding: str) -> None:
    synthetic_trace(tmp_path / "t.zarr", steps=11, encoding=encoding, branches=("cond", "uncond"), absent={(0, 1), (9, 1)})
    pack(tmp_path / "t.zarr", tmp_path / "p.zip", chunk_steps=4)
    source, other = open_trace(tmp_path / "t.zarr"), open_trace(tmp_path / "p.zip")
    for options in ({}, {"steps": "3:9:2"}, {"steps": 10, "layers": 0}, {"keep": "time"}, {"keep": "head", "branch": "uncond"}):
        for find in (r2g, g2r):
            np.testing.assert_allclose(find(other, **options), find(source, **options), rtol=1e-6)
        np.testing.assert_allclose(sram(other, at=(2, 3), **options), sram(source, at=(2, 3), **options), rtol=1e-6)
    for kind in ("probabilities", "scores", "generated_softmax"):
        for index in range(3):
            one, two = (getattr(trace, kind)(index).isel(step=slice(None, None, -2)) for trace in (source, other))
            np.testing.assert_array_equal(one.compute(), two.compute())
    assert diagnose(other) == diagnose(source)


def test_the_golden_trace_is_the_same_packed(tmp_path: Path) -> None:
    pack(GOLDEN, tmp_path / "golden.zip", chunk_steps=2)
    require_same_arrays(open_trace(GOLDEN), open_trace(tmp_path / "golden.zip"))


def test_plain_xarray_opens_the_zip_file(tmp_path: Path) -> None:
    synthetic_trace(tmp_path / "t.zarr", layers=LAYERS, steps=5, encoding=None, absent={(4, 0)})
    pack(tmp_path / "t.zarr", tmp_path / "p.zarr.zip", chunk_steps=3)
    for index in range(len(LAYERS)):
        with ZipStore(tmp_path / "p.zarr.zip", mode="r") as store:
            xr.testing.assert_equal(
                xr.open_zarr(store, group=f"layers/{index:03d}").drop_vars("called").load(),
                xr.open_zarr(tmp_path / "t.zarr", group=f"layers/{index:03d}").load(),
            )


def test_what_opening_reads_lies_together_at_the_end(tmp_path: Path) -> None:
    synthetic_trace(tmp_path / "t.zarr", layers=LAYERS, steps=5, encoding=None)
    pack(tmp_path / "t.zarr", tmp_path / "p.zip", chunk_steps=2)
    with ZipFile(tmp_path / "p.zip") as archive:
        assert archive.testzip() is None
        members = archive.infolist()
    assert {member.compress_type for member in members} == {ZIP_STORED}
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    record = open_trace(tmp_path / "p.zip").record
    data = [f"{plan.path}/c." for index in range(len(LAYERS)) for plan in data_plans(record, index).values()]
    large = [*data, *(f"{image_layout(image).path}/c." for image in record.images), "layers/002/probe_key/c."]
    kinds = [member.filename.startswith(tuple(large)) for member in members]
    assert kinds == sorted(kinds, reverse=True)
    assert [member.filename for member in members[-2:]] == ["manifest.json", "zarr.json"]
    layers = [member.filename.split("/")[1] for member in members if member.filename.startswith("layers/") and "/c." in member.filename]
    assert layers[: sum(kinds) - len(record.images)] == sorted(layers[: sum(kinds) - len(record.images)])


@pytest.mark.parametrize("ending", [".zarr", ".zip"])
def test_nothing_is_overwritten_silently(tmp_path: Path, ending: str) -> None:
    synthetic_trace(tmp_path / "t.zarr", steps=2)
    out = tmp_path / f"p{ending}"
    pack(tmp_path / "t.zarr", out)
    with pytest.raises(AlreadyExists, match="exists already; choose another path, or add overwrite=True"):
        pack(tmp_path / "t.zarr", out)
    assert pack(tmp_path / "t.zarr", out, overwrite=True, steps=1).record.steps == 1
    assert open_trace(out).record.steps == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["t.zarr", out.name])


def test_bad_outputs_are_refused_in_words(tmp_path: Path) -> None:
    synthetic_trace(tmp_path / "t.zarr", steps=2)
    (tmp_path / "other.zarr").mkdir()
    for out, words in (
        (tmp_path / "p.tar", "end it in .zarr for a folder or .zip for one file"),
        (tmp_path / "no" / "p.zip", "does not exist; make it first"),
        ("s3://bucket/p.zip", "is an address; pack to a file"),
        (tmp_path / "t.zarr" / "p.zip", "lies in the trace .* itself"),
    ):
        with pytest.raises(InvalidInput, match=words):
            pack(tmp_path / "t.zarr", out)
    with pytest.raises(AlreadyExists, match="is not a trace, so it is not overwritten"):
        pack(tmp_path / "t.zarr", tmp_path / "other.zarr", overwrite=True)
    with pytest.raises(InvalidInput, match="is not packed"):
        unpack(tmp_path / "t.zarr", tmp_path / "u.zarr")


def test_unfinished_traces_are_refused_with_the_way_out(tmp_path: Path) -> None:
    synthetic_trace(tmp_path / "t.zarr", steps=2, planned=4, status="interrupted")
    with pytest.raises(IncompleteTrace, match="i2am seal"):
        pack(tmp_path / "t.zarr", tmp_path / "p.zip")
    assert not (tmp_path / "p.zip").exists()


def test_a_changed_file_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", steps=3)
    file = made.path / "layers/001/probability/c.0.0.2.0.0.0.0"
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    for out in ("p.zip", "p.zarr"):
        with pytest.raises(CorruptTrace, match="layers/001/probability"):
            pack(made.path, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["t.zarr"]


def test_a_file_of_another_place_is_not_laundered_in_traces_whose_ledger_lists_no_chunks(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", steps=3, codec=Codec(level=0))
    manifest = made.path / "manifest.json"
    document = json.loads(manifest.read_text())
    document["version"], document["files"] = 1, {name: given[:2] for name, given in document["files"].items()}
    manifest.write_text(json.dumps(document, indent=1) + "\n")
    pack(made.path, tmp_path / "p.zip")
    folder = made.path / "layers/001/query_lse"
    one, two = folder / "c.0.0.0.0.0.0", folder / "c.0.0.1.0.0.0"
    assert one.stat().st_size == two.stat().st_size
    one.write_bytes(two.read_bytes())
    with pytest.raises(CorruptTrace, match="sha256"):
        pack(made.path, tmp_path / "q.zip")


STUCK = """
import sys, time
from i2am.analyzer import pack
from i2am.analyzer.sharing import rewriting

run, seen = rewriting.run_job, []

def wait(job):
    seen.append(job)
    if len(seen) > 3:
        print("stuck", flush=True)
        time.sleep(60)
    return run(job)

rewriting.run_job = wait
pack(*sys.argv[1:])
"""


@pytest.mark.parametrize("ending", [".zarr", ".zip"])
def test_killed_on_the_way_it_leaves_the_source_and_no_file_of_the_name(tmp_path: Path, ending: str) -> None:
    made, out = synthetic_trace(tmp_path / "t.zarr", steps=4), tmp_path / f"p{ending}"
    before = {path: path.read_bytes() for path in made.path.rglob("*") if path.is_file()}
    with subprocess.Popen([sys.executable, "-c", STUCK, made.path, out], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("stuck")
        with pytest.raises(AlreadyExists, match="is being written by another process"):
            pack(made.path, out)
        process.kill()
    assert not out.exists()
    assert {path: path.read_bytes() for path in made.path.rglob("*") if path.is_file()} == before
    pack(made.path, out)  # what the killed one left is in nobody's way
    require_same_arrays(open_trace(made.path), open_trace(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["t.zarr", out.name])


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
def test_damage_and_files_of_other_places_are_told(tmp_path: Path, encoding: str) -> None:
    synthetic_trace(tmp_path / "t.zarr", steps=6, encoding=encoding, codec=Codec(level=0))
    path = pack(tmp_path / "t.zarr", tmp_path / "p.zarr", chunk_steps=3, level=0).path
    folder = path / "layers/001" / ("query" if encoding == "factors" else "probability")
    one, two = folder / "c.0.0.0.0.0.0.0", folder / "c.0.0.1.0.0.0.0"
    whole = one.read_bytes()
    for damaged, words in (
        (bytes([*whole[:50], whole[50] ^ 1, *whole[51:]]), "does not match its checksum"),
        (two.read_bytes(), "whole but not the one that was recorded here"),
        (whole[:-1], "bytes where"),
    ):
        one.write_bytes(damaged)
        with pytest.raises(CorruptTrace, match=words):
            r2g(open_trace(path)).compute()
        assert [finding.where for finding in verify(path).findings] == [f"layers/001/{folder.name}/{one.name}"]
    one.write_bytes(whole)
    assert verify(path).ok
    (path / "layers/001/called/c.0.0.0").unlink()
    with pytest.raises(CorruptTrace, match="layers/001/called"):
        open_trace(path)
