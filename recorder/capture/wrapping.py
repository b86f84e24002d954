"""A method wrapped on its class, for as long as any block that asked for it lasts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import Any, Final, TypeAlias

Wrap: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

_lock: Final = RLock()
_wrapped: Final[dict[tuple[type, str], _Method]] = {}


@contextmanager
def replaced(owner: type, name: str, wrap: Wrap, *, anywhere: bool = False) -> Iterator[None]:
    """Wrap a method on its class for a while; the signature, which pipelines inspect, stays.

    On the class, because copies of an instance would carry a wrapper that points at the original. Blocks begin and end in any order and
    in any thread: the first puts one method on the class for all of them, and the last takes it off. Unless `anywhere`, calls of other
    threads are not shown to `wrap`.
    """
    shown = (None if anywhere else get_ident(), wrap)
    with _lock:
        method = _wrapped.get((owner, name)) or _wrapped.setdefault((owner, name), _Method(owner, name))
        method.wraps.append(shown)
    try:
        yield
    finally:
        with _lock:
            method.wraps.remove(shown)
            if not method.wraps:
                del _wrapped[owner, name]
                method.take_off()


def only_here(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of a module that does nothing in other threads, whose pipelines may share the module."""
    thread = get_ident()
    return lambda *args: hook(*args) if get_ident() == thread else None


class _Method:
    """What stands on a class in place of one of its methods; without wraps it is that method."""

    def __init__(self, owner: type, name: str) -> None:
        self.wraps: list[tuple[int | None, Wrap]] = []
        self._owner, self._name, self._own = owner, name, vars(owner).get(name)
        original, wraps = getattr(owner, name), self.wraps

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            called = original
            for thread, wrap in tuple(wraps):
                if thread in (None, get_ident()):
                    called = functools.wraps(original)(wrap(called))
            return called(*args, **kwargs)

        self._call = call
        setattr(owner, name, call)

    def take_off(self) -> None:
        """Bring back what was there; what somebody has put over it since is left, and goes through to it."""
        if vars(self._owner).get(self._name) is not self._call:
            return
        if self._own is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._own)
