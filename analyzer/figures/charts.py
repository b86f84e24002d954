"""Bars of heads drawn on a matplotlib figure: a chart a concept, heads in groups of their layers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes

from .layout import EDGE, GAP, LINE, SMALL, TALLEST, TEXT, fit, text_width
from .panels import Charts, wrap
from .paper import Look, PaperFigure

TALL: Final = 0.7
NUMBERS: Final = 0.42
"""Inches of a chart's height, and left of it for its numbers."""
BARS: Final = ("#37659e", "#9bb9d6")
"""Of every other layer."""
QUIET: Final = "#6b6b6b"


def draw_charts(charts: Charts, look: Look, columns: int | None) -> PaperFigure:
    """A chart for each concept, all on one scale, or each on its own."""
    rows = wrap(charts.charts, columns or (1 if len(charts.charts) < 3 else 3))
    across, names = len(rows[0]), 0.05 + max(text_width(name, SMALL, look) for name in charts.layers) * np.sin(np.pi / 4) + 0.02
    title = LINE + 0.05 if look.title else 0.0
    head = LINE if any(chart.title for chart in charts.charts) else 0.0
    tall = min(TALL if len(charts.charts) > 1 else 2 * TALL, (TALLEST - title - names - 2 * EDGE) / len(rows) - head - GAP)
    width, height = look.width, title + names + 2 * EDGE + len(rows) * (tall + head + GAP)
    figure = PaperFigure(figsize=(width, height), dpi=look.dpi)
    figure.text_font = look.font
    if look.title:
        figure.text(EDGE / width, 1 - (EDGE + LINE / 2) / height, look.title, fontsize=8.5, weight="bold", va="center_baseline")
    greatest = max(float(chart.values.max()) for chart in charts.charts)
    chart_width = (width - EDGE) / across - NUMBERS
    for i, row in enumerate(rows):
        for j, chart in enumerate(row):
            if chart is None:
                continue
            bottom = height - title - EDGE - (i + 1) * (tall + head + GAP) + GAP
            left = NUMBERS + j * (chart_width + NUMBERS)
            axes = figure.add_axes((left / width, bottom / height, chart_width / width, tall / height))
            if chart.title:
                axes.set_title(fit(chart.title, TEXT, chart_width, look), fontsize=TEXT, pad=2)
            top = float(chart.values.max()) if look.scale == "own" else greatest
            last = i == len(rows) - 1 or rows[i + 1][j] is None
            _bars(axes, chart.values.values, charts, top, named=last)
            if j == 0:
                axes.set_ylabel(charts.label, fontsize=SMALL, color=QUIET)
    return figure


def _bars(axes: Axes, values: Any, charts: Charts, top: float, *, named: bool) -> None:
    """The heads of every layer beside each other, a gap between layers."""
    place, middles = 0.0, []
    for i, layer in enumerate(values):
        there = layer[np.isfinite(layer)]
        axes.bar(place + np.arange(len(there)), there, width=0.85, color=BARS[i % 2], linewidth=0)
        middles.append(place + (len(there) - 1) / 2)
        place += len(there) + 1
    if charts.even is not None:
        axes.axhline(charts.even, color=QUIET, linewidth=0.5, linestyle=(0, (3, 2)))
    axes.set_xlim(-1, place - 1)
    axes.set_ylim(0, top * 1.05 if top > 0 else 1)
    axes.set_xticks(middles, charts.layers if named else [""] * len(middles), rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(labelsize=SMALL, length=2, width=0.4, pad=1.5)
    axes.tick_params(axis="x", length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
