"""The bytes of a trace's files as the layout plans them: chunks packed and summed, shards indexed, documents as strict JSON."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
from numcodecs.blosc import BITSHUFFLE, Blosc
from numpy.typing import NDArray

from ...schema.arrays.array import STEP, ArrayPlan
from ...schema.errors import InvalidInput
from ...schema.journal import FileSum
from ..store.chunks import cell

Chunk: TypeAlias = tuple[bytes, int]
"""Its bytes, and their crc32c, which follows them in the file."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a trace."""

    name: str
    """From the trace's root."""
    data: bytes
    crcs: str = ""
    """As the ledger lists them."""

    @property
    def sum(self) -> FileSum:
        """What the manifest says of it."""
        return FileSum(len(self.data), hashlib.sha256(self.data).hexdigest(), self.crcs)


def encode_steps(plan: ArrayPlan, values: NDArray[Any]) -> Chunk:
    """One chunk of attention; steps beyond those that are given are missing, as the array's end is.

    Dims     (step, head, row, ...), rows counted through the frames
    """
    if not plan.steps_last:
        return encode_chunk(plan, values)
    _, *rest = values.shape
    whole = np.full((*rest, plan.chunks[STEP]), plan.fill, plan.dtype)
    whole[..., : len(values)] = np.moveaxis(values, 0, -1)
    return encode_chunk(plan, whole)


def encode_chunk(plan: ArrayPlan, values: NDArray[Any]) -> Chunk:
    """One chunk whose numbers lie as they are stored."""
    data = np.ascontiguousarray(values, np.dtype(plan.dtype).newbyteorder("<"))
    packed = data.tobytes() if plan.codec is None else Blosc(plan.codec.name, plan.codec.level, BITSHUFFLE, 0).encode(data)
    return packed, google_crc32c.value(packed)


def join_chunks(plan: ArrayPlan, name: str, chunks: Sequence[Chunk]) -> File:
    """The file of some chunks, with their index at its end where it is a shard."""
    pieces = [piece for data, crc in chunks for piece in (data, struct.pack("<I", crc))]
    if plan.shards is not None:
        sizes = [len(data) + 4 for data, _ in chunks]
        table = struct.pack(f"<{2 * len(sizes)}Q", *(n for i, size in enumerate(sizes) for n in (sum(sizes[:i]), size)))
        pieces += [table, struct.pack("<I", google_crc32c.value(table))]
    return File(name, b"".join(pieces), "".join(f"{crc:08x}" for _, crc in chunks))


def encode_array(plan: ArrayPlan, values: NDArray[Any]) -> Iterator[File]:
    """The files of an array that only its first axis cuts, such as a coordinate, a picture or the keys of probes."""
    height, step = plan.file_shape[0], plan.chunks[0]
    for at in range(plan.files):
        part = values[at * height : (at + 1) * height]
        chunks = [encode_chunk(plan, part[start : start + step]) for start in range(0, height, step)]
        yield join_chunks(plan, plan.key(at, *(0 for _ in plan.shape[1:])), chunks)


def encode_document(name: str, document: dict[str, Any], most: int) -> File:
    """A `zarr.json`, the same bytes for the same document.

    Raises   InvalidInput for one that is larger than readers accept
    """
    data = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    if len(data) > most:
        raise InvalidInput(f"{name} would have {len(data)} bytes, and readers take {most}; keep fewer layers")
    return File(name, data)


def rows_of(plan: ArrayPlan) -> tuple[int, int, int]:
    """Rows of a call, of a file and of a chunk, counted through the frames."""
    call, file, chunk = (cell(plan, lengths)[1] for lengths in (plan.shape, plan.file_shape, plan.chunks))
    return call, file, chunk
