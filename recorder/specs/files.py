"""The files that a spec or a manifest names and that lie elsewhere: what they hold becomes part of the trace. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...schema.messages import listed, plain
from .spec import read_toml


def named_files(path: Path) -> list[Path]:
    """Pictures, truth and lines of text that a spec, or a file of probes, names.

    Raises   InvalidInput
    """
    document = read_toml(path, "spec", "the path of a TOML file")
    probes = [value for value in document.get("probes", {}).values() if isinstance(value, dict)]
    record = document.get("record", {})
    named = [
        document.get("images", {}),
        record.get("truth") if isinstance(record, dict) else None,
        *({"images": one.get("images"), "lines": one.get("lines")} for one in probes),
    ]
    return [path.parent / Path(text).expanduser() for text in _texts(named)]


def note_outside(what: str, files: Iterable[Path], folders: Iterable[Path]) -> str:
    """A sentence about those of the files that lie in none of the folders, links followed; empty if there are none."""
    inside = [folder.resolve() for folder in folders]
    found = dict.fromkeys(file.resolve() for file in files)
    outside = [str(file) for file in found if not any(file.is_relative_to(folder) for folder in inside)]
    return f"note: {what} reads files outside its folder, which the trace will hold: {plain(listed(outside))}" if outside else ""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
