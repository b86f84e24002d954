"""What a server answers at which path: the page of one run or two, and a gallery whose runs are opened when they are asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from pathlib import PurePath
from typing import Final

from ...schema.errors import InvalidInput
from .document import TYPES, Page, carried, json_text, page_files, served_document
from .exact import NewestFirst, answer_exactly, draw_exactly
from .gallery import Gallery
from .runs import Run
from .server import Answer, Find, Reply, refuse

JSON: Final = "application/json"
OVERVIEWS: Final = ("overview", "overview-b")
"""What carries the first run and the second."""
NAMES: Final = "ab"
MOST_OPEN: Final = 4
"""Runs of a gallery that are kept in memory."""


def run_routes(open: Callable[[int], Run], count: int, newest: NewestFirst[Reply]) -> Find:
    """The page of a run, or of two side by side, its data, and exact answers; `open` gives each when it is first asked for."""
    names = NAMES[:count]

    def carrying(number: int) -> Answer:
        return lambda _: Reply(carried(open(number).overview.files).encode(), JSON)

    def asking(name: str, reply: Callable[[Run, Mapping[str, str]], Reply]) -> Answer:
        def answer(asked: Mapping[str, str]) -> Reply:
            which = asked.get("run", "a")
            if len(which) != 1 or which not in names:
                raise InvalidInput(f"run={which!r} of a question; expected {' or '.join(names)}")
            run = open(names.index(which))
            rest = {key: value for key, value in asked.items() if key != "run"}
            found = newest.ask(f"{name} {which}", lambda: reply(run, rest))
            return found or refuse(HTTPStatus.CONFLICT, "a newer question came first")

        return answer

    table = _page("index", {name: name for name in OVERVIEWS[:count]})
    table |= {name: carrying(number) for number, name in enumerate(OVERVIEWS[:count])}
    table |= {"exact": asking("exact", _exact), "picture.png": asking("picture", _picture)}
    return table.get


def gallery_routes(gallery: Gallery, make: Callable[[int], Run], newest: NewestFirst[Reply]) -> Find:
    """The gallery, and below `runs/N/` the page of its N-th trace; `make` opens it."""
    lock, opened = threading.Lock(), lru_cache(maxsize=MOST_OPEN)(make)

    def open(index: int) -> Run:
        with lock:  # two requests at once must not scan a trace twice
            return opened(index)

    hrefs = {index: f"runs/{index}/" for index in range(len(gallery.cards))}
    routes = _page("gallery", {"gallery": "gallery"})
    routes["gallery"] = lambda _: Reply(json_text(gallery.to_json(hrefs)).encode(), JSON)

    def routes_of(index: int) -> Find:
        return run_routes(lambda _: open(index), 1, newest)

    tables = {href: routes_of(index) for index, href in hrefs.items()}

    def find(path: str) -> Answer | None:
        if path in routes:
            return routes[path]
        start, slash, rest = path.rpartition("/")
        table = tables.get(f"{start}{slash}")
        return None if table is None else table(rest)

    return find


def _page(page: Page, data: Mapping[str, str]) -> dict[str, Answer]:
    """A page and the files that it is made of."""

    def always(content: bytes, suffix: str) -> Answer:
        return lambda _: Reply(content, TYPES[suffix])

    files = {name: always(content, PurePath(name).suffix) for name, content in page_files().items() if not name.endswith(".html")}
    return {**files, "": always(served_document(page, data), ".html")}


def _exact(run: Run, asked: Mapping[str, str]) -> Reply:
    facts, numbers = answer_exactly(run, asked)
    return Reply(numbers, "application/octet-stream", headers={"X-I2AM": json.dumps(facts)})


def _picture(run: Run, asked: Mapping[str, str]) -> Reply:
    return Reply(draw_exactly(run, asked), "image/png")
