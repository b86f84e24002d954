"""The central directory of a zip file: where each stored member lies, read within bounds and believed in nothing that can be checked.

A trace in a zip is read in place, so members must be stored, not deflated, each in a stretch of its own. Names that lead out of the
archive, links, encryption and members that share bytes are refused, whoever made the archive.
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from ...schema.errors import CorruptTrace
from ...schema.journal import MOST_FILES, MOST_NAME
from ...schema.messages import plain, size_text
from .storage import Bytes, Storage

TAIL_BYTES: Final = 2**19
"""Read at once from the end of an archive: the directory of most traces, and with those of `i2am pack` all that opening needs."""
MOST_DIRECTORY: Final = 2**27
MOST_SLACK: Final = 2**17
"""Most bytes between a member's name and its data, and from there to the next member: an extra field and a data descriptor."""
LOCAL_BYTES: Final = 30
_END: Final = struct.Struct("<4s4H2LH")
_LOCATOR: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_SMALL, _LARGE = 2**16 - 1, 2**32 - 1
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
_DESCRIPTOR: Final = 0x8
_UNSAFE: Final = re.compile(r"[\x00-\x1f\\]|^/|^[A-Za-z]:|(^|/)\.{0,2}(/|$)")
AGAIN: Final = "make it again with `i2am pack`, or `zip -0 -r run.zarr.zip run.zarr`"


class NoZip(ValueError):
    """The file has no end of a zip file."""


class Member(NamedTuple):
    """One stored file of an archive."""

    header: int
    """Where its local header begins."""
    name: bytes
    """As the header must repeat it."""
    size: int
    slack: int
    """Bytes up to the next member that are neither header, name nor data; where there are none, it is certain where the data begins."""

    @property
    def begin(self) -> int:
        """The first place where its data can begin."""
        return self.header + LOCAL_BYTES + len(self.name)


@dataclass(frozen=True, slots=True)
class Directory:
    """What an archive holds."""

    members: dict[str, Member]
    sum: str
    """sha256 of the directory's bytes and of where they lie."""


def read_directory(storage: Storage, file: str, shown: str) -> Directory:
    """The members of an archive that is a file of a storage; `shown` is what messages call it.

    Raises   NoZip if it has no end of a zip file, CorruptTrace for one that cannot be, or should not be read, OSError
    """
    total, tail = storage.read_tail(file, TAIL_BYTES)
    data = tail.tobytes()
    try:
        offset, length, count = _find(data, total)
        if length > MOST_DIRECTORY or count > MOST_FILES or count * _ENTRY.size > length:
            raise ValueError(f"its directory claims {count} members in {size_text(length)}, more than a trace has")
        first = total - len(data)
        if offset < first:  # as large as the directory are the documents and tables before it, which are needed next
            data = storage.read_tail(file, min(total - offset + length, total))[1].tobytes()
            first = total - len(data)
        directory = data[offset - first : offset - first + length]
        members = _members(directory, count, offset)
    except NoZip:
        if total < 4 or storage.read(file, 0, 4).tobytes() != b"PK\3\4":
            raise
        raise CorruptTrace(f"the archive {shown} was cut off: it begins as a zip file and does not end as one; copy it again") from None
    except (ValueError, struct.error) as error:
        raise CorruptTrace(f"the archive {shown} cannot be read: {error}; copy it again, or {AGAIN}") from error
    return Directory(members, hashlib.sha256(b"%d %d " % (total, offset) + directory).hexdigest())


def _find(tail: bytes, total: int) -> tuple[int, int, int]:
    """Offset, length and count of the directory."""
    low = max(len(tail) - _END.size - _SMALL, 0)
    at = [m.start() for m in re.finditer(rb"PK\x05\x06", tail[low:]) if m.start() + low + _END.size <= len(tail)]
    ends = [i + low for i in at if i + low + _END.size + int.from_bytes(tail[i + low + 20 : i + low + 22], "little") == len(tail)]
    if not ends:
        raise NoZip("no zip file ends here")
    if len(ends) > 1:
        raise ValueError("it has two ends, so that programs disagree on what is in it")
    end = ends[0]
    _, disk, other, here, count, length, offset, _ = _END.unpack_from(tail, end)
    begin = end
    if end >= _LOCATOR.size and tail[end - _LOCATOR.size : end].startswith(b"PK\6\7"):
        begin, values = _find_large(tail, end - _LOCATOR.size, total)
        classic = (disk, other, here, count, length, offset)
        limits = (_SMALL, _SMALL, _SMALL, _SMALL, _LARGE, _LARGE)
        if any(old not in (new, most) for old, new, most in zip(classic, values, limits, strict=True)):
            raise ValueError("its two ends disagree")
        disk, other, here, count, length, offset = values
    if disk or other or here != count:
        raise ValueError("it is one of several volumes")
    if offset + length != total - len(tail) + begin:
        raise ValueError("its directory does not lie where its end says; it was cut off, or something was put before it")
    return offset, length, count


