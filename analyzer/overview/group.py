"""The Zarr v3 group of an overview as files in memory, and the codes of its rows and maps.

Every array is one chunk, packed with gzip, and the metadata is consolidated. Rows of P are bytes and maps are 16-bit numbers, each beside
the greatest value that it is a share of.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.errors import CorruptTrace, UnknownVersion
from ...schema.messages import plain, refuse_taken
from ...schema.record import parse_json

Values: TypeAlias = NDArray[Any]

ROOT: Final = "zarr.json"
FACTS: Final = "i2am_overview"
VERSION: Final = 1
LEVEL: Final = 6
GZIP: Final = 31
"""What zlib calls the gzip format with the largest window; it stores no date."""
DTYPES: Final = {"uint8": "|u1", "uint16": "<u2", "int32": "<i4", "float32": "<f4"}
MOST_BYTES: Final = 2**28
"""Of one array when it is unpacked, and of one file."""

ROW_LEVELS: Final = 255
ROW_ERROR: Final = 0.00392
"""How far a decoded value of a row may be off, as a share of the row's greatest."""
MAP_LEVELS: Final = 65_535


class GroupWriter:
    """Arrays and attributes that become the files of a group."""

    def __init__(self) -> None:
        self._chunks: dict[str, bytes] = {}
        self._documents: dict[str, dict[str, Any]] = {}

    def add(self, path: str, values: Values, dims: tuple[str, ...]) -> None:
        """Add an array of one of `DTYPES`."""
        name = values.dtype.name
        data = np.ascontiguousarray(values, DTYPES[name])
        endian: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}} if data.itemsize > 1 else {"name": "bytes"}
        self._documents[path] = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(values.shape),
            "data_type": name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(values.shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": 0,
            "codecs": [endian, {"name": "gzip", "configuration": {"level": LEVEL}}],
            "dimension_names": list(dims),
        }
        self._chunks[chunk_name(path, values.ndim)] = data.tobytes()

    def finish(self, facts: Mapping[str, Any]) -> dict[str, bytes]:
        """All files of the group by path, its root first."""
        documents = dict(self._documents)
        for path in self._documents:
            while "/" in path:
                path = path.rpartition("/")[0]
                documents.setdefault(path, {"zarr_format": 3, "node_type": "group", "attributes": {}})
        documents = dict(sorted(documents.items()))
        inline = {"kind": "inline", "must_understand": False, "metadata": documents}
        root = {"zarr_format": 3, "node_type": "group", "attributes": {FACTS: dict(facts)}, "consolidated_metadata": inline}
        own = {f"{path}/{ROOT}": encode(document) for path, document in documents.items()}
        with ThreadPoolExecutor() as pool:  # zlib lets other threads work
            packed = dict(zip(self._chunks, pool.map(pack, self._chunks.values()), strict=True))
        return {ROOT: encode(root)} | dict(sorted((own | packed).items()))


