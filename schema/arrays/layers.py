"""The arrays of one layer: the data of its encoding, its values, and its coordinates."""

from __future__ import annotations

import math
from typing import Any, Final

from ..codec import PROBABILITY_SCALE
from ..record import BRANCHES
from ..trace import Layer, TraceRecord
from .array import ArrayPlan, blocks, call_blocks
from .sums import token_segments

ONCE: Final = {"key": "key_step", "value": "value_step", "value_norm": "value_step"}
"""Arrays that are stored once while they do not change, and the table of the step whose block serves each step."""

SERVES: Final = "position on the step axis where this step's {} lies; -1 where the call is absent"
PROBE_KEY: Final = "key of each probe's tokens; the same at every step"
OUTPUT: Final = "output projection, the part that takes this head's channels; the same at every step"
POSITION_SUM: Final = "softmax values summed over the tokens of each segment"
TOKEN_SUM: Final = "softmax values summed over generated positions, all alike and weighed by each mask"
TOKEN_PROBABILITY: Final = "attention probability of the tokens that have maps of their own, over all keys of the call"
VALUE: Final = "value; at each step read the step named by value_step"
VALUE_NORM: Final = "norm of a token's value through a head of the output projection; at each step read the step named by value_step"
CONCEPT_SCORE: Final = "product of what attention gives a position and what it gives a concept, summed over heads"
RESIDUAL_NORM: Final = "norm of the residual stream that the module's output is added to"


def layer_path(index: int) -> str:
    """The group of the layer at `index`."""
    return f"layers/{index:03d}"


def layer_layout(trace: TraceRecord, index: int) -> tuple[ArrayPlan, ...]:
    """The arrays of one layer: the data of its encoding, then its coordinates."""
    return (*data_plans(trace, index).values(), *_coordinates(trace, index))


def data_plans(trace: TraceRecord, index: int) -> dict[str, ArrayPlan]:
    """The arrays of one layer that are written step by step, by name."""
    layer, root = trace.layers[index], layer_path(index)
    plans = {"probabilities": _probabilities, "factors": _factors, "sums": _sums}[layer.encoding](trace, layer, root)
    plans += _values(trace, layer, root)
    if layer.concepts:
        dims, lengths = ("concept", *_axes(layer)), (len(layer.concepts), *layer.places)
        attributes = {"long_name": CONCEPT_SCORE, "coordinates": "timestep"}
        plans.append(call_blocks(trace, f"{root}/concept_score", "float32", dims, lengths, attributes))
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


def _probabilities(trace: TraceRecord, layer: Layer, root: str) -> list[ArrayPlan]:
    attributes = {
        "scale_factor": PROBABILITY_SCALE,
        "long_name": "attention probability over all keys of the call",
        "coordinates": "timestep",
    }
    over_places = {"long_name": "logsumexp of scores over generated positions", "coordinates": "timestep"}
    return [
        blocks(trace, layer, f"{root}/probability", "float16", (*_axes(layer), "token"), (*layer.places, layer.tokens), attributes),
        _query_lse(trace, layer, root),
        blocks(trace, layer, f"{root}/token_lse", "float32", ("token",), (layer.tokens,), over_places),
    ]


def _factors(trace: TraceRecord, layer: Layer, root: str) -> list[ArrayPlan]:
    dtype = layer.factor_dtype
    query, key = {"long_name": "query", "coordinates": "timestep"}, {"long_name": "key; at each step read the step named by key_step"}
    plans = [
        blocks(trace, layer, f"{root}/query", dtype, (*_axes(layer), "channel"), (*layer.places, layer.head_dim), query),
        blocks(trace, layer, f"{root}/key", dtype, ("token", "channel"), (layer.tokens, layer.head_dim), key),
    ]
    return [*plans, _query_lse(trace, layer, root)] if layer.partial_keys else plans


def _sums(trace: TraceRecord, layer: Layer, root: str) -> list[ArrayPlan]:
    assert layer.sums is not None  # as the encoding says
    kept, weightings = len(layer.sums.tokens), 1 + len(layer.sums.masks)
    over_tokens, over_positions = ({"long_name": meaning, "coordinates": "timestep"} for meaning in (POSITION_SUM, TOKEN_SUM))
    dims, cell = (*_axes(layer), "segment", "softmax"), (*layer.places, len(token_segments(layer.groups)), 2)
    plans = [blocks(trace, layer, f"{root}/position_sum", "float32", dims, cell, over_tokens)]
    dims, cell = ("token", "weighting", "softmax"), (layer.tokens, weightings, 2)
    plans.append(blocks(trace, layer, f"{root}/token_sum", "float32", dims, cell, over_positions))
    if not kept:
        return plans
    scaled = {"scale_factor": PROBABILITY_SCALE, "long_name": TOKEN_PROBABILITY, "coordinates": "timestep"}
    over_places = {"long_name": "logsumexp of scores over generated positions", "coordinates": "timestep"}
    return [
        *plans,
        blocks(trace, layer, f"{root}/token_probability", "float16", (*_axes(layer), "kept_token"), (*layer.places, kept), scaled),
        _query_lse(trace, layer, root),
        blocks(trace, layer, f"{root}/token_lse", "float32", ("kept_token",), (kept,), over_places),
    ]


def _values(trace: TraceRecord, layer: Layer, root: str) -> list[ArrayPlan]:
    if layer.values == "full":
        dims, cell = ("token", "value_channel"), (layer.tokens, layer.value_dim)
        residual = {"long_name": RESIDUAL_NORM, "coordinates": "timestep"}
        return [
            blocks(trace, layer, f"{root}/value", layer.factor_dtype, dims, cell, {"long_name": VALUE}),
            *([call_blocks(trace, f"{root}/residual_norm", "float32", _axes(layer), layer.places, residual)] if layer.residual else []),
        ]
    plan = blocks(trace, layer, f"{root}/value_norm", "float32", ("token",), (layer.tokens,), {"long_name": VALUE_NORM})
    return [plan] if layer.values == "norms" else []


def _query_lse(trace: TraceRecord, layer: Layer, root: str) -> ArrayPlan:
    attributes = {"long_name": "logsumexp of scores over all keys of the call", "coordinates": "timestep"}
    return blocks(trace, layer, f"{root}/query_lse", "float32", _axes(layer), layer.places, attributes)


def _axes(layer: Layer) -> tuple[str, ...]:
    """The axes that queries lie on."""
    return ("frame", "y", "x") if layer.frames else ("y", "x")


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
