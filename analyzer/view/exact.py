"""Exact answers to what a page asks of a trace: where a patch looked, who used a token, and their pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import xarray as xr

from ...schema.errors import InvalidInput
from ...schema.messages import guess, listed
from ...schema.selection import pick_positions
from ..facts import MapFacts
from ..maps.attribution import g2r, r2g, sram, token_map
from ..methods.recipes import get_recipe
from ..output.illustration import illustrate, provenance
from ..output.sheets import encode_png
from .runs import Run

T = TypeVar("T")

FIELDS: Final = ("run", "view", "at", "token", "map", "layers", "heads", "time")
"""What a question may say; all but one of `at`, `token` and `map` may be left out."""
MAPS: Final[dict[str, Callable[..., xr.DataArray]]] = {"r2g": r2g, "g2r": g2r}


def answer_exactly(run: Run, asked: Mapping[str, str]) -> tuple[dict[str, Any], bytes]:
    """What the numbers are that a question asks for, and they themselves as little-endian float32; raises as `ask`."""
    map = ask(run, asked).compute()
    steps = len(run.steps_of(*_numbers("time", asked["time"]))) if "time" in asked else len(run.trace.present)
    facts = {"dims": list(map.dims), "shape": list(map.shape), "steps": steps, "calls": MapFacts.of(map).calls}
    return facts, map.values.astype("<f4").tobytes()


def draw_exactly(run: Run, asked: Mapping[str, str]) -> bytes:
    """The picture that `i2am map -o FILE.png` writes of the same map; raises as `ask`."""
    map = ask(run, asked)
    return encode_png(illustrate(run.trace, map.compute(), at=map.attrs.get("at")), provenance(map))


def ask(run: Run, asked: Mapping[str, str]) -> xr.DataArray:
    """The lazy map that a question asks for, of the sample, branch, token group and layers that its view shows.

    Raises   InvalidInput for what is no question, UnknownSelection for what the trace does not have
    """
    if unknown := [name for name in asked if name not in FIELDS]:
        raise InvalidInput(f"a question has no field {unknown[0]!r}; {guess(unknown[0], FIELDS)}it has {listed(FIELDS)}")
    views = run.overview.facts["views"]
    numbers = pick_positions(_numbers("view", asked.get("view", "0")), len(views), "view")
    if len(numbers) > 1:
        raise InvalidInput(f"a question is of one view, got {listed(map(str, numbers))}")
    view = views[numbers[0]]
    options: dict[str, Any] = {name: view[name] for name in ("sample", "branch", "group")}
    options["layers"] = [layer["index"] for layer in view["layers"]]
    options |= {name: _numbers(name, asked[name]) for name in ("layers", "heads") if name in asked}
    if "time" in asked:
        options["steps"] = run.steps_of(*_numbers("time", asked["time"]))
    match [(name, asked[name]) for name in ("at", "token", "map") if name in asked]:
        case [("at", patch)]:
            return sram(run.trace, tuple(_numbers("at", patch)), **options)
        case [("token", token)]:
            return token_map(run.trace, _numbers("token", token), recipe=get_recipe("i2am", r2g="keys"), **options)
        case [("map", name)] if name in MAPS:
            return MAPS[name](run.trace, **options)
    raise InvalidInput(f"a question is of one patch (at), one token, or one map ({listed(MAPS)})")


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidInput(f"{name}={text!r} of a question; expected whole numbers with commas between") from None


@dataclass(slots=True)
class _Question(Generic[T]):
    work: Callable[[], T]
    ready: threading.Event = field(default_factory=threading.Event)
    answer: T | None = None
    error: BaseException | None = None


class NewestFirst(Generic[T]):
    """One thread that answers questions, the newest first; a question that still waits when a newer one of its kind comes is let go."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Question[T]] = {}
        self._news = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def ask(self, kind: str, work: Callable[[], T]) -> T | None:
        """What `work` returns or raises, done in the one thread; None if a newer question of this kind came before its turn."""
        context = copy_context()  # which says how messages spell options
        question = _Question(lambda: context.run(work))
        with self._news:
            older = self._waiting.pop(kind, None)
            self._waiting[kind] = question
            self._news.notify()
        if older is not None:
            older.ready.set()
        question.ready.wait()
        if question.error is not None:
            raise question.error
        return question.answer

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting)
                _, question = self._waiting.popitem()
            try:
                question.answer = question.work()
            except BaseException as error:
                question.error = error
            question.ready.set()
