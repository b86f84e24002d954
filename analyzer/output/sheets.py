"""From maps to pictures, with Pillow alone: overlays, strips and grids, as PNG files of always the same bytes.

Nothing here flips, transposes or mirrors: row 0 of a map is the top of the picture, column 0 its left.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import takewhile
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ...schema.errors import InvalidInput
from ..facts import MapFacts
from ..metrics.placement import place, place_signed, tells_apart
from .colours import INK, PAPER, Pixels, Scale, Style, colour_bar, find_style, mix

Limits: TypeAlias = tuple[float, float]
"""Values that are drawn as heat 0 and heat 1."""

TILE: Final = 256
"""A picture is enlarged by a whole factor until its short side has at least this many pixels."""
LINE: Final = 8
"""Tiles beside each other along one kept axis."""
STACK: Final = 24
"""Lines of tiles of three kept axes, beyond which their grids stand beside each other."""
WIDEST, TALLEST, SMALLEST = 4096, 6144, 48
"""Pixels that a sheet's tiles may take together, beyond which they shrink, and the least that one has."""
MARGIN: Final = 6
LABEL: Final = 18
ABSENT: Final = (225, 225, 225)

MarkKind: TypeAlias = Literal["patch", "truth"]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place to point at."""

    y: float
    """From the top, as a share of the height."""
    x: float
    """From the left, as a share of the width."""
    height: float = 0.0
    width: float = 0.0
    """Size of the patch as a share of the picture."""
    kind: MarkKind = "patch"
    """`patch`: a frame around it; `truth`: a cross."""
    label: str = ""
    """What stands beside a frame."""


def overlay(
    map: xr.DataArray,
    picture: Pixels | None,
    style: str = "viridis",
    marks: Sequence[Mark] = (),
    limits: Limits | None = None,
    most: int | None = None,
) -> Image.Image:
    """One map over its picture, at the picture's size times a whole number; without a picture, the map alone.

    Values are drawn between the limits, by default the map's own least and greatest. No side gets longer than `most` pixels.

    Dims     map (row, column); picture (y, x, channel) with 1 or 3 channels, of a video's the middle frame
    """
    size, pixels = _shape(map), None
    if picture is not None:
        pixels = three_channels(picture)
        size = (pixels.shape[0], pixels.shape[1])
    large = _shown_size(size, most)
    below = None if pixels is None else resize_picture(pixels, large)
    return draw_marks(Image.fromarray(blend(map, below, large, size, style, limits)), marks)


def blend(
    map: xr.DataArray, pixels: Pixels | None, size: tuple[int, int], shape: tuple[int, int], style: str | Style, limits: Limits | None
) -> Pixels:
    """A map in colours over its picture, which was brought to `size` and is of `shape` in the trace.

    Between cells it is bicubic, and nowhere outside what the cells around hold: left alone, that kernel draws rings around peaks.

    Dims     map (row, column), pixels (*size, channel) -> (*size, channel)
    """
    if window := MapFacts.of(map).window:
        map = map.assign_attrs(window=tuple(edge * size[i % 2] / shape[i % 2] for i, edge in enumerate(window)))
    lay = place_signed if find_style(style).signed else place
    limits = limits_of(map, style) if limits is None else limits
    around = sliding_window_view(np.pad(np.asarray(map, np.float64), 1, mode="edge"), (3, 3))
    low, high = (lay(map.copy(data=edge), size, "nearest", limits).values for edge in (around.min((-2, -1)), around.max((-2, -1))))
    return mix(np.clip(lay(map, size, "bicubic", limits).values, low, high), pixels, style)


def show(picture: Pixels, marks: Sequence[Mark] = (), most: int | None = None) -> Image.Image:
    """A picture, of a video the middle frame, at the size that overlays of it have, with marks."""
    pixels = three_channels(picture)
    return draw_marks(Image.fromarray(resize_picture(pixels, _shown_size(pixels.shape[:2], most))), marks)


def draw_marks(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """Draw frames and crosses, each white with a black edge so that it shows on every colour."""
    pen, (width, height) = ImageDraw.Draw(image), image.size
    for mark in marks:
        y, x = mark.y * height, mark.x * width
        dy, dx = max(mark.height * height / 2, 4), max(mark.width * width / 2, 4)
        for colour, thick in (((0, 0, 0), 4), (PAPER, 2)):
            if mark.kind == "patch":
                edge = thick // 2
                pen.rectangle((x - dx - edge, y - dy - edge, x + dx + edge, y + dy + edge), outline=colour, width=thick)
                pen.text((x + dx + 5, y - dy - 4), mark.label, PAPER, ImageFont.load_default(15), stroke_width=2, stroke_fill=(0, 0, 0))
            else:
                for sign in (-1, 1):
                    pen.line((x - 7, y - 7 * sign, x + 7, y + 7 * sign), fill=colour, width=thick)
    return image


def draw(
    map: xr.DataArray,
    picture: Pixels | None,
    style: str = "viridis",
    marks: Sequence[Mark] = (),
    scale: Scale | None = None,
    limits: Limits | None = None,
    most: int | None = None,
) -> Image.Image:
    """A map with any kept axes: one overlay, lines along one axis, a grid whose columns are the last of two, or such grids of three.

    With a shared scale one colour is one value in every tile, and in other drawings of the same `limits`; with their own, as in the
    papers' figures, colours compare places within a tile. None leaves it to the style. A tile of which nothing was recorded (layers
    differ in heads) is grey, and one that is constant says so. Frames of a video lie over the picture's own frames. Tiles of a large
    sheet shrink, to `most` pixels if that is given.

    Dims     map (..., row, column); picture ([frame,] y, x, channel)
    """
    kept, shared = map.dims[:-2], (scale or find_style(style).scale) == "shared"
    map = map.load()
    if limits is None and shared and map.ndim > 1:
        limits = limits_of(map, style)
    if not kept:
        return overlay(map, picture, style, marks, limits, most)
    columns, names = map.sizes[kept[-1]], {dim: axis_names(map, dim) for dim in kept}
    across = min(columns, LINE) if len(kept) == 1 else columns
    lines = math.ceil(math.prod(map.shape[:-2]) / across)
    beside = round(math.sqrt(lines / across)) if len(kept) > 2 and lines > STACK else 1
    most = most or max(min(WIDEST // across // beside, TALLEST * beside // lines), SMALLEST)
    if beside > 1:
        grids = [draw(part, picture, style, marks, scale, limits, most) for part in map]
        return compose(grids, beside, names[kept[0]])
    rows = [dict(zip(kept[:-1], at, strict=True)) for at in np.ndindex(*(map.sizes[dim] for dim in kept[:-1]))]
    tiles, captions = [], []
    for row in rows:
        for column in range(columns):
            tile = map.isel({**row, kept[-1]: column})
            below, caption = _frame(picture, tile), ", ".join(names[dim][at] for dim, at in {**row, kept[-1]: column}.items())
            if tile.notnull().any():
                tiles.append(overlay(tile, below, style, marks, limits, most))
                caption += "" if tells_apart(tile.values).all() else ", constant"
            else:
                size = _shape(tile) if below is None else below.shape[:2]
                tiles.append(show(np.full((*size, 3), ABSENT, np.uint8), most=most))
            captions.append(caption)
    return compose(tiles, across, captions)


def explain(drawing: Image.Image, map: xr.DataArray, style: str, on_picture: bool, scale: Scale | None = None) -> Image.Image:
    """A drawing with the bar of its shared scale below; where tiles have their own there is none. What rests on trust is said above."""
    if count := MapFacts.of(map).unproven:
        drawing = compose([drawing], 1, [f"{count} layer{'s' if count > 1 else ''} on trust"])
    if (scale or find_style(style).scale) == "own":
        return drawing
    bar = colour_bar(min(drawing.width, TILE), limits_of(map, style), style, on_picture)
    sheet = Image.new("RGB", (drawing.width, drawing.height + MARGIN + bar.height), PAPER)
    sheet.paste(drawing)
    sheet.paste(bar, (MARGIN if drawing.width > TILE else 0, drawing.height + MARGIN))  # below the first tile, where there are several
    return sheet


def limits_of(map: xr.DataArray, style: str | Style = "viridis") -> Limits:
    """The values at the ends of a shared scale; equal where all is constant up to rounding."""
    values = map.values[np.isfinite(map.values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if find_style(style).signed:
        return -max(abs(low), abs(high)), max(abs(low), abs(high))
    return (low, high) if tells_apart(np.array([[low, high]])).all() else (low, low)


def _frame(picture: Pixels | None, tile: xr.DataArray) -> Pixels | None:
    """The frame of a video that a map's frame, whose coordinate is a share of its length, lies on."""
    if picture is None or picture.ndim < 4:
        return picture
    share = float(tile.coords["frame"]) if "frame" in tile.coords else 0.5
    return np.asarray(picture[min(int(share * len(picture)), len(picture) - 1)])


