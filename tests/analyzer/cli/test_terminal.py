"""What a stranger wrote into a trace never reaches a terminal, a document or a notebook as a control character."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from i2am.analyzer import list_words, open_trace, word_map
from i2am.analyzer.cli.main import run
from i2am.schema.errors import TraceError
from i2am.schema.text import Text, Word
from traces import default_layers, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\x7f\u202egnp.\u2066x\r\ny"
"""Clears the screen, sets the title, C1, delete, bidi overrides, and a line of its own."""
COMMANDS = (
    "info {t}",
    "words {t}",
    "verify {t}",
    "map {t} --r2g --keep layer -o {out}/m.png",
    "map {t} --word nothing -o {out}/w.png",
    "map {t} --r2g --layers nothing -o {out}/l.png",
    "imacs {t}",
    "diagnose {t}",
    "report {t} -o {out}/r.png",
    "evaluate {t}",
    "compare {t} --recipes i2am,daam",
    "diff {t} {t}",
)


def unsafe(text: str) -> set[str]:
    """Characters that act on a terminal rather than show on it."""
    return {c for c in text if c not in "\n\t" and (unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp"))}


def evil_trace(path: Path, status: str = "complete") -> Path:
    """A trace with such text wherever its format lets one be written."""
    layers = (*default_layers()[:1], reference_layer("unet.mid.attn2", (4, 3), text=3, call=1))
    words = (Word(f"dog{EVIL}", 0, 1), Word("cat", 1, 2))
    texts = [Text("text", f"a {EVIL}", (f"dog{EVIL}", f"cat{EVIL}", "pad"), words, tokenizer=EVIL)]
    facts = {"demo": EVIL, EVIL: [EVIL]}
    synthetic_trace(path, layers=layers, texts=texts, facts=facts, status=status, steps=2, model=EVIL, reason=EVIL)
    return path


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evil") / "with\x1b[31m\u202e"
    folder.mkdir()
    return evil_trace(folder / "run.zarr")


@pytest.mark.parametrize("extra", ["", " --json"])
@pytest.mark.parametrize("line", COMMANDS)
def test_no_command_prints_a_control_character(
    evil: Path, line: str, extra: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run([part.format(t=evil, out=tmp_path) for part in (line + extra).split(" ")])
    said = capsys.readouterr()
    assert code != 1, said.err
    assert unsafe(said.out + said.err) == set()


def test_the_reason_of_an_interrupted_run_and_the_failure_are_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = evil_trace(tmp_path / "run.zarr", "interrupted")
    assert run(["info", str(path)]) == 4
    assert run(["info", "--partial", str(path)]) == 0
    said = capsys.readouterr()
    assert unsafe(said.out + said.err) == set()
    assert "title" in said.out


def test_no_trace_writes_a_line_of_its_own(evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("info", "words", "verify", "diagnose"):
        assert run([command, str(evil)]) == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("y")]


def test_a_notebook_shows_no_control_character(evil: Path) -> None:
    trace = open_trace(evil)
    assert unsafe(trace._repr_html_() + repr(trace)) == set()
    assert unsafe(repr(word_map(trace, "cat"))) == set()
    assert list_words(trace)[0].word.startswith("dog\x1b")  # the value itself is as it was recorded


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("command", ["info", "words", "verify"])
def test_a_terminal_that_lacks_a_character_is_no_failure(tmp_path: Path, encoding: str, command: str) -> None:
    folder = tmp_path / "\u56fe\u753b"
    folder.mkdir()
    path = evil_trace(folder / "run.zarr")
    program = (sys.executable, "-P", "-m", "i2am.analyzer.cli")
    done = subprocess.run(
        [*program, command, str(path)], capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 0, done.stderr
    if (command, encoding) == ("verify", "cp1252"):  # click makes UTF-8 of ASCII
        assert b"\\u56fe" in done.stdout


def test_an_error_names_a_file_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TraceError):
        open_trace(tmp_path / "\x1b[2J.zarr")
    assert run(["info", str(tmp_path / "\x1b[2J\udcff.zarr")]) == 3
    assert unsafe(capsys.readouterr().err) == set()
