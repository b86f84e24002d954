"""`i2am view` in a browser: the page is shown, what rests is answered exactly, and nothing else is asked."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from planted import STEPS, planted_trace

from i2am.analyzer import open_trace, sram, token_map

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_trace(tmp_path_factory.mktemp("served") / "run.zarr")


@pytest.fixture
def served(trace: Path) -> Iterator[str]:
    """The address of a run that is being shown; Ctrl-C ends it."""
    program = [sys.executable, "-P", "-u", "-m", "i2am.analyzer.cli", "view", str(trace), "--no-browser"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+/\S+/", line) for line in process.stdout)), None)
        assert found, process.stderr.read()
        yield found[0]
        process.send_signal(signal.SIGINT)
        process.wait(timeout=10)
        assert "Traceback" not in process.stderr.read()


def test_what_rests_is_answered_exactly(served: str, trace: Path, visit: Callable) -> None:
    page = (seen := visit(served, fragment="#at=5,2&l=1", offline=False)).page
    if not any("exact?" in url for url in seen.requests):
        page.wait_for_event("response", lambda answer: "exact?" in answer.url)
    page.wait_for_timeout(200)
    shown = np.array(page.evaluate("() => Array.from(i2am.seen().row)"))
    wanted = sram(open_trace(trace), (5, 2), layers=1).values.ravel() / STEPS
    np.testing.assert_allclose(shown, wanted, rtol=1e-6, atol=1e-9)
    with page.expect_response(lambda answer: "token=" in answer.url):
        page.evaluate("() => i2am.change({ token: 13, layer: null })")
    page.wait_for_timeout(200)
    shown = np.array(page.evaluate("() => Array.from(i2am.seen().column.values)"))
    wanted = token_map(open_trace(trace), 14, group="reference").values.ravel() / STEPS  # token 0 is CLS
    np.testing.assert_allclose(shown, wanted, rtol=1e-6, atol=1e-9)
    assert all(url.startswith(served) for url in seen.requests)
    assert seen.errors == []


def test_another_page_reads_nothing_even_if_it_knows_the_address(served: str, tmp_path: Path, visit: Callable) -> None:
    (tmp_path / "other.html").write_text('<!doctype html><html lang="en" data-ready="yes"><title>Another page</title>')
    page = visit(tmp_path / "other.html", offline=False).page
    assert page.request.get(f"{served}picture.png?at=5,2").status == 200
    tried = """(url) => {
        const load = (name, path) => new Promise((done) => {
            const node = document.createElement(name);
            Object.assign(node, { onload: () => done(path), onerror: () => done(null), src: url + path });
            document.head.append(node);
        });
        return Promise.all([fetch(`${url}overview`).catch(() => null), load("img", "picture.png?at=5,2"), load("script", "view.js")]);
    }"""
    assert page.evaluate(tried, served) == [None, None, None]
