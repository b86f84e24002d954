"""Every code block, command, import and path that a page or an example shows exists."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from repository import ROOT

from i2am.analyzer.cli.group import i2am

FACES = ("i2am.analyzer", "i2am.recorder", "i2am.schema", "i2am.recorder.demo", "i2am.recorder.custom")
"""What users import; the last two are the models that come with i2am."""
ENTRY = "i2am.analyzer.cli"
"""What launchers start: `--module i2am.analyzer.cli`."""
MARKDOWN = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "schema/README.md", "recorder/demo/weights/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROGRAMS = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "examples/papers").glob("*.py")])
SPECS = sorted([*(ROOT / "examples").glob("*.toml"), *(ROOT / "examples/papers").glob("*.toml")])
LANGUAGES = {"python", "sh", "toml", "csv", ""}
FOLDERS = "analyzer|recorder|schema|tests|benchmarks|examples|docs"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def hands_on(module: str, wanted: str) -> bool:
    """Whether a face has this name, and not just a folder or module called so."""
    return module in FACES and not isinstance(getattr(importlib.import_module(module), wanted, importlib), ModuleType)


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S) if kind == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of every `i2am` command line: in blocks, in `code` within a sentence, in comments and docstrings of examples."""
    text = read(page)
    shown = "".join(blocks(text, "sh")) if page.suffix == ".md" else text
    for line in [line.strip("# ") for line in shown.splitlines()] + re.findall(r"`(i2am [^`]+)`", text):
        start = re.match(r"(?:torchrun .*? |accelerate launch .*? --module )?(?:i2am|i2am\.analyzer\.cli) (?=[a-z-])", line)
        if start:
            yield shlex.split(re.split(r" [>|] ", line[start.end() :])[0], comments=True)


@pytest.mark.parametrize("page", MARKDOWN, ids=name)
def test_blocks_are_python_toml_or_commands(page: Path) -> None:
    text = read(page)
    assert set(re.findall(r"^```(\w+)$", text, flags=re.M)) <= LANGUAGES
    assert not re.search(r"^    (?:i2am |from i2am|python )", text, flags=re.M), (
        "put it into a fenced block, whose language says what it is"
    )
    for block in blocks(text, "python"):
        ast.parse(block)
    for block in blocks(text, "toml"):
        tomllib.loads(block)


@pytest.mark.parametrize("page", [*MARKDOWN, *PROGRAMS], ids=name)
def test_imports_are_of_faces(page: Path) -> None:
    for module, names in re.findall(r"from (i2am[\w.]*) import \(?([\w, \n]+)", read(page)):
        for wanted in re.split(r"[,\s]+", names.partition("\n")[0].strip(", ")):
            assert hands_on(module, wanted), f"{module} hands on no {wanted}"


@pytest.mark.parametrize("page", [*MARKDOWN, *PROGRAMS], ids=name)
def test_names_are_no_deeper_than_faces(page: Path) -> None:
    """A path such as `i2am.analyzer.r2g` names what a face hands on; classes in specs (`module:Class`) are data."""
    for found in re.findall(r"\bi2am\.(?:analyzer|recorder|schema)[\w.]*(?![\w.]*:\w)", read(page)):
        path = found.rstrip(".")
        module, _, attribute = path.rpartition(".")
        assert path in (*FACES, ENTRY) or hands_on(module, attribute), f"{path} is not public"


@pytest.mark.parametrize("page", [*MARKDOWN, *PROGRAMS, *SPECS], ids=name)
def test_commands_and_their_options_exist(page: Path) -> None:
    root = click.Context(i2am, info_name="i2am", **i2am.context_settings)
    for words in commands(page):
        command = i2am.get_command(root, words[0])
        if command is None:
            raise AssertionError(f"i2am {' '.join(words)}: no such command")
        given, context = [word for word in words[1:] if word != "..."], click.Context(command, root, words[0])
        try:
            _, extra, _ = command.make_parser(context).parse_args(given)
        except click.UsageError as error:
            raise AssertionError(f"i2am {' '.join(words)}: {error.format_message()}") from error
        assert not extra, f"i2am {' '.join(words)}: {extra}"


@pytest.mark.parametrize("page", MARKDOWN, ids=name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = read(page)
    links = [page.parent / link for link in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", text)]
    paths = [ROOT / path for path in re.findall(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*\w\.(?:py|pyi|toml|md|json|png))\b", text)]
    assert not [str(path) for path in links + paths if not path.exists()]
