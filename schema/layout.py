"""The plan of a trace: which arrays it has, and the exact Zarr v3 metadata of each. Integers and strings only.

The writer creates what `layout` plans and the reader checks what it finds against it, so the two cannot drift.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import dataclass, field
from typing import Any, Final

from .codec import PROBABILITY_SCALE, chunk_codecs, shard_codec
from .record import BRANCHES, canonical
from .trace import Codec, Image, Layer, TraceRecord

ROOT: Final = "zarr.json"
JOURNAL: Final = "journal.jsonl"
MANIFEST: Final = "manifest.json"

MOST_ROOT_BYTES: Final = 2**24
"""Largest root document; those of hundreds of layers have a quarter of it."""
MOST_DOCUMENT_BYTES: Final = 2**16
"""Largest `zarr.json` of a group or array below the root."""

SHARD_BYTES: Final = 64 * 2**20
"""A shard holds at most this much before compression, in bytes."""
CHUNK_BYTES: Final = (2**20, 4 * 2**20)
"""An inner chunk is an eighth of its shard, but within these bounds, in bytes."""

CONVENTION: Final = {
    "uuid": "0acf0b5b-ac58-591d-9a51-812f46751a5b",
    "name": "i2am",
    "description": "Attention of a diffusion run, per step, layer and head",
    "spec_url": "schema/README.md",
}

STEP: Final = 2
"""The step axis of recorded arrays: after sample and branch."""

ONCE: Final = {"key": "key_step", "value": "value_step", "value_norm": "value_step"}
"""Arrays that are stored once while they do not change, and the table of the step whose block serves each step."""

SERVES: Final = "position on the step axis where this step's {} lies; -1 where the call is absent"
PROBE_KEY: Final = "key of each probe's tokens; the same at every step"
OUTPUT: Final = "output projection, the part that takes this head's channels; the same at every step"
VALUE: Final = "value; at each step read the step named by value_step"
VALUE_NORM: Final = "norm of a token's value through a head of the output projection; at each step read the step named by value_step"

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


def layer_path(index: int) -> str:
    """The group of the layer at `index`."""
    return f"layers/{index:03d}"


def layout(trace: TraceRecord) -> tuple[ArrayPlan, ...]:
    """Every array of a complete trace, in the order they are written."""
    plans = [plan for index in range(len(trace.layers)) for plan in layer_layout(trace, index)]
    plans += step_layout(trace.steps, len(trace.layers))
    return (*plans, *(image_layout(image) for image in trace.images))


def layer_layout(trace: TraceRecord, index: int) -> tuple[ArrayPlan, ...]:
    """The arrays of one layer: the data of its encoding, then its coordinates."""
    return (*data_plans(trace, index).values(), *_coordinates(trace, index))


def data_plans(trace: TraceRecord, index: int) -> dict[str, ArrayPlan]:
    """The arrays of one layer that are written step by step, by name."""
    layer, root = trace.layers[index], layer_path(index)
    plans = _probabilities(trace, layer, root) if layer.encoding == "probabilities" else _factors(trace, layer, root)
    plans += _values(trace, layer, root)
    return {plan.path.rsplit("/", 1)[1]: plan for plan in plans}


def step_tables(layer: Layer) -> tuple[str, ...]:
    """Names of a layer's tables of the step whose block serves each step."""
    keys, values = layer.encoding == "factors", layer.values != "none"
    return (*(["key_step"] if keys else []), *(["value_step"] if values else []))


def fixed_layout(trace: TraceRecord, index: int) -> dict[str, ArrayPlan]:
    """The arrays of a layer that are written with the layer itself, since no step changes them, by name: the keys of its probes, and
    its output projection."""
    layer, root = trace.layers[index], layer_path(index)
    plans: dict[str, ArrayPlan] = {}
    if layer.probes:
        shape: tuple[int, ...] = (layer.heads, layer.probe_tokens, layer.head_dim)
        plans["probe_key"] = _fixed(trace, layer, f"{root}/probe_key", ("probe_token", "channel"), shape, PROBE_KEY)
    if layer.values == "full":
        shape = (layer.heads, layer.value_dim, layer.output_dim)
        plans["output"] = _fixed(trace, layer, f"{root}/output", ("value_channel", "output_channel"), shape, OUTPUT)
    return plans


