"""Panels drawn on a matplotlib figure: pictures as pixels, everything else as lines and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.lines import Line2D

from ..facts import MapFacts
from ..metrics.placement import tells_apart
from ..output.colours import Pixels, mix
from ..output.sheets import ABSENT, Mark, blend, resize_picture, three_channels
from .layout import BAR, EDGE, GAP, LINE, SMALL, SMALL_LINE, TEXT, Box, Layout, aspect, bar_width, break_lines, fit, label_of
from .panels import Grid, Panel
from .paper import Look, PaperFigure

TITLE: Final = 8.5
"""Points."""
INK: Final = "#1e1e1e"
QUIET: Final = "#6b6b6b"
ACCENT: Final = "#d9480f"
MIDDLE: Final = 128
"""Grey of a picture that the colours of a bar lie over."""
TINY: Final = 5e-4
"""A share of the greatest value that is written as 0."""
STRIP: Final = 256
"""Colours of a bar."""
OWN: Final = "Each panel has the scale that stands above it"


@dataclass(frozen=True, slots=True)
class Range:
    """The values of a scale."""

    low: float
    high: float
    even: float
    """Their mean: what each place would have if attention were spread evenly."""

    @classmethod
    def of(cls, panels: Sequence[Panel]) -> Range:
        """Least, greatest and mean value of some maps; least and greatest are equal where they differ by rounding alone."""
        each = [panel.map.values.ravel() for panel in panels if panel.map is not None]
        values = np.concatenate(each)
        values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
        low, high = float(values.min()), float(values.max())
        return cls(low, high if tells_apart(np.array([[low, high]])).all() else low, float(values.mean()))


def draw(grid: Grid, layout: Layout, look: Look) -> PaperFigure:
    """A computed grid as a figure."""
    page = Page(PaperFigure(figsize=(layout.width, layout.height), dpi=look.dpi), layout, look)
    page.figure.text_font = look.font
    page.names(grid)
    ranges = {scale: Range.of(panels) for scale, panels in grid.scales.items()}
    for i, row in enumerate(grid.rows):
        for j, panel in enumerate(row):
            if panel is not None:
                known = Range.of([panel]) if look.scale == "own" and panel.map is not None else ranges.get(panel.scale)
                page.panel(panel, layout.box(i, j, aspect(panel)), layout.heads[i], known)
    if look.scale == "own" and grid.scales:
        counted = next(iter(grid.scales.values()))[0]
        page.text(f"{OWN}: {label_of(counted, look)}.", EDGE + layout.gutter, layout.bottom + GAP + SMALL_LINE / 2, SMALL, color=QUIET)
    elif grid.bars == "right":
        for scale, (row_of, _) in grid.spans("row").items():
            page.bar_beside(row_of, grid, ranges[scale], label_of(grid.scales[scale][0], look))
    else:
        for scale, columns in grid.spans("column").items():
            page.bar_below(columns, grid.scales[scale], ranges[scale], label_of(grid.scales[scale][0], look))
    return page.figure


class Page:
    """A figure on which things are placed in inches from the top left."""

    def __init__(self, figure: PaperFigure, layout: Layout, look: Look) -> None:
        self.figure, self.layout, self.look = figure, layout, look

    def text(self, text: str, x: float, y: float, size: float, **style: Any) -> None:
        """A line of text, by default from the left, around the middle of its line."""
        if not text:
            return
        given = {"ha": "left", "va": "center_baseline", "color": INK, **style}
        self.figure.text(x / self.layout.width, 1 - y / self.layout.height, text, fontsize=size, **given)

    def pixels(self, pixels: Pixels, box: Box) -> None:
        """Pixels in a box."""
        width, height = self.layout.width, self.layout.height
        axes = self.figure.add_axes((box.left / width, 1 - (box.top + box.height) / height, box.width / width, box.height / height))
        axes.set_axis_off()
        axes.imshow(pixels, interpolation="none", aspect="auto")

    def names(self, grid: Grid) -> None:
        """The title of the figure, and the names of columns and rows."""
        look, layout = self.look, self.layout
        if look.title:
            self.text(fit(look.title, TITLE, layout.width - 2 * EDGE, look), EDGE, EDGE + LINE / 2, TITLE, weight="bold")
        for column, name in enumerate(grid.column_names):
            box = layout.box(0, column, 1.0)
            self.text(fit(name, TEXT, box.width, look), box.left + box.width / 2, layout.top - LINE / 2, TEXT, ha="center")
        right = EDGE + layout.gutter - 0.06
        for row, name in enumerate(grid.row_names):
            first, *more = name.split("\n")
            middle = layout.row_top(row) + layout.heights[row] / 2 - len(more) * SMALL_LINE / 2
            self.text(fit(first, TEXT, right - EDGE, look), right, middle, TEXT, ha="right")
            for i, line in enumerate(more, 1):
                self.text(line, right, middle + i * LINE, SMALL, ha="right", color=QUIET)

    def panel(self, panel: Panel, box: Box, head: float, known: Range | None) -> None:
        """A picture, or a map over it, with its title in the head above and its marks on it."""
        size = (max(round(box.height * self.look.dpi), 1), max(round(box.width * self.look.dpi), 1))
        pixels = None if panel.picture is None else resize_picture(three_channels(panel.picture), size)
        over, said = "", "" if panel.number is None else f"{panel.number[0]} = {float(panel.number[1]):.3f}"
        if panel.map is not None and known is not None:
            pixels, over = self.heat(panel, pixels, size, known)
            said = f"{self.number(known.low, known)} to {self.number(known.high, known)}" if self.look.scale == "own" and not over else said
        if pixels is not None:
            self.pixels(pixels, box)
        centre = box.left + box.width / 2
        self.text(fit(said, SMALL, box.width, self.look), centre, box.top - SMALL_LINE / 2, SMALL, ha="center", color=QUIET)
        self.text(fit(panel.title, TEXT, box.width, self.look), centre, box.top - head + LINE / 2, TEXT, ha="center")
        self.text(fit(over, SMALL, box.width, self.look), centre, box.top + box.height / 2, SMALL, ha="center", color=INK)
        for mark in panel.marks:
            self.mark(mark, box)

    def heat(self, panel: Panel, pixels: Pixels | None, size: tuple[int, int], known: Range) -> tuple[Pixels, str]:
        """The colours of a map, and what is written over one that tells nothing."""
        assert panel.map is not None
        if not np.isfinite(panel.map.values).all():
            return np.full((*size, 3), ABSENT, np.uint8), "not recorded"
        rows, columns = MapFacts.of(panel.map).image_shape or size
        found = blend(panel.map, pixels, size, (rows, columns), self.look.style, (known.low, known.high))
        return found, "" if tells_apart(panel.map.values).all() else "constant"

    def mark(self, mark: Mark, box: Box) -> None:
        """A frame with its number, or a cross."""
        x, y, arm = box.left + mark.x * box.width, box.top + mark.y * box.height, min(0.035, 0.025 * box.width)
        wide, high = max(mark.width * box.width, 0.05), max(mark.height * box.height, 0.05)
        if mark.kind == "truth":
            for colour, thick in (("white", 1.8), (ACCENT, 0.9)):
                for sign in (-1, 1):
                    self.line((x - arm, x + arm), (y - arm * sign, y + arm * sign), colour, thick)
            return
        across, down = (x - wide / 2, x + wide / 2), (y - high / 2, y + high / 2)
        for colour, thick in (("white", 1.8), (ACCENT, 0.9)):
            self.line((*across, *across[::-1], across[0]), (down[0], down[0], down[1], down[1], down[0]), colour, thick)
        if mark.label:
            right = mark.x < 0.85
            at = across[1] + 0.035 if right else across[0] - 0.035
            plate = {"boxstyle": "square,pad=0.12", "facecolor": ACCENT, "edgecolor": "white", "linewidth": 0.4}
            self.text(
                mark.label, at, y, min(SMALL, 4.5 * box.width), ha="left" if right else "right", color="white", weight="bold", bbox=plate
            )

    def line(self, x: Sequence[float], y: Sequence[float], colour: str, thick: float) -> None:
        """A line through points."""
        across, down = np.array(x) / self.layout.width, 1 - np.array(y) / self.layout.height
        drawn = Line2D(across, down, color=colour, linewidth=thick, transform=self.figure.transFigure, solid_joinstyle="miter")
        self.figure.add_artist(drawn)

    def number(self, value: float, known: Range) -> str:
        """A value as it stands at a bar."""
        found = value / (known.even or 1.0) if self.look.unit == "share" else value
        tiny = abs(value) < TINY * known.high
        return "0" if tiny else f"{found:.0f}" if found >= 99.5 else f"{found:.2g}"

    def strip(self, on_picture: bool) -> Pixels:
        """The colours of the scale, as they lie over grey.

        Dims     (1, STRIP, channel)
        """
        heat = np.linspace(0, 1, STRIP)[None]
        return mix(heat, np.full((*heat.shape, 3), MIDDLE, np.uint8) if on_picture else None, self.look.style)

    def bar_below(self, columns: tuple[int, int], panels: Sequence[Panel], known: Range, label: str) -> None:
        """The bar of a scale below the columns that share it."""
        left, width = self.layout.box(0, columns[0], 1.0).left, bar_width(columns, self.layout.panel)
        top = self.layout.bottom + GAP
        numbers = top + BAR + 0.02 + SMALL_LINE / 2
        if known.low == known.high:
            self.text(f"constant: {self.number(known.low, known)}", left, numbers, SMALL)
        else:
            self.pixels(self.strip(panels[0].picture is not None), Box(left, top, width, BAR))
            for place, value, ha in ((0.0, known.low, "left"), (1.0, known.high, "right")):
                self.text(self.number(value, known), left + place * width, numbers, SMALL, ha=ha)
            self.even_tick(known, left, width, top, numbers)
        for i, line in enumerate(break_lines(label, SMALL, width, self.look), 1):
            self.text(line, left, numbers + i * SMALL_LINE, SMALL, color=QUIET)

    def even_tick(self, known: Range, left: float, width: float, top: float, numbers: float) -> None:
        """Where an even share lies on a bar, if there is room for its number."""
        place = (known.even - known.low) / (known.high - known.low)
        if self.look.unit == "share" and 0.2 < place < 0.75:
            self.line((left + place * width,) * 2, (top + BAR, top + BAR + 0.02), INK, 0.5)
            self.text("1", left + place * width, numbers, SMALL, ha="center")

    def bar_beside(self, row: int, grid: Grid, known: Range, label: str) -> None:
        """The bar of a scale beside the row that it is of."""
        columns = len(grid.rows[row])
        left, top, height = self.layout.box(row, columns, 1.0).left + 0.03, self.layout.row_top(row), self.layout.heights[row]
        self.pixels(self.strip(True).transpose(1, 0, 2)[::-1], Box(left, top, BAR, height))
        for y, value in ((top + SMALL_LINE / 2, known.high), (top + height - SMALL_LINE / 2, known.low)):
            self.text(self.number(value, known), left + BAR + 0.03, y, SMALL)
        lines = break_lines(label, SMALL, height, self.look)
        for i, line in enumerate(lines):
            self.text(line, left + BAR + 0.33 + i * SMALL_LINE, top + height / 2, SMALL, rotation=90, va="center", ha="center", color=QUIET)
