"""`i2am view` from the command line: files, galleries, and one line for what cannot be shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from webserver import serving

from i2am.analyzer import open_trace, pack
from i2am.analyzer.cli.commands import view as command
from i2am.analyzer.cli.main import run
from i2am.analyzer.view.server import Server
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

HOSTILE = "</script><img src=x onerror=alert(1)>"


def answer(capsys: pytest.CaptureFixture[str], *given: object, code: int = 0) -> dict[str, Any]:
    """The JSON document of a command."""
    assert run(["view", *map(str, given), "--json"]) == code
    shown = capsys.readouterr()
    assert shown.err == ""
    document: dict[str, Any] = json.loads(shown.out)
    return document


def refused(capsys: pytest.CaptureFixture[str], *given: object) -> str:
    """The one line of a command that fails."""
    code = run(["view", *map(str, given)])
    shown = capsys.readouterr()
    assert code in (2, 3, 4) and shown.out == ""
    (line,) = shown.err.splitlines()
    return line


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been served: the server ends at once, and no browser is looked for."""
    found: list[str] = []
    monkeypatch.setattr(Server, "run", lambda self, find: found.append(self.url))
    monkeypatch.setattr("i2am.analyzer.view.server.open_browser", lambda url: False)
    return found


def test_a_file_says_what_it_holds(made: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.html"
    facts = answer(capsys, made.path, "-o", out)
    assert (facts["out"], facts["bytes"]) == (str(out), out.stat().st_size)
    (row,) = facts["runs"]
    assert (row["trace"], row["rows"], row["dropped"], row["budget"]) == (made.trace.id, "full", [], 8_000_000)
    before = out.read_bytes()
    assert "add --overwrite" in refused(capsys, made.path, "-o", out)
    assert run(["view", str(made.path), "-o", str(out), "--overwrite"]) == 0
    assert out.read_bytes() == before, "made twice, byte for byte the same"


def test_what_was_left_out_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = synthetic_trace(
        tmp_path / "run.zarr", layers=[reference_layer(grid=(16, 12), reference=(9, 9))], latent_grid=(16, 12), steps=8
    ).path
    facts = answer(capsys, path, "-o", tmp_path / "a.html", "--budget", "120kB")
    (row,) = facts["runs"]
    assert row["dropped"] and row["bytes"] <= 120_000
    assert run(["view", str(path), "-o", str(tmp_path / "b.html"), "--budget", "120kB"]) == 0
    assert f"left out of {path} to stay within 120kB: {row['dropped'][0]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given", ["--budget=much", "--budget=0", "--budget=100B", "--sample=4", "--branch=x", "--group=x", "--time-groups=0"]
)
def test_what_cannot_be_is_one_line(made: Synthetic, given: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, made.path, "-o", tmp_path / "run.html", given)
    assert line.startswith("i2am: ") and "Traceback" not in line
    assert not list(tmp_path.iterdir())


