"""The traces that head counts are made of: open ones, paths, folders and patterns, each recording once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from ...schema.errors import InvalidInput
from ..store.discovery import find_traces
from ..trace.reader import Trace, open_trace

Source: TypeAlias = Trace | str | os.PathLike[str]
Sources: TypeAlias = Iterable[Source] | Source


def list_sources(traces: Sources) -> list[Source]:
    """Traces, and what paths, folders and patterns name, unopened.

    Raises   InvalidInput if there is none; as `find_traces`
    """
    found: list[Source] = []
    for source in [traces] if isinstance(traces, (Trace, str, os.PathLike)) else traces:
        found += [source] if isinstance(source, Trace) else [member.path for member in find_traces(source)]
    if not found:
        raise InvalidInput("there are no traces to count; give one or more")
    return found


def open_source(source: Source) -> Trace:
    """The trace of a source."""
    return source if isinstance(source, Trace) else open_trace(source)


def open_all(traces: Sources) -> list[Trace]:
    """All traces at once, each recording once.

    Raises   InvalidInput if there is none, or one comes twice; as `open_trace`
    """
    found = [open_source(source) for source in list_sources(traces)]
    known: dict[str, Path] = {}
    for trace in found:
        require_new(trace.id, trace.path, known)
    return found


def require_new(name: str, path: Path, known: dict[str, Path]) -> None:
    """Refuse a recording that came before, by its id, and remember it.

    Raises   InvalidInput
    """
    if name in known:
        raise InvalidInput(f"{path} and {known[name]} are the same recording, which would count twice; give it once")
    known[name] = path
