"""A sound trace passes, for every shape of one; any change of any file is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traces
from i2am.analyzer.cli.main import run
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.storage.location import locate
from i2am.analyzer.store.files import hash_file
from i2am.schema.codec import decode_probability, encode_probability
from i2am.schema.errors import IncompleteTrace, NotATrace, TraceError
from i2am.schema.journal import decode_manifest, encode_manifest
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "run.zarr"
    layers = [reference_layer("a", (3, 2), text=3), reference_layer("b", (2, 2), heads=1)]
    synthetic_trace(path, layers=layers, steps=2, latent_grid=(3, 2), image_size=(6, 4), reference_size=(6, 10))
    return path


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
@pytest.mark.parametrize(
    "options", [{}, {"branches": ("cond", "uncond"), "samples": 2}, {"absent": {(1, 0), (2, 2)}}], ids=["plain", "many", "absent"]
)
def test_a_sound_trace_passes(tmp_path: Path, encoding: str, options: dict[str, object]) -> None:
    made = synthetic_trace(tmp_path / "run.zarr", encoding=encoding, steps=3, **options)
    report = verify(made.path)
    assert report.ok, report.findings
    assert (report.trace, report.complete, report.steps) == (made.trace.id, True, 3)
    assert report.row_error < 1e-3
    assert report.files == sum(p.is_file() for p in made.path.rglob("*")) - 1


def test_rows_of_layers_that_keep_some_keys_may_sum_to_less(tmp_path: Path) -> None:
    layers = [reference_layer("a", (3, 2), hidden=4)]
    report = verify(synthetic_trace(tmp_path / "run.zarr", layers=layers, steps=2, latent_grid=(3, 2)).path)
    assert report.ok
    assert np.isnan(report.row_error)


@pytest.mark.parametrize("status", ["interrupted", "recording"])
@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
def test_a_partial_trace_passes_as_far_as_it_goes(tmp_path: Path, status: str, encoding: str) -> None:
    made = synthetic_trace(tmp_path / "run.zarr", steps=2, planned=5, status=status, encoding=encoding)
    with pytest.raises(IncompleteTrace):
        verify(made.path)
    report = verify(made.path, partial=True)
    assert report.ok, report.findings
    assert (report.complete, report.steps) == (False, 2)


def test_a_flipped_bit_in_any_file_is_found(sound: Path, tmp_path: Path) -> None:
    names = sorted(p.relative_to(sound).as_posix() for p in sound.rglob("*") if p.is_file())
    copy = tmp_path / "run.zarr"
    shutil.copytree(sound, copy)
    rng = np.random.default_rng(0)
    for name in names:
        original = (copy / name).read_bytes()
        for _ in range(2):
            changed = bytearray(original)
            at = int(rng.integers(len(changed)))
            changed[at] ^= 1 << int(rng.integers(8))
            (copy / name).write_bytes(changed)
            report = verify(copy)
            assert not report.ok, f"bit flip at {at} of {name} was not found"
            assert name == "manifest.json" or name in [f.where for f in report.findings], (name, report.findings)
        (copy / name).write_bytes(original)
    assert verify(copy).ok


def test_every_byte_of_the_root_and_the_manifest_counts(sound: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run.zarr"
    shutil.copytree(sound, copy)
    for name in ("zarr.json", "manifest.json"):
        original = (copy / name).read_bytes()
        for at in range(0, len(original), max(1, len(original) // 60)):
            changed = bytearray(original)
            changed[at] ^= 1
            (copy / name).write_bytes(changed)
            assert not verify(copy).ok, f"bit flip at {at} of {name} was not found"
        (copy / name).write_bytes(original)


def test_a_flipped_bit_in_what_a_killed_recording_left_is_found(tmp_path: Path) -> None:
    made = synthetic_trace(
        tmp_path / "run.zarr", layers=[reference_layer("a", (3, 2))], steps=2, planned=4, status="recording", latent_grid=(3, 2)
    )
    data = sorted(p for p in made.path.rglob("c.*"))
    for file in [*data, made.path / "journal.jsonl"]:
        original = file.read_bytes()
        file.write_bytes(bytes([original[0] ^ 4]) + original[1:])
        assert not verify(made.path, partial=True).ok, file
        file.write_bytes(original)
    assert verify(made.path, partial=True).ok


@pytest.mark.parametrize("change", ["missing", "extra", "longer", "link", "no manifest", "swapped"])
def test_files_that_went_came_or_moved_are_found(sound: Path, tmp_path: Path, change: str) -> None:
    copy = tmp_path / "run.zarr"
    shutil.copytree(sound, copy)
    shard = next(copy.rglob("query_lse/c.*"))
    if change == "missing":
        shard.unlink()
    elif change == "extra":
        (copy / "layers" / "notes.txt").write_text("hello")
    elif change == "longer":
        shard.write_bytes(shard.read_bytes() + b"\0")
    elif change == "link":
        moved = shard.rename(tmp_path / "elsewhere")
        shard.symlink_to(moved)
    elif change == "no manifest":
        (copy / "manifest.json").unlink()
    else:
        other = next(p for p in sorted(copy.rglob("query_lse/c.*")) if p.read_bytes() != shard.read_bytes())
        one, two = shard.read_bytes(), other.read_bytes()
        shard.write_bytes(two)
        other.write_bytes(one)
    assert not verify(copy).ok


def test_numbers_that_are_no_attention_are_found_though_every_hash_agrees(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "run.zarr", layers=[reference_layer("a", (3, 2))], steps=2, latent_grid=(3, 2))
    for name in ("query_lse", "token_lse", "probability"):
        first, second = sorted((made.path / "layers" / "000" / name).glob("c.*"))
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        reseal(made.path)
        assert "step 0: columns of G sum to" in verify(made.path).findings[0].problem
        first.write_bytes(kept)
        reseal(made.path)
    assert verify(made.path).ok


def test_rows_that_do_not_sum_to_one_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traces.encode_probability", lambda p: encode_probability(p * 0.9))
    made = synthetic_trace(tmp_path / "run.zarr", layers=[reference_layer("a", (3, 2))], steps=1, latent_grid=(3, 2))
    report = verify(made.path)
    assert "rows of P sum to 0.8998" in report.findings[0].problem
    assert report.row_error == pytest.approx(0.1, abs=1e-3)


def hide(blocks: dict[str, np.ndarray], token: int) -> None:
    """What a model stores that hides a token of the first head from every position."""
    probability = decode_probability(blocks["probability"]).astype(np.float64)
    kept = 1 - probability[0, ..., token]
    probability[0] /= kept[..., None]
    probability[0, ..., token] = 0
    blocks["probability"] = encode_probability(probability)
    blocks["query_lse"][0] += np.log(kept)
    blocks["token_lse"][0, token] = -np.inf


@pytest.mark.parametrize("grid", [(3, 2), (2, 3, 2)], ids=["image", "video"])
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (None, 0.0, None),
        ("token_lse", -np.inf, "columns of G sum to"),
        ("token_lse", -2000.0, "columns of G sum to"),
        ("token_lse", 2000.0, "columns of G sum to"),
        ("token_lse", np.nan, "columns of G sum to"),
        ("query_lse", np.nan, "columns of G sum to"),
        ("query_lse", np.inf, "columns of G sum to"),
        ("probability", np.nan, "rows of P sum to"),
        ("probability", np.inf, "rows of P sum to"),
        ("probability", -300.0, "rows of P sum to"),
    ],
)
def test_hidden_keys_pass_and_no_other_number_that_breaks_the_law(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: tuple[int, ...], name: str | None, value: float, says: str | None
) -> None:
    stored = traces._blocks

    def planted(*given: Any) -> tuple[dict[str, np.ndarray], float]:
        blocks, lost = stored(*given)
        hide(blocks, 3)
        if name is not None:
            blocks[name][0].flat[5] = value
        return blocks, lost

    monkeypatch.setattr(traces, "_blocks", planted)
    layer = reference_layer("a", grid[-2:], frames=grid[0] if len(grid) > 2 else 0)
    made = synthetic_trace(tmp_path / "run.zarr", layers=[layer], steps=1, latent_grid=(3, 2), frames=layer.frames)
    found = [finding.problem for finding in verify(made.path).findings]
    assert not found if says is None else says in " ".join(found)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["query", "key"])
def test_factors_that_are_no_numbers_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    stored = traces._blocks

    def planted(*given: Any) -> tuple[dict[str, np.ndarray], float]:
        blocks, lost = stored(*given)
        blocks[name][0].flat[5] = value
        return blocks, lost

    monkeypatch.setattr(traces, "_blocks", planted)
    made = synthetic_trace(
        tmp_path / "run.zarr", layers=[reference_layer("a", (3, 2))], steps=1, latent_grid=(3, 2), encoding="factors", static_keys=False
    )
    assert {"rows of P", "columns of G"} == {finding.problem.split(" sum")[0].split(": ")[1] for finding in verify(made.path).findings}


def reseal(path: Path) -> None:
    """Write a manifest that agrees with the files as they are."""
    identity, sums = decode_manifest((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_text(encode_manifest(identity, {name: hash_file(locate(path), name) for name in sums}))


def test_the_report_is_json(sound: Path) -> None:
    doc = json.loads(json.dumps(verify(sound).to_json()))
    assert doc["ok"]
    assert doc["findings"] == []


def test_what_is_no_trace_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(NotATrace):
        verify(tmp_path / "nothing")
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(TraceError):
        verify(tmp_path)


def test_a_shared_softmax_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = synthetic_trace(tmp_path / "run.zarr", layers=[reference_layer(hidden=5)], steps=1)
    assert run(["verify", str(made.path)]) == 0
    assert run(["report", str(made.path), "-o", str(tmp_path / "r.png")]) == 0
    said = capsys.readouterr().out
    assert "nan" not in said
    assert said.count("rows of P not summed, as every softmax also ran over keys that are not stored") == 2


def test_files_beside_an_unfinished_recording_are_said_not_called_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = synthetic_trace(tmp_path / "run.zarr", steps=2, planned=4, status="recording").path
    (path / "layers/000/probability/c.9.partial").write_bytes(b"half")
    (path / ".gitattributes").write_text("* binary")
    assert run(["verify", "--partial", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "PARTIAL" in lines[0]
    assert "c.9.partial" in lines[1]
    assert f"`i2am seal {path}`" in lines[1]
    assert ".gitattributes" in lines[2]
    assert "corrupt" not in " ".join(lines)