def step_layout(steps: int, layers: int) -> list[ArrayPlan]:
    """The table of denoiser evaluations, in execution order, and which layers took part in each."""

    def column(name: str, dtype: str, meaning: str, fill: float | int = 0) -> ArrayPlan:
        attributes = {"long_name": meaning}
        return ArrayPlan(f"step/{name}", ("step",), (steps,), dtype, (max(steps, 1),), fill=fill, attributes=attributes)

    nan = math.nan
    return [
        column("evaluation", "int32", "ordinal of the denoiser evaluation in the whole run, from 0", -1),
        column("timestep", "float64", "the scheduler's timestep", nan),
        column("sigma", "float64", "noise level of the scheduler; NaN if it has none", nan),
        column("scheduler_step", "int32", "calls of scheduler.step before this evaluation", -1),
        ArrayPlan("present", ("step", "layer"), (steps, layers), "bool", (max(steps, 1), max(layers, 1)), fill=False),
    ]


def image_layout(image: Image) -> ArrayPlan:
    """One picture, uint8, row-major, y down; its axes bear its name, so that pictures of any sizes open as one dataset."""
    dims: tuple[str, ...] = (f"{image.name}_y", f"{image.name}_x", "rgb" if image.channels == 3 else "grey")
    shape: tuple[int, ...] = (image.height, image.width, image.channels)
    chunks, shards = shape, None
    if image.frames:  # one file, of which a frame can be read alone
        dims, shape, chunks = (f"{image.name}_frame", *dims), (image.frames, *shape), (1, *shape)
        shards = shape if image.frames > 1 else None
    return ArrayPlan(f"images/{image.name}", dims, shape, "uint8", chunks, shards, codec=Codec("zstd", 5), attributes={"role": image.role})


def documents(trace: TraceRecord) -> dict[str, dict[str, Any]]:
    """Every `zarr.json` of a complete trace but the root's, by the folder it lies in."""
    groups = {"layers": _group(), "step": _group(), "images": _group()}
    for index in range(len(trace.layers)):
        groups |= layer_documents(trace, index)
    return {**groups, **{plan.path: plan.to_json() for plan in layout(trace)}}


def layer_documents(trace: TraceRecord, index: int) -> dict[str, dict[str, Any]]:
    """The `zarr.json` of one layer's group and of its arrays, by folder."""
    return {layer_path(index): _group(), **{plan.path: plan.to_json() for plan in layer_layout(trace, index)}}


def root_document(trace: TraceRecord) -> dict[str, Any]:
    """The root's `zarr.json`, which says what the trace is.

    Once complete it carries all other documents too (Zarr's consolidated metadata), so that plain xarray opens it in one read. Before
    that no manifest holds its hash, so it carries one of its own record.
    """
    record = trace.to_json()
    document = {**_group(), "attributes": {"zarr_conventions": [CONVENTION], "i2am": record}}
    if trace.status == "complete":
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": documents(trace)}
    else:
        document["attributes"]["i2am_sha256"] = record_sum(record)
    return document


def record_sum(record: dict[str, Any]) -> str:
    """The sha256 that an unfinished trace's root carries of its record."""
    return hashlib.sha256(canonical(json.loads(json.dumps(record, default=str))).encode()).hexdigest()


def _group() -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": {}}


def _probabilities(trace: TraceRecord, layer: Layer, root: str) -> list[ArrayPlan]:
    attributes = {
        "scale_factor": PROBABILITY_SCALE,
        "long_name": "attention probability over all keys of the call",
        "coordinates": "timestep",
    }
    over_places = {"long_name": "logsumexp of scores over generated positions", "coordinates": "timestep"}
    return [
        _blocks(trace, layer, f"{root}/probability", "float16", (*_axes(layer), "token"), (*layer.places, layer.tokens), attributes),
        _query_lse(trace, layer, root),
        _blocks(trace, layer, f"{root}/token_lse", "float32", ("token",), (layer.tokens,), over_places),
    ]


def _factors(trace: TraceRecord, layer: Layer, root: str) -> list[ArrayPlan]:
    dtype = layer.factor_dtype
    query, key = {"long_name": "query", "coordinates": "timestep"}, {"long_name": "key; at each step read the step named by key_step"}
    plans = [
        _blocks(trace, layer, f"{root}/query", dtype, (*_axes(layer), "channel"), (*layer.places, layer.head_dim), query),
        _blocks(trace, layer, f"{root}/key", dtype, ("token", "channel"), (layer.tokens, layer.head_dim), key),
    ]
    return [*plans, _query_lse(trace, layer, root)] if layer.partial_keys else plans


def _values(trace: TraceRecord, layer: Layer, root: str) -> list[ArrayPlan]:
    if layer.values == "full":
        dims, cell = ("token", "value_channel"), (layer.tokens, layer.value_dim)
        return [_blocks(trace, layer, f"{root}/value", layer.factor_dtype, dims, cell, {"long_name": VALUE})]
    plan = _blocks(trace, layer, f"{root}/value_norm", "float32", ("token",), (layer.tokens,), {"long_name": VALUE_NORM})
    return [plan] if layer.values == "norms" else []


