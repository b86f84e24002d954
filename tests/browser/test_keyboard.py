"""The keyboard alone reaches every state that the address has, and the address brings the same picture back."""

from __future__ import annotations

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

ROUTES = {
    "at": ("planted", "ArrowDown ArrowRight"),
    "token": ("planted", "#ref Enter ArrowLeft"),
    "t": ("planted", "]"),
    "l": ("planted", "j"),
    "h": ("planted", "j l"),
    "lens": ("planted", "o"),
    "under": ("planted", "c"),
    "tiles": ("planted", "3"),
    "cells": ("planted", "s"),
    "own": ("planted", "n"),
    "outlines": ("planted", "m"),
    "panel": ("planted", "f"),
    "theme": ("planted", "d"),
    "measure": ("planted", "#measure ArrowDown"),
    "run": ("pair", "b"),
    "view": ("video", "#choices_select ArrowDown"),
    "word": ("video", "#wordlist_button Enter"),
    "frame": ("video", "#frames_input ArrowRight"),
}
"""What brings each field of the address about: keys, and elements that Tab goes to."""
NAMES = {"t": "time", "l": "layer", "h": "head"}
"""What the page calls a field."""
SMOOTHING = 40


def press(page: Page, keys: str) -> None:
    for key in keys.split():
        if not key.startswith("#"):
            page.keyboard.press(key)
            continue
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", key.replace("_", " ")):
                break
        else:
            raise AssertionError(f"Tab never comes to {key}")


def drawn(page: Page) -> dict[str, np.ndarray]:
    """Every canvas in sight, once scores have been worked out in idle time."""
    page.wait_for_function("() => i2am.seen().ready")
    page.wait_for_timeout(200)
    shown = "Array.from(document.querySelectorAll('canvas')).filter((each) => each.clientWidth)"
    found = page.evaluate(f"() => {shown}.map((each, i) => [each.id || i, each.toDataURL().split(',')[1]])")
    return {str(name): np.asarray(Image.open(BytesIO(base64.b64decode(png))).convert("RGB"), int) for name, png in found}


def alike(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    """Whether two pages are drawn alike, but for what Chromium's smoothing does otherwise when it draws for the second time."""
    same = {name: array.shape for name, array in first.items()} == {name: array.shape for name, array in second.items()}
    return same and all(np.abs(array - second[name]).max() <= SMOOTHING for name, array in first.items())


@pytest.mark.parametrize("field", ROUTES)
def test_keys_reach_a_state_and_its_address_restores_it(field: str, visit: Callable, request: pytest.FixtureRequest) -> None:
    name, keys = ROUTES[field]
    path: Path = request.getfixturevalue(name)
    seen = visit(path)
    press(seen.page, keys)
    after, fragment = drawn(seen.page), seen.page.evaluate("() => location.hash")
    assert f"{field}=" in fragment
    assert alike(drawn(visit(path, fragment=fragment).page), after)
    assert seen.errors == []


def test_every_state_has_a_route(planted: Path, visit: Callable) -> None:
    assert {NAMES.get(field, field) for field in ROUTES} == {*visit(planted).page.evaluate("() => Object.keys(i2am.state)")}


def test_letting_go_brings_the_first_view_back(planted: Path, visit: Callable) -> None:
    page = visit(planted).page
    before = drawn(page)
    press(page, "j l ] #ref Enter")
    assert not alike(drawn(page), before)
    press(page, "Escape")
    assert alike(drawn(page), before)
    assert page.evaluate("() => location.hash") == ""
