"""Rows of a dataset on disk as they are finished, so that what ends a run costs no row: JSON lines beside the table they will make.

    table.csv.rows.jsonl            of a whole run
    table.csv.rows-3-of-16.jsonl    of one share of it

The first line says what was asked. A row counts for the next run if the question is the same and its trace is what it was, or is gone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeAlias

from ...schema.errors import AlreadyExists, InvalidInput
from ...schema.messages import option
from ..methods.recipes import get_recipe
from ..store.discovery import Member
from .rows import DatasetRequest, TraceScores, identify

Share: TypeAlias = tuple[int, int]
"""(i, n): the i-th of n shares of a dataset, from 1."""

FORMAT: Final = 1
ENDING: Final = ".jsonl"


@dataclass(frozen=True, slots=True)
class RowFile:
    """The file that one run appends to, and what it and its neighbours held before."""

    path: Path
    question: dict[str, str]
    rows: dict[str, tuple[str, TraceScores]] = field(default_factory=dict)
    """By the trace's path, its name and row."""
    told: dict[str, str] = field(default_factory=dict)
    """By the trace's path, the command that was run after its row."""

    def add(self, member: Member, row: TraceScores) -> None:
        """Append a row."""
        facts = {name: value for name, value in dataclasses.asdict(row).items() if value}
        self.rows[member.place] = (member.name, row)
        self._append({"trace": member.name, "path": member.place, "row": facts})

    def tell(self, member: Member, command: str) -> None:
        """Note that the command after a row was run."""
        self._append({"after": command, "path": member.place})

    def known(self, member: Member) -> TraceScores | None:
        """The row of a trace that was finished before and has not changed since."""
        _, row = self.rows.get(member.place, ("", None))
        return row if row is not None and (is_gone(member) or identify(member.path) == row.identity) else None

    def gone(self, members: Iterable[Member]) -> list[Member]:
        """Traces that have a row, and are neither asked for now nor there any more."""
        named = {member.place for member in members}
        found = (Member(name, Path(path)) for path, (name, _) in self.rows.items() if path not in named and "://" not in path)
        return [member for member in found if is_gone(member)]

    def _append(self, line: dict[str, Any]) -> None:
        """One line in one write: what is killed leaves it whole or torn, and never in the middle of another's."""
        new = not self.path.exists()
        with open(self.path, "ab", buffering=0) as file:
            first = encode({"i2am rows": FORMAT, "question": self.question}) if new else b""
            file.write(first + encode(line))


def is_gone(member: Member) -> bool:
    """Whether nothing lies at a trace's path any more; of an address it is not asked."""
    return isinstance(member.path, Path) and not os.path.lexists(member.path)


def open_rows(out: Path, request: DatasetRequest, share: Share | None = None, *, resume: bool = False, overwrite: bool = False) -> RowFile:
    """The file for the rows of a table, and with `resume` those that are there already, of all shares.

    Raises   AlreadyExists if a run left rows that are neither to be resumed nor overwritten, InvalidInput if they are of another question
    """
    which = "" if share is None else f"-{share[0]}-of-{share[1]}"
    path, others = out.with_name(f"{out.name}.rows{which}{ENDING}"), list_files(out)
    mine = [path] if share is not None else others
    if not resume and overwrite:
        for file in mine:
            file.unlink(missing_ok=True)
    if left := [file for file in mine if not resume and file.exists()]:
        how = f"add {option('resume', True)} to go on from there, or {option('overwrite', True)} to begin anew"
        raise AlreadyExists(f"{left[0]} has rows of a run that did not end, or skipped traces; {how}")
    found = RowFile(path, describe(request))
    for file in (file for file in others if file.exists() and (resume or share is not None)):
        _read(file, found)
    return found


def list_files(out: Path) -> list[Path]:
    """The files of rows beside a table, of a whole run and of shares."""
    names = (path.name for path in out.parent.iterdir())
    return [out.with_name(name) for name in sorted(names) if name.startswith(f"{out.name}.rows") and name.endswith(ENDING)]


def describe(request: DatasetRequest) -> dict[str, str]:
    """What was asked, and by which release, as texts that differ where numbers could."""
    files = {name: Path(value) for name in ("mask", "reference_mask", "truth") if (value := getattr(request, name)) is not None}
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path.is_file()}
    ranked = None if request.ranked is None else hashlib.sha256(repr(request.ranked.to_dict()).encode()).hexdigest()
    plain: dict[str, object] = {"metric": request.metrics, "recipe": get_recipe(request.recipe).label}
    plain |= {name: getattr(request, name) for name in ("partial", "optional", "mask", "reference_mask", "truth")}
    selected = {name: value for name, value in request.select.options().items() if value is not None}
    facts = {**plain, **selected, **request.settings, **sums}
    return {name: repr(value) for name, value in {**facts, "heads_from": ranked, "release": version("i2am")}.items()}


def share_of(members: Iterable[Member], share: Share) -> list[Member]:
    """The i-th of n shares: every n-th trace in the order of their paths, the same whoever asks."""
    return sorted(members, key=lambda member: member.place)[share[0] - 1 :: share[1]]


def encode(line: dict[str, Any]) -> bytes:
    """A line of JSON."""
    return json.dumps(line).encode() + b"\n"


def _read(path: Path, found: RowFile) -> None:
    """Add the rows of a file; what a kill tore is passed over.

    Raises   InvalidInput if they answer another question
    """
    data = path.read_bytes()
    lines = [entry for text in data.split(b"\n") if (entry := _parse(text)) is not None]
    if path == found.path and not lines:
        path.unlink()  # not even its first line was finished
    elif path == found.path and not data.endswith(b"\n"):
        with open(path, "ab") as file:
            file.write(b"\n")
    if not lines:
        return
    if lines[0].get("i2am rows") != FORMAT:
        raise InvalidInput(f"{path} holds no rows that this release wrote; remove it to begin anew")
    asked = lines[0]["question"]
    if other := sorted(name for name in {*asked, *found.question} if asked.get(name) != found.question.get(name)):
        was, now = (each.get(other[0], "nothing") for each in (asked, found.question))
        how = f"ask the same, add {option('overwrite', True)} without {option('resume')} to begin anew, or choose another output"
        raise InvalidInput(f"{path} has rows of another question ({other[0]}: {was} then, {now} now); {how}")
    for entry in lines[1:]:
        if "after" in entry:
            found.told[entry["path"]] = entry["after"]
        else:
            row = entry["row"]
            shape = {axis: _tuple(places) for axis, places in row.pop("shape", {}).items()}
            found.rows[entry["path"]] = (entry["trace"], TraceScores(**row, shape=shape))


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(text)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
