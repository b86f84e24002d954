"""How fast the exported page answers in Chromium: the first picture, and from an event to what it changed being painted.

    python benchmarks/page.py [--trace run.zarr] [--events 40]

Prints medians and 95th percentiles for a trace of Stable Diffusion 1.5's size (16 layers of 8 heads) and for traces that are named, such as
the demo's. The clock is the page's own: the first picture and everything count from the navigation; `script` is what it works out and draws
for an event, and the other columns run from the event to two frames later.
"""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from measure import machine, table
from overview import write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPENINGS = 5
WALKS = (
    ("point at patches", "gen", False),
    ("click patches", "gen", True),
    ("point at the reference", "ref", False),
    ("click tiles", "lattice", True),
    ("click times", "strip", True),
)
"""What is done, on which canvas, and whether it is clicked."""


def opened(browser: Browser, path: Path) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 940}).new_page()
    page.goto(path.absolute().as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    return page


def walk(page: Page, canvas: str, events: int, *, press: bool) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of script, and until painted, of events at random places."""
    chance, box = random.Random(0), page.locator(f"#{canvas}").bounding_box()
    assert box
    page.evaluate("() => { i2am.timings.render.length = i2am.timings.frame.length = 0; }")
    for _ in range(events):
        place = (box["x"] + chance.uniform(0.05, 0.95) * box["width"], box["y"] + chance.uniform(0.05, 0.95) * box["height"])
        (page.mouse.click if press else page.mouse.move)(*place)
        page.wait_for_timeout(50)
    page.wait_for_timeout(300)
    script, painted = page.evaluate("() => [i2am.timings.render, i2am.timings.frame]")
    page.keyboard.press("Escape")
    return np.array(script), np.array(painted)


def measure(browser: Browser, path: Path, events: int) -> Iterator[tuple[str, str, str, str]]:
    """Rows of the table of one page: what, median, 95th percentile, and the script's share of it."""
    clocks = []
    for _ in range(OPENINGS):
        page = opened(browser, path)
        page.wait_for_timeout(100)
        clocks.append(page.evaluate("() => [i2am.timings.first, i2am.timings.ready]"))
        page.context.close()
    for what, times in zip(("first picture", "everything"), zip(*clocks, strict=True), strict=True):
        yield what, f"{statistics.median(times):.0f}", f"{max(times):.0f}", ""
    page = opened(browser, path)
    for what, canvas, press in WALKS:
        script, painted = walk(page, canvas, events, press=press)
        yield what, *(f"{np.percentile(painted, q):.0f}" for q in (50, 95)), "; ".join(f"{np.percentile(script, q):.0f}" for q in (50, 95))
    heap = page.evaluate("() => performance.memory.usedJSHeapSize / 1e6")
    yield "heap, MB", f"{heap:.0f}", "", ""
    page.context.close()


@click.command()
@click.option("--events", default=40, show_default=True, help="Of each kind.")
@click.option("--steps", default=10, show_default=True, help="Of the trace that is made.")
@click.option("--trace", "traces", type=click.Path(path_type=Path, exists=True), multiple=True, help="Another trace, such as the demo's.")
def main(events: int, steps: int, traces: tuple[Path, ...]) -> None:
    """Print how long the page takes to show and to answer."""
    from playwright.sync_api import sync_playwright

    from i2am.analyzer import open_trace
    from i2am.analyzer.view.export import export_runs
    from i2am.analyzer.view.runs import Run

    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise click.UsageError("needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        write(Path(scratch) / "sd15.zarr", steps)
        click.echo(f"{machine()}, Chromium {browser.version}\n")
        for trace in (Path(scratch) / "sd15.zarr", *traces):
            path = Path(scratch) / "page.html"
            path.write_bytes(export_runs([Run.of(open_trace(trace))]))
            columns = ("what", "median, ms", "95th percentile or greatest", "script; 95th percentile")
            title = f"The page of {trace.name}, {path.stat().st_size / 1e6:.1f} MB"
            click.echo(table(title, columns, measure(browser, path, events)) + "\n")


if __name__ == "__main__":
    main()
