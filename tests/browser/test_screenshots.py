"""Pictures of six states for people to look at, in build/screenshots; fonts differ, so no pixel is compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from repository import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

FOLDER = ROOT / "build/screenshots"
STATES = {
    "1-look": ("demo", "", {}),
    "2-copy": ("demo", "#under=copy&tiles=copy", {}),
    "3-dark": ("demo", "#under=r2g&l=6&t=3", {"color_scheme": "dark"}),
    "4-compare": ("demo", "#run=diff", {}),
    "5-many-heads": ("standin", "#token=105", {}),
    "6-phone": ("demo", "#token=105", {"viewport": {"width": 390, "height": 940}}),
}


@pytest.fixture(scope="module")
def demo(export: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, and beside it the same with random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        from recordings import pipelines, recordings
    folder = tmp_path_factory.mktemp("demo")
    traces = [next(iter(recordings(pipeline, folder / name, pairs=1, steps=10)))[1] for name, pipeline in pipelines().items()]
    return export("demo", *traces)


@pytest.mark.parametrize("name", STATES)
def test_a_state_is_drawn(name: str, visit: Callable, request: pytest.FixtureRequest) -> None:
    page, fragment, options = STATES[name]
    path: Path = request.getfixturevalue(page)
    seen = visit(path, fragment=fragment, **options)
    seen.page.wait_for_timeout(500)
    FOLDER.mkdir(parents=True, exist_ok=True)
    seen.page.screenshot(path=FOLDER / f"{name}.png", full_page=True)
    assert (seen.requests, seen.errors) == ([], [])
