"""From maps to pictures, with Pillow alone: overlays, strips and grids, as PNG files of always the same bytes.

Nothing here flips, transposes or mirrors: row 0 of a map is the top of the picture, column 0 its left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ...schema.errors import InvalidInput
from ..facts import MapFacts
from ..metrics.placement import place, place_signed

Pixels: TypeAlias = NDArray[np.uint8]
Values: TypeAlias = NDArray[np.float64]

TILE: Final = 256
"""A picture is enlarged by a whole factor until its short side has at least this many pixels."""
LINE: Final = 8
"""Frames of a video beside each other, where nothing else is kept."""
MARGIN: Final = 6
LABEL: Final = 18
PAPER: Final = (255, 255, 255)
INK: Final = (30, 30, 30)
ABSENT: Final = (225, 225, 225)

# Equidistant colours, joined by straight lines. The first is perceptual and safe for the colour-blind, after viridis
# (van der Walt and Smith, CC0); the second is the rainbow that the papers print.
VIRIDIS: Final = ("440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
BALANCE: Final = ("2166ac", "67a9cf", "f7f7f7", "ef8a62", "b2182b")
JET: Final = ("000080", "0000ff", "0080ff", "00ffff", "80ff80", "ffff00", "ff8000", "ff0000", "800000")


@dataclass(frozen=True, slots=True)
class Style:
    """How heat becomes colour and lies over a picture."""

    colours: tuple[str, ...]
    """Equidistant RGB from heat 0 to heat 1."""
    picture: float
    """Share of the picture in the mix."""
    heat: float
    """Share of the colour in the mix; the sum is cut at white."""
    fade: bool = False
    """Whether both shares follow the heat instead: the picture shows where heat is 0."""
    signed: bool = False
    """Whether the map is a difference: no change is the middle colour."""


STYLES: Final[dict[str, Style]] = {
    "viridis": Style(VIRIDIS, 0.4, 0.6),
    "i2am": Style(JET, 0.7, 0.5),
    "daam": Style(JET, 0.0, 0.0, fade=True),
    "plain": Style(VIRIDIS, 0.0, 1.0),
    "difference": Style(BALANCE, 0.25, 0.75, signed=True),
}
"""`i2am` and `daam` mix as those papers' figures do; `plain` shows the map alone, `difference` less in blue and more in red."""

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


def colour(heat: NDArray[Any], style: str = "viridis") -> Pixels:
    """Heat in [0, 1] to RGB.

    Dims     (...) -> (..., channel)
    """
    stops = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in _style(style).colours], dtype=np.float64)
    at = np.clip(np.asarray(heat, dtype=np.float64), 0, 1) * (len(stops) - 1)
    low = np.minimum(at.astype(np.intp), len(stops) - 2)
    share = (at - low)[..., None]
    return np.asarray(np.rint(stops[low] * (1 - share) + stops[low + 1] * share), dtype=np.uint8)


def overlay(map: xr.DataArray, picture: Pixels | None, style: str = "viridis", marks: Sequence[Mark] = ()) -> Image.Image:
    """One map over its picture, at the picture's size times a whole number; without a picture, the map alone.

    Dims     map (row, column); picture (y, x, channel) with 1 or 3 channels, of a video's the middle frame
    """
    size, pixels = _shape(map), None
    if picture is not None:
        pixels = _rgb(picture)
        size = (pixels.shape[0], pixels.shape[1])
    factor, look, window = _factor(size), _style(style), MapFacts.of(map).window
    # The window grows with the picture.
    map = map if window is None else map.assign_attrs(window=tuple(factor * edge for edge in window))
    heat = (place_signed if look.signed else place)(map, (size[0] * factor, size[1] * factor)).values
    colours = colour(heat, style).astype(np.float64)
    below = np.zeros_like(colours) if pixels is None else _enlarge(pixels, factor).astype(np.float64)
    under, over = (1 - heat[..., None], heat[..., None]) if look.fade else (look.picture, look.heat)
    over = over if pixels is not None else 1.0
    mixed = np.clip(np.rint(below * under + colours * over), 0, 255).astype(np.uint8)
    return draw_marks(Image.fromarray(mixed), marks)


