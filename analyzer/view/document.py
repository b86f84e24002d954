"""An HTML document of the page's files: as a server hands it out, or as one file with modules, styles and data inside."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal, TypeAlias

Page: TypeAlias = Literal["index", "gallery"]
"""The page of a run, or that of a folder of runs: an HTML file in `page`."""

TYPES: Final = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
POLICY: Final = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src {image}data: blob:; base-uri 'none'; form-action 'none'"
)
SERVED_POLICY: Final = POLICY.format(script="'self'", style="'self'", image="'self' ") + "; connect-src 'self'; frame-ancestors 'none'"
"""What a page of the server may load: nothing from anywhere else."""

_STYLE: Final = re.compile(r'<link rel="stylesheet" href="([\w-]+\.css)">')
_SCRIPT: Final = re.compile(r'<script type="module" src="([\w-]+)\.js"></script>')
_IMPORT: Final = re.compile(r'^import (?:\* as (\w+)|\{([^}]*)\}) from "\./([\w-]+)\.js";', re.MULTILINE)
_ASIDE: Final = re.compile(r"^[ \t]*(?://[^\n]*\n|/\*.*?\*/[ \t]*\n|\n)|^[ \t]+", re.MULTILINE | re.DOTALL)
"""Lines that are comments alone or empty, and what lines are set in by; no text of the page spans lines."""
_SPACE: Final = re.compile(r"\s*([{};,]|:(?= ))\s*")
"""Blanks around the marks of a style sheet."""
_DECLARED: Final = re.compile(r"^(?:async )?(?:function\*?|const|let|class) ([\w$]+)", re.MULTILINE)
_EXPORT: Final = re.compile(r"^export ((?:async )?(?:function|const|class)\*? ([\w$]+))", re.MULTILINE)


@cache
def page_files() -> Mapping[str, bytes]:
    """The files of the page by name: all that a server ever hands out."""
    return {file.name: file.read_bytes() for file in (files(__package__) / "page").iterdir() if file.name.endswith(tuple(TYPES))}


def served_document(page: Page, data: Mapping[str, str]) -> bytes:
    """The page as a server hands it out: `data` names what to fetch for each element.

    A script element that carries data is told from one that says where it lies by its attribute `data-src`.
    """
    elements = (f'<script type="application/json" id="{name}" data-src="{source}"></script>' for name, source in data.items())
    text = page_files()[f"{page}.html"].decode()
    return text.replace("<!--CSP-->", "").replace("<!--DATA-->", "\n".join(elements)).encode()


def joined_document(page: Page, data: Mapping[str, str]) -> bytes:
    """The page as one file that asks for nothing: `data` is the JSON text of each element.

    Its content security policy names the hashes of its one script and its one style sheet, and allows nothing else.
    """
    sources = {name: content.decode() for name, content in page_files().items()}
    text = sources[f"{page}.html"]
    style, entry = _STYLE.search(text), _SCRIPT.search(text)
    assert style and entry, f"{page}.html names no style sheet or no module"
    css, script = _SPACE.sub(r"\1", _ASIDE.sub("", sources[style[1]])), _ASIDE.sub("", join_modules(sources, entry[1]))
    policy = POLICY.format(script=_sum(script), style=_sum(css), image="")
    elements = (f'<script type="application/json" id="{name}">{written}</script>' for name, written in data.items())
    parts = {
        "<!--CSP-->": f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        style[0]: f"<style>{css}</style>",
        "<!--DATA-->": "\n".join(elements),
        entry[0]: f'<script type="module">{script}</script>',
    }
    pattern = "|".join(map(re.escape, parts))
    return re.sub(pattern, lambda found: parts[found[0]], _ASIDE.sub("", text)).encode()


def join_modules(sources: Mapping[str, str], entry: str) -> str:
    """One script of a module and all that it imports, those first: what modules declare shares one scope.

    Modules have static imports of their neighbours, and exports where a function, a constant or a class is declared.
    """
    order: dict[str, str] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"modules of the page import each other in a circle: {' > '.join((*above, name))}"
        source = sources[f"{name}.js"]
        for found in _IMPORT.finditer(source):
            add(found[3], (*above, name))
        order.setdefault(name, _EXPORT.sub(r"\1", _IMPORT.sub(lambda found: _renamed(found, sources), source)))

    add(entry, ())
    script = "\n".join(order.values())
    declared = Counter(_DECLARED.findall(script))
    assert max(declared.values(), default=1) == 1, f"two modules of the page declare {declared.most_common(1)[0][0]}"
    return script


def _renamed(found: re.Match[str], sources: Mapping[str, str]) -> str:
    """What an import leaves to say: names that are other here than where they are declared."""
    if found[1]:
        return f"const {found[1]} = {{ {', '.join(name for _, name in _EXPORT.findall(sources[f'{found[3]}.js']))} }};"
    pairs = (part.split(" as ") for part in found[2].split(",") if " as " in part)
    return " ".join(f"const {new.strip()} = {old.strip()};" for old, new in pairs)


def json_text(value: Any) -> str:
    """JSON that may stand in an HTML document: nothing in it can end the element that it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def carried(contents: Mapping[str, bytes]) -> str:
    """Files as text that a page carries or fetches: where each lies, and base64 of all of them, one after another."""
    index, whole = {}, bytearray()
    for path in sorted(contents):
        index[path] = [len(whole), len(whole) + len(contents[path])]
        whole += contents[path]
    return json_text({"index": index, "data": base64.b64encode(whole).decode()})


def _sum(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
