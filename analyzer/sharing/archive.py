"""A zip file of stored members, written from front to back: the same members give the same bytes.

Members are not deflated, so that a reader finds each at its place and checks it by the trace's own sums; offsets and counts
beyond the first format's four and two bytes are written in the form called zip64.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Final

LOCAL: Final = struct.Struct("<IHHHHHIIIHH")
CENTRAL: Final = struct.Struct("<IHHHHHHIIIHHHHHII")
END64: Final = struct.Struct("<IQHHIIQQQQ")
LOCATOR: Final = struct.Struct("<IIQI")
END: Final = struct.Struct("<IHHHHIIH")
VERSION: Final = 20
VERSION64: Final = 45
UNIX: Final = 3 << 8
"""The system whose attributes members have."""
MODE: Final = 0o100644 << 16
DATE: Final = (1 << 5) | 1
"""The first day that a zip file can name, 1980-01-01: when a member was written says nothing."""
MOST: Final = 2**32 - 1
MOST_MEMBERS: Final = 2**16 - 1


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive."""

    name: bytes
    crc: int
    size: int
    offset: int
    """Of its header."""


class Archive:
    """Writes members into an open file, and the directory of them at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members: list[Member] = []
        self._offset = 0

    def add(self, name: str, data: bytes) -> None:
        """Write one member; files of a trace are far smaller than the four gigabytes that one may have."""
        self._members.append(Member(name.encode(), zlib.crc32(data), len(data), self._offset))
        self._write(_header(self._members[-1]))
        self._write(data)

    def resume(self, name: str, size: int, digest: str) -> bool:
        """Take the next member from what the file holds already, if it is this one; else whatever follows is cut off."""
        self._file.seek(self._offset)
        header = self._file.read(LOCAL.size + len(name.encode()))
        data = self._file.read(size)
        member = Member(name.encode(), zlib.crc32(data), size, self._offset)
        if header != _header(member) or hashlib.sha256(data).hexdigest() != digest:
            self._file.seek(self._offset)
            self._file.truncate()
            return False
        self._members.append(member)
        self._offset += len(header) + size
        return True

    def finish(self) -> None:
        """Write the directory, after which nothing can be added."""
        start = self._offset
        for member in self._members:
            self._write(_entry(member))
        size, count = self._offset - start, len(self._members)
        if start >= MOST or size >= MOST or count >= MOST_MEMBERS:
            at = self._offset
            self._write(END64.pack(0x06064B50, END64.size - 12, UNIX | VERSION64, VERSION64, 0, 0, count, count, size, start))
            self._write(LOCATOR.pack(0x07064B50, 0, at, 1))
        few = min(count, MOST_MEMBERS)
        self._write(END.pack(0x06054B50, 0, 0, few, few, min(size, MOST), min(start, MOST), 0))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._offset += len(data)


def _header(member: Member) -> bytes:
    """What stands before a member's bytes."""
    return LOCAL.pack(0x04034B50, VERSION, 0, 0, 0, DATE, member.crc, member.size, member.size, len(member.name), 0) + member.name


def _entry(member: Member) -> bytes:
    """A member's line in the directory."""
    far = member.offset >= MOST
    extra = struct.pack("<HHQ", 1, 8, member.offset) if far else b""
    needed, offset = (VERSION64, MOST) if far else (VERSION, member.offset)
    sizes = (member.crc, member.size, member.size, len(member.name), len(extra), 0, 0, 0, MODE, offset)
    return CENTRAL.pack(0x02014B50, UNIX | needed, needed, 0, 0, 0, DATE, *sizes) + member.name + extra
