"""A web server that answers wrongly costs one line, whatever it does; one that fails for a moment costs nothing."""

from __future__ import annotations

import pytest
from webserver import Web, free_port

from i2am.analyzer import open_trace, r2g
from i2am.analyzer.cli.main import run
from i2am.analyzer.storage.web import require_encrypted
from i2am.schema.errors import CorruptTrace, NoAnswer

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.analyzer

RETRIED = [
    "cut",
    "429",
    "429 later",
    "429 on a date",
    "503",
    "503 later",
    "500",
    "wrong range",
    "wrong length",
    "more",
    "no content range",
    "lie",
]


@pytest.mark.parametrize("mode", RETRIED)
def test_what_passes_is_tried_again_and_what_does_not_is_one_line(mode: str, web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    web.reset(mode, times=2)
    opened = open_trace(f"{web.address}/small.zarr.zip")
    assert opened.id == open_trace(web.root / "small.zarr").id
    web.reset(mode)
    with pytest.raises(NoAnswer, match=r"small\.zarr\.zip cannot be read: .*\(4 attempts\); try again later"):
        open_trace(f"{web.address}/small.zarr.zip")
    assert web.requests == 4
    assert run(["info", f"{web.address}/small.zarr.zip"]) == 6
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("mode", ["cut", "503", "wrong range"])
def test_a_map_that_is_cut_short_by_the_server_is_no_corrupt_trace(mode: str, web: Web) -> None:
    opened = open_trace(f"{web.address}/run.zarr.zip")
    web.reset(mode)
    with pytest.raises(NoAnswer):
        r2g(opened).compute()
    web.reset()
    assert (r2g(opened).compute() == r2g(open_trace(web.root / "run.zarr")).compute()).all()


def test_a_server_that_fails_is_no_finding(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    web.reset("503", after=1)
    assert run(["verify", f"{web.address}/run.zarr.zip"]) == 6
    assert capsys.readouterr().err.count("\n") == 1


ONCE: dict[str, tuple[int, str]] = {
    "401": (6, "is not for everybody"),
    "403": (6, "is not for everybody"),
    "418": (6, "the server answered 418"),
    "404": (3, "there is no http://"),
    "429 much later": (6, "asks to wait 3600 s"),
    "encoded": (6, "is sent as 'gzip'"),
    "wrong bytes": (3, "is a file, not a trace"),
}


@pytest.mark.parametrize("mode", ONCE)
def test_what_will_not_change_is_one_line(mode: str, web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = ONCE[mode]
    web.reset(mode)
    assert run(["info", f"{web.address}/run.zarr.zip?signature=secret"]) == code
    line = capsys.readouterr().err
    assert text in line
    assert line.count("\n") == 1
    assert "secret" not in line


def test_wrong_bytes_of_attention_are_found_by_their_checksums(web: Web) -> None:
    opened = open_trace(f"{web.address}/run.zarr.zip")
    web.reset("wrong bytes")
    with pytest.raises(CorruptTrace):
        r2g(opened).compute()


@pytest.mark.parametrize("mode", ["no ranges", "no ranges, no length"])
def test_a_server_without_ranges_may_send_small_files_whole(mode: str, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.reset(mode)
    opened = open_trace(f"{web.address}/small.zarr.zip")
    r2g(opened).compute()
    assert web.requests == 1
    monkeypatch.setattr("i2am.analyzer.storage.web.WHOLE_BYTES", 10**5)
    with pytest.raises(NoAnswer, match=r"sends a whole file whatever part is asked for, and this one has over 100 kB"):
        open_trace(f"{web.address}/small.zarr.zip")


@pytest.mark.parametrize("mode", ["unknown total", "no tag"])
def test_what_a_server_leaves_out_is_not_needed(mode: str, web: Web) -> None:
    web.reset(mode)
    opened = open_trace(f"{web.address}/small.zarr.zip")
    assert (r2g(opened).compute() == r2g(open_trace(web.root / "small.zarr")).compute()).all()


def test_a_file_that_is_replaced_while_it_is_read_is_said(web: Web) -> None:
    opened = open_trace(f"{web.address}/run.zarr.zip")
    web.reset("another tag")
    with pytest.raises(NoAnswer, match=r"run\.zarr\.zip was replaced while it was read; open it again"):
        r2g(opened).compute()


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("/small.zarr.zip", 0),
        ("file:///etc/passwd", 6),
        ("ftp://127.0.0.1/x", 6),
        ("http://127.0.0.1:{port}/x", 6),
        ("/run.zarr.zip?again", 0),
    ],
)
def test_redirects_are_followed_to_other_web_servers_only(where: str, code: int, web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    where = where.replace("{port}", str(free_port()))
    web.reset("redirect", times=1 if code == 0 else 10**9, where=where)
    assert run(["info", f"{web.address}/moved.zip"]) == code
    assert capsys.readouterr().err.count("\n") == (code != 0)


def test_an_encrypted_address_never_leads_to_one_that_is_not() -> None:
    require_encrypted("https://a/x.zip", "https://a/x.zip", ["https", "https"])
    require_encrypted("http://a/x.zip", "http://a/x.zip", ["http", "https"])
    for schemes in (["https", "http"], ["https", "http", "https"]):
        with pytest.raises(NoAnswer, match="leads to an address that is not encrypted"):
            require_encrypted("https://a/x.zip", "https://a/x.zip", schemes)


def test_a_circle_of_redirects_ends(web: Web) -> None:
    web.reset("redirect", where="/moved.zip")
    with pytest.raises(NoAnswer, match="TooManyRedirects"):
        open_trace(f"{web.address}/moved.zip")


def test_a_server_that_says_nothing_or_is_not_there_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("i2am.analyzer.storage.web.SILENCE_SECONDS", 0.1)
    web.reset(delay=0.5)
    with pytest.raises(NoAnswer, match=r"imeout|no answer in time"):
        open_trace(f"{web.address}/small.zarr.zip")
    with pytest.raises(NoAnswer, match=r"127\.0\.0\.1"):
        open_trace(f"http://127.0.0.1:{free_port()}/small.zarr.zip")


def test_a_slow_server_is_waited_for(web: Web) -> None:
    web.reset(delay=0.3)
    assert open_trace(f"{web.address}/small.zarr.zip").complete
