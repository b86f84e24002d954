"""Pictures of traces as files, compared with what the pipeline was given; masks that are files of their own for each trace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2am.analyzer import evaluate, judge, open_trace, psnr, save_pictures, ssim
from i2am.analyzer.cli.main import run
from i2am.schema.errors import AlreadyExists, InvalidInput, UnknownSelection
from traces import synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("anna", "bert")):
        synthetic_trace(folder / f"traces/{name}.zarr", seed=seed, steps=1)
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.array(opened)


def test_each_picture_is_called_as_its_trace(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pictures", str(folder / "traces"), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 2 pictures\n"
    for name in ("anna", "bert"):
        assert np.array_equal(pixels(tmp_path / f"out/{name}.png"), open_trace(folder / f"traces/{name}.zarr").image("generated_0"))
    with pytest.raises(AlreadyExists):
        save_pictures(folder / "traces", tmp_path / "out")
    save_pictures(folder / "traces", tmp_path / "out", overwrite=True)


def test_they_are_compared_with_another_of_the_trace(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["pictures", str(folder / "traces"), "-o", str(tmp_path), "--against", "mask", "--json"]
    assert run(asked) == 0
    found = json.loads(capsys.readouterr().out)
    for row in found["pictures"]:
        trace = open_trace(folder / f"traces/{row['trace']}.zarr")
        one, other = trace.image("generated_0"), np.repeat(trace.image("mask"), 3, -1)
        assert (row["psnr"], row["ssim"]) == (pytest.approx(psnr(one, other)), pytest.approx(ssim(one, other)))
    assert found["mean"]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in found["pictures"]]))
    assert run([*asked[:-1], "--overwrite"]) == 0 and "; mean of 2: PSNR " in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="expected two of one size"):
        save_pictures(folder / "traces", tmp_path / "b", against="reference")
    with pytest.raises(UnknownSelection, match="has no picture 'hat'; say which with image=: generated_0"):
        save_pictures(folder / "traces", tmp_path / "c", image="hat")


def test_every_trace_may_have_a_mask_file_of_its_own(folder: Path, tmp_path: Path) -> None:
    for name, rows in (("anna", 20), ("bert", 40)):
        mask = np.zeros((64, 48), np.uint8)
        mask[:rows] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    found = evaluate(folder / "traces", metrics="iou_g", mask=str(tmp_path / "{trace}.png"))
    for name in ("anna", "bert"):
        alone = judge(open_trace(folder / f"traces/{name}.zarr"), ["iou_g"], mask=str(tmp_path / f"{name}.png"))
        assert float(found["iou_g"].sel(trace=name)) == float(alone["iou_g"])
    with pytest.raises(UnknownSelection, match=r"nowhere/anna\.png is neither"):
        judge(open_trace(folder / "traces/anna.zarr"), ["iou_g"], mask="nowhere/{trace}.png")
