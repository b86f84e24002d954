"""Chromium for tests of the page: one for all of them, and for each visit a tab that the network cannot be reached from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Visit:
    """A tab, and what it did beside showing the page."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Addresses asked for after the page itself; `data:` and `blob:` are no requests."""
    errors: list[str] = field(default_factory=list)
    """Errors of the console and of scripts, and dialogs."""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if not find_spec("playwright") or program is None:
        (pytest.fail if os.environ.get("I2AM_REQUIRE_BROWSER") else pytest.skip)("needs Chromium (apt-get install chromium) and playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens a file or an address in a tab of its own and waits until the page says that it is ready."""
    contexts = []

    def visit(where: Path | str, *, fragment: str = "", ready: bool = True, offline: bool = True, **options: object) -> Visit:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 940}, **options})
        contexts.append(context)
        context.set_offline(offline)
        made = Visit(context.new_page())
        address = (where.absolute().as_uri() if isinstance(where, Path) else where) + fragment
        listen(made, address)
        made.page.goto(address)
        if ready:
            made.page.wait_for_selector("html[data-ready=yes]")
        return made

    yield visit
    for context in contexts:
        context.close()


def listen(visit: Visit, address: str) -> None:
    """Note every request and everything that goes wrong."""

    def asked(url: str) -> None:
        if not url.startswith(("data:", "blob:")) and url != address.partition("#")[0]:
            visit.requests.append(url)

    def dismiss(dialog: Dialog) -> None:
        visit.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    visit.page.on("request", lambda request: asked(request.url))
    visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
    visit.page.on("console", lambda said: visit.errors.append(said.text) if said.type == "error" else None)
    visit.page.on("dialog", dismiss)
