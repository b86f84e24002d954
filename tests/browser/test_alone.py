"""An exported page needs nothing else: it asks for nothing, allows nothing, stays small, and shows no overview that was changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

CARRIED = re.compile(r'<script type="application/json" id="overview">(.*?)</script>', re.DOTALL)
MOST_PAGE, MOST_EXPORT = 120_000, 12_000_000


def test_it_asks_for_nothing_whatever_is_done_with_it(planted: Path, visit: Callable) -> None:
    seen = visit(planted, fragment="#at=3,2&under=copy&nonsense=1")
    for canvas in ("gen", "ref", "lattice", "chart"):
        box = seen.page.locator(f"#{canvas}").bounding_box()
        seen.page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.6 * box["height"])
        seen.page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.4 * box["height"])
    for key in ("j", "l", "]", "1", "2", "3", "4", "o", "s", "n", "m", "c", "r", "p", "f", "Escape", "d", "?"):
        seen.page.keyboard.press(key)
    seen.page.wait_for_timeout(300)  # past the rest after which a server would be asked
    assert (seen.requests, seen.errors) == ([], [])


def test_its_policy_is_in_force(planted: Path, visit: Callable) -> None:
    seen = visit(planted)
    outside_of_the_tool = """() => new Promise((done) => setTimeout(async () => {
        const found = [], script = document.createElement("script"), style = document.createElement("style");
        try { (0, eval)("1"); found.push("eval"); } catch { /* refused */ }
        script.textContent = "window.ran = true";
        style.textContent = "body { outline: 7px solid }";
        document.head.append(script, style);
        if (window.ran) found.push("script");
        if (getComputedStyle(document.body).outlineWidth === "7px") found.push("style");
        await fetch("data:text/plain,x").then(() => found.push("fetch"), () => 0);
        done(found);
    }))"""
    assert seen.page.evaluate(outside_of_the_tool) == []
    assert seen.requests == []


def test_it_is_small(planted: Path, standin: Path) -> None:
    page = CARRIED.sub("", planted.read_text(encoding="utf-8"))
    assert len(page.encode()) < MOST_PAGE
    assert standin.stat().st_size < MOST_EXPORT


@pytest.mark.parametrize("array", ["images/generated_0", "views/000/r2g_000", "views/000/rows_001", "views/000/scores"])
def test_a_changed_byte_is_an_error_that_names_its_array(planted: Path, tmp_path: Path, visit: Callable, array: str) -> None:
    html = planted.read_text(encoding="utf-8")
    carried = json.loads(CARRIED.search(html)[1])
    ((start, stop),) = [place for path, place in carried["index"].items() if path.startswith(f"{array}/c")]
    at = (start + stop) // 2 // 3 * 4  # four letters of base64 are three bytes
    old = carried["data"][at]
    carried["data"] = carried["data"][:at] + ("A" if old != "A" else "B") + carried["data"][at + 1 :]
    (tmp_path / "changed.html").write_text(html.replace(CARRIED.search(html)[1], json.dumps(carried)), encoding="utf-8")
    seen = visit(tmp_path / "changed.html", ready=False)
    seen.page.wait_for_selector("html[data-ready=failed]")
    assert array in seen.page.locator("#sentence").inner_text()
    assert seen.requests == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[: len(text) // 2], "cut short"),
        (lambda text: json.dumps({**json.loads(text), "index": {}}), "zarr.json"),
        (lambda text: "", "carries none"),
    ],
    ids=["half", "no index", "nothing"],
)
def test_an_overview_that_is_cut_short_is_said(
    planted: Path, tmp_path: Path, visit: Callable, change: Callable[[str], str], said: str
) -> None:
    html = planted.read_text(encoding="utf-8")
    text = CARRIED.search(html)[1]
    (tmp_path / "cut.html").write_text(html.replace(text, change(text)), encoding="utf-8")
    seen = visit(tmp_path / "cut.html", ready=False)
    seen.page.wait_for_selector("html[data-ready=failed]")
    assert said in seen.page.locator("#sentence").inner_text()


def test_another_exported_page_becomes_run_b(planted: Path, video: Path, tmp_path: Path, visit: Callable) -> None:
    seen = visit(planted)
    page = seen.page
    page.set_input_files("#file", planted)
    page.wait_for_selector("#runs", state="visible")
    page.keyboard.press("x")
    assert page.evaluate("() => i2am.state.run") == "diff"
    page.set_input_files("#file", video)
    page.wait_for_selector("#apart:has-text('A and B cannot be laid over each other')")
    (tmp_path / "other.html").write_text("<p>no overview")
    page.set_input_files("#file", tmp_path / "other.html")
    page.wait_for_selector("#apart:has-text('other.html cannot be compared with')")
    assert (seen.requests, seen.errors) == ([], [])
