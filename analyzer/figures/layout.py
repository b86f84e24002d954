"""Where panels, names and bars lie on a figure, in inches from its top left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.textpath import TextPath

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ..facts import MapFacts
from .panels import Grid, Panel
from .paper import Look, font_of

TEXT: Final = 7.0
SMALL: Final = 6.0
"""Points."""
LINE: Final = 0.125
SMALL_LINE: Final = 0.1
GAP: Final = 0.045
EDGE: Final = 0.03
BAR: Final = 0.07
"""Inches: lines of text, between panels, around the figure, thickness of a bar."""
TALLEST: Final = 9.0
NARROWEST: Final = 0.1
"""Inches of a figure, and of a panel."""
GUTTER: Final = 1.1
BESIDE: Final = 0.62
"""Most room for the names of rows, and what a bar beside a row takes."""
LONGEST: Final = 1.8
"""Inches of a bar."""
SHARE: Final = "times an even share"
"""A map over its mean: 1 is where attention would lie if it were spread evenly."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle from the top left."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes that a grid takes at a width."""

    width: float
    height: float
    gutter: float
    top: float
    """Where rows begin."""
    panel: float
    """Width of a panel."""
    heights: tuple[float, ...]
    """Of the panels of each row."""
    heads: tuple[float, ...]
    """Of what stands above the panels of each row."""

    def row_top(self, row: int) -> float:
        """Upper edge of a row's panels."""
        return self.top + sum(self.heights[:row]) + sum(self.heads[: row + 1]) + row * GAP

    def box(self, row: int, column: int, aspect: float) -> Box:
        """Where a panel lies."""
        left = EDGE + self.gutter + column * (self.panel + GAP)
        return Box(left, self.row_top(row), self.panel, self.panel * aspect)

    @property
    def bottom(self) -> float:
        """Lower edge of the last row."""
        return self.row_top(len(self.heights) - 1) + self.heights[-1]


def measure(grid: Grid, look: Look) -> Layout:
    """The sizes of a grid: as wide as asked, or narrower where it would not fit on a page's height.

    Raises   InvalidInput for more panels than a page has room for
    """
    columns = max(len(row) for row in grid.rows)
    longest = max((text_width(line, TEXT, look) for name in grid.row_names for line in name.split("\n")), default=None)
    gutter = 0.0 if longest is None else min(longest + 0.07, GUTTER)
    beside = BESIDE if grid.bars == "right" and look.scale == "shared" else 0.0
    around = 2 * EDGE + gutter + beside + (columns - 1) * GAP
    panel = (look.width - around) / columns
    heads = tuple(_head(row, look) for row in grid.rows)
    aspects = [max((aspect(each) for each in row if each is not None), default=1.0) for row in grid.rows]
    top = EDGE + (LINE + 0.05 if look.title else 0.0) + (LINE if grid.column_names else 0.0)
    below = 0.0 if beside or not grid.scales else GAP + _below(grid, look, panel)
    fixed = top + sum(heads) + (len(aspects) - 1) * GAP + below + EDGE
    panel = min(panel, (TALLEST - fixed) / sum(aspects))
    if panel < NARROWEST:
        raise InvalidInput(
            f"a page has no room for {len(grid.rows)} rows of {columns} panels; choose fewer with {option('layers')}, {option('heads')} or "
            f"{option('time_groups')}"
        )
    heights = tuple(panel * each for each in aspects)
    return Layout(
        width=around + columns * panel, height=fixed + sum(heights), gutter=gutter, top=top, panel=panel, heights=heights, heads=heads
    )


def _head(row: Sequence[Panel | None], look: Look) -> float:
    """Room for titles and numbers above a row."""
    there = [panel for panel in row if panel is not None]
    numbers = (look.scale == "own" and any(panel.scale for panel in there)) or any(panel.number for panel in there)
    return (LINE if any(panel.title for panel in there) else 0.0) + (SMALL_LINE if numbers else 0.0)


def _below(grid: Grid, look: Look, panel: float) -> float:
    """Room for bars, their numbers, and what is counted; or for the line that says that there are none."""
    if look.scale == "own":
        return SMALL_LINE
    first = {scale: panels[0] for scale, panels in grid.scales.items()}
    spans = grid.spans("column").items()
    lines = [len(break_lines(label_of(first[scale], look), SMALL, bar_width(span, panel), look)) for scale, span in spans]
    return BAR + 0.02 + SMALL_LINE * (1 + max(lines))


def bar_width(columns: tuple[int, int], panel: float) -> float:
    """Length of a bar below some columns."""
    count = columns[1] - columns[0] + 1
    return min(count * panel + (count - 1) * GAP, LONGEST)


def label_of(panel: Panel, look: Look) -> str:
    """What the colours of a panel count."""
    return SHARE if look.unit == "share" or panel.map is None else str(panel.map.attrs.get("units", ""))


def aspect(panel: Panel) -> float:
    """Height over width of a panel."""
    rows, columns = (1, 1)
    if panel.picture is not None:
        rows, columns = panel.picture.shape[:2]
    elif panel.map is not None:
        rows, columns = MapFacts.of(panel.map).image_shape or panel.map.shape
    return rows / columns


def text_width(text: str, size: float, look: Look) -> float:
    """Inches that a line of text takes."""
    return float(TextPath((0, 0), text, size=size, prop=font_of(look, size)).get_extents().width) / 72 if text.strip() else 0.0


def fit(text: str, size: float, width: float, look: Look) -> str:
    """A line of text, or as much of it as there is room for, and dots."""
    if text_width(text, size, look) <= width:
        return text
    while text and text_width(text + "…", size, look) > width:
        text = text[:-1]
    return text + "…"


def break_lines(text: str, size: float, width: float, look: Look) -> list[str]:
    """A text in lines that are no wider, where its words allow it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size, look) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
