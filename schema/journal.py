"""The journal of a trace, one line for each committed step, and the manifest of a complete one: both list files with their hashes.

A line that does not end, or an unfinished last one, is what a killed recording leaves; a damaged line anywhere else is corruption.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import CorruptTrace, InvalidInput, UnknownVersion
from .layout import JOURNAL, MANIFEST, layout
from .messages import plain
from .record import canonical, decode, parse_json
from .trace import TraceRecord


class FileSum(NamedTuple):
    """What a ledger says of one file."""

    nbytes: int
    sha256: str
    crcs: str = ""
    """The crc32c of each chunk in the file, in order, eight hex digits each: what binds the chunks to this place in this trace.

    Empty for what is no array, and in traces older than ledgers of version 2."""


FileSums: TypeAlias = dict[str, FileSum]
"""By path from the trace's root."""

MANIFEST_VERSION: Final = 2
MANIFEST_VERSIONS: Final = (1, MANIFEST_VERSION)
"""Those that are read; in version 1 chunks are not tied to their places."""
MOST_LEDGER_BYTES: Final = 2**27
MOST_CHUNK: Final = 2**30
"""Largest chunk, in bytes; the recorder's own stay under a few megabytes."""
MOST_CALLS: Final = 4 * 10**6
"""Most calls of a whole trace: samples x branches x steps x layers."""
MOST_LAYERS: Final = 2**10
MOST_FILES: Final = 2**23
"""Most files that a record plans; real recordings write some thousands, but may plan for more steps than come."""
MOST_CHUNKS: Final = 2**24
MOST_LENGTH: Final = 2**20
"""Longest axis of one call."""
MOST_CELLS: Final = 2**22
"""Most places of the latent grid, on which every map lies."""
MOST_NAME: Final = 400
"""Longest path of a file, from the trace's root."""
_PATH: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_DIGEST: Final = re.compile("[0-9a-f]{64}")
_CRCS: Final = re.compile("([0-9a-f]{8})*")


@dataclass(frozen=True, slots=True)
class Step:
    """One committed step, as its line in the journal says it."""

    step: int
    """Position on the step axis."""
    evaluation: int
    timestep: float | None
    sigma: float | None
    scheduler_step: int
    present: tuple[int, ...]
    """Positions of the layers that were called."""
    key_step: dict[str, tuple[tuple[int, ...], ...]]
    """Layer position -> per sample and branch, the step at which the key lies."""
    lost: dict[str, float]
    """Layer position -> worst share of a token's column that the encoding changed."""
    files: FileSums = field(default_factory=dict)
    """Everything that became durable with this step."""
    value_step: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """The same as `key_step`, of values or their norms; left out of the line where there are none."""