def test_a_zip_file_and_a_partial_trace(made: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(made.path, tmp_path / "run.zarr.zip")
    assert answer(capsys, tmp_path / "run.zarr.zip", "-o", tmp_path / "a.html")["runs"][0]["trace"] == made.trace.id
    part = synthetic_trace(tmp_path / "part.zarr", steps=2, planned=5, status="interrupted").path
    assert "--partial" in refused(capsys, part, "-o", tmp_path / "b.html")
    assert answer(capsys, part, "--partial", "-o", tmp_path / "b.html")["runs"][0]["times"] == 2


def test_an_address_is_shown_without_what_may_be_a_key(made: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("aiohttp")
    pack(made.path, tmp_path / "run.zarr.zip")
    with serving(tmp_path) as web:
        facts = answer(capsys, f"{web.address}/run.zarr.zip?signature=secret", "-o", tmp_path / "a.html")
        assert facts["runs"][0]["path"] == f"{web.address}/run.zarr.zip"
    assert b"secret" not in (tmp_path / "a.html").read_bytes()
    assert answer(capsys, tmp_path / "run.zarr.zip", "-o", tmp_path / "b.html")["bytes"] == facts["bytes"]


@pytest.mark.parametrize(
    "options",
    [
        {"layers": [reference_layer(reference=None, text=6)]},
        {"layers": [reference_layer(reference=(2, 2), specials=0, text=3)]},
        {"steps": 1, "layers": [reference_layer(heads=1)]},
        {"image_size": (8, 6), "reference_size": (6, 4)},
        {"layers": [reference_layer(grid=(4, 3), frames=3)], "frames": 3, "latent_grid": (4, 3)},
    ],
)
def test_traces_of_every_kind_are_shown(tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = synthetic_trace(tmp_path / "run.zarr", **options).path
    assert answer(capsys, path, "-o", tmp_path / "run.html")["bytes"] > 50_000


def test_names_of_a_trace_are_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = [reference_layer(f"unet.{HOSTILE}.attn2")]
    path = synthetic_trace(tmp_path / "run.zarr", model=HOSTILE, layers=layers).path
    answer(capsys, path, "-o", tmp_path / "run.html")
    page = (tmp_path / "run.html").read_bytes()
    assert b"onerror" not in page and page.count(b"</script>") == 2


def test_two_runs_that_differ_say_so_once(made: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = synthetic_trace(tmp_path / "other.zarr", latent_grid=(4, 3)).path
    facts = answer(capsys, made.path, other, "-o", tmp_path / "both.html")
    assert len(facts["runs"]) == 2 and "differ in their latent grids (8 6 against 4 3)" in facts["note"]


def test_a_gallery_is_a_file_or_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer(capsys, folder, "-o", tmp_path / "all.html", code=4)
    assert facts["files"] == [str(tmp_path / "all.html")]
    assert len(facts["runs"]) == 3 and [row["trace"] for row in facts["skipped"]] == ["broken"]
    facts = answer(capsys, f"{folder}/run*.zarr", "-o", tmp_path / "all")
    assert len(facts["files"]) == 4 and all(Path(path).is_file() for path in facts["files"])
    assert run(["view", str(folder), "-o", str(tmp_path / "again.html")]) == 4
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{tmp_path / 'again.html'}: 3 runs, ") and "skipped broken: " in shown.err
    assert "already" in refused(capsys, f"{folder}/run*.zarr", "-o", tmp_path / "all")
    assert "end" in refused(capsys, folder / "run0.zarr", "-o", tmp_path / "all")
    assert ".html" in refused(capsys, folder, "-o", tmp_path / "all.png")


def test_nothing_is_written_where_it_is_served(made: Synthetic, closed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["view", str(made.path)]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{closed[0]} (Ctrl-C ends it)\n"
    assert shown.err == "note: no browser was found here; open the address above in one of this machine\n"
    assert answer(capsys, made.path, "--no-browser")["url"] == closed[1]


def test_three_traces_and_a_folder_are_a_gallery(folder: Path, closed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    runs = sorted(folder.glob("run*.zarr"))
    assert run(["view", *map(str, runs), "--no-browser"]) == 0
    assert capsys.readouterr().out.startswith("3 runs\nhttp://127.0.0.1:")
    assert len(answer(capsys, folder, "--no-browser")["skipped"]) == 1


def test_a_port_that_is_taken_is_said_before_the_scan(
    made: Synthetic, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "show_runs", lambda *_, **__: pytest.fail("the trace was read"))
    with Server() as server:
        line = refused(capsys, made.path, "--port", server.server_port, "--no-browser")
    assert line == f"i2am: port {server.server_port} of this machine is taken; choose another with --port, or leave it out"


def test_a_cache_that_cannot_be_written_is_a_note(
    made: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(capsys, made.path, "-o", tmp_path / "a.html", "--cache", tmp_path / "file")
    monkeypatch.setattr("i2am.analyzer.overview.cache.DiskCache.put", lambda *_: None)
    assert run(["view", str(made.path), "-o", str(tmp_path / "a.html"), "--cache", str(tmp_path / "cache")]) == 0
    assert "could not be kept" in capsys.readouterr().err


def test_the_cache_gives_the_same_page(made: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("I2AM_CACHE", str(tmp_path / "cache"))
    pages = [open_trace(made.path).view().page for _ in range(2)]
    assert pages[0] == pages[1] and any((tmp_path / "cache").rglob("*"))
