"""The report of every kind of trace: what there is is drawn and named, what there is not is left out, before any long look."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image as Picture

from i2am.analyzer import g2r, imacs, open_trace, r2g
from i2am.analyzer.cli.main import run
from i2am.analyzer.output import sheets
from i2am.recorder.store.writer import Writer
from i2am.schema.trace import Image, Layer, TokenGroup
from traces import Synthetic, reference_layer, self_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def placeless(path: str, grid: tuple[int, int], tokens: int = 1) -> Layer:
    """A layer whose reference tokens have no place, as Paint-by-Example's one and IP-Adapter's four."""
    return Layer(path, 0, 2, 8, 8**-0.5, grid, tokens, (TokenGroup("reference", "reference", 0, tokens, image="reference"),))


def told(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> tuple[dict[str, Any], str]:
    """The report's numbers, and its text."""
    assert run(["report", str(path), "-o", "r.png", "--json", *options]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert run(["report", str(path), "-o", "r.png", "--overwrite", *options]) == 0
    with Picture.open("r.png") as sheet:
        assert sheet.width > 400
    return facts, capsys.readouterr().out


@pytest.mark.parametrize("tokens", [1, 4])
def test_tokens_without_a_place_have_r2g_and_time_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens: int) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", layers=[placeless("a", (8, 6), tokens), placeless("b", (4, 3), tokens)], steps=2)
    facts, text = told(capsys, made.path)
    assert facts["r2g"]["calls"] == 4
    assert (facts["g2r"], facts["g2r_masked"], facts["sram"]) == (None, None, [])
    assert facts["imacs_g"] == pytest.approx(float(imacs(r2g(open_trace(made.path)), made.images["mask"])))
    assert (facts["imacs_r"], facts["imacs_r_plain"]) == (None, None)
    assert "none: the reference tokens have no place" in text
    assert run(["imacs", str(made.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["imacs_g"] == facts["imacs_g"]


def test_layers_that_cut_their_tokens_differently_still_have_r2g(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", layers=[placeless("a", (8, 6), 4), reference_layer("b", (4, 3))], steps=1)
    assert told(capsys, made.path)[0]["g2r"] is None


def test_a_mask_of_tokens_without_a_place_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", layers=[placeless("a", (8, 6))], steps=1)
    assert run(["imacs", str(made.path), "--reference-mask", "reference_mask"]) == 2
    assert "have no place on a picture" in capsys.readouterr().err


def pictured(path: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> Synthetic:
    """A trace with the pictures of these names only."""
    finish = Writer.finish

    def fewer(self: Writer, *, images: list[tuple[Image, np.ndarray]], **updates: Any) -> Any:
        return finish(self, images=[(image, pixels) for image, pixels in images if image.name in names], **updates)

    monkeypatch.setattr(Writer, "finish", fewer)
    return synthetic_trace(path, steps=2)


@pytest.mark.parametrize(
    ("names", "scores"),
    [
        (("generated_0", "reference", "mask"), {"imacs_g"}),
        (("generated_0", "reference", "reference_mask"), {"imacs_r_plain"}),
        (("generated_0", "reference"), set()),
        ((), set()),
    ],
)
def test_without_masks_the_rest_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], scores: set[str]
) -> None:
    facts, text = told(capsys, pictured(tmp_path / "t.zarr", monkeypatch, *names).path)
    assert {name for name in ("imacs_g", "imacs_r", "imacs_r_plain") if facts[name] is not None} == scores
    assert len(facts["sram"]) == 3
    assert ("G2R of the masked positions" in text) == ("mask" in names)
    assert (facts["g2r_masked"] is not None) == ("mask" in names)


def test_each_g2r_is_called_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made, captions = synthetic_trace(tmp_path / "t.zarr", steps=2), []
    compose = sheets.compose
    monkeypatch.setattr(
        "i2am.analyzer.cli.commands.sheet.compose", lambda tiles, columns, said: (captions.extend(said), compose(tiles, columns, said))[1]
    )
    facts, _ = told(capsys, made.path)
    assert any(caption.startswith("G2R of the masked positions, IMACS") for caption in captions)
    assert not any(caption.startswith("G2R,") for caption in captions)
    trace = open_trace(made.path)
    for name, map in {"g2r": g2r(trace), "g2r_masked": g2r(trace, query_mask="mask")}.items():
        assert facts[name]["greatest"] == pytest.approx(float(map.max()))


def test_text_is_reported_when_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [reference_layer("a", (8, 6), text=4, reference=None), reference_layer("b", (4, 3), text=4, reference=None)]
    made = synthetic_trace(tmp_path / "t.zarr", layers=layers, steps=2)
    facts, text = told(capsys, made.path, "--group", "text")
    assert (facts["group"], facts["g2r"], facts["sram"]) == ("text", None, [])
    assert "the text tokens have no place" in text
    monkeypatch.setattr(
        "i2am.analyzer.cli.commands.sheet.verify", lambda *_, **__: pytest.fail("looked at every file before it asked which tokens")
    )
    assert run(["report", str(made.path), "-o", "s.png"]) == 2
    assert "say which tokens with --group, of text" in capsys.readouterr().err


def test_any_sample_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", samples=3, steps=2)
    facts, text = told(capsys, made.path, "--sample", "2")
    assert (facts["sample"], facts["samples"]) == (2, 3)
    assert facts["r2g"]["greatest"] == pytest.approx(float(r2g(open_trace(made.path), sample=2).max()))
    assert "sample     2 of 3" in text
    assert told(capsys, made.path, "--overwrite")[0]["sample"] == 0
    assert run(["report", str(made.path), "-o", "s.png", "--sample", "3"]) == 2
    assert "no sample 3; it has 0 to 2" in capsys.readouterr().err


def test_a_partial_trace_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", steps=2, planned=5, status="interrupted")
    assert told(capsys, made.path, "--partial")[0]["r2g"]["calls"] == 6


def test_absent_calls_leave_no_hole_in_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = [dataclasses.replace(layer, path=name) for layer, name in ((reference_layer("a", (8, 6)), "a"), (reference_layer("b"), "b"))]
    made = synthetic_trace(tmp_path / "t.zarr", layers=layers, steps=3, absent={(1, 0), (1, 1)})
    found = r2g(open_trace(made.path), keep="time", time_groups=3)
    assert isinstance(found, xr.DataArray)
    assert np.isnan(found.values[1]).all()
    assert told(capsys, made.path)[0]["r2g"]["calls"] == 4


def test_what_looks_at_itself_is_not_called_a_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", layers=[self_layer("a", (8, 6))], steps=1, latent_grid=(8, 6))
    facts, text = told(capsys, made.path, "--group", "self")
    assert facts["looked_at"] == "generated image" and "of the generated image" in text and "of the reference" not in text