def encode_line(entry: Step) -> str:
    """One journal line, newline included, that carries its own checksum."""
    fields = {name: value for name, value in dataclasses.asdict(entry).items() if name != "value_step" or value}
    text = canonical({**fields, "files": _plain(entry.files)})
    return f'{{"crc32":"{_checksum(text)}","entry":{text}}}\n'


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a ledger may be that lists what a record plans; counted before it is parsed: in memory JSON is many times its text."""

    files: int
    """Files that the record plans."""
    chunks: int
    """Chunks in them."""
    tables: int = 0
    """Lists and numbers in all lines of a journal, but for its files."""

    @property
    def nbytes(self) -> int:
        """Most bytes."""
        return min(2**16 + (MOST_NAME + 128) * self.files + 8 * self.chunks + 32 * self.tables, MOST_LEDGER_BYTES)

    def check(self, text: bytes, where: str) -> None:
        """Raise CorruptTrace if a ledger holds more than the record plans."""
        nested, quotes, commas = text.count(b"[") + text.count(b"{"), text.count(b'"'), text.count(b",")
        many = nested > self.files + self.tables + 64 or quotes > 6 * self.files + 24 * self.tables + 999
        if many or commas > 4 * (self.files + self.tables) + 999 or len(text) > self.nbytes:
            raise CorruptTrace(f"{where} has {len(text)} bytes and more entries than its record plans; the file was changed")


UNBOUNDED: Final = Bounds(2**40, 2**40, 2**40)


def bounds_of(trace: TraceRecord) -> Bounds:
    """How large the ledgers of a trace can be."""
    plans = layout(trace)
    files = sum(plan.files for plan in plans) + len(plans) + len(trace.layers) + 6
    many = len(trace.layers) + sum(layer.values != "none" for layer in trace.layers)
    tables = max(trace.steps, 1) * (12 + many * (4 + trace.samples * (1 + len(trace.branches))))
    return Bounds(files, sum(plan.files * plan.chunks_a_file for plan in plans), tables)


def require_bounded(trace: TraceRecord) -> None:
    """Refuse a record whose numbers alone could exhaust a reader's machine: a writer asks before it writes, a reader before it reads.

    Raises   InvalidInput
    """
    lengths = [n for layer in trace.layers for n in (layer.model_heads, layer.head_dim, layer.tokens, layer.probe_tokens, *layer.places)]
    lengths += [n for layer in trace.layers for n in (layer.value_dim, layer.output_dim)]
    calls = trace.samples * len(trace.branches) * max(trace.steps, 1) * max(len(trace.layers), 1)
    pixels = [max(image.frames, 1) * image.height * image.width * image.channels for image in trace.images]
    # Plans are made only of what these allow.
    _require_most("calls", calls, MOST_CALLS)
    _require_most("layers", len(trace.layers), MOST_LAYERS)
    _require_most("positions on one axis", max([*lengths, 0]), MOST_LENGTH)
    _require_most("places of the latent grid", math.prod(trace.latent_grid or (1,)), MOST_CELLS)
    _require_most("bytes of a picture", max([*pixels, 0]), MOST_CHUNK)
    plans = layout(trace)
    _require_most("bytes of one chunk", max(math.prod(plan.chunks) * np.dtype(plan.dtype).itemsize for plan in plans), MOST_CHUNK)
    _require_most("files", sum(plan.files for plan in plans), MOST_FILES)
    _require_most("chunks", sum(plan.files * plan.chunks_a_file for plan in plans), MOST_CHUNKS)


def _require_most(what: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidInput(f"the record plans {count} {what}, and a trace has at most {most}; record fewer steps, layers or samples")


def decode_lines(text: str | bytes, bounds: Bounds = UNBOUNDED) -> list[Step]:
    """The journal's steps in order, without an unfinished last line.

    Raises   CorruptTrace if a finished line was changed, or the steps are not 0, 1, 2, ...
    """
    bounds.check(text if isinstance(text, bytes) else text.encode(), JOURNAL)
    lines = (text if isinstance(text, bytes) else text.encode()).split(b"\n")
    entries: list[Step] = []
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        if last and not line:
            break
        try:
            entries.append(_decode_line(line, number))
        except CorruptTrace:
            if last:  # no newline after it: the recording was killed while it wrote this line
                break
            raise
    return entries


def table_of(entries: Sequence[Step], name: str, layer: int, samples: int, branches: int) -> NDArray[np.int32]:
    """A layer's table of the step whose block serves each step: `key_step` or `value_step`, -1 where the call is absent.

    Dims     (sample, branch, step)
    Raises   CorruptTrace for a table of other samples or branches
    """
    found = np.full((samples, branches, len(entries)), -1, np.int32)
    for step, entry in enumerate(entries):
        table = getattr(entry, name).get(str(layer))
        if table is not None:
            if len(table) != samples or any(len(row) != branches for row in table):
                raise CorruptTrace(f"{JOURNAL}, line {step + 1}, has no {name} for layer {layer} of {samples} x {branches} calls")
            found[:, :, step] = table
    return found


def steps_of(entries: Sequence[Step]) -> dict[str, NDArray[Any]]:
    """The table of steps: evaluation, timestep, sigma and scheduler_step of each entry, NaN where there is none."""
    return {
        "evaluation": np.array([entry.evaluation for entry in entries], np.int32),
        "timestep": np.array([entry.timestep for entry in entries], np.float64),
        "sigma": np.array([entry.sigma for entry in entries], np.float64),
        "scheduler_step": np.array([entry.scheduler_step for entry in entries], np.int32),
    }


def present_of(entries: Sequence[Step], layers: int) -> NDArray[np.bool_]:
    """Whether each layer was called.

    Dims     (step, layer)
    Raises   CorruptTrace for a layer that is not there
    """
    present = np.zeros((len(entries), layers), bool)
    for step, entry in enumerate(entries):
        if not all(0 <= layer < layers for layer in entry.present):
            raise CorruptTrace(f"{JOURNAL}, line {step + 1}, names a layer beyond the trace's {layers}; the file was changed")
        present[step, list(entry.present)] = True
    return present


def disk_bytes(path: Path) -> int:
    """Bytes of every file under a folder."""
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


def encode_manifest(trace_id: str, files: Mapping[str, FileSum], version: int = MANIFEST_VERSION, indent: int | None = None) -> str:
    """The manifest: every file of the trace but itself; the first releases indented it by 1."""
    return json.dumps({"version": version, "trace": trace_id, "files": _plain(files)}, indent=indent) + "\n"


def decode_manifest(text: str | bytes, bounds: Bounds = UNBOUNDED) -> tuple[str, FileSums]:
    """The trace's id and its files.

    Raises   UnknownVersion, CorruptTrace
    """
    data = text if isinstance(text, bytes) else text.encode()
    bounds.check(data, MANIFEST)
    doc = parse_json(data, MANIFEST)
    if not isinstance(doc.get("trace"), str):
        raise CorruptTrace(f"{MANIFEST} does not name its trace; the file was changed after the recording")
    version = doc.get("version")
    if type(version) is not int or version not in MANIFEST_VERSIONS:
        raise UnknownVersion(
            f"{MANIFEST} has version {plain(str(version)[:60])}; this reads up to {MANIFEST_VERSION}. Upgrade: pip install --upgrade i2am"
        )
    return doc["trace"], _decode_files(doc.get("files"), MANIFEST)


def _plain(files: Mapping[str, FileSum]) -> dict[str, list[Any]]:
    return {name: list(given if given.crcs else given[:2]) for name, given in sorted(files.items())}


def _decode_files(doc: Any, where: str) -> FileSums:
    """Checked sums of files, none of which lies outside the trace."""
    if not isinstance(doc, dict):
        raise CorruptTrace(f"{where} lists no files; it was changed after the recording")
    return {name: _file_sum(name, value, where) for name, value in doc.items()}


def _file_sum(name: str, value: Any, where: str) -> FileSum:
    if not _PATH.fullmatch(name) or len(name) > MOST_NAME:
        raise CorruptTrace(f"{where} names {name[:99]!a}, which is no file of a trace")
    match value:
        case [size, str(digest), *crcs] if type(size) is int and 0 <= size < 2**63 and _DIGEST.fullmatch(digest) and len(crcs) < 2:
            if not crcs or (isinstance(crcs[0], str) and _CRCS.fullmatch(crcs[0])):
                return FileSum(size, digest, *crcs)
    raise CorruptTrace(f"{where} should give [bytes, sha256] or [bytes, sha256, crc32c of the chunks] for {name}; it was changed")


def _decode_line(line: bytes, number: int) -> Step:
    where = f"{JOURNAL}, line {number + 1},"
    doc = parse_json(line, where)
    entry = doc.get("entry")
    if set(doc) != {"crc32", "entry"} or doc["crc32"] != _checksum(canonical(entry)):
        raise CorruptTrace(f"{where} does not match its checksum; the file was changed after the recording")
    if not isinstance(entry, dict):
        raise CorruptTrace(f"{where} is not a step of format 1")
    files = _decode_files(entry.get("files"), where)
    step = dataclasses.replace(decode(Step, {name: value for name, value in entry.items() if name != "files"}, where), files=files)
    if step.step != number:
        raise CorruptTrace(f"{where} is of step {step.step} where step {number} is expected; lines were removed or moved")
    return step


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
