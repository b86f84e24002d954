"""Reads the data files of a trace: file -> inner chunk -> crc32c -> blosc -> array, one chunk at a time.

The layout leaves one thing to read, so this reads just that: no codec, dtype or path comes from the files. It is why a
changed byte is an error that names its file, why a foreign trace cannot make us decode anything else, and why a scan holds
a few megabytes and never a whole shard. The checksum after each chunk is compared with the ledger's, too, so a file of another
place is an error like a changed byte.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from ...schema.errors import CorruptTrace
from ...schema.layout import ArrayPlan
from .files import open_file
from .ledger import ArrayFiles, Crcs

Bytes: TypeAlias = NDArray[np.uint8]

CRC_BYTES: Final = 4
BLOSC_HEADER_BYTES: Final = 16
LEADING: Final = 3
"""Axes before the heads: sample, branch, step. One position of them is one block: one file, or several along the rows."""
ROWS: Final = 4
"""The axis that files and chunks may cut inside a block: y, or token where there is no y. A video's frames, before y, may be cut too."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A recorded array that reads what is asked of it: NumPy's basic and orthogonal indexing, NaN where a call is absent."""

    root: str
    plan: ArrayPlan
    where: NDArray[np.int32]
    """Which block on disk serves each (sample, branch, step): a position on the stored step axis, -1 where absent."""
    crcs: Crcs | None = None
    """Dims (file, along each axis; chunk in the file): what the ledger says of each chunk, where it says it."""
    layer: str = ""
    """Name of the layer, for messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of all axes; the step axis has the steps that count."""
        return (*self.where.shape, *self.plan.shape[LEADING:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        return np.dtype(self.plan.dtype)

    @property
    def chunk_rows(self) -> int:
        """Rows of an inner chunk, those of all its frames together."""
        return self._cell(self.plan.chunks)[1]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        picked, kept = _orthogonal(index, self.shape)
        out = np.empty([len(p) for p in picked], self.dtype)
        rows = np.ravel_multi_index(np.ix_(*picked[ROWS : self._after]), self.shape[ROWS : self._after]).ravel()
        cell = [picked[LEADING], rows, *picked[self._after :]]
        for place in np.ndindex(*out.shape[:LEADING]):
            sample, branch, step = (int(p[i]) for p, i in zip(picked, place, strict=False))
            self._fill(out[place].reshape([len(p) for p in cell]), (sample, branch, step), cell)
        result: NDArray[Any] = out[kept]
        return result

    def part(self, at: tuple[int, int, int], *index: Any) -> NDArray[Any]:
        """A part of one call, indexed as the array is, but with rows counted through the frames of a video.

        Dims     (head, row, ...)
        """
        picked, kept = _orthogonal(index, self._cell(self.plan.shape))
        out = np.empty([len(p) for p in picked], self.dtype)
        self._fill(out, at, picked)
        result: NDArray[Any] = out[kept]
        return result

    def chunks(self, at: tuple[int, int, int], start: int = 0, stop: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """The inner chunks of one present call that hold rows `start` to `stop`, in order.

        Dims     (first row, (head, row, ...)), rows counted through the frames; the array is overwritten by the next one
        Raises   CorruptTrace naming file, layer and step
        """
        position = (at[0], at[1], int(self.where[at]))
        rows, file_rows = self._cell(self.plan.shape)[1], self._cell(self.plan.file_shape)[1]
        files = [n // m for n, m in zip(self.plan.shape[ROWS:], self.plan.file_shape[ROWS:], strict=True)]
        stop = rows if stop is None else stop
        buffer = np.empty(self._cell(self.plan.chunks), self.dtype)
        chunk_rows = buffer.shape[1]
        for part in range(start // file_rows, -(-stop // file_rows)):
            place = (*position, 0, *(int(i) for i in np.unravel_index(part, files)))
            name, crcs = self.plan.key(*place), None if self.crcs is None else self.crcs[place]
            try:
                with open_file(self.root, name) as file:
                    first = part * file_rows
                    low, high = max(start - first, 0) // chunk_rows, -(-min(stop - first, file_rows) // chunk_rows)
                    for chunk, (offset, length) in enumerate(_extents(file, self.plan)[low:high], low):
                        _decode(_read(file, offset, length), self.plan, buffer.reshape(-1), None if crcs is None else crcs[chunk])
                        yield first + chunk * chunk_rows, buffer
            except (OSError, ValueError, RuntimeError) as error:
                raise self._corrupt(name, at[2], error) from error

    @property
    def _after(self) -> int:
        """The first axis after frame and y: pieces of files are some whole frames, or some rows of one."""
        return ROWS + 1 + (self.plan.dims[ROWS] == "frame")

    def _cell(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """Lengths of (head, row, ...) of a call, a file or a chunk, with frame and y as one axis."""
        return (lengths[LEADING], math.prod(lengths[ROWS : self._after]), *lengths[self._after :])

    def _fill(self, out: NDArray[Any], at: tuple[int, int, int], picked: list[NDArray[np.intp]]) -> None:
        if self.where[at] < 0 or out.size == 0:
            out[...] = self.plan.fill
            return
        rows = picked[1]
        for first, chunk in self.chunks(at, int(rows.min()), int(rows.max()) + 1):
            inside = (rows >= first) & (rows < first + chunk.shape[1])
            if inside.any():
                out[:, inside] = chunk[np.ix_(picked[0], rows[inside] - first, *picked[2:])]

    def _corrupt(self, name: str, step: int, error: Exception) -> CorruptTrace:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        return CorruptTrace(
            f"{name} of the trace {self.root} {what}: layer {self.layer}, step {step}. It was written with a checksum, so it changed "
            f"after the recording; `i2am verify` lists all such files, another copy or a new recording brings them back"
        )


def read_table(root: str, files: ArrayFiles) -> NDArray[Any]:
    """An array that is one file, such as a coordinate or a picture; its fill value if there is no file.

    Raises   CorruptTrace naming the file
    """
    plan = files.plan
    out = np.full(plan.shape, plan.fill, plan.dtype)
    name = plan.key(*([0] * len(plan.shape)))
    if out.size == 0:
        return out
    try:
        with open_file(root, name) as file:
            flat = np.empty((plan.chunks_a_file, math.prod(plan.chunks)), plan.dtype)
            for i, (offset, length) in enumerate(_extents(file, plan)):
                _decode(_read(file, offset, length), plan, flat[i], None if files.crcs is None else files.crcs[(0,) * len(plan.shape)][i])
    except FileNotFoundError:
        return out
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(root, name, error) from error
    table: NDArray[Any] = flat.reshape(plan.file_shape)
    return table


def read_heads(root: str, files: ArrayFiles) -> NDArray[Any]:
    """An array of which every head is one chunk and one file, all of them there.

    Dims     (head, ...)
    Raises   CorruptTrace naming the file
    """
    plan = files.plan
    out = np.empty(plan.shape, plan.dtype)
    for head, (name, part) in enumerate(zip(plan.file_names, out, strict=True)):
        try:
            with open_file(root, name) as file:
                ((offset, length),) = _extents(file, plan)
                _decode(_read(file, offset, length), plan, part.reshape(-1), None if files.crcs is None else files.crcs[head].item())
        except (OSError, ValueError, RuntimeError) as error:
            raise _unreadable(root, name, error) from error
    return out


def _unreadable(root: str, name: str, error: Exception) -> CorruptTrace:
    return CorruptTrace(f"{name} of the trace {root} cannot be read ({error}); the file was changed after the recording")


def _extents(file: io.FileIO, plan: ArrayPlan) -> list[tuple[int, int]]:
    """(offset, length) of each inner chunk of an open file; a file that is no shard is one chunk."""
    size = os.fstat(file.fileno()).st_size
    most = math.prod(plan.chunks) * np.dtype(plan.dtype).itemsize + BLOSC_HEADER_BYTES + CRC_BYTES
    if plan.shards is None:
        if size > most:
            raise ValueError(f"it has {size} bytes where one chunk has at most {most}")
        return [(0, size)]
    count = math.prod(plan.shards) // math.prod(plan.chunks)
    length = 16 * count + CRC_BYTES
    if size < length:
        raise ValueError(f"{size} bytes are too few for its index")
    body = _checked(_read(file, size - length, length), "the index")[0]
    extents = [(int(offset), int(n)) for offset, n in body.view("<u8").reshape(count, 2)]
    if any(offset + n > size - length or n > most for offset, n in extents):
        raise ValueError("the index points outside the file, or to more than a chunk")
    return extents


def _read(file: io.FileIO, offset: int, length: int) -> Bytes:
    file.seek(offset)
    data = np.empty(length, np.uint8)
    done = 0
    while done < length:
        n = file.readinto(memoryview(data)[done:])  # type: ignore[arg-type]  # mypy does not see that arrays are buffers
        if not n:
            raise ValueError(f"it ends {length - done} bytes early")
        done += n
    return data


def _checked(data: Bytes, what: str) -> tuple[Bytes, int]:
    """The bytes before a checksum, and the checksum."""
    body, crc = data[:-CRC_BYTES], google_crc32c.value(data[:-CRC_BYTES])
    if len(data) < CRC_BYTES or crc.to_bytes(CRC_BYTES, "little") != data[-CRC_BYTES:].tobytes():
        raise ValueError(f"{what} does not match its checksum")
    return body, crc


def _decode(data: Bytes, plan: ArrayPlan, out: NDArray[Any], expected: int | None) -> None:
    """Fill `out` with one chunk. What the bytes say of their size is compared before anything is unpacked."""
    body, crc = _checked(data, "a chunk")
    if expected is not None and crc != expected:
        raise ValueError("a chunk is whole but not the one that was recorded here; the file is another's")
    if plan.codec is None:
        if len(body) != out.nbytes:
            raise ValueError(f"a chunk has {len(body)} bytes where {out.nbytes} are planned")
        out.view(np.uint8)[...] = body
        return
    sizes = body[4:BLOSC_HEADER_BYTES].view("<u4") if len(body) >= BLOSC_HEADER_BYTES else np.zeros(3, np.uint32)
    if int(sizes[0]) != out.nbytes or int(sizes[2]) != len(body):
        raise ValueError(f"a chunk unpacks to {int(sizes[0])} bytes where {out.nbytes} are planned")
    blosc.decompress(body, out)


def _orthogonal(index: Any, shape: tuple[int, ...]) -> tuple[list[NDArray[np.intp]], tuple[Any, ...]]:
    """Positions wanted along each axis, and the index that then drops the axes that were asked for by number."""
    given = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [g for g in given if not isinstance(g, np.ndarray)]:
        at = next(i for i, g in enumerate(given) if g is Ellipsis)
        given = (*given[:at], *[slice(None)] * (len(shape) - len(given) + 1), *given[at + 1 :])
    given = (*given, *[slice(None)] * (len(shape) - len(given)))
    picked = [np.atleast_1d(np.arange(n)[g]) for g, n in zip(given, shape, strict=True)]
    return picked, tuple(0 if np.ndim(g) == 0 and not isinstance(g, slice) else slice(None) for g in given)
