"""Zip files of traces, and of what is none: stored, in the order of `i2am pack`, or crafted byte by byte."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DATA = {"probability", "query", "key", "query_lse", "token_lse", "probe_key"}
"""Arrays of attention, which stand first."""


def zip_trace(trace: Path, out: Path, top: str = "", comment: bytes = b"") -> Path:
    """A zip of a trace with its attention first, and documents, tables and pictures at the end."""
    names = sorted(path.relative_to(trace).as_posix() for path in trace.rglob("*") if path.is_file())
    names.sort(key=lambda name: name.endswith(".json") or not set(name.split("/")) & DATA)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment
        for name in names:
            archive.writestr(zipfile.ZipInfo(top + name, (2026, 1, 1, 0, 0, 0)), (trace / name).read_bytes())
    return out


@dataclass
class Entry:
    """One member as its headers say it is; None leaves a field as it is in truth."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    attributes: int = 0o100644 << 16
    local_name: bytes | None = None
    local_size: int | None = None
    local_method: int | None = None
    extra: bytes = b""
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    trailing: bytes = b""


def craft(entries: Iterable[Entry], *, count: int | None = None, shift: int = 0, comment: bytes = b"", before: bytes = b"") -> bytes:
    """A zip file of these members, right or wrong."""
    out, directory, number = bytearray(before), bytearray(), 0
    for entry in entries:
        offset, crc, n = len(out), zlib.crc32(entry.data), len(entry.data)
        local = entry.name if entry.local_name is None else entry.local_name
        size = n if entry.local_size is None else entry.local_size
        method = entry.method if entry.local_method is None else entry.local_method
        out += struct.pack("<4s5H3L2H", b"PK\3\4", 20, entry.flags, method, 0, 33, crc, size, size, len(local), len(entry.extra))
        out += local + entry.extra + entry.data + entry.trailing
        size, packed = (n if given is None else given for given in (entry.size, entry.packed))
        offset = offset if entry.offset is None else entry.offset
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 0x0314, 20, entry.flags, entry.method, 0, 33, crc, packed, size, len(entry.name), 0, 0, 0, 0,
            entry.attributes, offset,
        ) + entry.name  # fmt: skip
        number += 1
    number = number if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number, number, len(directory), len(out) + shift, len(comment))
    return bytes(out + directory + end + comment)
