"""Pictures: nothing is turned, the same input is the same bytes, and what cannot be drawn is said."""

from __future__ import annotations

import io

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from i2am.analyzer.output.colours import BAR, STYLES, colour, colour_bar, mix
from i2am.analyzer.output.sheets import (
    ABSENT,
    MARGIN,
    TILE,
    Mark,
    blend,
    compose,
    draw,
    encode_png,
    explain,
    limits_of,
    overlay,
    patch_mark,
    short_names,
    show,
    stack,
)
from i2am.schema.errors import InvalidInput

pytestmark = pytest.mark.analyzer


def flat(rows: int, columns: int, **attributes: object) -> xr.DataArray:
    return xr.DataArray(np.zeros((rows, columns)), dims=("y", "x"), attrs=attributes)


def brightest(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """The cell of a grid of `size` with the greatest mean brightness."""
    pixels = np.asarray(image.convert("L"), dtype=float)
    rows, columns = size
    cells = pixels[: pixels.shape[0] // rows * rows, : pixels.shape[1] // columns * columns].reshape(
        rows, pixels.shape[0] // rows, columns, -1
    )
    y, x = np.unravel_index(cells.mean(axis=(1, 3)).argmax(), size)
    return int(y), int(x)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_the_brightest_cell_is_where_the_map_is_greatest(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(2, 6)), data.draw(st.integers(2, 6))
    y, x = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    map = flat(rows, columns)
    map[y, x] = 1
    picture = np.zeros((rows * 8, columns * 8, 3), np.uint8)
    assert brightest(overlay(map, picture), (rows, columns)) == (y, x)
    assert brightest(overlay(map, None), (rows, columns)) == (y, x)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (300, 520), (512, 512)])
def test_an_overlay_is_the_picture_enlarged_by_a_whole_factor(size: tuple[int, int]) -> None:
    image = overlay(flat(4, 4), np.zeros((*size, 3), np.uint8))
    assert image.height % size[0] == 0
    assert image.height // size[0] == image.width // size[1]
    assert min(image.size) >= TILE


def test_heat_zero_under_a_fading_style_shows_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(overlay(flat(8, 8), picture, "daam")), picture)


@pytest.mark.parametrize("style", STYLES)
def test_colour_maps_start_and_end_at_their_stops(style: str) -> None:
    ends = colour(np.array([0.0, 1.0]), style)
    assert [bytes(end).hex() for end in ends] == [STYLES[style].colours[0], STYLES[style].colours[-1]]
    assert colour(np.array([-1.0, 2.0]), style).tolist() == ends.tolist()


def test_the_perceptual_map_grows_brighter_all_the_way() -> None:
    red, green, blue = np.moveaxis(colour(np.linspace(0, 1, 101)).astype(float), -1, 0)
    assert (np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue) > -1).all()


def test_masks_and_colour_pictures_are_both_drawn() -> None:
    assert show(np.zeros((40, 30, 1), np.uint8)).mode == "RGB"


def test_a_map_of_a_window_leaves_the_rest_at_zero() -> None:
    map = xr.DataArray(np.eye(2), dims=("ref_y", "ref_x"), attrs={"window": (0.0, 8.0, 16.0, 24.0), "image_shape": (16, 32)})
    pixels = np.asarray(overlay(map, np.zeros((16, 32, 3), np.uint8), "plain"))
    factor = pixels.shape[0] // 16
    assert (pixels[:, : 8 * factor] == colour(np.zeros(1), "plain")).all()
    assert (pixels[:, 24 * factor :] == colour(np.zeros(1), "plain")).all()
    np.testing.assert_allclose(pixels[2 * factor, 10 * factor].astype(int), colour(np.ones(1), "plain")[0].astype(int), atol=8)


@pytest.mark.parametrize("kept", [("time",), ("head", "layer"), ("time", "head", "layer")])
def test_kept_axes_become_a_strip_or_a_grid(kept: tuple[str, ...]) -> None:
    lengths = {"time": 2, "head": 3, "layer": 2}
    shape = tuple(lengths[axis] for axis in kept)
    map = xr.DataArray(
        np.random.default_rng(0).random((*shape, 4, 3)),
        dims=(*kept, "y", "x"),
        coords={"layer_name": ("layer", ["a.b", "c.d"])} if "layer" in kept else {},
    )
    tile, image = overlay(flat(4, 3), None), draw(map, None)
    columns, rows = shape[-1], int(np.prod(shape[:-1]))
    assert image.width // tile.width == columns
    assert image.height // tile.height == rows


@pytest.mark.parametrize(
    ("kept", "size"),
    [({"time": 50}, 300), ({"time": 40, "layer": 4}, 256), ({"time": 12, "layer": 5, "head": 2}, 4), ({"layer": 30, "head": 3}, 64)],
)
def test_no_sheet_is_a_strip(kept: dict[str, int], size: int) -> None:
    map = xr.DataArray(np.zeros((*kept.values(), 2, 2)), dims=(*kept, "y", "x"), attrs={"image_shape": (size, size)})
    sheet = draw(map, None)
    assert sheet.width < 5000 and sheet.height < 9000 and sheet.height < 25 * sheet.width


def test_peaks_have_no_rings() -> None:
    map = flat(9, 9)
    map[4, 4] = 1
    shown = blend(map, None, (90, 90), (9, 9), "plain", (-0.2, 1.0))
    least = colour(np.array([0.2 / 1.2]), "plain")[0].astype(int)
    assert (np.abs(shown[:30].astype(int) - least) <= 1).all()
    assert (shown[45, 60:] == shown[45, 89]).all()


