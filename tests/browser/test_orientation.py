"""No view is flipped, mirrored or transposed: one patch of the golden trace looks at one corner, and so it is on every canvas."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import golden
import numpy as np
import pytest
from golden import BRIGHT_PATCH, BRIGHT_TOKEN, GRIDS, REFERENCE

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

LIGHT = """([canvas, { rows, columns, ...box }]) => {
    const node = document.getElementById(canvas), scale = node.width / node.clientWidth, pen = node.getContext("2d");
    const { x, y, width, height } = { x: 0, y: 0, width: node.clientWidth, height: node.clientHeight, ...box };
    const light = (v, u) => pen.getImageData(Math.round((x + u * width) * scale), Math.round((y + v * height) * scale), 1, 1).data;
    const bright = (v, u) => light(v / rows, u / columns).slice(0, 3).reduce((a, b) => a + b);
    const corners = [[0.2, 0.2], [0.2, 0.8], [0.8, 0.2], [0.8, 0.8]];
    const cell = (row, column) => corners.reduce((sum, [v, u]) => sum + bright(row + v, column + u), 0);
    return Array.from({ length: rows }, (_, row) => Array.from({ length: columns }, (_, column) => cell(row, column)));
}"""
"""Brightness of each cell of a grid laid on a canvas, near the cell's corners: marks lie at its middle and on its edges."""


@pytest.fixture(scope="module")
def flat(export: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden trace with grey pictures and no masks: what is bright on the page is attention."""

    def grey() -> list[tuple[golden.Image, np.ndarray]]:
        return [(image, np.full_like(pixels, 90)) for image, pixels in pictures() if "mask" not in image.name]

    pictures, trace = golden.pictures, tmp_path_factory.mktemp("flat") / "run.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "pictures", grey)
        golden.write(trace)
    return export("flat", trace)


@pytest.fixture(scope="module")
def coloured(export: Callable[..., Path]) -> Path:
    return export("golden", golden.GOLDEN)


def brightest(page: Page, canvas: str, grid: tuple[int, int], **box: float) -> tuple[int, ...]:
    light = np.array(page.evaluate(LIGHT, [canvas, {"rows": grid[0], "columns": grid[1], **box}]))
    assert light.max() > 1.2 * np.median(light)
    return tuple(int(i) for i in np.unravel_index(light.argmax(), light.shape))


AT = f"#at={BRIGHT_PATCH[0]},{BRIGHT_PATCH[1]}&theme=dark"
TOKEN = BRIGHT_TOKEN[0] * REFERENCE[1] + BRIGHT_TOKEN[1]


def go(page: Page, fragment: str) -> None:
    """Follow a link to another state of the page."""
    page.evaluate("(fragment) => { location.hash = fragment; }", AT + fragment)
    page.wait_for_timeout(100)


def test_the_patch_looks_at_its_corner(flat: Path, visit: Callable) -> None:
    page = visit(flat, fragment=AT).page
    for chosen in ("", "&l=0", "&l=1&h=1", "&t=1", "&l=0&h=0&t=2", "&cells=1"):
        go(page, chosen)
        assert brightest(page, "ref", REFERENCE) == BRIGHT_TOKEN, chosen


def test_the_corner_is_looked_at_by_its_patch(flat: Path, visit: Callable) -> None:
    page = visit(flat, fragment=AT).page
    for chosen, layer in (("&under=r2g", 0), ("&under=r2g&l=1", 1), (f"&token={TOKEN}", 0), (f"&token={TOKEN}&l=0&h=1&t=0", 0)):
        go(page, chosen)
        assert brightest(page, "gen", GRIDS[layer]) == BRIGHT_PATCH, chosen


def test_a_click_chooses_what_lies_there(flat: Path, visit: Callable) -> None:
    page = visit(flat, fragment="#at=5,3&theme=dark").page
    for canvas, grid, cell, found in (("gen", GRIDS[0], (1, 3), "at"), ("ref", REFERENCE, (2, 1), "token")):
        box = page.locator(f"#{canvas}").bounding_box()
        page.mouse.click(box["x"] + (cell[1] + 0.5) / grid[1] * box["width"], box["y"] + (cell[0] + 0.5) / grid[0] * box["height"])
        assert page.evaluate(f"() => i2am.state.{found}") == ([*cell] if found == "at" else cell[0] * grid[1] + cell[1])


def test_tiles_lie_as_the_pictures_do(flat: Path, visit: Callable) -> None:
    page = visit(flat, fragment=AT).page
    for kind, (layer, head) in itertools.product(("look", "r2g", "g2r"), ((0, None), (0, 1), (1, 0))):
        go(page, f"&tiles={kind}")
        box = page.evaluate("([layer, head]) => i2am.tile(layer, head)", [layer, head])
        grid, cell = (GRIDS[layer], BRIGHT_PATCH) if kind == "r2g" else (REFERENCE, BRIGHT_TOKEN)
        assert brightest(page, "lattice", grid, **box) == cell, (kind, layer, head)


def test_copied_colours_lie_where_they_were_looked_for(coloured: Path, visit: Callable) -> None:
    """The reference is black but for the corner that the bright patch looks at."""
    seen = visit(coloured, fragment=f"{AT}&under=copy&outlines=0&l=0")
    assert brightest(seen.page, "gen", GRIDS[0]) == BRIGHT_PATCH
