"""A method wrapped on its class, for as long as a block lasts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Wrap a method on its class for a while; the signature, which pipelines inspect, stays.

    On the class, because copies of an instance would carry a wrapper that points at the original.
    """
    original, own = getattr(owner, name), name in owner.__dict__
    setattr(owner, name, functools.wraps(original)(wrap(original)))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
