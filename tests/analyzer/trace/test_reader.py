"""Opening a trace: what is refused and why, what an unfinished one still gives, and that nothing is read too early."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from i2am.analyzer import g2r, open_trace, r2g, sram
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.store.chunks import Blocks
from i2am.analyzer.trace.reader import Trace
from i2am.schema.arrays.layers import data_plans
from i2am.schema.errors import CorruptTrace, IncompleteTrace, InvalidInput, NotATrace, TraceError, UnknownSelection, UnknownVersion
from i2am.schema.journal import decode_manifest, encode_manifest
from i2am.schema.trace import TraceRecord
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

ENCODINGS = ("probabilities", "factors")


@pytest.fixture(scope="module", params=ENCODINGS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    path = tmp_path_factory.mktemp("reader") / "run.zarr"
    return synthetic_trace(path, encoding=request.param, steps=3, samples=2, branches=("cond", "uncond"), absent={(1, 0)})


@pytest.fixture
def own(made: Synthetic, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made.path, tmp_path / "copy.zarr"))


def rewrite(path: Path, change: Any) -> None:
    """Change the root's record, and the manifest to match, as a forger would."""
    root = json.loads((path / "zarr.json").read_text())
    change(root["attributes"]["i2am"])
    (path / "zarr.json").write_text(json.dumps(root))


def everything(trace: Trace) -> list[np.ndarray]:
    arrays = [trace.image(image.name) for image in trace.images]
    arrays += [trace.probabilities(i).values for i in range(len(trace.layers))]
    arrays += [trace.generated_softmax(i).values for i in range(len(trace.layers))]
    return [*arrays, *trace.steps.values(), trace.present]


def test_an_open_trace_says_what_it_holds(made: Synthetic) -> None:
    trace = open_trace(made.path)
    assert trace.complete
    assert trace.id == made.trace.id
    assert trace.record == made.trace
    assert trace.latent_grid == (8, 6)
    assert not trace.present[1, 0]
    assert trace.present.sum() == 8
    assert "3 with 8 heads" in repr(trace)


def test_pictures_come_back_as_they_were(made: Synthetic) -> None:
    trace = open_trace(made.path)
    for name, pixels in made.images.items():
        np.testing.assert_array_equal(trace.image(name), pixels)
    assert set(trace.masks()) == {"mask", "reference_mask"}
    with pytest.raises(UnknownSelection, match=r"no image 'x'; it has generated_0, generated_1, reference, mask"):
        trace.image("x")


def test_html_shows_names_and_runs_nothing(tmp_path: Path) -> None:
    layer = reference_layer("<script>alert(1)</script>")
    trace = open_trace(synthetic_trace(tmp_path / "t.zarr", layers=[layer], steps=1).path)
    assert "<script>" not in trace._repr_html_()
    assert "&lt;script&gt;" in trace._repr_html_()


@pytest.mark.parametrize(("selector", "expected"), [
    (None, (0, 1, 2)),
    (1, (1,)),
    (-1, (2,)),
    ("2", (2,)),
    ("unet.mid_block.attentions.0.transformer_blocks.0.attn2", (1,)),
    ("*blocks.0*", (0, 1, 2)),
    ("*up_blocks*", (2,)),
    (r"re:(up|down)_blocks\.\d", (0, 2)),
    (["*mid*", 0], (0, 1)),
])  # fmt: skip
def test_layers_are_found(made: Synthetic, selector: Any, expected: tuple[int, ...]) -> None:
    assert open_trace(made.path).select(selector) == expected


@pytest.mark.parametrize(("selector", "words"), [
    (3, "no layer 3; it has 0 to 2"),
    ("*text*", r"no layer of the trace matches '\*text\*'; it has unet.down_blocks.0"),
    ("re:(", r"'re:\(' is not a regular expression"),
    ("*unet*", "names 3 layers of the trace, expected one"),
])  # fmt: skip
def test_unknown_layers_are_told_what_there_is(made: Synthetic, selector: Any, words: str) -> None:
    with pytest.raises(InvalidInput if selector == "re:(" else UnknownSelection, match=words):
        open_trace(made.path).layer(selector)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_blocks_read_what_zarr_reads(made: Synthetic, data: st.DataObject) -> None:
    trace = open_trace(made.path)
    name = "probability" if trace.layers[0].encoding == "probabilities" else "query"
    layer = data.draw(st.integers(0, 2))
    blocks = trace.blocks(layer, name)
    whole = zarr.open_array(made.path / "layers" / f"{layer:03d}" / name, mode="r")[...]
    index = tuple(data.draw(st.one_of(st.slices(n), st.integers(0, n - 1))) for n in blocks.shape)
    np.testing.assert_array_equal(blocks[index], whole[index])


