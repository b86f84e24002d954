"""What the fixtures of browser tests note: requests, errors and dialogs, on a page that does all three."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

HEAD = '<!doctype html><html lang="en" data-ready="yes"><title>A page</title><body>'


def test_a_quiet_page_is_quiet(tmp_path: Path, visit: Callable) -> None:
    (tmp_path / "page.html").write_text(f"{HEAD}<img alt='' src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>")
    seen = visit(tmp_path / "page.html", fragment="#at=1,2")
    assert (seen.requests, seen.errors) == ([], [])


def test_what_a_page_does_beside_showing_itself_is_noted(tmp_path: Path, visit: Callable) -> None:
    script = "alert('boo'); console.error('lost'); fetch('http://127.0.0.1:9/x').catch(() => 0); setTimeout(() => { throw Error('late') })"
    (tmp_path / "page.html").write_text(f"{HEAD}<img alt='' src='beside.png'><script>{script}</script>")
    seen = visit(tmp_path / "page.html")
    seen.page.wait_for_timeout(100)
    assert {url.rpartition("/")[2] for url in seen.requests} == {"beside.png", "x"}
    assert {"dialog: boo", "lost"} <= {*seen.errors}
    assert any("late" in error for error in seen.errors)
