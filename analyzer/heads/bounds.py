"""What a stranger's file of scores may cost to open: its declared sizes are added up before anything is unpacked."""

from __future__ import annotations

import json
import math
import os
import stat
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...schema.errors import InvalidInput

MOST_BYTES: Final = 2**28
"""Of all arrays together: scores of SDXL's 1,400 heads for 34 concepts and 50 steps are a fifth of it."""
MOST_FILES: Final = 10_000
MOST_DOCUMENT: Final = 2**20
CODECS: Final = ("bytes", "vlen-utf8", "zstd", "crc32c")
NUMBERS: Final = ("bool", *(f"{kind}{8 * size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)), "float32", "float64")
TEXT: Final = 64
"""Bytes that one string counts for."""
ZSTD: Final = b"\x28\xb5\x2f\xfd"
HEAD: Final = 18
"""The longest head of a zstd frame."""


def require_small_zarr(root: Path) -> None:
    """Refuse a folder that is no Zarr v3 group of plain arrays, or whose arrays would need too much memory.

    Raises   InvalidInput, OSError, and ValueError or KeyError for documents that are no Zarr
    """
    files = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    if len(files) > MOST_FILES or not all(stat.S_ISREG(os.lstat(file).st_mode) for file in files):
        raise InvalidInput(f"it has {len(files)} files, or some that are links or devices")
    documents = {file.parent: _read(file) for file in files if file.name == "zarr.json"}
    if documents[root].get("node_type") != "group" or any(document.get("zarr_format") != 3 for document in documents.values()):
        raise InvalidInput("it is no Zarr v3 group")
    declared = sum(_array_bytes(folder, document) for folder, document in documents.items() if folder != root)
    _refuse(declared + sum(_unpacked(file) for file in files if file.name != "zarr.json"))


def require_small_netcdf(path: Path) -> bytes:
    """The bytes of a netCDF file whose arrays lie in it as they are, or InvalidInput: packed ones may unpack to any size."""
    import h5py

    if not stat.S_ISREG(os.stat(path).st_mode) or path.stat().st_size > MOST_BYTES:
        raise InvalidInput(f"it is no regular file of at most {MOST_BYTES} bytes")
    data = path.read_bytes()
    with h5py.File(BytesIO(data), "r") as opened:
        for name in opened:
            found = opened[name] if isinstance(opened.get(name, getlink=True), h5py.HardLink) else None
            if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external or found.id.get_create_plist().get_nfilters():
                raise InvalidInput(f"its {name!a} is no array that lies in the file unpacked")
            _refuse(found.size * max(found.dtype.itemsize, 1))
    return data


def _read(file: Path) -> dict[str, Any]:
    if file.stat().st_size > MOST_DOCUMENT:
        raise InvalidInput(f"its {file.name} has more than {MOST_DOCUMENT} bytes")
    found = json.loads(file.read_bytes())
    if not isinstance(found, dict):
        raise ValueError("a document that is no object")
    return found


def _array_bytes(folder: Path, document: dict[str, Any]) -> int:
    """Bytes of an array, or of one of its chunks where that is more, if all about it is plain."""
    kind, names = document["data_type"], [codec["name"] for codec in document["codecs"]]
    if document.get("node_type") != "array" or kind not in (*NUMBERS, "string") or not set(names) <= set(CODECS):
        raise InvalidInput(f"its array {folder.name!a} is of {kind!a} with the codecs {names!a}; plain ones are {', '.join(CODECS)}")
    shapes = document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"]
    if any(type(n) is not int or n < 0 for shape in shapes for n in shape):
        raise ValueError("lengths that are no whole numbers")
    return max(map(math.prod, shapes)) * (TEXT if kind == "string" else np.dtype(kind).itemsize)


def _unpacked(file: Path) -> int:
    """Bytes that a chunk says it unpacks to."""
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    if not head.startswith(ZSTD):
        return file.stat().st_size
    flags = head[4]
    single = flags >> 5 & 1
    length = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if not length:
        raise InvalidInput(f"its chunk {file.name} does not say how large it unpacks to")
    return int.from_bytes(head[start : start + length], "little") + (256 if length == 2 else 0)


def _refuse(nbytes: int) -> None:
    if nbytes > MOST_BYTES:
        raise InvalidInput(f"its arrays would take {nbytes} bytes; scores of heads take at most {MOST_BYTES}")
