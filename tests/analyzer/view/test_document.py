"""HTML documents: modules become one script, the policy names its hash, and nothing that a trace says is HTML."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from i2am.analyzer.view.document import SERVED_POLICY, carried, join_modules, joined_document, json_text, page_files, served_document

pytestmark = pytest.mark.analyzer

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"


class Parsed(HTMLParser):
    """The elements of a document, and the text within scripts and styles."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[dict[str, str | None], str]] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}", {}))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.inside.append((self.elements[-1][1], data))


@pytest.mark.parametrize("page", ["index", "gallery"])
def test_the_policy_allows_what_is_inside_and_nothing_else(page: str) -> None:
    found = Parsed(joined_document(page, {"overview": "{}"}))  # type: ignore[arg-type]
    (policy,) = [attrs["content"] or "" for tag, attrs in found.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert set(rules) == {"default-src", "base-uri", "form-action", "script-src", "style-src", "img-src"}
    assert rules["img-src"] == "data: blob:"
    code = {attrs.get("type", "style"): text for attrs, text in found.inside if text.strip() and "id" not in attrs}
    for rule, kind in (("script-src", "module"), ("style-src", "style")):
        digest = base64.b64encode(hashlib.sha256(code[kind].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


@pytest.mark.parametrize("page", ["index", "gallery"])
def test_a_file_asks_for_nothing(page: str) -> None:
    found = Parsed(joined_document(page, {"overview": "{}"}))  # type: ignore[arg-type]
    asked = [attrs[name] for _, attrs in found.elements for name in ("src", "href", "style", "onclick", "onload") if name in attrs]
    assert set(asked) <= {"data:,"}
    assert not any(name.startswith("on") for _, attrs in found.elements for name in attrs)
    style = next(text for attrs, text in found.inside if not attrs)
    assert "url(" not in style and "@import" not in style


@pytest.mark.parametrize("page", ["index", "gallery"])
def test_a_page_of_the_server_has_its_parts_beside_it(page: str) -> None:
    found = Parsed(served_document(page, {"overview": "overview"}))  # type: ignore[arg-type]
    sources = [attrs["src"] for tag, attrs in found.elements if tag == "script" and "src" in attrs]
    assert sources and set(sources) <= set(page_files())
    assert ("script", {"type": "application/json", "id": "overview", "data-src": "overview"}) in found.elements
    assert not [text for _, text in found.inside if text.strip()], "nothing inline, which its policy forbids"
    assert "unsafe" not in SERVED_POLICY and "default-src 'none'" in SERVED_POLICY


def test_no_file_of_the_page_ends_the_element_that_it_stands_in() -> None:
    for name, content in page_files().items():
        if not name.endswith(".html"):
            assert not re.search(rb"</script|</style|<!--", content, re.IGNORECASE), name


def test_data_cannot_end_the_element_that_it_stands_in() -> None:
    page = joined_document("gallery", {"gallery": json_text({"title": HOSTILE}), "overview": carried({HOSTILE: HOSTILE.encode()})})
    found = Parsed(page)
    assert "img" not in {tag for tag, _ in found.elements}
    texts = {attrs["id"]: text for attrs, text in found.inside if attrs.get("id")}
    assert json.loads(texts["gallery"]) == {"title": HOSTILE}
    assert json.loads(texts["overview"])["index"] == {HOSTILE: [0, len(HOSTILE)]}


def test_carried_files_lie_one_after_another() -> None:
    contents = {"zarr.json": b"{}", "b/c.0": bytes(range(256)), "a/c": b""}
    document = json.loads(carried(contents))
    data = base64.b64decode(document["data"])
    assert {path: data[start:stop] for path, (start, stop) in document["index"].items()} == contents


MODULES = {
    "main.js": 'import { two, Three as Four } from "./part.js";\nimport * as deep from "./deep.js";\n'
    "console.log(two, new Four().name, deep.one, await deep.later());\n",
    "part.js": 'import { $, one } from "./deep.js";\nexport const two = one + $();\nexport class Three { name = "three"; }\n',
    "deep.js": "export const $ = () => 1;\nexport const one = $();\nconst hidden = 4;\nexport async function later() { return hidden; }\n",
}


def test_modules_become_one_script_in_the_order_of_their_imports() -> None:
    script = join_modules(MODULES, "main")
    assert script.index("const one") < script.index("const two") < script.index("console.log")
    assert script.count("const one") == 1
    assert "import " not in script and "export " not in script
    node = shutil.which("node")
    if node:
        shown = subprocess.run([node, "--input-type=module"], input=script, capture_output=True, text=True, check=True)
        assert shown.stdout == "2 three 1 4\n"


def test_modules_in_a_circle_are_said() -> None:
    circle = {"a.js": 'import { b } from "./b.js";\nexport const a = 1;', "b.js": 'import { a } from "./a.js";\nexport const b = 1;'}
    with pytest.raises(AssertionError, match="a > b > a"):
        join_modules(circle, "a")


@pytest.mark.parametrize(("page", "entry"), [("index.html", "view"), ("gallery.html", "gallery")])
def test_every_name_that_a_module_imports_is_exported(page: str, entry: str) -> None:
    sources = {name: content.decode() for name, content in page_files().items()}
    script = join_modules(sources, entry)
    assert not re.search(r"^\s*(?:import|export)\b", script, re.MULTILINE), "an import or export in a form that cannot be joined"
    for source in sources.values():
        for names, module in re.findall(r'^import \{ ([^}]*) \} from "\./(\w+)\.js";', source, re.MULTILINE):
            declared = set(re.findall(r"^export (?:async )?(?:function|const|class) ([\w$]+)", sources[f"{module}.js"], re.MULTILINE))
            assert {name.partition(" as ")[0] for name in names.split(", ")} <= declared, module


def test_modules_that_declare_the_same_name_are_said() -> None:
    twice = {"a.js": 'import { b } from "./b.js";\nconst same = 1;', "b.js": "const same = 2;\nexport const b = same;"}
    with pytest.raises(AssertionError, match="two modules of the page declare same"):
        join_modules(twice, "a")
