"""The page is open to all: axe-core finds nothing in any theme or width, and nothing scrolls sideways."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

STATES = {
    "first": ("planted", "", None),
    "copy": ("planted", "#under=copy&tiles=copy&l=1&h=0&t=2", None),
    "token": ("planted", "#token=13&lens=light", None),
    "table": ("planted", "", "#tabledetails summary"),
    "keys": ("planted", "", "#keys"),
    "trust": ("planted", "", "#trust"),
    "difference": ("pair", "#run=diff", None),
    "video": ("video", "#view=1&word=1&frame=2", None),
}
"""A page, its address, and what is clicked."""
FEW = ("first", "copy", "token")


@pytest.mark.parametrize(
    ("theme", "width", "states"), [("light", 1440, STATES), ("dark", 1440, FEW), ("light", 390, FEW), ("dark", 390, STATES)]
)
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    theme: str, width: int, states: Iterable[str], visit: Callable, request: pytest.FixtureRequest
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = {}
    for state in states:
        name, fragment, clicked = STATES[state]
        path: Path = request.getfixturevalue(name)
        page = visit(path, fragment=fragment, viewport={"width": width, "height": 940}, color_scheme=theme).page
        if clicked:
            page.click(clicked)
        rules = Axe().run(page).response["violations"]
        found[state] = [f"{rule['id']}: {node['html'][:120]} {node['failureSummary']}" for rule in rules for node in rule["nodes"]]
        wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
        found[state] += [f"{wide} px too wide"] if wide > 0 else []
        page.context.close()
    assert not {state: problems for state, problems in found.items() if problems}
