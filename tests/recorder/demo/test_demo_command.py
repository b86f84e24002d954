"""`i2am demo` from the command line to the picture, in few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2am.analyzer import open_trace
from i2am.analyzer.cli.main import run
from i2am.recorder.demo import cli as demo
from i2am.recorder.demo.pairs import HELD_OUT, draw_pair
from i2am.recorder.demo.truth import truth_grid


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    record = demo.record_demo
    monkeypatch.setattr(demo, "record_demo", lambda path, seed, **options: record(path, seed, steps=4, **options))


def test_the_demo_records_verifies_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["demo", "-o", str(out), "--seed", "1", "--json"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert facts["verified"]["ok"]
    assert all(facts[name] is not None for name in ("imacs_g", "imacs_r", "imacs_r_plain"))
    assert all(patch["distance"] is not None for patch in facts["sram"])
    with Image.open(out / "report.png") as picture:
        assert picture.text["i2am-trace"] == facts["trace"]
    assert sorted(p.name for p in out.iterdir()) == ["report.png", "run.html", "run.zarr"]
    assert facts["page"] == str(out / "run.html")
    assert b'id="overview">' in (out / "run.html").read_bytes()

    assert run(["demo", "-o", str(out)]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert run(["demo", "-o", str(out), "--overwrite"]) == 0
    shown = capsys.readouterr()
    for word in ("verified", "R2G", "G2R", "SRAM", "truth", "IMACS_G", "IMACS_R", "picture"):
        assert word in shown.out
    assert shown.out.splitlines()[-1].startswith(f"page       {out / 'run.html'}: open it in a browser")


def test_the_trace_carries_masks_and_the_truth(tmp_path: Path) -> None:
    demo.record_demo(tmp_path / "run.zarr", 2)
    trace = open_trace(tmp_path / "run.zarr")
    pair = draw_pair(HELD_OUT + 2, trace.images[0].height)
    assert {image.role for image in trace.images} == {"generated", "reference", "mask", "reference_mask", "input"}
    np.testing.assert_array_equal(trace.image("mask")[..., 0] > 127, pair.mask)
    np.testing.assert_array_equal(trace.image("reference_mask")[..., 0] > 127, pair.reference_mask)
    known = np.array(trace.record.provenance["truth"], dtype=float)
    position, torso = truth_grid(pair, trace.latent_grid)
    np.testing.assert_array_equal(np.isfinite(known[..., 0]), torso >= 0.5)
    np.testing.assert_allclose(known[torso >= 0.5], (position[torso >= 0.5][:, ::-1] + 1) / 2, atol=1e-4)


def test_without_weights_the_demo_says_where_they_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = demo.record_demo
    monkeypatch.setattr(demo, "record_demo", lambda path, seed, **options: record(path, seed, weights=tmp_path, **options))
    assert run(["demo", "-o", str(tmp_path / "out")]) == 2
    assert "weights are not in" in capsys.readouterr().err


def test_a_file_in_the_way_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("")
    assert run(["demo", "-o", str(tmp_path / "out")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_an_output_that_is_no_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for out, words in (("s3://bucket/demo", "s3://bucket/demo is an address"), ("x" * 256, "has 256 bytes")):
        assert run(["demo", "-o", out]) == 2
        assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
