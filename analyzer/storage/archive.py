"""A trace in a zip file, read in place: members are stored, so that a stretch of a file is a stretch of the archive."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import tee
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...schema.errors import CorruptTrace, NoAnswer
from ...schema.layout import ROOT
from .directory import Directory, Member, NoZip, data_offset, read_directory
from .storage import Bytes, Listing, Part, Storage, sort_name


class Contained(NamedTuple):
    """What an archive holds of a trace."""

    directory: Directory
    top: str
    """The one folder that everything is in, with its slash; empty if there is none."""
    listing: Listing
    """Names as the trace has them."""


class Archive(Storage):
    """The files in a zip file, at its top or in the one folder that it holds. Its directory is read when it is first needed."""

    def __init__(self, inner: Storage, file: str, place: Path | str, expected: str | None = None) -> None:
        self._inner, self._file, self._place, self._expected = inner, file, place, expected
        self._lock = threading.Lock()
        self._contained: Contained | None = None
        self._begins: dict[str, int] = {}

    @property
    def place(self) -> Path | str:
        return self._place

    @property
    def identity(self) -> str:
        return f"{self._inner.identity} {self._file} {self._open().directory.sum}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Archive) and (self._inner, self._file) == (other._inner, other._file)

    def __hash__(self) -> int:
        return hash((self._inner, self._file))

    def __reduce__(self) -> tuple[object, ...]:
        return reopen, (self._inner, self._file, self._place, self._open().directory.sum)

    def describe(self) -> str:
        try:
            if any(name.endswith(".zip") for name in self._open().listing.sizes):
                return f"{self} is a zip file that holds another one, not a trace; unpack the outer one"
            return f"{self} is a zip file without {ROOT} at its top or in its only folder, not a trace"
        except FileNotFoundError:
            return f"there is no {self}"
        except NoZip:
            return f"{self} is a file, not a trace"

    def has(self, name: str) -> bool:
        try:
            return name in self._open().listing.sizes
        except (FileNotFoundError, NoZip):
            return False

    def size(self, name: str) -> int:
        return self._member(name).size

    def list_files(self) -> Listing:
        return self._open().listing

    def fetch(self, parts: Iterable[Part]) -> Iterator[Bytes]:
        planned = ((part, self._member(part.name)) for part in parts)
        asked, answered = tee((part, member, self._reads(part, member)) for part, member in planned)
        data = self._inner.fetch(read for _, _, reads in asked for read in reads)
        for part, member, reads in answered:
            yield self._cut(part, member, reads, [next(data) for _ in reads])

    def _reads(self, part: Part, member: Member) -> list[Part]:
        """What to read for a part: the header along with the beginning of the file, or because the data begins nobody knows where."""
        if part.offset + part.length > member.size:
            raise ValueError(f"it ends {part.offset + part.length - member.size} bytes early")
        if not part.length:
            return []
        head = Part(self._file, member.header, member.begin + member.slack - member.header)
        if member.size <= self._inner.small:
            return [head._replace(length=head.length + member.size)]
        if not part.offset:
            return [head._replace(length=head.length + part.length)]
        data = Part(self._file, member.begin + part.offset, part.length + member.slack)
        return [head, data] if member.slack and part.name not in self._begins else [data]

    def _cut(self, part: Part, member: Member, reads: list[Part], data: list[Bytes]) -> Bytes:
        """The part out of what was read for it, the header checked if it was read."""
        if not data:
            return np.empty(0, np.uint8)
        if reads[0].offset == member.header:
            self._begins[part.name] = data_offset(member, data[0][: member.begin + member.slack - member.header])
        # What was read begins at the header, or so far after the first place where the data can begin.
        before = self._begins.get(part.name, member.begin) - reads[-1].offset + part.offset
        return data[-1][before : before + part.length]

    def _member(self, name: str) -> Member:
        contained = self._open()
        if name not in contained.listing.sizes:
            raise FileNotFoundError(2, "is not in the archive", name)
        return contained.directory.members[contained.top + name]

    def _open(self) -> Contained:
        with self._lock:
            if self._contained is None:
                try:
                    directory = read_directory(self._inner, self._file, str(self))
                except (FileNotFoundError, NoAnswer):
                    raise
                except OSError as error:
                    raise CorruptTrace(f"the archive {self} cannot be read ({error.strerror or error})") from error
                self._contained = _contained(directory)
        if self._expected not in (None, self._contained.directory.sum):
            raise CorruptTrace(f"the archive {self} is not the one that was opened before; it was replaced. Open it again")
        return self._contained


def _contained(directory: Directory) -> Contained:
    """The trace in an archive: at its top, or in the one folder that is there beside what desktops leave."""
    listing = Listing()
    tops = {name.partition("/")[0] for name in directory.members if sort_name(name, Listing())}
    top = f"{tops.pop()}/" if ROOT not in directory.members and len(tops) == 1 else ""
    for name, member in directory.members.items():
        inside = name.startswith(top)
        if sort_name(name[len(top) :] if inside else name, listing):
            listing.sizes[name[len(top) :] if inside else name] = member.size
    return Contained(directory, top, listing)


@lru_cache(maxsize=64)
def reopen(inner: Storage, file: str, place: Path | str, expected: str) -> Archive:
    """The archive that was opened elsewhere, opened once in this process."""
    return Archive(inner, file, place, expected)
