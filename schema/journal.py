"""The journal of a trace, one line for each committed step, and the manifest of a complete one: both list files with their hashes.

A line that does not end, or an unfinished last one, is what a killed recording leaves; a damaged line anywhere else is corruption.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import CorruptTrace, UnknownVersion
from .layout import JOURNAL, MANIFEST

FileSums: TypeAlias = dict[str, tuple[int, str]]
"""Path from the trace's root -> (bytes, sha256)."""

MANIFEST_VERSION: Final = 1

_ENTRY: Final[dict[str, tuple[type, ...]]] = {
    "step": (int,),
    "evaluation": (int,),
    "timestep": (int, float),
    "sigma": (int, float, type(None)),
    "scheduler_step": (int,),
    "present": (list,),
    "key_step": (dict,),
    "lost": (dict,),
    "files": (dict,),
}


def encode_line(entry: Mapping[str, Any]) -> str:
    """One journal line, newline included, that carries its own checksum."""
    canonical = _canonical(entry)
    return f'{{"crc32":"{_checksum(canonical)}","entry":{canonical}}}\n'


def decode_lines(text: str | bytes) -> list[dict[str, Any]]:
    """The journal's entries in step order, without an unfinished last line.

    Raises   CorruptTrace if a finished line was changed, or the steps are not 0, 1, 2, ...
    """
    lines = (text.decode("utf-8", "replace") if isinstance(text, bytes) else text).split("\n")
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        if number == len(lines) - 1 and not line:
            break
        try:
            entries.append(_decode_line(line, number))
        except CorruptTrace:
            if number == len(lines) - 1:  # no newline after it: the recording was killed while it wrote this line
                break
            raise
    return entries


def steps_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """The table of steps: evaluation, timestep, sigma and scheduler_step of each entry."""
    sigmas = [math.nan if entry["sigma"] is None else entry["sigma"] for entry in entries]
    return {
        "evaluation": np.array([entry["evaluation"] for entry in entries], np.int32),
        "timestep": np.array([entry["timestep"] for entry in entries], np.float64),
        "sigma": np.array(sigmas, np.float64),
        "scheduler_step": np.array([entry["scheduler_step"] for entry in entries], np.int32),
    }


def present_of(entries: Sequence[Mapping[str, Any]], layers: int) -> NDArray[np.bool_]:
    """Whether each layer was called.

    Dims     (step, layer)
    """
    return np.array([[layer in entry["present"] for layer in range(layers)] for entry in entries], bool).reshape(len(entries), layers)


def disk_bytes(path: Path) -> int:
    """Bytes of every file under a folder."""
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


def encode_manifest(trace_id: str, files: Mapping[str, tuple[int, str]]) -> str:
    """The manifest: every file of the trace but itself."""
    listed = {name: [size, digest] for name, (size, digest) in sorted(files.items())}
    return json.dumps({"version": MANIFEST_VERSION, "trace": trace_id, "files": listed}, indent=1) + "\n"


def decode_manifest(text: str | bytes) -> tuple[str, FileSums]:
    """The trace's id and its files.

    Raises   UnknownVersion, CorruptTrace
    """
    try:
        doc = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptTrace(f"{MANIFEST} is not JSON ({error}); the file was changed after the recording") from error
    if not isinstance(doc, dict) or not isinstance(doc.get("trace"), str):
        raise CorruptTrace(f"{MANIFEST} does not name its trace; the file was changed after the recording")
    if doc.get("version") != MANIFEST_VERSION:
        found = doc.get("version")
        raise UnknownVersion(f"{MANIFEST} has version {found!r}; this one reads {MANIFEST_VERSION}. Upgrade: pip install --upgrade i2am")
    return doc["trace"], decode_files(doc.get("files"), MANIFEST)


def decode_files(doc: Any, where: str) -> FileSums:
    """Checked sums of files, none of which lies outside the trace.

    Raises   CorruptTrace
    """
    if not isinstance(doc, dict):
        raise CorruptTrace(f"{where} lists no files; it was changed after the recording")
    return {name: _file_sum(name, value, where) for name, value in doc.items()}


def _file_sum(name: str, value: Any, where: str) -> tuple[int, str]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
        raise CorruptTrace(f"{where} names {name!r}, which is no file of a trace")
    match value:
        case [int(size), str(digest)] if size >= 0 and len(digest) == 64:
            return size, digest
    raise CorruptTrace(f"{where} should give [bytes, sha256] for {name}, but gives {value!r}")


def _decode_line(line: str, number: int) -> dict[str, Any]:
    where = f"{JOURNAL}, line {number + 1},"
    try:
        doc = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorruptTrace(f"{where} is not JSON; the file was changed after the recording") from error
    if not isinstance(doc, dict) or set(doc) != {"crc32", "entry"} or doc["crc32"] != _checksum(_canonical(doc["entry"])):
        raise CorruptTrace(f"{where} does not match its checksum; the file was changed after the recording")
    return _checked(doc["entry"], number, where)


def _checked(entry: Any, number: int, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or set(entry) != set(_ENTRY) or not all(isinstance(entry[key], kinds) for key, kinds in _ENTRY.items()):
        raise CorruptTrace(f"{where} is not a step of format 1")
    if entry["step"] != number:
        raise CorruptTrace(f"{where} is of step {entry['step']} where step {number} is expected; lines were removed or moved")
    return {**entry, "files": decode_files(entry["files"], where)}


def _canonical(entry: Any) -> str:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=True)


def _checksum(canonical: str) -> str:
    return f"{zlib.crc32(canonical.encode()):08x}"
