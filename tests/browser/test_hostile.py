"""What a trace says is shown as text: no name becomes an element, a script or a request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from i2am.schema import Text, Word
from traces import reference_layer, synthetic_trace

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

ATTACK = "<img src=x onerror=alert(1)>"
CLOSING = "</script><script>alert(2)</script><!--"


@pytest.fixture(scope="module")
def hostile(export: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = [reference_layer(f"unet.{ATTACK}.{i}.attn2", (4, 3), text=4) for i in range(2)]
    words = (Word(ATTACK, 1, 2), Word(CLOSING, 2, 3))
    text = Text("text", f"{ATTACK} {CLOSING}", ("<s>", ATTACK, CLOSING, "</s>"), words)
    trace = tmp_path_factory.mktemp("hostile") / f"{ATTACK}.zarr"
    synthetic_trace(trace, layers=layers, latent_grid=(4, 3), model=CLOSING + ATTACK, texts=[text], provenance={"notes": [ATTACK]})
    return export("hostile", trace)


@pytest.mark.parametrize("fragment", ["", "#view=1&word=0&tiles=r2g&panel=heads", f"#at={CLOSING}&measure={ATTACK}&under={ATTACK}"])
def test_names_are_shown_as_text(hostile: Path, visit: Callable, fragment: str) -> None:
    seen = visit(hostile, fragment=fragment)
    for key in ("j", "l", "j", "?", "Escape", "]"):
        seen.page.keyboard.press(key)
    seen.page.locator("#tabledetails").evaluate("(node) => { node.open = true; }")
    seen.page.wait_for_timeout(200)
    assert (seen.requests, seen.errors) == ([], [])
    assert seen.page.locator("img").count() == 0
    assert seen.page.locator("script").count() == 2, "the page's own and the overview"
    assert CLOSING + ATTACK in seen.page.locator("#what").inner_text()
    assert seen.page.title().startswith(ATTACK)


def test_words_are_shown_as_text(hostile: Path, visit: Callable) -> None:
    seen = visit(hostile)
    assert {ATTACK, CLOSING} <= {text.strip() for text in seen.page.locator("#wordlist *").all_inner_texts()}