def _query_lse(trace: TraceRecord, layer: Layer, root: str) -> ArrayPlan:
    attributes = {"long_name": "logsumexp of scores over all keys of the call", "coordinates": "timestep"}
    return _blocks(trace, layer, f"{root}/query_lse", "float32", _axes(layer), layer.places, attributes)


def _axes(layer: Layer) -> tuple[str, ...]:
    """The axes that queries lie on."""
    return ("frame", "y", "x") if layer.frames else ("y", "x")


def _blocks(
    trace: TraceRecord, layer: Layer, path: str, dtype: str, dims: tuple[str, ...], cell: tuple[int, ...], attributes: dict[str, Any]
) -> ArrayPlan:
    """An array of which one (sample, branch, step) is one file, or several along the first axis of `cell` if it is large.

    Frames and rows count as one axis of rows: a piece is some whole frames, or some rows of one frame. Packed, a file is one chunk of
    several steps.
    """
    shape = (trace.samples, len(trace.branches), trace.steps, layer.heads, *cell)
    axes = ("sample", "branch", "step", "head", *dims)
    lead = 2 if dims[0] == "frame" else 1
    row = layer.heads * math.prod(cell[lead:]) * _ITEMSIZE[dtype]
    if trace.chunk_steps > 1:
        steps = max(1, min(trace.chunk_steps, trace.steps, CHUNK_BYTES[1] // row))
        rows = _split_rows(cell[:lead], CHUNK_BYTES[1] // (steps * row))
        chunk = (1, 1, steps, layer.heads, *rows, *cell[lead:])
        return ArrayPlan(path, axes, shape, dtype, chunk, None, math.nan, trace.codec, attributes, steps > 1)
    shard_rows = _split_rows(cell[:lead], SHARD_BYTES // row)
    low, high = CHUNK_BYTES
    chunk_rows = _split_rows(shard_rows, min(max(math.prod(shard_rows) * row // 8, low), high) // row)
    shard, chunk = ((1, 1, 1, layer.heads, *rows, *cell[lead:]) for rows in (shard_rows, chunk_rows))
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


def _coordinates(trace: TraceRecord, index: int) -> list[ArrayPlan]:
    layer, root = trace.layers[index], layer_path(index)

    def column(name: str, dim: str, length: int, dtype: str, fill: float | int, attributes: dict[str, Any]) -> ArrayPlan:
        return ArrayPlan(f"{root}/{name}", (dim,), (length,), dtype, (max(length, 1),), fill=fill, attributes=attributes)

    nan, flags = math.nan, {"flag_values": list(range(len(BRANCHES))), "flag_meanings": " ".join(BRANCHES)}
    plans = [
        column("step", "step", trace.steps, "int32", -1, {"long_name": "ordinal of the denoiser evaluation"}),
        column("timestep", "step", trace.steps, "float64", nan, {"long_name": "the scheduler's timestep"}),
        column("branch", "branch", len(trace.branches), "int8", -1, flags),
        column("y", "y", layer.grid[0], "float64", nan, {"long_name": "centre of the row as a share of the height, from the top"}),
        column("x", "x", layer.grid[1], "float64", nan, {"long_name": "centre of the column as a share of the width, from the left"}),
    ]
    if layer.frames:
        meaning = {"long_name": "centre of the frame as a share of the video, from its start"}
        plans.append(column("frame", "frame", layer.frames, "float64", nan, meaning))
    if layer.head_numbers:
        plans.append(column("head", "head", layer.heads, "int32", -1, {"long_name": "number of the head in the model, from 0"}))
    plans += fixed_layout(trace, index).values()
    shape = (trace.samples, len(trace.branches), trace.steps)

    def table(name: str, dtype: str, fill: int | bool, meaning: str) -> ArrayPlan:
        whole = tuple(max(n, 1) for n in shape)
        return ArrayPlan(f"{root}/{name}", ("sample", "branch", "step"), shape, dtype, whole, fill=fill, attributes={"long_name": meaning})

    if trace.chunk_steps > 1:
        plans.append(table("called", "bool", False, "whether the call happened"))
    return plans + [table(name, "int32", -1, SERVES.format(name.removesuffix("_step"))) for name in step_tables(layer)]


def _fixed(trace: TraceRecord, layer: Layer, path: str, dims: tuple[str, str], shape: tuple[int, ...], meaning: str) -> ArrayPlan:
    """An array of one chunk a head."""
    chunk = (1, *shape[1:])
    attributes = {"long_name": meaning}
    return ArrayPlan(path, ("head", *dims), shape, layer.factor_dtype, chunk, fill=math.nan, codec=trace.codec, attributes=attributes)