def _find_large(tail: bytes, locator: int, total: int) -> tuple[int, tuple[int, ...]]:
    """Where the zip64 end begins in the tail, and what it says."""
    _, _, offset, disks = _LOCATOR.unpack_from(tail, locator)
    begin = offset - (total - len(tail))
    if disks > 1 or not 0 <= begin <= locator - _END64.size:
        raise ValueError("its zip64 end is not where it is said to be")
    mark, size, _, _, *values = _END64.unpack_from(tail, begin)
    if mark != b"PK\6\6" or begin + 12 + size != locator:
        raise ValueError("its zip64 end is damaged")
    return begin, tuple(values)


def _members(directory: bytes, count: int, end: int) -> dict[str, Member]:
    """Members by name, folders left out; no two share a byte, and none reaches into the directory, which begins at `end`."""
    entries: dict[str, tuple[int, bytes, int]] = {}
    at = 0
    for _ in range(count):
        mark, _, _, flags, method, _, _, _, packed, size, n, more, comment, disk, _, attributes, header = _ENTRY.unpack_from(directory, at)
        raw = directory[at + _ENTRY.size : at + _ENTRY.size + n]
        extra = directory[at + _ENTRY.size + n : at + _ENTRY.size + n + more]
        at += _ENTRY.size + n + more + comment
        if mark != b"PK\1\2" or at > len(directory):
            raise ValueError("its directory is damaged")
        name = _checked_name(raw, flags)
        size, packed, header, disk = _widen(extra, size, packed, header, disk)
        kind = stat.S_IFMT(attributes >> 16)
        if flags & _ENCRYPTED:
            raise ValueError(f"{plain(name)} is encrypted")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > name.endswith("/"):
            raise ValueError(f"{plain(name)} is a link or a device, not a file")
        if method or packed != size:
            raise ValueError(f"{plain(name)} is compressed by the archive; a trace is packed already, so its files are stored")
        if name in entries:
            raise ValueError(f"it holds {plain(name)} twice")
        if disk or (name.endswith("/") and size):
            raise ValueError(f"{plain(name)} is on another volume, or a folder with bytes")
        entries[name] = header, raw, size
    if at != len(directory):
        raise ValueError("its directory is longer than its members")
    return _placed(entries, end)


def _placed(entries: dict[str, tuple[int, bytes, int]], end: int) -> dict[str, Member]:
    found: dict[str, Member] = {}
    after = end
    for name, (header, raw, size) in sorted(entries.items(), key=lambda item: (item[1][0], item[0]), reverse=True):
        slack = after - (header + LOCAL_BYTES + len(raw) + size)
        if slack < 0:
            raise ValueError(f"{plain(name)} lies outside of it, or in the bytes of another member")
        if slack > MOST_SLACK:
            raise ValueError(f"{size_text(slack)} after {plain(name)} belong to no member")
        after = header
        if not name.endswith("/"):
            found[name] = Member(header, raw, size, slack)
    return dict(reversed(found.items()))


def _checked_name(raw: bytes, flags: int) -> str:
    name = raw.decode("utf-8" if flags & 0x800 else "cp437")
    if len(name) > MOST_NAME + 256 or not name or _UNSAFE.search(name.removesuffix("/")):
        raise ValueError(f"{plain(name[:99])!r} is no name of a file in an archive")
    return name


def _widen(extra: bytes, size: int, packed: int, header: int, disk: int) -> tuple[int, int, int, int]:
    """The fields of an entry that are too small for their values, from its zip64 extra field."""
    fields = [size, packed, header, disk]
    limits = (_LARGE, _LARGE, _LARGE, _SMALL)
    if all(field != most for field, most in zip(fields, limits, strict=True)):
        return size, packed, header, disk
    at, wide = _extra64(extra), 0
    for i, most in enumerate(limits):
        if fields[i] == most:
            width = 8 if i < 3 else 4
            if wide + width > len(at):
                raise ValueError("a member's size is missing")
            fields[i] = int.from_bytes(at[wide : wide + width], "little")
            wide += width
    return fields[0], fields[1], fields[2], fields[3]


def _extra64(extra: bytes) -> bytes:
    """The zip64 field among the extra fields of a header."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""


def data_offset(member: Member, header: Bytes) -> int:
    """Where a member's data begins, from its local header, its name and as much after it as there may be.

    Raises   ValueError if the header does not say of the member what the directory says
    """
    data = header.tobytes()
    mark, _, flags, method, _, _, _, packed, size, n, more = _LOCAL.unpack_from(data)
    if mark != b"PK\3\4" or flags & _ENCRYPTED or method or data[LOCAL_BYTES : LOCAL_BYTES + n] != member.name:
        raise ValueError("the archive's directory and the header before the file say different things of it")
    extra = data[LOCAL_BYTES + n : LOCAL_BYTES + n + more]
    known = (packed, size) == (0, 0) and flags & _DESCRIPTOR
    if _LARGE in (packed, size) and not known:
        size, packed, _, _ = _widen(extra, size, packed, 0, 0)
    if more > member.slack or not (known or packed == size == member.size):
        raise ValueError("the archive's directory and the header before the file give it different sizes")
    return member.begin + int(more)
