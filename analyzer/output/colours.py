"""Colours of maps: how heat becomes colour, lies over a picture, and is explained by a bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...schema.errors import InvalidInput

Pixels: TypeAlias = NDArray[np.uint8]
Share: TypeAlias = float | NDArray[np.float64]

PAPER: Final = (255, 255, 255)
INK: Final = (30, 30, 30)
LUMA: Final = (0.299, 0.587, 0.114)
"""Red, green and blue in the grey of a picture (ITU-R BT.601)."""
Ground: TypeAlias = Literal["picture", "dim", "pale"]
"""How a picture is shown below heat: as it is, in dim grey for bright heat, or in pale grey for dark heat."""
GREYS: Final[dict[Ground, tuple[int, float]]] = {"dim": (48, 0.5), "pale": (178, 0.3)}
"""Black of a picture in grey, and its contrast: heat shows on white clothes and on dark ones."""
BAR: Final = (10, 26)
"""Height of a bar's colours, and with its numbers."""

# Equidistant colours, joined by straight lines. The first is perceptual and safe for the colour-blind, after viridis
# (van der Walt and Smith, CC0); the next is the same for white pages, after seaborn's mako (BSD); the last is the rainbow that the
# papers print.
VIRIDIS: Final = ("440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
MAKO: Final = ("def5e5", "8bdab2", "40b7ad", "348fa7", "37659e", "413d7b", "2e1e3b", "0b0405")
BALANCE: Final = ("2166ac", "67a9cf", "f7f7f7", "ef8a62", "b2182b")
JET: Final = ("000080", "0000ff", "0080ff", "00ffff", "80ff80", "ffff00", "ff8000", "ff0000", "800000")


Scale: TypeAlias = Literal["shared", "own"]
"""Whether all tiles of a picture share one range of values, which a bar beside them shows, or each is stretched to its own."""


@dataclass(frozen=True, slots=True)
class Style:
    """How heat becomes colour and lies over a picture."""

    colours: tuple[str, ...]
    """Equidistant RGB from heat 0 to heat 1."""
    picture: float = 0.0
    """Share of the picture in the mix."""
    heat: float = 1.0
    """Share of the colour in the mix; the sum is cut at white."""
    fade: Literal["", "linear", "root", "signed"] = ""
    """How the colour's share follows the heat instead, the picture's being the rest; `signed`: its distance from the middle."""
    ground: Ground = "picture"
    """In grey, colour means attention alone."""
    scale: Scale = "shared"

    @property
    def signed(self) -> bool:
        """Whether the map is a difference: no change is the middle colour."""
        return self.fade == "signed"

    def shares(self, heat: NDArray[np.float64]) -> tuple[Share, Share]:
        """Shares of picture and colour."""
        if not self.fade:
            return self.picture, self.heat
        over = {"linear": heat, "root": np.sqrt(heat), "signed": np.abs(2 * heat - 1)}[self.fade][..., None]
        return 1 - over, over


STYLES: Final[dict[str, Style]] = {
    "viridis": Style(VIRIDIS, fade="root", ground="dim"),
    "mako": Style(MAKO, fade="root", ground="pale"),
    "i2am": Style(JET, 0.7, 0.5, scale="own"),
    "daam": Style(JET, fade="linear", scale="own"),
    "plain": Style(VIRIDIS),
    "difference": Style(BALANCE, fade="signed", ground="dim"),
}
"""`i2am` and `daam` mix and stretch as those papers' figures do; `mako` grows darker, for white pages; `plain` shows the map alone,
`difference` less in blue and more in red."""


def colour(heat: NDArray[Any], style: str | Style = "viridis") -> Pixels:
    """Heat in [0, 1] to RGB.

    Dims     (...) -> (..., channel)
    """
    stops = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in find_style(style).colours], dtype=np.float64)
    at = np.clip(np.asarray(heat, dtype=np.float64), 0, 1) * (len(stops) - 1)
    low = np.minimum(at.astype(np.intp), len(stops) - 2)
    share = (at - low)[..., None]
    return np.asarray(np.rint(stops[low] * (1 - share) + stops[low + 1] * share), dtype=np.uint8)


def mix(heat: NDArray[np.float64], pixels: Pixels | None, style: str | Style) -> Pixels:
    """Heat in [0, 1] over a picture of its size; without one, the colours alone.

    Dims     heat (y, x), pixels (y, x, channel) -> (y, x, channel)
    """
    look, colours = find_style(style), colour(heat, style).astype(np.float64)
    if pixels is None:
        return colours.astype(np.uint8)
    below = pixels.astype(np.float64)
    if look.ground in GREYS:
        black, contrast = GREYS[look.ground]
        below = np.broadcast_to((black + contrast * (below @ LUMA))[..., None], below.shape)
    under, over = look.shares(heat)
    return np.asarray(np.clip(np.rint(below * under + colours * over), 0, 255), np.uint8)


def colour_bar(width: int, limits: tuple[float, float], style: str, on_picture: bool) -> Image.Image:
    """What the colours mean: a strip of them, as they look over grey, and the values at its ends.

    Raises   InvalidInput for an unknown style
    """
    sheet, font = Image.new("RGB", (width, BAR[1]), PAPER), ImageFont.load_default(12)
    heat = np.tile(np.linspace(0, 1, width), (BAR[0], 1))
    pen, (low, high) = ImageDraw.Draw(sheet), limits
    if low == high:
        pen.text((0, 6), f"constant: {low:.3g}", INK, font)
        return sheet
    sheet.paste(Image.fromarray(mix(heat, np.full((*heat.shape, 3), 128, np.uint8) if on_picture else None, style)))
    pen.text((0, BAR[0]), f"{low:.3g}", INK, font)
    pen.text((width - font.getlength(f"{high:.3g}"), BAR[0]), f"{high:.3g}", INK, font)
    return sheet


def find_style(name: str | Style) -> Style:
    """The style of a name, or InvalidInput."""
    if isinstance(name, Style):
        return name
    if name not in STYLES:
        raise InvalidInput(f"no style is called {name!r}; styles are {', '.join(STYLES)}")
    return STYLES[name]