def test_inner_chunks_are_read_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = synthetic_trace(
        tmp_path / "t.zarr", layers=[reference_layer(grid=(64, 48), heads=4, reference=(16, 16))], steps=1, latent_grid=None
    )
    blocks = open_trace(made.path).blocks(0, "probability")
    assert blocks.plan.shards is not None
    sizes: list[int] = []
    monkeypatch.setattr("i2am.analyzer.store.chunks._decode", lambda data, *_: sizes.append(len(data)))
    blocks[0, 0, 0, :, 40, 7]
    assert len(sizes) == 1


# Refusals


def test_what_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(NotATrace, match="there is no"):
        open_trace(tmp_path / "nowhere")
    with pytest.raises(NotATrace, match=r"a folder without zarr\.json"):
        open_trace(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotATrace, match="is a file, not a trace"):
        open_trace(tmp_path / "file")
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(NotATrace, match="a Zarr store but not a trace"):
        open_trace(tmp_path / "other.zarr")
    for text in ("", "[" * 100_000, "[]", "\x00"):
        (tmp_path / "zarr.json").write_text(text)
        with pytest.raises(NotATrace, match="is not a trace: its"):
            open_trace(tmp_path)


def test_a_future_version(own: Path) -> None:
    rewrite(own, lambda record: record.update(version=3))
    with pytest.raises(UnknownVersion, match=r"format version 3; this release reads versions 1 and 2.*pip install --upgrade"):
        open_trace(own)


@pytest.mark.parametrize("change", [
    lambda record: record.update(samples=10**12),
    lambda record: record["layers"][0].update(grid=[10**12, 7]),
    lambda record: record["layers"][0].update(grid=[2**20, 2**20]),
    lambda record: record["layers"][0].update(head_dim=2**40),
    lambda record: record.update(images=[{"name": "x", "role": "input", "height": 2**31, "width": 2**31, "channels": 3}]),
    lambda record: record.update(extra=1),
    lambda record: record["layers"][0].update(scale=2.0),
    lambda record: record.update(status="finished"),
])  # fmt: skip
def test_a_record_that_cannot_be(own: Path, change: Any) -> None:
    rewrite(own, change)
    with pytest.raises(CorruptTrace):
        open_trace(own)


def test_a_missing_file_is_found_at_once_and_named(own: Path) -> None:
    for file in sorted(own.rglob("*")):
        if file.is_file() and file != own / "zarr.json":
            content = file.read_bytes()
            file.unlink()
            with pytest.raises(CorruptTrace, match=file.name):
                open_trace(own)
            file.write_bytes(content)
    assert len(everything(open_trace(own)))


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "._zarr.json"])
@pytest.mark.parametrize("folder", ["", "layers/000", "images"])
def test_what_a_desktop_leaves_is_overlooked(own: Path, name: str, folder: str) -> None:
    before = everything(open_trace(own))
    (own / folder / name).write_bytes(b"Bud1")
    for one, two in zip(before, everything(open_trace(own)), strict=True):
        np.testing.assert_array_equal(one, two)
    report = verify(own)
    assert report.ok, report.findings
    assert report.ignored == ((f"{folder}/" if folder else "") + name,)


@pytest.mark.parametrize("name", [".DS_Store2", "thumbs", "x._y", ".hidden"])
def test_nothing_else_is_overlooked(own: Path, name: str) -> None:
    (own / name).write_bytes(b"Bud1")
    with pytest.raises(CorruptTrace, match="not in its manifest"):
        open_trace(own)
    assert [finding.where for finding in verify(own).findings] in ([name], ["."])


