"""Parts of error messages: options as the caller writes them (`keep='time'` or `--keep time`), lists of names, nearest names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SHOWN = 12
"""Names that a message or a summary lists before it says how many more there are."""

_typed: ContextVar[bool] = ContextVar("typed", default=False)


def option(name: str, value: str | bool | None = None) -> str:
    """The option of this Python name, as the caller would write it; without a value, just which one it is."""
    if not _typed.get():
        return f"{name}={'' if value is None else repr(value)}"
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None or isinstance(value, bool) else f"{flag} {value}"


def is_for_shell() -> bool:
    """Whether messages are for the command line; work in other processes has to be told."""
    return _typed.get()


@contextmanager
def for_shell() -> Iterator[None]:
    """Name options as the command line spells them in every message of this block."""
    before = _typed.set(True)
    try:
        yield
    finally:
        _typed.reset(before)


def listed(names: Iterable[str]) -> str:
    """Names for a message: all of them, or the first few and how many more."""
    found = list(names)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (", ".join(found[:SHOWN]) or "none") + more


def nearest(name: str, known: Iterable[str]) -> str:
    """Words that name the nearest of what there is, if anything is near."""
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"; the nearest is {close[0]}" if close else ""
