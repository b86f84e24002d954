"""The server answers this machine's browser and nobody else, and no path is ever a file."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest

from i2am.analyzer import open_trace, sram
from i2am.analyzer.view import server as module
from i2am.analyzer.view.document import page_files
from i2am.analyzer.view.server import Find, Reply, Server, open_browser
from i2am.schema.errors import InvalidInput, UnknownSelection
from traces import Synthetic

pytestmark = pytest.mark.analyzer

ENDINGS = ("", "view.css", "view.js", "overview")
PROGRAM = (sys.executable, "-P", "-m", "i2am.analyzer.cli")


@pytest.mark.parametrize("path", ENDINGS)
def test_every_answer_is_for_this_page_alone(asker: Any, path: str) -> None:
    status, headers, body = asker.ask(path)
    assert (status, int(headers["content-length"])) == (200, len(body))
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "access-control-allow-origin" not in headers
    assert headers["server"] == "i2am"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}", "127.0.0.1.evil:{port}"]
)
def test_another_host_is_refused(asker: Any, host: str) -> None:
    status, _, body = asker.ask("", host=host.format(port=asker.server.server_port))
    assert (status, body) == (403, b"this server is for this machine alone")


def test_this_machine_may_be_called_localhost(asker: Any) -> None:
    assert asker.ask("", host=f"localhost:{asker.server.server_port}")[0] == 200


@pytest.mark.parametrize("token", ["", "x", "favicon.ico", "%C3%BC", "%2e%2e"])
def test_without_the_token_nothing_is_answered(asker: Any, token: str) -> None:
    for path in ("", "overview", "exact?at=1,1"):
        assert asker.ask(path, token=token)[0] == 403
    assert len(asker.server.token) >= 20
    with Server() as another:
        assert another.token != asker.server.token


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_only_get_and_head_are_answered(asker: Any, method: str) -> None:
    status, headers, body = asker.ask("", method=method)
    assert (status, headers["allow"], body) == (405, "GET, HEAD", b"only GET and HEAD")


def test_head_is_get_without_a_body(asker: Any) -> None:
    got, head = asker.ask("view.css"), asker.ask("view.css", method="HEAD")
    assert head[2] == b"" and head[1]["content-length"] == str(len(got[2]))


@pytest.mark.parametrize(
    "path",
    [
        "../", "..%2f..%2fetc/passwd", "../../../../etc/passwd", "/etc/passwd", "run.zarr/zarr.json", "server.py", "../server.py",
        "page/view.css",
        "view.css/", "index.html", "gallery.html", "overview/", "overview-b", "%00", "view.css%00", "runs/0/", "//etc/passwd", "C:\\x",
    ],
)  # fmt: skip
def test_no_path_is_a_file(asker: Any, path: str) -> None:
    status, _, body = asker.ask(path)
    assert (status, body) == (404, b"there is nothing of this name")


def test_the_page_and_its_files_are_as_they_lie_here(asker: Any) -> None:
    assert asker.ask("view.css")[2] == page_files()["view.css"]
    assert b'data-src="overview"' in asker.ask("")[2]
    assert set(json.loads(asker.ask("overview")[2])) == {"index", "data"}


def test_it_listens_on_the_loopback_alone() -> None:
    with Server() as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        others = {each[4][0] for each in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1", "127.0.1.1"}
        for address in others:
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((str(address), server.server_port), timeout=2).close()


def test_a_port_that_is_taken_is_one_line() -> None:
    with (
        Server() as server,
        pytest.raises(InvalidInput, match="of this machine is taken; choose another with port="),
    ):
        Server(server.server_port)


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("at=99,2", "the latent grid has no patch (99, 2); rows are 0 to 7 from the top, columns 0 to 5 from the left"),
        ("at=1", "a patch is (row, column) on the latent grid of 8 x 6, got (1,)"),
        ("at=a,b", "at='a,b' of a question; expected whole numbers with commas between"),
        ("at=1,1&layers=9", None),
        ("at=1,1&heads=9", None),
        ("at=1,1&time=2", None),
        ("at=1,1&view=7", None),
        ("at=1,1&view=0,1", "a question is of one view, got 0, 1"),
        ("token=16", None),
        ("token=-17", None),
        ("at=1,1&token=2", "a question is of one patch (at), one token, or one map (r2g, g2r)"),
        ("", "a question is of one patch (at), one token, or one map (r2g, g2r)"),
        ("map=__class__", "a question is of one patch (at), one token, or one map (r2g, g2r)"),
        ("at=1,1&layer=1", "a question has no field 'layer'; did you mean layers? "),
        ("at=1,1&run=b", "run='b' of a question; expected a"),
        ("&".join(f"x{i}=1" for i in range(40)), "a question has at most 16 fields"),
    ],
)
def test_what_the_trace_does_not_have_is_a_sentence(asker: Any, question: str, told: str | None) -> None:
    for route in ("exact", "picture.png"):
        status, headers, body = asker.ask(f"{route}?{question}")
        assert (status, headers["content-type"]) == (400, "text/plain; charset=utf-8")
        assert body.decode().startswith(told or "") and b"Traceback" not in body and len(body) > 20


def test_the_sentence_is_that_of_the_command_line(asker: Any, made: Synthetic) -> None:
    with pytest.raises(UnknownSelection) as caught:
        sram(open_trace(made.path), (9, 9))
    assert asker.ask("exact?at=9,9")[2].decode() == str(caught.value)


def test_what_fails_in_an_answer_is_a_sentence(serve: Callable[[Find], Any]) -> None:
    def fail(asked: object) -> Reply:
        raise ZeroDivisionError("\x1b[2Jno")

    status, _, body = serve(lambda path: fail).ask("")
    assert (status, body) == (HTTPStatus.INTERNAL_SERVER_ERROR, b"unexpected ZeroDivisionError: \\x1b[2Jno")


def test_a_hundred_questions_at_once(asker: Any, run_made: Any) -> None:
    expected = sram(run_made.trace, (3, 2), branch="cond").values.astype("<f4").tobytes()
    found: list[tuple[int, bytes]] = []

    def ask() -> None:
        status, _, body = asker.ask("exact?at=3,2")
        found.append((status, body))

    threads = [threading.Thread(target=ask) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 100
    assert {status for status, _ in found} <= {200, 409}
    assert (200, expected) in found and {body for status, body in found if status == 200} == {expected}
    assert asker.ask("")[0] == 200


def test_ctrl_c_ends_it(made: Synthetic) -> None:
    given = [*PROGRAM, "view", str(made.path), "--no-browser", "--json"]
    with subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
        facts = json.loads("".join(lines))
        with urllib.request.urlopen(facts["url"], timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(("found", "opened"), [(None, False), (webbrowser.GenericBrowser("w3m"), False)])
def test_a_browser_that_would_take_the_terminal_is_none(monkeypatch: pytest.MonkeyPatch, found: Any, opened: bool) -> None:
    def get() -> Any:
        if found is None:
            raise webbrowser.Error("could not locate runnable browser")
        return found

    monkeypatch.delenv("BROWSER", raising=False)
    monkeypatch.setattr(module.webbrowser, "get", get)
    assert open_browser("http://127.0.0.1:1/x/") is opened


def test_a_browser_with_windows_is_shown_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, done = [], threading.Event()

    class Window(webbrowser.BaseBrowser):
        def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
            seen.append(url)
            done.set()
            return True

    monkeypatch.setattr(module.webbrowser, "get", Window)
    assert open_browser("http://127.0.0.1:1/x/")
    assert done.wait(10) and seen == ["http://127.0.0.1:1/x/"]


def test_numbers_come_with_what_they_are(asker: Any, run_made: Any) -> None:
    status, headers, body = asker.ask("exact?at=3,2&layers=1&heads=1,2&time=1")
    expected = sram(run_made.trace, (3, 2), branch="cond", layers=[1], heads=[1, 2], steps=[2, 3])
    facts = json.loads(headers["x-i2am"])
    assert (status, facts) == (200, {"dims": ["ref_y", "ref_x"], "shape": [3, 5], "steps": 2, "calls": expected.attrs["calls"]})
    np.testing.assert_array_equal(np.frombuffer(body, "<f4").reshape(3, 5), expected.values.astype("<f4"))
