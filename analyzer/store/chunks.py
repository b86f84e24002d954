"""Reads the data files of a trace: file -> inner chunk -> crc32c -> blosc -> array, one chunk at a time.

The layout leaves one thing to read, so this reads just that: no codec, dtype or path comes from the files. It is why a
changed byte is an error that names its file, why a foreign trace cannot make us decode anything else, and why a scan holds
a few megabytes and never a whole shard. The checksum after each chunk is compared with the ledger's, too, so a file of another
place is an error like a changed byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, TypeAlias

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from ...schema.arrays.array import STEP, ArrayPlan
from ...schema.errors import CorruptTrace, NoAnswer
from ..storage.storage import Bytes, Part, Storage
from .ledger import ArrayFiles

Index: TypeAlias = slice | NDArray[np.intp]

CRC_BYTES: Final = 4
BLOSC_HEADER_BYTES: Final = 16
LEADING: Final = 3
"""Axes before the heads: sample, branch, step. One position of them is one block: one file, or several along the rows."""
ROWS: Final = 4
"""The axis that files and chunks may cut inside a block: y, or token where there is no y. A video's frames, before y, may be cut too."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A recorded array that reads what is asked of it: NumPy's basic and orthogonal indexing, NaN where a call is absent."""

    storage: Storage
    files: ArrayFiles
    where: NDArray[np.int32]
    """Which position on the stored step axis serves each (sample, branch, step), -1 where absent."""
    layer: str = ""
    """Name of the layer, for messages."""

    @property
    def plan(self) -> ArrayPlan:
        """The array."""
        return self.files.plan

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of all axes; the step axis has the steps that count."""
        return (*self.where.shape, *self.plan.shape[LEADING:])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.plan.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        return np.dtype(self.plan.dtype)

    @property
    def chunk_rows(self) -> int:
        """Rows of an inner chunk, those of all its frames together."""
        return cell(self.plan, self.plan.chunks)[1]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        picked, kept = _orthogonal(index, self.shape)
        out = np.empty([len(p) for p in picked], self.dtype)
        after = after_rows(self.plan)
        rows = np.ravel_multi_index(np.ix_(*picked[ROWS:after]), self.shape[ROWS:after]).ravel()
        inner = [picked[LEADING], rows, *picked[after:]]
        steps = picked[STEP].tolist()
        for i, sample in enumerate(picked[0].tolist()):
            for j, branch in enumerate(picked[1].tolist()):
                self._fill(out[i, j].reshape([len(steps), *(len(p) for p in inner)]), (sample, branch), steps, inner)
        result: NDArray[Any] = out[kept]
        return result

    def part(self, at: tuple[int, int], steps: Sequence[int], *index: Any) -> NDArray[Any]:
        """A part of calls, indexed as the array is, but with rows counted through the frames of a video.

        Dims     (step, head, row, ...)
        """
        picked, kept = _orthogonal(index, cell(self.plan, self.plan.shape))
        out = np.empty([len(steps), *(len(p) for p in picked)], self.dtype)
        self._fill(out, at, steps, picked)
        result: NDArray[Any] = out[(slice(None), *kept)]
        return result

    def groups(self, at: tuple[int, int], steps: Iterable[int]) -> list[tuple[int, ...]]:
        """Steps of present calls, in order; those that follow each other and share their files stand together."""
        size, where = self.plan.chunks[STEP], self.where[at]
        return [tuple(group) for _, group in groupby((s for s in steps if where[s] >= 0), lambda step: int(where[step]) // size)]

    def chunks(
        self, at: tuple[int, int], steps: Sequence[int], start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """The inner chunks that hold rows `start` to `stop` of present calls, each read and unpacked once for steps that share it.

        Dims     (position in `steps`, first row, (head, row, ...)), rows counted through the frames; rows come in order, the array is
                 overwritten by the next one
        Raises   CorruptTrace naming file, layer and step
        """
        buffer, size = np.empty(cell(self.plan, self.plan.chunks), self.dtype), self.plan.chunks[STEP]
        packed = np.empty((*buffer.shape, size), self.dtype) if self.plan.steps_last else buffer
        where, done = self.where[at], 0
        for group in self.groups(at, steps):
            for first, chunk in self._unpack((*at, int(where[group[0]]) // size), group[0], start, stop, packed):
                for i, step in enumerate(group, done):
                    if size > 1:
                        np.copyto(buffer, chunk[..., where[step] % size])
                    yield i, first, buffer
            done += len(group)

    def _unpack(
        self, block: tuple[int, int, int], step: int, start: int, stop: int | None, out: NDArray[Any]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Fill `out` with one inner chunk of a block after the other, and say its first row."""
        rows, file_rows = cell(self.plan, self.plan.shape)[1], cell(self.plan, self.plan.file_shape)[1]
        grid = [n // m for n, m in zip(self.plan.shape[ROWS:], self.plan.file_shape[ROWS:], strict=True)]
        stop, crcs = rows if stop is None else stop, self.files.crcs
        wanted: list[tuple[Part, int | None, int]] = []
        name = ""
        try:
            for file in range(start // file_rows, -(-stop // file_rows)):
                place, first = (*block, 0, *(int(i) for i in np.unravel_index(file, grid))), file * file_rows
                name = self.plan.key(*place)
                low, high = max(start - first, 0) // self.chunk_rows, -(-min(stop - first, file_rows) // self.chunk_rows)
                for chunk, found in enumerate(_parts(self.storage, self.files, place)[low:high], low):
                    wanted.append((found, None if crcs is None else int(crcs[place][chunk]), first + chunk * self.chunk_rows))
            data = self.storage.fetch([part for part, _, _ in wanted])
            for part, crc, row in wanted:
                name = part.name
                _decode(next(data), self.plan, out.reshape(-1), crc)
                yield row, out
        except NoAnswer:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise self._corrupt(name, step, error) from error

    def _fill(self, out: NDArray[Any], at: tuple[int, int], steps: Sequence[int], picked: list[NDArray[np.intp]]) -> None:
        there = self.where[at][list(steps)] >= 0
        out[~there] = self.plan.fill
        present = np.flatnonzero(there)
        if not present.size or out.size == 0:
            return
        rows, heads, rest = picked[1], _stretch(picked[0]), [_stretch(p) for p in picked[2:]]
        for i, first, chunk in self.chunks(at, [steps[i] for i in present.tolist()], int(rows.min()), int(rows.max()) + 1):
            inside = np.flatnonzero((rows >= first) & (rows < first + chunk.shape[1]))
            if inside.size:
                taken = (heads, _stretch(rows[inside] - first), *rest)
                plain = all(isinstance(index, slice) for index in taken)
                out[present[i]][:, _stretch(inside)] = chunk[taken if plain else np.ix_(picked[0], rows[inside] - first, *picked[2:])]

    def _corrupt(self, name: str, step: int, error: Exception) -> CorruptTrace:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        return CorruptTrace(
            f"{name} of the trace {self.storage} {what}: layer {self.layer}, step {step}. It was written with a checksum, so it changed "
            f"after the recording; `i2am verify` lists all such files, another copy or a new recording brings them back"
        )


def after_rows(plan: ArrayPlan) -> int:
    """The first axis after frame and y: pieces of files are some whole frames, or some rows of one."""
    return ROWS + 1 + (plan.dims[ROWS] == "frame")


def cell(plan: ArrayPlan, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Lengths of (head, row, ...) of a call, a file or a chunk, with frame and y as one axis."""
    after = after_rows(plan)
    return (lengths[LEADING], math.prod(lengths[ROWS:after]), *lengths[after:])


def read_table(storage: Storage, files: ArrayFiles) -> NDArray[Any]:
    """An array that is one file, such as a coordinate or a picture; its fill value if there is no file.

    Raises   CorruptTrace naming the file
    """
    plan, at = files.plan, (0,) * len(files.plan.shape)
    if not files.sizes.size or files.sizes[at] < 0:
        return np.full(plan.shape, plan.fill, plan.dtype)
    flat = np.empty((plan.chunks_a_file, math.prod(plan.chunks)), plan.dtype)
    try:
        for i, data in enumerate(storage.fetch(_parts(storage, files, at))):
            _decode(data, plan, flat[i], None if files.crcs is None else files.crcs[at][i])
    except NoAnswer:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(storage, plan.key(*at), error) from error
    table: NDArray[Any] = flat.reshape(plan.file_shape)
    return table


def read_heads(storage: Storage, files: ArrayFiles) -> NDArray[Any]:
    """An array of which every head is one chunk and one file, all of them there.

    Dims     (head, ...)
    Raises   CorruptTrace naming the file
    """
    plan = files.plan
    out, name = np.empty(plan.shape, plan.dtype), ""
    try:
        places = [(head, *(0,) * (len(plan.shape) - 1)) for head in range(len(out))]
        parts = [part for place in places for part in _parts(storage, files, place)]
        data = storage.fetch(parts)
        for head, part in enumerate(parts):
            name = part.name
            _decode(next(data), plan, out[head].reshape(-1), None if files.crcs is None else files.crcs[head].item())
    except NoAnswer:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(storage, name, error) from error
    return out


def _unreadable(storage: Storage, name: str, error: Exception) -> CorruptTrace:
    return CorruptTrace(f"{name} of the trace {storage} cannot be read ({error}); the file was changed after the recording")


def _parts(storage: Storage, files: ArrayFiles, place: tuple[int, ...]) -> list[Part]:
    """Where the chunks of a file lie: as its index says if it is a shard, else the file is the chunk."""
    plan, name, size = files.plan, files.plan.key(*place), int(files.sizes[place])
    most = math.prod(plan.chunks) * np.dtype(plan.dtype).itemsize + BLOSC_HEADER_BYTES + CRC_BYTES
    if plan.shards is None:
        if size > most:
            raise ValueError(f"it has {size} bytes where one chunk has at most {most}")
        return [Part(name, 0, size)]
    length = 16 * plan.chunks_a_file + CRC_BYTES
    if size < length:
        raise ValueError(f"{size} bytes are too few for its index")
    return _extents(name, size - length, most, storage.read(name, size - length, length))


def _extents(name: str, end: int, most: int, index: Bytes) -> list[Part]:
    """The chunks of a shard whose data ends at `end`, as its index says."""
    body = _checked(index, "the index")[0]
    extents = [(int(offset), int(n)) for offset, n in body.view("<u8").reshape(-1, 2)]
    if any(offset + n > end or n > most for offset, n in extents):
        raise ValueError("the index points outside the file, or to more than a chunk")
    return [Part(name, offset, n) for offset, n in extents]


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


def _stretch(picked: NDArray[np.intp]) -> Index:
    """A slice where positions follow each other: NumPy copies stretches several times faster than it gathers."""
    first, count = int(picked[0]), len(picked)
    whole = picked[-1] - first == count - 1 and (count < 3 or bool((np.diff(picked) == 1).all()))
    return slice(first, first + count) if whole else picked