def test_a_file_too_many_a_link_and_a_short_file(own: Path, tmp_path: Path) -> None:
    shard = next(own.glob("layers/001/*/c.0.0.2*"))
    (shard.parent / "c.9").write_text("x")
    with pytest.raises(CorruptTrace, match=r"c\.9 in the trace .* is not in its manifest"):
        open_trace(own)
    (shard.parent / "c.9").unlink()
    moved = shard.rename(tmp_path / "elsewhere")
    os.symlink(moved, shard)
    with pytest.raises(CorruptTrace, match="is a link; a trace is plain files"):
        open_trace(own)
    shard.unlink()
    shard.write_bytes(moved.read_bytes()[:-1])
    with pytest.raises(CorruptTrace, match=r"c\.0\.0\.2.* bytes where"):
        open_trace(own)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_an_error_never_a_picture(made: Synthetic, data: st.DataObject) -> None:
    path = made.path.with_name("flipped.zarr")
    if not path.exists():
        shutil.copytree(made.path, path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files), label="file")
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1), label="byte")
    changed = bytearray(content)
    changed[place] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    file.write_bytes(changed)
    try:
        found = everything(open_trace(path))
    except TraceError:
        return
    finally:
        file.write_bytes(content)
    # Only the manifest may go unnoticed here: the sums of data files, which `verify` compares, are not needed to read.
    assert file.name == "manifest.json"
    for one, other in zip(found, everything(open_trace(made.path)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_chunk_that_claims_to_be_huge_is_not_unpacked(own: Path) -> None:
    import google_crc32c

    shard = next(own.glob("layers/001/*/c.0.0.2*"))
    body = bytearray(shard.read_bytes()[:-4])
    body[4:8] = (2**31).to_bytes(4, "little")
    shard.write_bytes(bytes(body) + google_crc32c.value(bytes(body)).to_bytes(4, "little"))
    with pytest.raises(CorruptTrace, match="not the one that was recorded here"):
        everything(open_trace(own))
    identity, sums = decode_manifest((own / "manifest.json").read_bytes())
    (own / "manifest.json").write_text(encode_manifest(identity, {name: given._replace(crcs="") for name, given in sums.items()}, 1))
    with pytest.raises(CorruptTrace, match=r"unpacks to 2147483648 bytes where .* are planned\): layer unet.mid_block.*, step 2"):
        everything(open_trace(own))


# Unfinished recordings


@pytest.mark.parametrize("status", ["interrupted", "recording"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_unfinished_trace_gives_its_committed_steps(tmp_path: Path, status: str, encoding: str) -> None:
    made = synthetic_trace(tmp_path / "cut.zarr", steps=3, planned=7, status=status, encoding=encoding, absent={(1, 0)})
    with pytest.raises(IncompleteTrace, match=rf"did not finish \({status}.*3 of 7 planned steps are whole.*partial=True"):
        open_trace(made.path)
    trace = open_trace(made.path, partial=True)
    assert not trace.complete
    assert len(trace.present) == 3
    assert f"3 of 7 planned; {status}" in repr(trace)
    whole = open_trace(synthetic_trace(tmp_path / "whole.zarr", steps=3, encoding=encoding, absent={(1, 0)}).path)
    np.testing.assert_array_equal(trace.probabilities(0).values, whole.probabilities(0).values)
    for name in whole.steps:
        np.testing.assert_array_equal(trace.steps[name], whole.steps[name])
    np.testing.assert_array_equal(r2g(trace).values, r2g(whole).values)
    np.testing.assert_array_equal(sram(trace, (2, 3)).values, sram(whole, (2, 3)).values)


def test_a_torn_line_does_not_count_and_a_changed_one_is_an_error(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "cut.zarr", steps=3, status="recording")
    journal = made.path / "journal.jsonl"
    content = journal.read_bytes()
    journal.write_bytes(content[:-20])
    assert len(open_trace(made.path, partial=True).present) == 2
    journal.write_bytes(content.replace(b'"evaluation":1', b'"evaluation":7'))
    with pytest.raises(CorruptTrace, match=r"journal\.jsonl, line 2, does not match its checksum"):
        open_trace(made.path, partial=True)
    journal.unlink()
    assert len(open_trace(made.path, partial=True).present) == 0


def test_a_committed_block_that_is_gone_is_an_error(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "cut.zarr", steps=2, status="interrupted")
    next(made.path.glob("layers/001/probability/c.0.0.1*")).unlink()
    with pytest.raises(CorruptTrace, match="is missing from the trace"):
        open_trace(made.path, partial=True)


# Laziness


def test_nothing_is_read_before_something_is_computed(made: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("attention was read")

    monkeypatch.setattr(Blocks, "chunks", refuse)
    trace = open_trace(made.path)
    maps = [r2g(trace, keep=("time", "layer", "head")), g2r(trace), g2r(trace, query_mask="mask"), sram(trace, (0, 0))]
    maps += [trace.probabilities(0), trace.scores(1), trace.generated_softmax(2)]
    assert all(map.chunks is not None for map in maps)
    trace._repr_html_()
    trace.layer_table()
    with pytest.raises(AssertionError, match="attention was read"):
        maps[0].compute(scheduler="synchronous")


def test_documents_equal_the_plan_even_with_a_matching_manifest(own: Path) -> None:
    """A forger who also corrects the manifest's sums is still held to the layout."""
    import hashlib

    name = "layers/000/zarr.json"
    document = json.loads((own / name).read_text()) | {"attributes": {"surprise": 1}}
    (own / name).write_text(json.dumps(document))
    manifest = json.loads((own / "manifest.json").read_text())
    content = (own / name).read_bytes()
    manifest["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
    (own / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptTrace, match=r"layers/000/zarr\.json .* is not what the layout plans: attributes differ"):
        open_trace(own)


def test_blocks_of_the_plan_are_what_the_trace_hands_out(made: Synthetic) -> None:
    trace = open_trace(made.path)
    for name, plan in data_plans(trace.record, 1).items():
        assert trace.blocks(1, name).shape == plan.shape
    assert isinstance(dataclasses.replace(trace.record), TraceRecord)