def test_a_tile_of_which_nothing_was_recorded_is_grey() -> None:
    map = xr.DataArray(np.ones((2, 4, 4)), dims=("head", "y", "x"))
    map[1] = np.nan
    sheet = np.asarray(draw(map, None))
    assert (sheet[24 + 128, -100] == ABSENT).all()


def test_tiles_lie_in_order_with_the_last_axis_across() -> None:
    map = xr.DataArray(np.zeros((2, 2, 2, 2)), dims=("head", "layer", "y", "x"))
    map[1, 0, 0, 0] = 1
    sheet = np.asarray(draw(map, None), dtype=int)
    bright = np.abs(sheet - colour(np.ones(1), "plain")[0]).sum(-1) < 10
    ys, xs = np.nonzero(bright)
    assert ys.min() > sheet.shape[0] / 2
    assert xs.max() < sheet.shape[1] / 2


def test_marks_frame_the_patch_and_cross_the_truth() -> None:
    plain = np.zeros((256, 512, 3), np.uint8)
    framed = np.asarray(show(plain, [patch_mark((1, 3), (4, 8))])).any(-1)
    ys, xs = np.nonzero(framed)
    assert abs(ys.mean() - 96) < 2
    assert abs(xs.mean() - 224) < 2
    assert not framed[70:120, 200:248].all()
    ys, xs = np.nonzero(np.asarray(show(plain, [Mark(0.25, 0.5, kind="truth")])).any(-1))
    assert abs(ys.mean() - 64) < 2
    assert abs(xs.mean() - 256) < 2


def test_the_same_picture_is_the_same_bytes_and_says_where_it_comes_from() -> None:
    image = overlay(flat(3, 4), None)
    first, second = encode_png(image, {"b": "2", "a": "grün"}), encode_png(image, {"a": "grün", "b": "2"})
    assert first == second
    opened = Image.open(io.BytesIO(first))
    opened.load()
    assert opened.text == {"a": "grün", "b": "2"}


def test_sheets_hold_parts_of_any_width() -> None:
    parts = [("one", Image.new("RGB", (300, 40))), ("a caption much too long for it" * 9, Image.new("RGB", (100, 80)))]
    assert stack(parts).width == 300
    assert compose([part for _, part in parts], 2, ["x", "y"]).width == 300 + 100 + 3 * MARGIN


@pytest.mark.parametrize(
    ("map", "picture", "style", "reason"),
    [
        (xr.DataArray(np.ones(7), dims="token"), None, "viridis", "no rows and columns"),
        (flat(2, 2), None, "rainbow", "styles are viridis, mako, i2am, daam, plain, difference"),
        (flat(2, 2), np.zeros((4, 4), np.uint8), "viridis", "expected uint8"),
        (flat(2, 2) * np.nan, None, "viridis", "NaN"),
    ],
)
def test_what_cannot_be_drawn_is_refused(map: xr.DataArray, picture: np.ndarray | None, style: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        draw(map, picture, style)


def test_colour_means_attention_alone() -> None:
    """Where heat is 0 the picture is grey, whatever its colours; with heat the colour's share grows."""
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    ground = np.asarray(overlay(flat(4, 4), picture)).astype(int)
    assert np.ptp(ground, axis=-1).max() <= 1
    assert 40 < ground.min() < ground.max() < 180
    heat = np.linspace(0, 1, 256)[None].repeat(256, 0)
    away = np.abs(np.asarray(mix(heat, picture, "viridis")).astype(int) - colour(heat).astype(int)).mean((0, 2))
    assert away[0] > away[64] > away[192] > away[255] == 0


def test_one_colour_is_one_value_in_every_tile_unless_tiles_have_their_own() -> None:
    map = xr.DataArray(np.stack([np.eye(4), 2 * np.eye(4)]), dims=("time", "y", "x"))
    weak, strong = (overlay(map[i], None, "plain", limits=limits_of(map)).getpixel((8, 8)) for i in range(2))
    assert weak != strong
    shared, own = (np.asarray(draw(map, None, "plain", scale=scale)).astype(int) for scale in ("shared", "own"))
    second = overlay(map[0], None).width + MARGIN
    assert np.abs(shared[30:60, 10:40] - shared[30:60, second + 10 : second + 40]).max() > 50
    assert np.abs(own[30:60, 10:40] - own[30:60, second + 10 : second + 40]).max() < 3
    assert explain(draw(map, None), map, "daam", False).size == draw(map, None).size
    assert explain(draw(map, None), map, "viridis", False).height == draw(map, None).height + MARGIN + BAR[1]


def test_a_bar_has_its_colours_and_a_constant_map_none() -> None:
    bar = np.asarray(colour_bar(256, (0.0, 3.0), "plain", False))
    np.testing.assert_array_equal(bar[0, [0, -1]], colour(np.array([0.0, 1.0]), "plain"))
    assert np.ptp(np.asarray(colour_bar(256, (2.0, 2.0), "plain", False)), axis=-1).max() == 0
    assert limits_of(flat(3, 3) + 0.1 + 1e-9 * np.arange(3)) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (
            [
                "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2",
                "unet.mid_block.attentions.0.transformer_blocks.0.attn2",
                "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2",
            ],
            ["down.1.0", "mid.0", "up.1.2"],
        ),
        (["dit.double_blocks.3.attn", "dit.double_blocks.4.attn", "dit.single_blocks.3.attn"], ["double.3", "double.4", "single.3"]),
        (["a.b"], ["a.b"]),
        (["a.b.c", "a.c"], ["a.b.c", "a.c"]),
    ],
)
def test_captions_leave_out_what_all_layers_have(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short
