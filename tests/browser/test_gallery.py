"""The gallery in a browser: sorted and filtered, a click away from each run, and names stay text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from i2am.analyzer import open_trace
from i2am.analyzer.store.discovery import find_traces
from i2am.analyzer.view.export import write_gallery
from i2am.analyzer.view.gallery import make_gallery
from i2am.analyzer.view.runs import Run
from traces import reference_layer, synthetic_trace

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gallery of three runs, one of them without a mask, and of one that cannot be read; with the pages of the runs."""
    root = tmp_path_factory.mktemp("gallery")
    for seed in range(2):
        synthetic_trace(root / "traces" / f"run{seed}.zarr", seed=seed, steps=2)
    text = [reference_layer(reference=None, text=6, grid=(8, 6))]
    synthetic_trace(root / "traces" / "zebra.zarr", layers=text, steps=2, model=HOSTILE)
    broken = synthetic_trace(root / "traces" / "broken.zarr", steps=1).path
    (broken / "zarr.json").write_text(HOSTILE)
    members = find_traces(root / "traces")
    gallery = make_gallery(members, HOSTILE)
    return write_gallery(gallery, root / "out", lambda index: Run.of(open_trace(members[index].path)))[0]


def names(seen: object) -> list[str]:
    """The cards in their order."""
    return seen.page.locator(".card h2").all_inner_texts()  # type: ignore[attr-defined]


def test_it_asks_for_nothing_and_names_stay_text(folder: Path, visit: Callable) -> None:
    seen = visit(folder)
    assert (seen.requests, seen.errors) == ([], [])
    assert seen.page.locator("#what").inner_text() == HOSTILE
    assert HOSTILE in seen.page.locator(".card", has_text="zebra").inner_text()
    assert seen.page.locator("img[src=x]").count() == 0
    assert seen.page.locator("#sentence").inner_text() == "4 runs. 1 run could not be read."


def test_cards_are_sorted_and_the_address_keeps_how(folder: Path, visit: Callable) -> None:
    seen = visit(folder)
    assert names(seen) == ["broken", "run0", "run1", "zebra"]
    seen.page.locator("#sort").select_option("entropy_g")
    up = names(seen)
    seen.page.locator("#order").click()
    down = names(seen)
    assert up[-1] == down[-1] == "broken", "what has no score comes last either way"
    assert up[:-1] == down[:-1][::-1]
    again = visit(folder, fragment="#" + seen.page.url.partition("#")[2])
    assert names(again) == down
    again.page.locator("#filter").fill("RUN")
    assert sorted(names(again)) == ["run0", "run1"]


def test_a_card_leads_to_the_page_of_its_run(folder: Path, visit: Callable) -> None:
    seen = visit(folder)
    assert seen.page.locator("a.card").count() == 3 and seen.page.locator(".broken a, a.broken").count() == 0
    seen.page.locator("a.card", has_text="run1").focus()
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector("#gen")
    seen.page.wait_for_selector("html[data-ready=yes]")
    assert seen.page.url.endswith("0002-run1.html") and seen.errors == []


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(folder: Path, visit: Callable, width: int, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(folder, bypass_csp=True, color_scheme=theme, viewport={"width": width, "height": 940}).page
    found = axe.run(page)
    assert [rule["id"] for rule in found.response["violations"]] == []
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