def compose(tiles: Sequence[Image.Image], columns: int, captions: Sequence[str]) -> Image.Image:
    """Tiles of any size in rows of `columns`, each under its caption, on white."""
    rows = range(-(-len(tiles) // columns))
    widths = [max(tile.width for tile in tiles[column::columns]) for column in range(min(columns, len(tiles)))]
    heights = [max(tile.height for tile in tiles[row * columns : (row + 1) * columns]) for row in rows]
    lefts = [MARGIN + sum(widths[:column]) + column * MARGIN for column in range(len(widths) + 1)]
    tops = [MARGIN + sum(heights[:row]) + row * (LABEL + MARGIN) for row in range(len(heights) + 1)]
    sheet = Image.new("RGB", (lefts[-1], tops[-1]), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for index, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        row, column = divmod(index, columns)
        pen.text((lefts[column], tops[row] + 1), _fit(caption, widths[column], font), fill=INK, font=font)
        sheet.paste(tile, (lefts[column], tops[row] + LABEL))
    return sheet


def stack(parts: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures below one another, each under its heading."""
    font = ImageFont.load_default(15)
    heading = LABEL + MARGIN
    sheet = Image.new("RGB", (max(part.width for _, part in parts), sum(part.height + heading for _, part in parts)), PAPER)
    pen, top = ImageDraw.Draw(sheet), 0
    for text, part in parts:
        pen.text((MARGIN, top + MARGIN), _fit(text, sheet.width - 2 * MARGIN, font), fill=INK, font=font)
        sheet.paste(part, (0, top + heading))
        top += part.height + heading
    return sheet


def encode_png(image: Image.Image, facts: Mapping[str, str]) -> bytes:
    """The picture as PNG, its origin in text chunks; the same picture and facts are the same bytes."""
    notes = PngInfo()
    for name, value in sorted(facts.items()):
        notes.add_itxt(name, value) if not value.isascii() else notes.add_text(name, value)
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=notes, compress_level=6)
    return buffer.getvalue()


def patch_mark(at: tuple[int, ...], grid: tuple[int, int]) -> Mark:
    """The frame around one cell of a grid; of a video's cell, which frame it is in is left aside."""
    (y, x), (rows, columns) = at[-2:], grid
    return Mark((y + 0.5) / rows, (x + 0.5) / columns, 1 / rows, 1 / columns)


def _shape(map: xr.DataArray) -> tuple[int, int]:
    if map.ndim != 2:
        raise InvalidInput(f"a map with dimensions {map.dims} has no rows and columns to draw; write it to .npy, .nc or .zarr instead")
    rows, columns = MapFacts.of(map).image_shape or map.shape
    return int(rows), int(columns)


def _shown_size(size: tuple[int, ...], most: int | None) -> tuple[int, int]:
    """A picture's size times a whole number, or as much of it as has no longer side than `most`."""
    factor = max(1, -(-TILE // min(size)))
    ratio = factor if most is None else min(factor, most / max(size))
    return round(size[0] * ratio), round(size[1] * ratio)


def three_channels(picture: Pixels) -> Pixels:
    """A picture, of a video the middle frame, with three channels."""
    pixels = np.asarray(picture[len(picture) // 2] if picture.ndim > 3 else picture)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or pixels.dtype != np.uint8:
        raise InvalidInput(f"a picture of shape {pixels.shape} and dtype {pixels.dtype}; expected uint8 (height, width, 1 or 3)")
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def resize_picture(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """A picture at another size: pixels enlarged as they are, or averaged.

    Dims     (y, x, channel) -> (*size, channel)
    """
    how = Image.Resampling.NEAREST if size[0] >= pixels.shape[0] else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], how))


def axis_names(map: xr.DataArray, dim: Any) -> list[str]:
    """What the places of a kept axis are called in captions."""
    count = range(map.sizes[dim])
    if f"{dim}_name" in map.coords:
        return short_names([str(name) for name in map.coords[f"{dim}_name"].values])
    if dim == "time" and "timestep" in map.coords:
        return [f"time {at}, t {map.coords['timestep'].values[at]:.0f}" for at in count]
    if dim == "frame":
        return [f"frame {frame}" for frame in np.atleast_1d(map.attrs.get("frames", count))]
    return [f"{dim} {map.coords[dim].values[at] if dim in map.coords else at}" for at in count]


def short_names(names: Sequence[str]) -> list[str]:
    """Module paths without what all of them have: `down.1.0`, `mid.0`, `up.1.1`; as they are where that would make two alike."""
    parts = [name.split(".") for name in names]
    columns = (zip(*(each[::step] for each in parts), strict=False) for step in (1, -1))
    head, tail = (sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, each)) for each in columns)
    common = set.intersection(*map(set, parts))
    cut = [[part for part in each[head : len(each) - tail] if part.isdigit() or part not in common] for each in parts]
    short = [".".join(re.sub(r"_blocks?$", "", part) for part in each) for each in cut]
    return short if all(short) and len(set(short)) == len(names) else list(names)


def _fit(text: str, width: int, font: Any) -> str:
    """The text, or its end after dots where it is too long."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text
