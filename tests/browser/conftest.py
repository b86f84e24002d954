"""Chromium for tests of the page: one for each file of them, and for each visit a tab that the network cannot be reached from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from planted import planted_trace
from repository import ROOT

from i2am.analyzer import open_trace
from i2am.analyzer.view.export import export_runs
from i2am.analyzer.view.runs import Run
from i2am.schema import Text, Word
from traces import reference_layer, synthetic_trace

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for the whole session: while playwright runs, no other test of this process can start an event loop."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if not find_spec("playwright") or program is None:
        (pytest.fail if os.environ.get("I2AM_REQUIRE_BROWSER") else pytest.skip)("needs Chromium (apt-get install chromium) and playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the page of one trace or two as a file."""
    folder = tmp_path_factory.mktemp("pages")

    def export(name: str, *traces: Path, **options: Any) -> Path:
        path = folder / f"{name}.html"
        path.write_bytes(export_runs([Run.of(open_trace(trace), **options) for trace in traces]))
        return path

    return export


@pytest.fixture(scope="session")
def planted(export: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a healthy recording: 2 layers of 2 heads, 10 steps, masks."""
    return export("planted", planted_trace(tmp_path_factory.mktemp("planted") / "run.zarr"))


@pytest.fixture(scope="session")
def pair(export: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two recordings that can be laid over each other."""
    folder = tmp_path_factory.mktemp("pair")
    return export("pair", *(planted_trace(folder / f"{seed}.zarr", seed=seed) for seed in range(2)))


@pytest.fixture(scope="session")
def video(export: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a video of 4 frames, with the words of its prompt."""
    layers = [reference_layer(f"unet.{part}_blocks.0.attn2", (6, 4), text=4, frames=4) for part in ("down", "up")]
    text = Text("text", "a red shirt", ("<s>", "a", "red", "shirt"), (Word("a", 1, 2), Word("red", 2, 3), Word("shirt", 3, 4)))
    trace = tmp_path_factory.mktemp("video") / "run.zarr"
    synthetic_trace(trace, layers=layers, latent_grid=(6, 4), frames=4, texts=[text])
    return export("video", trace)


@pytest.fixture(scope="session")
def standin(export: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a recording of Stable Diffusion 1.5's size: 16 layers of 8 heads, 257 keys, up to 64 x 64 patches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        from overview import write
    trace = tmp_path_factory.mktemp("standin") / "run.zarr"
    write(trace, steps=5)
    return export("standin", trace)


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
