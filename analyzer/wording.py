"""How a message names the option that helps: `keep='time'` to who calls from Python, `--keep time` to who types a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_typed: ContextVar[bool] = ContextVar("typed", default=False)


def option(name: str, value: str | bool | None = None) -> str:
    """The option of this Python name, as the caller would write it; without a value, just which one it is."""
    if not _typed.get():
        return f"{name}={'' if value is None else repr(value)}"
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None or isinstance(value, bool) else f"{flag} {value}"


def is_typed() -> bool:
    """Whether messages go to who types a command; work that is done elsewhere has to be told."""
    return _typed.get()


@contextmanager
def typed() -> Iterator[None]:
    """Name options as the command line spells them in every message of this block."""
    before = _typed.set(True)
    try:
        yield
    finally:
        _typed.reset(before)
