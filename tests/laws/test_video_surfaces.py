"""A video through every output: one bright corner of one frame looks at one corner of the reference, and stays where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image as Picture

import traces
from i2am.analyzer import g2r, imacs, open_trace, r2g
from i2am.analyzer.cli.main import run
from i2am.analyzer.evaluation.metric_table import find_metrics, judge
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.maps.heatmap import scored_picture
from i2am.analyzer.maps.looks import looks
from i2am.analyzer.metrics.entropy import concentration
from i2am.analyzer.output.sheets import LABEL, LINE, MARGIN, draw
from i2am.schema.errors import InvalidInput
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

FRAMES, GRID, SIZE = 4, (8, 6), (64, 48)
PLACE = (2, 0, 5)
"""Third frame, upper right."""
TOKEN = (2, 0)
"""Lower left of the reference's 3 x 5 patches."""
SHOWN = 12
"""Frames of the picture: three for each of the latent."""


def point(result: traces.Synthetic, layer: traces.Layer) -> None:
    query, key = result.query[-1], result.key[-1]
    query[:], key[:] = 0, 0
    at = tuple((2 * i + 1) * n // (2 * m) for i, n, m in zip(PLACE, layer.places, (FRAMES, *GRID), strict=True))
    query[(..., *at, 0)] = 10 * layer.head_dim**0.5
    key[..., 1 + TOKEN[0] * 5 + TOKEN[1], 0] = 1


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("surfaces") / "run.zarr"
    draw_layer = traces._draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces, "_draw", lambda result, layer, *rest: (draw_layer(result, layer, *rest), point(result, layer)))
        layers = [reference_layer("a", GRID, frames=FRAMES), reference_layer("b", (4, 3), heads=3, frames=FRAMES)]
        synthetic_trace(found, layers=layers, steps=2, encoding="factors", image_size=SIZE, frames=SHOWN)
    return found


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(capsys: pytest.CaptureFixture[str], *words: Any) -> Any:
    assert run([str(word) for word in words]) == 0
    return json.loads(capsys.readouterr().out)


def read(file: Path) -> xr.DataArray:
    if file.suffix == ".npy":
        values = np.load(file)
        return xr.DataArray(values, dims=("frame", "y", "x")[-values.ndim :])
    zarr = file.suffix == ".zarr"
    found = xr.open_zarr(file, consolidated=False) if zarr else xr.open_dataset(file, engine="h5netcdf")
    return next(iter(found.data_vars.values()))


