"""Complete synthetic traces from random q and k, with their float64 oracle. Needs numpy and the writer, no torch."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from i2am.recorder.store.writer import Writer
from i2am.schema.arrays.sums import KeptSums, spread_mask, token_segments
from i2am.schema.codec import decode_probability, encode_probability
from i2am.schema.text import Text
from i2am.schema.trace import Codec, Image, Layer, TokenGroup, TraceRecord


@dataclass
class Synthetic:
    """A trace on disk and what it must answer; arrays have axes (sample, branch, step, head, [frame,] y, x, token), NaN where absent."""

    path: Path
    trace: TraceRecord
    writer: Writer
    scores: list[np.ndarray] = field(default_factory=list)
    """S of each layer, float64."""
    probabilities: list[np.ndarray] = field(default_factory=list)
    """P: softmax over all keys of the call, stored or not."""
    generated: list[np.ndarray] = field(default_factory=list)
    """G: softmax over the generated positions."""
    query_lse: list[np.ndarray] = field(default_factory=list)
    """a, without the token axis; over all keys of the call."""
    token_lse: list[np.ndarray] = field(default_factory=list)
    """b, without the axes of places."""
    query: list[np.ndarray] = field(default_factory=list)
    """(sample, branch, step, head, [frame,] y, x, channel), as the model had it."""
    key: list[np.ndarray] = field(default_factory=list)
    """(sample, branch, step, head, token, channel)."""
    value: list[np.ndarray | None] = field(default_factory=list)
    """(sample, branch, step, head, token, value channel) of each layer that keeps its values, or norms of them."""
    output: list[np.ndarray | None] = field(default_factory=list)
    """(head, value channel, output channel) of the same."""
    concept: list[np.ndarray | None] = field(default_factory=list)
    """(sample, branch, step, concept, [frame,] y, x) of each layer that has concepts."""
    residual: list[np.ndarray | None] = field(default_factory=list)
    """(sample, branch, step, [frame,] y, x) of each layer that keeps norms of the residual stream."""
    probe_key: list[np.ndarray | None] = field(default_factory=list)
    """(head, probe token, channel) of each layer that has probes."""
    images: dict[str, np.ndarray] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    """Those of the generated image, by which layers of maps weigh positions."""


def reference_layer(
    path: str = "unet.mid_block.attentions.0.transformer_blocks.0.attn2",
    grid: tuple[int, int] = (4, 3),
    *,
    heads: int = 2,
    head_dim: int = 8,
    reference: tuple[int, int] | None = (3, 5),
    specials: int = 1,
    text: int = 0,
    call: int = 0,
    hidden: int = 0,
    **fields: Any,
) -> Layer:
    """A cross-attention layer: `text` text tokens, then specials and the reference grid; `hidden` keys of the call are not stored."""
    groups, stop = [], 0
    if text:
        groups.append(TokenGroup("text", "text", 0, text))
        stop = text
    if reference is not None:
        tokens = specials + reference[0] * reference[1]
        groups.append(TokenGroup("reference", "reference", stop, stop + tokens, specials, reference, "reference"))
        stop += tokens
    call_tokens = stop + hidden if hidden else 0
    return Layer(path, call, heads, head_dim, head_dim**-0.5, grid, stop, tuple(groups), call_tokens=call_tokens, **fields)


def default_layers() -> tuple[Layer, ...]:
    """Three reference call sites on two non-square grids, with different numbers of heads, all seeing one 3 x 5 reference with CLS."""
    return (
        reference_layer("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2", (8, 6), heads=2),
        reference_layer("unet.mid_block.attentions.0.transformer_blocks.0.attn2", (4, 3), heads=4),
        reference_layer("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2", (8, 6), heads=2),
    )


def synthetic_trace(
    path: str | os.PathLike[str],
    *,
    layers: Sequence[Layer] | None = None,
    steps: int = 4,
    planned: int | None = None,
    encoding: str | None = "probabilities",
    seed: int = 0,
    samples: int = 1,
    branches: tuple[str, ...] = ("cond",),
    absent: Collection[tuple[int, int]] = (),
    sharpness: float = 3.0,
    static_keys: bool = True,
    dtype: str = "float32",
    latent_grid: tuple[int, int] | None = (8, 6),
    image_size: tuple[int, int] = (64, 48),
    reference_size: tuple[int, int] = (30, 50),
    frames: int = 0,
    status: str = "complete",
    codec: Codec | None = None,
    texts: Sequence[Text] = (),
    plant: Callable[[int, np.ndarray], None] | None = None,
    facts: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
    model: str = "synthetic",
    window: tuple[float, float, float, float] | None = None,
    reason: str = "stopped by the test",
    **writer_options: Any,
) -> Synthetic:
    """Write a trace; `absent` holds (step, layer) pairs without a call, `encoding` None keeps each layer's own.

    `status` other than `complete` leaves it `interrupted`, or `recording` as a killed process would. `plant` may change the keys of a
    layer's probes, given its index, before they are written. `frames` makes the generated picture a video; layers say their own.
    `window` is the part of the reference that its tokens cover.
    """
    rng = np.random.default_rng(seed)
    chosen = tuple(layers if layers is not None else default_layers())
    if encoding == "sums":
        chosen = tuple(dataclasses.replace(layer, encoding="sums", sums=layer.sums or KeptSums((), ("mask",))) for layer in chosen)
    elif encoding is not None:
        chosen = tuple(dataclasses.replace(layer, encoding=encoding) for layer in chosen)
    chosen = tuple(dataclasses.replace(layer, dtype=dtype, factor_dtype=dtype) for layer in chosen)
    record = TraceRecord(
        f"00000000-0000-4000-8000-{seed:012d}", "recording", samples, branches, planned or steps, codec=codec or Codec(),
        latent_grid=latent_grid, created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    result = Synthetic(Path(path), record, Writer(path, record, **writer_options))
    result.masks = {"mask": _mask(image_size)}
    for layer in chosen:
        _draw(result, layer, rng, (samples, len(branches), steps), sharpness, static_keys)
        _draw_probes(result, layer, seed, plant)
        _draw_values(result, layer, seed, (samples, len(branches), steps), static_keys)
        result.writer.add_layer(layer, result.probe_key[-1], result.output[-1] if layer.values == "full" else None)
    result.writer.add_texts(texts)
    _write(result, chosen, branches, steps, set(absent))
    result.images = _pictures(rng, samples, image_size, reference_size, **({"frames": frames} if frames else {}))
    if status == "complete":
        result.trace = result.writer.finish(
            images=_images(result.images, window),
            model={"pipeline": model},
            inputs={"seed": seed},
            provenance={**({"facts": facts} if facts else {}), **(provenance or {})},
        )
    elif status == "interrupted":
        result.writer.interrupt(reason)
        result.trace = result.writer.trace
    else:
        result.writer._workers.drain()
        result.trace = result.writer.trace
    return result


def _draw_probes(result: Synthetic, layer: Layer, seed: int, plant: Callable[[int, np.ndarray], None] | None) -> None:
    """Random keys of one layer's probes, or what `plant` makes of them."""
    shape = (layer.heads, layer.probe_tokens, layer.head_dim)
    drawn = np.random.default_rng([seed, len(result.probe_key)]).standard_normal(shape).astype(layer.factor_dtype)
    if plant and layer.probes:
        plant(len(result.probe_key), drawn)
    result.probe_key.append(drawn if layer.probes else None)