class GroupReader:
    """The arrays of a group's files, of which nothing is believed that was not compared.

    Raises   UnknownVersion, CorruptTrace naming the file
    """

    def __init__(self, files: Mapping[str, bytes], where: str) -> None:
        self.files, self.where = files, where
        if ROOT not in files:
            raise CorruptTrace(f"{where} is no overview: it has no {ROOT}; make it again with `i2am view`")
        root = parse_json(files[ROOT], f"{ROOT} of {where}")
        facts = _mapping(_mapping(root.get("attributes")).get(FACTS))
        if facts.get("version") != VERSION:
            raise UnknownVersion(
                f"{where} is an overview of version {plain(str(facts.get('version'))[:20])}; this release reads version {VERSION}. "
                "Make it again with `i2am view`"
            )
        self.facts: dict[str, Any] = facts
        documents = _mapping(_mapping(root.get("consolidated_metadata")).get("metadata"))
        arrays = {path: doc for path, doc in documents.items() if isinstance(doc, dict) and doc.get("node_type") == "array"}
        self.arrays: dict[str, dict[str, Any]] = arrays

    def __contains__(self, path: str) -> bool:
        return path in self.arrays

    def shape(self, path: str) -> tuple[int, ...]:
        """Lengths of an array's axes."""
        return self._plan(path)[0]

    def read(self, path: str) -> Values:
        """An array, unpacked and checked.

        Raises   CorruptTrace naming the array
        """
        shape, dtype = self._plan(path)
        data = self.files.get(chunk_name(path, len(shape)))
        if data is None:
            raise self._corrupt(path, "is missing")
        try:
            found = unpack(data, math.prod(shape) * dtype.itemsize)
        except (zlib.error, ValueError) as error:
            raise self._corrupt(path, f"cannot be read ({error})") from error
        return np.frombuffer(found, dtype).reshape(shape)

    def _plan(self, path: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        document = self.arrays.get(path, {})
        given, name = document.get("shape"), str(document.get("data_type"))
        shape = tuple(n for n in given if type(n) is int and n >= 0) if isinstance(given, list) else None
        if shape is None or len(shape) != len(document["shape"]) or name not in DTYPES:
            raise self._corrupt(path, "is not there, or has a shape or type that no overview has")
        dtype = np.dtype(DTYPES[name])
        if math.prod(shape) * dtype.itemsize > MOST_BYTES:
            raise self._corrupt(path, "is larger than any array of an overview")
        return shape, dtype

    def _corrupt(self, path: str, what: str) -> CorruptTrace:
        return CorruptTrace(f"{path} of {self.where} {what}; the overview was changed after it was made; make it again with `i2am view`")


@dataclass(frozen=True, eq=False)
class Overview:
    """Small arrays that say what a trace holds: the files of a Zarr v3 group, by path."""

    files: dict[str, bytes]
    note: str = ""
    """What its user should know of how it was got."""

    @property
    def facts(self) -> dict[str, Any]:
        """The root attributes, as docs/overview.md says."""
        return self.reader().facts

    def reader(self, where: str = "the overview") -> GroupReader:
        """Reads and checks its arrays."""
        return GroupReader(self.files, where)

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))

    def index(self) -> dict[str, tuple[int, int]]:
        """Where each file begins and ends when all are laid one after another."""
        ends = list(itertools.accumulate(map(len, self.files.values()), initial=0))
        return dict(zip(self.files, itertools.pairwise(ends), strict=True))

    def pack(self) -> bytes:
        """All files in one piece: the index as one line of JSON, then one file after another."""
        return json.dumps(self.index()).encode() + b"\n" + b"".join(self.files.values())

    @classmethod
    def unpack(cls, data: bytes, where: str = "the overview") -> Overview:
        """The files of one piece.

        Raises   CorruptTrace, UnknownVersion
        """
        head, _, body = data.partition(b"\n")
        index = parse_json(head, f"the index of {where}")
        spans = [span for span in index.values() if isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span)]
        if len(spans) < len(index) or any(not 0 <= a <= b <= len(body) for a, b in spans):
            raise CorruptTrace(f"the index of {where} points outside it; it was changed after it was made")
        found = cls({name: body[a:b] for name, (a, b) in zip(index, spans, strict=True)})
        found.reader(where)
        return found

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the files to a new folder.

        Raises   AlreadyExists
        """
        folder = Path(path)
        refuse_taken(folder, overwrite)
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Overview:
        """Read a folder that `save` wrote.

        Raises   CorruptTrace, UnknownVersion
        """
        folder = Path(path)
        try:
            names = sorted(
                file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file() and file.stat().st_size < MOST_BYTES
            )
            found = cls({name: (folder / name).read_bytes() for name in names})
        except OSError as error:
            raise CorruptTrace(f"the overview {folder} cannot be read ({error.strerror}); make it again with `i2am view`") from error
        found.reader(str(folder))
        return found


def chunk_name(path: str, axes: int) -> str:
    """The file of an array's only chunk."""
    return f"{path}/c.{'.'.join('0' * axes)}" if axes else f"{path}/c"


def pack(data: bytes) -> bytes:
    """The bytes as gzip, the same every time."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
    return packer.compress(data) + packer.flush()


def unpack(data: bytes, size: int) -> bytes:
    """The bytes in gzip, if they are so many and match their checksum.

    Raises   ValueError, zlib.error
    """
    unpacker = zlib.decompressobj(GZIP)
    found = unpacker.decompress(data, size + 1)
    if len(found) != size or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"it does not unpack to the {size} bytes that its shape needs")
    return found


def encode(document: Mapping[str, Any]) -> bytes:
    """A JSON document, the same every time."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def encode_rows(rows: Values) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Each row as its greatest value, and the square roots of its shares of that.

    Dims     (..., token), 0 or more -> the same, (...)
    """
    top = rows.max(-1).astype(np.float32)
    return np.rint(ROW_LEVELS * np.sqrt(_shares(rows, top[..., None]))).astype(np.uint8), top


def decode_rows(codes: NDArray[np.uint8], top: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows as they were, within `ROW_ERROR` of their greatest value, which is exact.

    Dims     (..., token), (...) -> (..., token)
    """
    return np.asarray(top[..., None] * np.square(codes.astype(np.float32) / ROW_LEVELS))


def encode_maps(maps: Values, axes: int) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Each map over the last `axes` axes as its greatest value, and the shares of that.

    Dims     (..., *places), 0 or more -> the same, (...)
    """
    top = maps.max(tuple(range(-axes, 0))).astype(np.float32)
    return np.rint(MAP_LEVELS * _shares(maps, top.reshape(*top.shape, *[1] * axes))).astype(np.uint16), top


def decode_maps(codes: NDArray[np.uint16], top: NDArray[np.float32]) -> NDArray[np.float64]:
    """Maps as they were, within half a level of their greatest value.

    Dims     (..., *places), (...) -> (..., *places)
    """
    shape = (*top.shape, *[1] * (codes.ndim - top.ndim))
    return np.asarray(top.astype(np.float64).reshape(shape) * codes / MAP_LEVELS)


def _shares(values: Values, top: NDArray[np.float32]) -> NDArray[np.float64]:
    """Values over the greatest one: 0 where all are, 1 at most."""
    wide = top.astype(np.float64)
    return np.clip(np.divide(values, wide, out=np.zeros(values.shape), where=wide > 0), 0, 1)