@pytest.mark.parametrize("suffix", [".npy", ".nc", ".zarr"])
def test_numbers_keep_frame_and_corner(path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts = told(capsys, "map", path, "--r2g", "-o", f"r2g{suffix}", "--json")
    assert (facts["dims"], facts["shape"]) == (["frame", "y", "x"], [FRAMES, *GRID])
    found = read(Path(f"r2g{suffix}"))
    assert np.unravel_index(int(np.asarray(found).argmax()), found.shape) == PLACE
    at = ",".join(map(str, PLACE))
    assert told(capsys, "map", path, "--at", at, "-o", f"sram{suffix}", "--json")["at"] == list(PLACE)
    patch = read(Path(f"sram{suffix}"))
    assert np.unravel_index(int(np.asarray(patch).argmax()), patch.shape) == TOKEN
    told(capsys, "map", path, "--g2r", "--frames", PLACE[0], "-o", f"g2r{suffix}", "--json")
    one = np.asarray(read(Path(f"g2r{suffix}")))
    assert np.unravel_index(int(one.argmax()), one.shape) == TOKEN
    told(capsys, "map", path, "--g2r", "--frames", "0,1", "-o", f"others{suffix}", "--json")
    others = np.asarray(read(Path(f"others{suffix}")))
    assert np.ptp(others) < 1e-6 < np.ptp(one)  # nothing in these frames looks anywhere in particular


def tile(sheet: np.ndarray, index: int, columns: int, size: tuple[int, int]) -> np.ndarray:
    row, column = divmod(index, columns)
    top, left = MARGIN + row * (size[0] + LABEL + MARGIN) + LABEL, MARGIN + column * (size[1] + MARGIN)
    return sheet[top : top + size[0], left : left + size[1]]


def test_a_picture_of_a_video_is_a_strip_of_its_frames(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "map", path, "--r2g", "--style", "plain", "-o", "r2g.png", "--json")
    with Picture.open("r2g.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    factor = 6  # 48 pixels grow to at least 256
    tiles = [tile(pixels, i, FRAMES, (SIZE[0] * factor, SIZE[1] * factor)) for i in range(FRAMES)]
    heat = [t[..., 0] + t[..., 1] for t in tiles]  # yellow is hot
    assert [int(np.ptp(h) > 100) for h in heat] == [0, 0, 1, 0]
    y, x = np.unravel_index(int(heat[2].argmax()), heat[2].shape)
    assert y < SIZE[0] * factor / 8
    assert x > SIZE[1] * factor * 5 / 6


def test_frames_lie_over_the_pictures_own(path: Path) -> None:
    trace = open_trace(path)
    video = np.zeros((SHOWN, *SIZE, 3), np.uint8)
    video[7] = 255  # the middle one of those that latent frame 2 stands for
    whole = r2g(trace).compute()
    size = (SIZE[0] * 6, SIZE[1] * 6)
    mean = [tile(np.asarray(draw(whole, video, "daam")), i, FRAMES, size).mean() for i in range(FRAMES)]
    assert np.argmax(mean) == 2
    assert max(mean[:2] + mean[3:]) == 0
    picked = draw(r2g(trace, frames=[2]).compute(), video, "daam")
    assert np.array_equal(tile(np.asarray(picked), 0, 1, size), tile(np.asarray(draw(whole, video, "daam")), 2, FRAMES, size))


def test_many_frames_are_set_in_lines() -> None:
    values = xr.DataArray(np.random.default_rng(0).random((LINE + 3, 4, 3)), dims=("frame", "y", "x"))
    kept = xr.DataArray(values.values[None], dims=("time", "frame", "y", "x"))
    wide, tall = draw(values, None).size
    assert draw(kept, None).size == ((wide - MARGIN) // LINE * (LINE + 3) + MARGIN, (tall - MARGIN) // 2 + MARGIN)


def test_a_patch_is_framed_in_its_own_frame(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "map", path, "--at", ",".join(map(str, PLACE)), "-o", "sram.png", "--json")
    with Picture.open("sram.png") as sheet:
        left = np.asarray(sheet.convert("RGB"))[MARGIN + LABEL :, MARGIN:][: SIZE[0] * 6, : SIZE[1] * 6]
    frame = open_trace(path).image("generated_0")[7].repeat(6, 0).repeat(6, 1)
    changed = np.argwhere((left != frame).any(-1))
    assert len(changed)
    assert changed[:, 0].max() < SIZE[0] * 6 / 8 + 8
    assert changed[:, 1].min() > SIZE[1] * 5 - 8


def test_imacs_is_the_mean_of_the_frames_scores(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = open_trace(path)
    whole, mask = r2g(trace).compute(), trace.image("mask")[..., 0]
    each = [float(imacs(whole.isel(frame=frame), mask)) for frame in range(FRAMES)]
    assert float(imacs(whole, mask)) == pytest.approx(np.mean(each), abs=1e-12)
    assert imacs(r2g(trace, keep="time"), mask).dims == ("time",)
    assert told(capsys, "imacs", path, "--json")["imacs_g"] == pytest.approx(np.mean(each), abs=1e-9)
    assert concentration(whole).sizes == {"frame": FRAMES}


def test_info_and_verify_know_frames(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = told(capsys, "info", path, "--json")
    assert facts["latent_frames"] == FRAMES
    assert [layer["frames"] for layer in facts["layers"]] == [FRAMES, FRAMES]
    assert facts["images"][0]["frames"] == SHOWN
    assert facts["bytes_raw_float16"] == 2 * 2 * 16 * FRAMES * (2 * 48 + 3 * 12)
    assert run(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "generated_0 12x64x48" in text
    assert "4x8x6" in text
    assert "latent grid   4 x 8 x 6" in repr(open_trace(path))
    assert "4 x 8 x 6" in open_trace(path)._repr_html_()
    assert verify(path).ok


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
def test_a_changed_byte_of_any_frame_is_found(encoding: str, tmp_path: Path) -> None:
    layers = [reference_layer("a", (6, 4), frames=3)]
    made = synthetic_trace(tmp_path / "t.zarr", layers=layers, encoding=encoding, steps=2, frames=9)
    assert verify(made.path).ok
    picture = made.path / "images" / "generated_0" / "c.0.0.0.0"
    data = bytearray(picture.read_bytes())
    data[len(data) // 2] ^= 1
    picture.write_bytes(bytes(data))
    assert [finding.where for finding in verify(made.path).findings] == ["images/generated_0/c.0.0.0.0"]


def test_the_report_shows_frames(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = told(capsys, "report", path, "-o", "report.png", "--json")
    assert facts["r2g"]["shape"] == [FRAMES, *GRID]
    assert facts["r2g"]["peak"] == [(i + 0.5) / n for i, n in zip(PLACE, (FRAMES, *GRID), strict=True)]
    assert {patch["at"][0] for patch in facts["sram"]} == {0, 2, 3}
    assert facts["imacs_g"] == told(capsys, "imacs", path, "--json")["imacs_g"]
    assert run(["report", str(path), "-o", "report.png", "--overwrite"]) == 0
    assert "of the generated image, frame 2 of 4 (down, right)" in capsys.readouterr().out
    with Picture.open("report.png") as sheet:
        assert sheet.width > 1000


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--at", "1,2"), "a patch is (frame, row, column) on the latent grid of 4 x 8 x 6"),
        (("--at", "9,0,0"), "frames are 0 to 3 from the start"),
        (("--at", "1"), "or F,Y,X for a video"),
        (("--at", "0,0,0", "--frames", "1"), "--at names its own, F,Y,X"),
        (("--g2r", "--frames", "4"), "the trace has no frame 4; it has 0 to 3"),
    ],
)
def test_bad_places_are_one_line(path: Path, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["map", str(path), *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_what_knows_images_only_says_so(path: Path) -> None:
    with pytest.raises(InvalidInput, match="is of a video, and patches point from the places of one image"):
        looks(open_trace(path))


def test_g2r_of_the_video_is_the_mean_of_its_frames(path: Path) -> None:
    trace = open_trace(path)
    each = [g2r(trace, frames=frame) for frame in range(FRAMES)]
    np.testing.assert_allclose(sum(each) / FRAMES, g2r(trace), rtol=1e-6)


@pytest.mark.parametrize("name", ["iou_g", "miou_g", "box_iou_g", "entropy_g", "concentration_g", "concentration_r", "row_entropy"])
def test_metrics_of_a_video_are_means_of_its_frames(path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    trace = open_trace(path)
    found = judge(trace, [name])[name]
    assert found.dims == ()
    if name.endswith("_g"):
        whole, mask = r2g(trace).compute(), trace.image("mask")[..., 0]
        (row,) = find_metrics([name])
        frames = [whole.isel(frame=i) for i in range(FRAMES)]
        if row.against:
            each = [float(row.function(scored_picture(frame, mask > 0, cut=row.cut), mask > 0)) for frame in frames]
        else:
            each = [float(row.function(frame)) for frame in frames]
        assert float(found) == pytest.approx(np.mean(each), abs=1e-9)
    assert run(["evaluate", str(path), "--metric", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["traces"][0][name] == pytest.approx(float(found), abs=1e-9)


def test_two_videos_are_compared_frame_by_frame(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = told(capsys, "diff", path, path, "-o", "diff.png", "--json")
    assert facts["maps"]["r2g"]["change"] == 0
    with Picture.open("diff.png") as sheet:
        assert sheet.width > FRAMES * 256
    short = synthetic_trace(tmp_path / "short.zarr", layers=[reference_layer("a", GRID, frames=2), reference_layer("b", (4, 3), frames=2)])
    assert run(["diff", str(path), str(short.path)]) == 2
    assert "4 x 8 x 6 and 2 x 8 x 6 positions" in capsys.readouterr().err


def test_a_long_video_has_room_on_the_sheet(tmp_path: Path) -> None:
    layers = [reference_layer("a", (4, 3), frames=21)]
    made = synthetic_trace(tmp_path / "long.zarr", layers=layers, steps=2, latent_grid=(4, 3), image_size=(16, 12), frames=81)
    assert run(["report", str(made.path), "-o", "report.png"]) == 0
    with Picture.open("report.png") as sheet:
        assert sheet.width < 4000


def test_a_diagnosis_is_of_images(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diagnose", str(path)]) == 2
    assert "is of a video, and the ranges of a diagnosis were measured on images" in capsys.readouterr().err
