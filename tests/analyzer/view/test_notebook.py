"""The page in a notebook: a frame that holds it all, kept by nbconvert, and a file that is the same."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from i2am.analyzer import View, open_trace, show, show_gallery
from i2am.analyzer.cli.main import run
from i2am.schema.errors import AlreadyExists, InvalidInput, UnknownSelection
from traces import Synthetic, synthetic_trace

pytestmark = pytest.mark.analyzer


def inside(shown: str) -> str:
    """The document in a frame."""
    (found,) = re.findall(r'^<iframe srcdoc="([^"]*)" title="i2am" [^>]*></iframe>$', shown)
    return html.unescape(found)


def test_a_trace_shows_itself(made: Synthetic, tmp_path: Path) -> None:
    view = open_trace(made.path).view()
    assert isinstance(view, View)
    shown = view._repr_html_()
    assert inside(shown).encode() == view.page
    assert 'sandbox="allow-scripts allow-downloads"' in shown, "a frame of its own origin"
    assert repr(view).startswith("<i2am view, ") and len(repr(view)) < 100


def test_a_saved_view_is_what_the_command_writes(made: Synthetic, tmp_path: Path) -> None:
    trace = open_trace(made.path)
    assert show(trace, time_groups=2).save(tmp_path / "a.html") == tmp_path / "a.html"
    assert run(["view", str(made.path), "--time-groups", "2", "-o", str(tmp_path / "b.html")]) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    with pytest.raises(AlreadyExists, match="overwrite=True"):
        show(trace).save(tmp_path / "a.html")
    with pytest.raises(InvalidInput, match=r"end it in \.html"):
        show(trace).save(tmp_path / "a.png")


def test_two_runs_and_many(made: Synthetic, folder: Path) -> None:
    trace = open_trace(made.path)
    both = trace.view(trace)
    assert b'id="overview-b">' in both.page and b'id="overview-b">' not in trace.view().page
    gallery = show_gallery(folder)
    assert b'id="gallery">' in gallery.page and b"run2" in gallery.page


@pytest.mark.parametrize("options", [{"sample": 3}, {"branch": "other"}, {"group": "none"}])
def test_what_is_not_there_is_said(made: Synthetic, options: dict[str, object]) -> None:
    with pytest.raises(UnknownSelection):
        open_trace(made.path).view(**options)


def test_a_budget_in_which_nothing_fits_is_said(made: Synthetic) -> None:
    with pytest.raises(InvalidInput, match="budget= is 1 kB; give it more"):
        open_trace(made.path).view(budget="1kB")


@pytest.mark.torch  # nbconvert is where the developers' environment is
def test_it_survives_nbconvert(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbconvert")
    page = open_trace(synthetic_trace(tmp_path / "run.zarr", steps=1).path).view()
    output = nbformat.v4.new_output("display_data", {"text/html": page._repr_html_(), "text/plain": repr(page)})
    cell = nbformat.v4.new_code_cell("trace.view()", outputs=[output])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "seen.ipynb")
    given = [sys.executable, "-m", "nbconvert", "--to", "html", "--log-level", "ERROR", str(tmp_path / "seen.ipynb")]
    subprocess.run(given, check=True, capture_output=True)
    whole = (tmp_path / "seen.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'<iframe [^>]*srcdoc="([^"]*)"', whole)
    assert html.unescape(found).encode() == page.page
