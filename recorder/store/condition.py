"""What lies at a trace's path, as its own files say it: complete, partial, missing or broken. Only names, sizes and ledgers are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from ...schema.errors import CorruptTrace, UnknownVersion
from ...schema.journal import MOST_LEDGER_BYTES, decode_manifest
from ...schema.layout import JOURNAL, MANIFEST, ROOT
from ...schema.messages import plain
from .files import TEMPORARY, read_record

State: TypeAlias = Literal["complete", "partial", "missing", "broken"]
STATES: Final[tuple[State, ...]] = get_args(State)


@dataclass(frozen=True, slots=True)
class Condition:
    """What became of a recording."""

    state: State
    why: str = ""
    """Why it is not complete."""


def find_condition(path: Path) -> Condition:
    """The condition of what lies at a path; a complete trace has every file of its manifest, of the size that stands there."""
    if not os.path.lexists(path):
        return Condition("missing")
    try:
        if (record := read_record(path)) is None:
            begun = path.is_dir() and all(entry.name == ROOT + TEMPORARY for entry in path.iterdir())
            return (
                Condition("partial", "nothing was recorded yet")
                if begun
                else Condition("broken", "it is no trace, or its root was changed")
            )
        if record.get("status") != "complete":
            return Condition("partial", _progress(path, record))
        problem = _first_problem(path)
    except OSError as error:
        problem = f"{error.filename} cannot be read ({error.strerror})"
    return Condition("broken", problem) if problem else Condition("complete")


def _progress(path: Path, record: dict[str, object]) -> str:
    journal = path / JOURNAL
    steps = journal.read_bytes().count(b"\n") if journal.exists() else 0
    reason = f": {record['reason']}" if record.get("reason") else ""
    return plain(f"{record.get('status')}{reason}; {steps} of {record.get('steps')} steps are whole")


def _first_problem(path: Path) -> str:
    """The first file that is not as the manifest says; empty if all are."""
    try:
        if (path / MANIFEST).stat().st_size > MOST_LEDGER_BYTES:
            return f"{MANIFEST} is larger than any"
        _, files = decode_manifest((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (CorruptTrace, UnknownVersion) as error:
        return str(error)
    for name, given in files.items():
        try:
            size = os.stat(path / name).st_size
        except FileNotFoundError:
            return f"{name} is missing"
        if size != given.nbytes:
            return f"{name} has {size} bytes instead of {given.nbytes}"
    return ""