def show(picture: Pixels, marks: Sequence[Mark] = ()) -> Image.Image:
    """A picture, of a video the middle frame, at the size that overlays of it have, with marks."""
    pixels = _rgb(picture)
    return draw_marks(Image.fromarray(_enlarge(pixels, _factor(pixels.shape[:2]))), marks)


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


def draw(map: xr.DataArray, picture: Pixels | None, style: str = "viridis", marks: Sequence[Mark] = ()) -> Image.Image:
    """A map with any kept axes: one overlay, a strip along one axis, or a grid whose columns are the last kept axis.

    Each tile is normalised on its own, as the papers' figures are: colours compare places within a tile, not tiles. A tile of
    which nothing was recorded (layers differ in heads) is grey. Frames of a video lie over the picture's own frames, and where nothing
    else is kept they are set like words, line after line.

    Dims     map (..., row, column); picture ([frame,] y, x, channel)
    """
    kept = map.dims[:-2]
    if not kept:
        return overlay(map, picture, style, marks)
    map = map.load()
    columns = map.sizes[kept[-1]]
    rows = [dict(zip(kept[:-1], at, strict=True)) for at in np.ndindex(*(map.sizes[dim] for dim in kept[:-1]))]
    tiles, captions = [], []
    for row in rows:
        for column in range(columns):
            tile = map.isel({**row, kept[-1]: column})
            below = _frame(picture, tile)
            if tile.notnull().any():
                tiles.append(overlay(tile, below, style, marks))
            else:
                size = _shape(tile) if below is None else below.shape[:2]
                tiles.append(show(np.full((*size, 3), ABSENT, np.uint8)))
            captions.append(", ".join(_caption(map, dim, at) for dim, at in {**row, kept[-1]: column}.items()))
    return compose(tiles, min(columns, LINE) if kept == ("frame",) else columns, captions)


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


def _style(name: str) -> Style:
    if name not in STYLES:
        raise InvalidInput(f"no style is called {name!r}; styles are {', '.join(STYLES)}")
    return STYLES[name]


def _shape(map: xr.DataArray) -> tuple[int, int]:
    if map.ndim != 2:
        raise InvalidInput(f"a map with dimensions {map.dims} has no rows and columns to draw; write it to .npy, .nc or .zarr instead")
    rows, columns = MapFacts.of(map).image_shape or map.shape
    return int(rows), int(columns)


def _factor(size: tuple[int, ...]) -> int:
    return max(1, -(-TILE // min(size)))


def _rgb(picture: Pixels) -> Pixels:
    """A picture, of a video the middle frame, with three channels."""
    pixels = np.asarray(picture[len(picture) // 2] if picture.ndim > 3 else picture)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or pixels.dtype != np.uint8:
        raise InvalidInput(f"a picture of shape {pixels.shape} and dtype {pixels.dtype}; expected uint8 (height, width, 1 or 3)")
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _enlarge(pixels: Pixels, factor: int) -> Pixels:
    return np.ascontiguousarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1))


def _caption(map: xr.DataArray, dim: Any, at: int) -> str:
    if f"{dim}_name" in map.coords:
        return str(map.coords[f"{dim}_name"].values[at])
    if dim == "time" and "timestep" in map.coords:
        return f"time {at}, t {map.coords['timestep'].values[at]:.0f}"
    if dim == "frame":
        return f"frame {map.attrs.get('frames', range(map.sizes['frame']))[at]}"
    return f"{dim} {map.coords[dim].values[at] if dim in map.coords else at}"


def _fit(text: str, width: int, font: Any) -> str:
    """The text, or its end after dots where it is too long: module paths differ at the end."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text
