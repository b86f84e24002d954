"""The API reference: every name that a face hands on, by folder, and docstrings of this house as reStructuredText."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT / "docs/api/parameters.md"
FACT = re.compile(r"([A-Z][a-z]+) {2,}(\S.*)")
"""A line such as `Range    [0, 1]`."""
LOGGER = logging.getLogger(__name__)


def names_of(face: str) -> dict[str, str]:
    """Every public name of a face, and the module below the face that defines it, in the order of the face."""
    folder = ROOT / face.removeprefix("i2am.").replace(".", "/")
    stub = folder / "__init__.pyi"
    tree = ast.parse((stub if stub.exists() else folder / "__init__.py").read_text(encoding="utf-8"))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return {alias.asname: node.module or "" for node in froms for alias in node.names if alias.asname}


def list_names(face: str) -> str:
    """Headings and directives of a face's page."""
    lines, names = [], names_of(face)
    for room in dict.fromkeys(module.partition(".")[0] for module in names.values()):
        about = inspect.getdoc(importlib.import_module(f"{face}.{room}")) or ""
        lines += [f"## {room}", "", about.partition("\n\n")[0], "", "```{eval-rst}"]
        lines += [line for name, module in names.items() if module.partition(".")[0] == room for line in directive(face, name, module)]
        lines += ["```", ""]
    return "\n".join(lines)


def directive(face: str, name: str, module: str) -> list[str]:
    """What has autodoc document one name."""
    found = getattr(importlib.import_module(face), name)
    if inspect.isclass(found):
        kind = "exception" if issubclass(found, Exception) else "class"
        return [f".. auto{kind}:: {face}.{name}", *(["   :members:"] if kind == "class" else []), ""]
    if callable(found):
        return [f".. autofunction:: {face}.{name}", ""]
    written = ModuleAnalyzer.for_module(f"{face}.{module}").find_attr_docs()[("", name)]
    return [f".. py:data:: {face}.{name}", "", *(f"   {escape(line)}" for line in written), ""]


def shared_parameters() -> dict[str, str]:
    """What parameters of one name mean in every function, by docs/api/parameters.md."""
    rows = re.findall(r"^\| (`.+?`) \| (.+?) \|$", SHARED.read_text(encoding="utf-8"), flags=re.M)
    return {name: meaning for names, meaning in rows for name in re.findall(r"`(\w+)`", names)}


def write_docstring(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Turn a docstring into reStructuredText in place, its facts after what the parameters mean."""
    text = "\n".join(lines)
    *paragraphs, last = re.split(r"\n{2,}", text.rstrip())
    if not FACT.match(last):
        paragraphs, last = [*paragraphs, last], ""
    missing = list(explain_others(name, found, text)) if what == "function" else []
    lines[:] = [line for paragraph in paragraphs for line in [*write_paragraph(paragraph), ""]]
    lines += [*missing, *write_paragraph(last), ""]


def explain_others(name: str, function: object, text: str) -> Iterator[str]:
    """Fields of the parameters that a function's docstring does not explain; one that is nowhere explained is a warning."""
    own, shared = explained(text), shared_parameters()
    for each in inspect.signature(function).parameters:  # type: ignore[arg-type]
        if each in own:
            continue
        if each not in shared:
            LOGGER.warning("%s: %s is explained neither there nor in docs/api/parameters.md", name, each)
        yield f":param {each}: {escape(shared.get(each, ''))}"


def explained(text: str) -> set[str]:
    """Parameters that a docstring explains: in its table, in a sentence, or by their dims."""
    dims = re.search(r"^Dims +(.*)$", text, flags=re.M)
    return {*re.findall(r"`(\w+)`", text), *re.findall(r"(\w+) \(", dims[1] if dims else "")}


def write_paragraph(paragraph: str) -> Iterator[str]:
    """A paragraph's lines: an example, rows of parameters and facts, or sentences."""
    lines = paragraph.split("\n")
    if all(line.startswith("    ") for line in lines):
        yield from [".. code-block:: python", "", *lines]
        return
    for line in lines:
        fact = FACT.match(line)
        row = re.match(r"((?:`\w+`(?:, )?)+) {2,}(\S.*)", line)
        if fact:
            yield f":{fact[1]}: {escape(fact[2])}"
        elif row:
            yield from (f":param {name}: {escape(row[2])}" for name in re.findall(r"`(\w+)`", row[1]))
        else:
            yield escape(line)


def escape(line: str) -> str:
    """A line with its `code` as reStructuredText has it, public names as links, and all other marks as plain characters."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(code(part[1:-1]) if part.startswith("`") else re.sub(r"([*|\\]|_\b)", r"\\\1", part) for part in parts)


def code(text: str) -> str:
    """A link if it names something public."""
    for face in ("i2am.analyzer", "i2am.recorder", "i2am.schema"):
        if text in names_of(face):
            return f":py:obj:`{text} <{face}.{text}>`"
    return f"``{text}``"
