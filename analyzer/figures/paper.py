"""What all figures have in common: size, type, colours, and a figure that is saved with its fonts and always as the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from typing import Any, Final, Literal, get_args

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager

from ...schema.errors import InvalidInput
from ...schema.messages import guess, option
from ..output.colours import LUMA, STYLES, Scale, Style

Unit = Literal["share", "sum"]

WIDTHS: Final = {"column": 3.25, "page": 6.75}
"""Inches of a column, and of both, in the styles of most conferences."""
STOPS: Final = 33
"""Colours that are taken of a colour map of matplotlib."""
RC: Final[dict[str, Any]] = {
    "pdf.fonttype": 42,  # TrueType: text stays text, and publishers take it
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "i2am",
    "text.parse_math": False,
    "text.usetex": False,
    "axes.linewidth": 0.5,
    "font.size": 7,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a figure looks."""

    style: Style
    scale: Scale
    unit: Unit
    width: float
    """Inches."""
    dpi: int
    title: str | None
    font: str


def make_look(style: str, scale: str, unit: str, width: str | float, dpi: int, title: str | None, font: str | None) -> Look:
    """The look that was asked for.

    Raises   InvalidInput for what is no style, scale, unit, width, resolution or font
    """
    for name, value, known in (("scale", scale, get_args(Scale)), ("unit", unit, get_args(Unit))):
        if value not in known:
            raise InvalidInput(f"{option(name, value)} is none of {', '.join(known)}")
    try:
        inches = WIDTHS.get(str(width)) or float(width)
    except ValueError:
        inches = 0.0
    if not 1 <= inches <= 50:
        raise InvalidInput(f"{option('width', width)} is no width; expected {', '.join(WIDTHS)}, or 1 to 50 inches")
    if not 30 <= dpi <= 1200:
        raise InvalidInput(f"{option('dpi', dpi)} is no resolution; expected 30 to 1200 pixels an inch")
    fonts = sorted({each.name for each in fontManager.ttflist})
    if font is not None and font not in fonts:
        raise InvalidInput(f"matplotlib finds no font {font!r}; {guess(font, fonts)}it finds {len(fonts)}, such as {', '.join(fonts[:3])}")
    return Look(
        style=find_look(style), scale="own" if scale == "own" else "shared", unit="sum" if unit == "sum" else "share",
        width=inches, dpi=dpi, title=title, font=font or "DejaVu Sans",
    )  # fmt: skip


def find_look(name: str) -> Style:
    """A style of i2am, or a colour map of matplotlib over pale or dim grey, whichever it stands out from.

    Raises   InvalidInput for a name that neither knows
    """
    if name in STYLES and not STYLES[name].signed:
        return STYLES[name]
    if name not in matplotlib.colormaps:
        own = [each for each, style in STYLES.items() if not style.signed]
        known = [*own, *matplotlib.colormaps]
        raise InvalidInput(f"no style is called {name!r}; {guess(name, known)}there are {', '.join(own)}, and matplotlib's colour maps")
    stops = matplotlib.colormaps[name](np.linspace(0, 1, STOPS))
    low, high = (float(np.dot(stops[end][:3], LUMA)) for end in (0, -1))
    return Style(tuple(to_hex(stop)[1:] for stop in stops), fade="root", ground="pale" if low > high else "dim")


@contextmanager
def own_settings(font: str) -> Iterator[None]:
    """Draw with these settings, whatever the user's matplotlib is set to, and leave that as it was."""
    settings: Any = matplotlib.rcParams
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings.update(RC | {"font.family": [font, "DejaVu Sans"] if font != "DejaVu Sans" else [font]})
        yield


class PaperFigure(Figure):
    """A figure that is saved with text as text and without the time of day."""

    text_font: str = "DejaVu Sans"
    origin: Mapping[str, Any] = {}
    """Where it comes from, written into every file."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """As matplotlib's, with fonts embedded in PDF, real text in SVG, and the same bytes each time."""
        name = str(options.get("format") or (os.fspath(fname) if isinstance(fname, (str, os.PathLike)) else "png"))
        with own_settings(self.text_font):
            super().savefig(fname, **{"metadata": self._metadata(name.rpartition(".")[2].lower()), **options})

    def _metadata(self, kind: str) -> dict[str, str | None]:
        program, facts = f"i2am {version('i2am')}", json.dumps(self.origin, sort_keys=True, default=str)
        if kind == "pdf":
            return {"Creator": program, "Producer": None, "CreationDate": None, "Subject": facts}
        if kind == "svg":
            return {"Creator": program, "Date": None, "Description": facts}
        return {"Software": program, "i2am-figure": facts} if kind == "png" else {}

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def font_of(look: Look, size: float) -> FontProperties:
    """The font of a look."""
    return FontProperties(family=[look.font, "DejaVu Sans"] if look.font != "DejaVu Sans" else [look.font], size=size)