def _draw_values(result: Synthetic, layer: Layer, seed: int, lead: tuple[int, int, int], static: bool) -> None:
    """Random values and output projection of one layer that keeps something of them."""
    rng, (channels, out) = np.random.default_rng([seed, 7, len(result.value)]), (layer.value_dim or 5, layer.output_dim or 6)
    value = rng.standard_normal((*lead, layer.heads, layer.tokens, channels)).astype(layer.factor_dtype)
    if static:
        value[:] = value[:, :, :1]
    output = rng.standard_normal((layer.heads, channels, out)).astype(layer.factor_dtype)
    result.value.append(value if layer.values != "none" else None)
    result.output.append(output if layer.values != "none" else None)
    result.concept.append(rng.normal(0, 3, (*lead, len(layer.concepts), *layer.places)).astype(np.float32) if layer.concepts else None)
    result.residual.append(rng.random((*lead, *layer.places), np.float32) if layer.residual else None)


def value_norms(made: Synthetic, layer: int) -> np.ndarray:
    """|gain v W| in float64, one value after another: (sample, branch, step, head, token)."""
    value, output = made.value[layer], made.output[layer]
    assert value is not None
    assert output is not None
    found = np.empty(value.shape[:-1])
    for at in np.ndindex(found.shape):
        found[at] = np.linalg.norm(made.trace.layers[layer].gain * value[at].astype(np.float64) @ output[at[3]].astype(np.float64))
    return found


