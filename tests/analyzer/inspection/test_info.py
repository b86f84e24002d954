"""What float16 lost is said wherever R2G is, and only there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from i2am.analyzer import g2r, open_trace, r2g, sram
from i2am.analyzer.cli.main import run
from i2am.analyzer.inspection.info import precision_note
from i2am.schema.trace import Codec
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = [reference_layer("sharp", (8, 6), head_dim=256), reference_layer("soft", (4, 3), head_dim=1)]
    return synthetic_trace(tmp_path_factory.mktemp("lossy") / "t.zarr", layers=layers, steps=2, sharpness=30).path


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_r2g_carries_the_worst_of_its_layers(lossy: Path) -> None:
    trace = open_trace(lossy)
    lost = trace.lost
    assert lost[0] > 0.01
    assert r2g(trace).attrs["column_mass_lost"] == max(lost)
    assert r2g(trace, layers="soft").attrs["column_mass_lost"] == lost[1]
    assert r2g(trace, recipe="i2am-v1").attrs["column_mass_lost"] == 0
    assert "column_mass_lost" not in g2r(trace).attrs | sram(trace, (0, 0)).attrs


def test_the_note_counts_layers(lossy: Path) -> None:
    trace = open_trace(lossy)
    many = sum(share > 0.01 for share in trace.lost)
    assert f"in {many} of 2 layers, so R2G is approximate" in (precision_note(trace) or "")
    assert "in 1 of 1 layer," in (precision_note(trace, [0]) or "")
    assert precision_note(trace, []) is None


@pytest.mark.parametrize(
    ("line", "noted"),
    [
        ("info {t}", True),
        ("verify {t}", True),
        ("map {t} --r2g -o m.npy", True),
        ("map {t} --r2g -o m.png", True),
        ("map {t} --g2r -o m.npy", False),
        ("map {t} --at 1,1 -o m.npy", False),
        ("map {t} --r2g --recipe i2am-v1 -o m.npy", False),
        ("imacs {t}", True),
        ("imacs {t} --recipe i2am-v1", False),
        ("report {t} -o r.png", True),
    ],
)
def test_every_command_that_tells_of_r2g_says_so(lossy: Path, line: str, noted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    given = line.format(t=lossy).split()
    assert run(given) == 0
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == noted
    assert captured.err.startswith("note: float16 lost up to " if noted else "")
    assert "note:" not in captured.out
    assert run([*given, "--json", *(["--overwrite"] if "-o" in given else [])]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert bool(json.loads(captured.out)["note"]) == noted


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
def test_nothing_is_noted_of_a_trace_that_lost_nothing(tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = synthetic_trace(tmp_path / "t.zarr", encoding=encoding, steps=1, sharpness=1).path
    for line in ("info {t}", "verify {t}", "map {t} --r2g -o m.npy", "imacs {t}", "report {t} -o r.png"):
        assert run(line.format(t=path).split()) == 0
        assert capsys.readouterr().err == ""


def test_fewer_bits_are_named(lossy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = open_trace(lossy)
    monkeypatch.setattr("i2am.analyzer.inspection.info.MANTISSA", 11)
    assert (precision_note(trace) or "").startswith(f"note: rounding to {Codec().keep_bits} bits changed up to ")


def test_an_unfinished_trace_has_it_from_its_journal(tmp_path: Path) -> None:
    layers = [reference_layer("sharp", (8, 6), head_dim=256)]
    path = synthetic_trace(tmp_path / "t.zarr", layers=layers, steps=1, planned=3, sharpness=30, status="recording").path
    assert "in 1 of 1 layer," in (precision_note(open_trace(path, partial=True)) or "")


def test_what_rests_on_trust_is_said_of_every_map_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = [reference_layer("seen", (8, 6)), reference_layer("unseen", (4, 3))]
    path = synthetic_trace(tmp_path / "t.zarr", layers=layers, steps=2, provenance={"unproven": {"on trust": ["unseen"]}}).path
    trace = open_trace(path)
    assert trace.unproven == (1,)
    assert r2g(trace).attrs["unproven"] == g2r(trace).attrs["unproven"] == sram(trace, (0, 0)).attrs["unproven"] == 1
    assert "unproven" not in r2g(trace, layers="seen").attrs
    for line in ("info", "verify", "imacs", "map --g2r -o g.npy", "map --r2g -o r.png", "map --at 1,1 -o s.npy"):
        command, *rest = line.split()
        assert run([command, str(path), *rest]) == 0
        assert "1 of 2 layers (unseen) rest on trust" in capsys.readouterr().err, line
    assert run(["map", str(path), "--r2g", "--layers", "seen", "-o", "own.png"]) == 0
    assert "trust" not in capsys.readouterr().err
    with Image.open("own.png") as plain, Image.open("r.png") as noted:
        assert noted.height > plain.height, "a line on the picture says it too"


@pytest.mark.parametrize("given", [None, 3, [], {"on trust": 3}, {"on trust": [3, None]}, {"on trust": {"a": 1}}])
def test_a_strangers_provenance_says_nothing(tmp_path: Path, given: object) -> None:
    trace = open_trace(synthetic_trace(tmp_path / "t.zarr", steps=1, provenance={"unproven": given, "notes": given}).path)
    assert trace.unproven == ()
    assert all(isinstance(note, str) for note in trace.notes)
