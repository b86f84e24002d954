"""The site that `make docs` builds of the repository's own pages: README.md is its front, docs/README.md its navigation."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.highlighting import lexers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs")]

import reference  # noqa: E402

project = "i2am"
copyright = "The i2am authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "schema/README.md", "recorder/demo/weights/README.md"]
exclude_patterns = ["build", "demo", ".*"]

html_theme = "furo"
html_title = "i2am"
html_copy_source = False
html_show_sourcelink = False

myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may begin below its own title

lexers["csv"] = TextLexer()

autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100


def navigation() -> str:
    """Every page that the tables of docs/README.md link to, under the headings of these tables."""
    parts, text = ["```{toctree}\n:hidden:\n\n/docs/README\n```\n"], (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for heading, rows in re.findall(r"^\| \*\*(.+?)\*\* \| \|\n((?:\|.*\n)+?)(?=\| \*\*|\Z|\n)", text, flags=re.M):
        links = [(ROOT / "docs" / link).resolve().relative_to(ROOT) for link in re.findall(r"\]\(([^)#]+\.md)\)", rows)]
        pages = "\n".join(f"/{link.with_suffix('')}" for link in links)
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{pages}\n```\n")
    return "\n".join(parts)


def read_source(app: Sphinx, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += "\n" + navigation()
    source[0] = re.sub(r"<!-- names of (i2am\.\w+) -->", lambda found: reference.list_names(found[1]), source[0])


def write_front(app: Sphinx, error: Exception | None) -> None:
    """The front page under the name that web servers look for."""
    if error is None:
        (app.outdir / "index.html").write_bytes((app.outdir / f"{root_doc}.html").read_bytes())


def setup(app: Sphinx) -> None:
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", reference.write_docstring)
    app.connect("build-finished", write_front)