def _draw(result: Synthetic, layer: Layer, rng: np.random.Generator, lead: tuple[int, int, int], sharpness: float, static: bool) -> None:
    """Random q and k of one layer, and S, P, G in float64."""
    tokens = layer.call_tokens or layer.tokens
    q = (sharpness * rng.standard_normal((*lead, layer.heads, *layer.places, layer.head_dim))).astype(layer.factor_dtype)
    k = rng.standard_normal((*lead, layer.heads, tokens, layer.head_dim)).astype(layer.factor_dtype)
    if static:
        k[:] = k[:, :, :1]
    flat = q.reshape(*lead, layer.heads, math.prod(layer.places), layer.head_dim).astype(np.float64)
    s = layer.scale * np.einsum("...xc,...tc->...xt", flat, k.astype(np.float64), optimize=True)
    a = _logsumexp(s, (-1,))
    s = s[..., : layer.tokens]
    b = _logsumexp(s, (-2,))
    shape = (*lead, layer.heads, *layer.places, layer.tokens)
    result.query.append(q)
    result.key.append(np.ascontiguousarray(k[..., : layer.tokens, :]))
    result.scores.append(s.reshape(shape))
    result.probabilities.append(np.exp(s - a).reshape(shape))
    result.generated.append(np.exp(s - b).reshape(shape))
    result.query_lse.append(a.reshape(shape[:-1]))
    result.token_lse.append(b[..., 0, :])


