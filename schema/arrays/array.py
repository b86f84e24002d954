"""One array of a trace: its name, axes and chunks, and the exact Zarr v3 metadata that follow from them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Final

from ..codec import chunk_codecs, shard_codec
from ..trace import Codec, Layer, TraceRecord

SHARD_BYTES: Final = 64 * 2**20
"""A shard holds at most this much before compression, in bytes."""
CHUNK_BYTES: Final = (2**20, 4 * 2**20)
"""An inner chunk is an eighth of its shard, but within these bounds, in bytes."""

STEP: Final = 2
"""The step axis of recorded arrays: after sample and branch."""

_ITEMSIZE: Final = {"float16": 2, "float32": 4, "float64": 8, "int8": 1, "int32": 4, "uint8": 1, "bool": 1}


@dataclass(frozen=True, slots=True)
class ArrayPlan:
    """One array: enough to write its `zarr.json` and to know which file holds what."""

    path: str
    """From the trace's root, such as `layers/000/probability`."""
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    """Smallest piece that can be read."""
    shards: tuple[int, ...] | None = None
    """Piece that is one file; None where a chunk is one file."""
    fill: float | int | bool = 0
    codec: Codec | None = None
    """None leaves the bytes as they are, with a checksum."""
    attributes: dict[str, Any] = field(default_factory=dict)
    steps_last: bool = False
    """Whether the step axis is the innermost inside a chunk, where neighbouring steps pack best."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The piece that is one file."""
        return self.shards or self.chunks

    @property
    def nbytes(self) -> int:
        """Bytes before compression."""
        return math.prod(self.shape) * _ITEMSIZE[self.dtype]

    @property
    def files(self) -> int:
        """Files of data when everything is present."""
        return math.prod(-(-n // m) for n, m in zip(self.shape, self.file_shape, strict=True))

    @property
    def chunks_a_file(self) -> int:
        """Chunks in one file."""
        return math.prod(self.file_shape) // max(math.prod(self.chunks), 1)

    def key(self, *index: int) -> str:
        """The file, from the trace's root, that holds the block at this position of the grid of files."""
        return f"{self.path}/{'.'.join(['c', *map(str, index)])}"

    @property
    def file_names(self) -> list[str]:
        """Every file of data when everything is present, in order."""
        grid = [range(-(-n // m)) for n, m in zip(self.shape, self.file_shape, strict=True)]
        return [self.key(*index) for index in itertools.product(*grid)]

    def to_json(self) -> dict[str, Any]:
        """The array's `zarr.json`."""
        order = [*(axis for axis in range(len(self.shape)) if axis != STEP), STEP] if self.steps_last else None
        inner = chunk_codecs(self.codec, _ITEMSIZE[self.dtype], order)
        codecs = inner if self.shards is None else [shard_codec(self.chunks, inner)]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.file_shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN" if self.fill != self.fill else self.fill,
            "codecs": codecs,
            "dimension_names": list(self.dims),
            "attributes": self.attributes,
            "storage_transformers": [],
        }


def blocks(
    trace: TraceRecord, layer: Layer, path: str, dtype: str, dims: tuple[str, ...], cell: tuple[int, ...], attributes: dict[str, Any]
) -> ArrayPlan:
    """An array of all heads of each call, as `call_blocks`."""
    return call_blocks(trace, path, dtype, ("head", *dims), (layer.heads, *cell), attributes)


def call_blocks(
    trace: TraceRecord, path: str, dtype: str, dims: tuple[str, ...], lengths: tuple[int, ...], attributes: dict[str, Any]
) -> ArrayPlan:
    """An array of which one (sample, branch, step) is one file, or several along the second of its own axes if it is large.

    Frames and rows count as one axis of rows: a piece is some whole frames, or some rows of one frame. Packed, a file is one chunk of
    several steps.
    """
    whole, *cell = lengths
    shape = (trace.samples, len(trace.branches), trace.steps, *lengths)
    axes = ("sample", "branch", "step", *dims)
    lead = 2 if dims[1] == "frame" else 1
    row = whole * math.prod(cell[lead:]) * _ITEMSIZE[dtype]
    if trace.chunk_steps > 1:
        steps = max(1, min(trace.chunk_steps, trace.steps, CHUNK_BYTES[1] // row))
        rows = _split_rows(tuple(cell[:lead]), CHUNK_BYTES[1] // (steps * row))
        chunk = (1, 1, steps, whole, *rows, *cell[lead:])
        return ArrayPlan(path, axes, shape, dtype, chunk, None, math.nan, trace.codec, attributes, steps > 1)
    shard_rows = _split_rows(tuple(cell[:lead]), SHARD_BYTES // row)
    low, high = CHUNK_BYTES
    chunk_rows = _split_rows(shard_rows, min(max(math.prod(shard_rows) * row // 8, low), high) // row)
    shard, chunk = ((1, 1, 1, whole, *rows, *cell[lead:]) for rows in (shard_rows, chunk_rows))
    return ArrayPlan(path, axes, shape, dtype, chunk, shard if chunk != shard else None, math.nan, trace.codec, attributes)


def _split_rows(lengths: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The largest piece of (rows,) or (frames, rows) that has at most `most` rows, at least 1, and divides evenly."""
    *frames, rows = lengths
    if not frames or most < rows:
        return (*(1 for _ in frames), _split(rows, most))
    return _split(frames[0], most // rows), rows


def _split(length: int, most: int) -> int:
    """The largest divisor of `length` that is at most `most`, and at least 1."""
    small = [n for n in range(1, math.isqrt(length) + 1) if length % n == 0]
    return max(n for pair in small for n in (pair, length // pair) if n <= max(1, most))