def _logsumexp(s: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    top = s.max(axes, keepdims=True)
    return top + np.log(np.exp(s - top).sum(axes, keepdims=True))


def _write(result: Synthetic, layers: Sequence[Layer], branches: tuple[str, ...], steps: int, absent: set[tuple[int, int]]) -> None:
    for step in range(steps):
        for index, layer in enumerate(layers):
            if (step, index) in absent:
                for arrays in (result.scores, result.probabilities, result.generated):
                    arrays[index][:, :, step] = np.nan
                continue
            for sample in range(result.trace.samples):
                for b, branch in enumerate(branches):
                    blocks, lost = _blocks(result, index, layer, (sample, b, step))
                    blocks |= _value_blocks(result, index, layer, (sample, b, step))
                    if (concept := result.concept[index]) is not None:
                        blocks["concept_score"] = concept[sample, b, step]
                    result.writer.put(index, sample, branch, step, blocks, lost=lost)
        result.writer.commit(step, evaluation=step, timestep=1000.0 - 10 * step, sigma=14.0 / (step + 1), scheduler_step=step)


def _blocks(result: Synthetic, index: int, layer: Layer, at: tuple[int, int, int]) -> tuple[dict[str, np.ndarray], float]:
    a, b = result.query_lse[index][at], result.token_lse[index][at]
    if layer.encoding == "sums":
        return _sums(result, index, layer, at), 0.0
    if layer.encoding == "factors":
        blocks = {"query": result.query[index][at], "key": result.key[index][at]}
        return (blocks | {"query_lse": a.astype(np.float32)} if layer.partial_keys else blocks), 0.0
    stored = encode_probability(result.probabilities[index][at])
    found = decode_probability(stored).reshape(layer.heads, -1, layer.tokens)
    kept = (found * np.exp(a.reshape(layer.heads, -1)[..., None] - b[:, None])).sum(1)
    lost = float(np.clip(1 - kept, 0, 1).max())
    return {"probability": stored, "query_lse": a.astype(np.float32), "token_lse": b.astype(np.float32)}, lost


def _sums(result: Synthetic, index: int, layer: Layer, at: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """What a layer of maps keeps, in float64: softmax values summed over segments of tokens, and over positions as masks weigh them."""
    weights = [np.ones(layer.places), *(spread_mask(result.masks[name][..., 0] / 255, layer.places) for name in layer.sums.masks)]
    both = np.stack([result.probabilities[index][at], result.generated[index][at]], -1)  # (head, *places, token, softmax)
    segments = np.stack([both[..., part, :].sum(-2) for part in token_segments(layer.groups)], -2)
    weighed = np.einsum("wx,hxts->htws", np.reshape(weights, (len(weights), -1)), both.reshape(layer.heads, -1, layer.tokens, 2))
    found = {"position_sum": segments.astype(np.float32), "token_sum": weighed.astype(np.float32)}
    if own := list(layer.sums.tokens):
        found["token_probability"] = encode_probability(both[..., own, 0])
        found["query_lse"] = result.query_lse[index][at].astype(np.float32)
        found["token_lse"] = result.token_lse[index][at][:, own].astype(np.float32)
    return found


def _value_blocks(result: Synthetic, index: int, layer: Layer, at: tuple[int, int, int]) -> dict[str, np.ndarray]:
    value, output = result.value[index], result.output[index]
    if layer.values == "none" or value is None or output is None:
        return {}
    if layer.values == "full":
        residual = result.residual[index]
        return {"value": value[at]} | ({} if residual is None else {"residual_norm": residual[at]})
    return {"value_norm": np.linalg.norm(value[at].astype(np.float64) @ output, axis=-1).astype(np.float32)}


def _pictures(
    rng: np.random.Generator, samples: int, size: tuple[int, int], reference: tuple[int, int], frames: int = 0
) -> dict[str, np.ndarray]:
    shape = (frames, *size, 3) if frames else (*size, 3)
    pictures = {f"generated_{i}": rng.integers(0, 256, shape, dtype=np.uint8) for i in range(samples)}
    pictures["reference"] = rng.integers(0, 256, (*reference, 3), dtype=np.uint8)
    return pictures | {"mask": _mask(size), "reference_mask": _mask(reference)}


def _mask(size: tuple[int, int]) -> np.ndarray:
    height, width = size
    mask = np.zeros((height, width, 1), dtype=np.uint8)
    mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 255
    return mask


def _images(pictures: dict[str, np.ndarray], window: tuple[float, float, float, float] | None = None) -> list[tuple[Image, np.ndarray]]:
    roles = {"reference": "reference", "mask": "mask", "reference_mask": "reference_mask"}
    return [
        (
            Image(
                name,
                roles.get(name, "generated"),
                *pixels.shape[-3:],
                window=window if name == "reference" else None,
                frames=len(pixels) if pixels.ndim > 3 else 0,
            ),
            pixels,
        )
        for name, pixels in pictures.items()
    ]


def self_layer(path: str, grid: tuple[int, int], *, heads: int = 2, head_dim: int = 8, text: int = 0, reference: Any = None) -> Layer:
    """A layer whose keys are the image's own positions; joint attention has text before them, and a reference's grid behind."""
    sizes = [("text", "text", text, None), ("self", "self", math.prod(grid), grid)]
    sizes += [("reference", "reference", math.prod(reference), reference)] if reference else []
    groups, stop = [], 0
    for name, role, tokens, placed in sizes:
        if tokens:
            image = "reference" if role == "reference" else None
            groups.append(TokenGroup(name, role, stop, stop + tokens, grid=placed, image=image))
            stop += tokens
    return Layer(path, 0, heads, head_dim, head_dim**-0.5, grid, stop, tuple(groups))
