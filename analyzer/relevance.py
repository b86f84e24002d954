"""Head relevance vectors: how much each head looks for each visual concept, counted over any number of traces.

N[c, h]   how often concept c wins head h, over traces, samples, steps and draws (`counting.py`)
R[c, h] = N[c, h] / sum_c N[c, h]            what share of its calls a head gives to a concept
HRV_c   = H * R[c, :] / sum_h R[c, :]        the concept's vector over all H heads, of sum H
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed
from numpy.typing import NDArray

from ..schema.errors import InvalidInput, UnknownSelection
from ..schema.trace import Layer
from .collection import find_traces
from .counting import Counts, Span, count_layer, find_spans, is_of
from .reader import Selector, Trace, head_numbers, listed, open_trace
from .selection import whole
from .vocabulary import Concepts
from .vocabulary import concepts as read_concepts
from .wording import option

Source: TypeAlias = Trace | str | os.PathLike[str]
Sources: TypeAlias = Iterable[Source] | Source

PROBE: Final = "concepts"
PLACES: Final = (("down", "input_blocks"), ("mid", "middle"), ("up", "output_blocks"))
"""How module paths name the three parts of a U-Net, in the order in which the published vectors list their heads."""
HOW: Final = 'record with encoding="factors" and probes={{"{probe}": concept_words()}}'


def heads(
    traces: Sources,
    *,
    concepts: Mapping[str, Iterable[str]] | str | os.PathLike[str] | None = None,
    probe: str = PROBE,
    layers: Selector | Iterable[Selector] | None = None,
    branch: str | None = None,
    seed: int = 0,
    draws: int = 1,
    keep: Iterable[str] | str = (),
) -> xr.DataArray:
    """Head relevance vectors of a model, from traces that hold the concepts' words as a probe; of pictures, "words" are their names.

    Coordinates carry the counts they are made of (`count`), each head's shares (`share`, R) and the place of each head in the
    published order (`position`). The same seed and traces give the same counts, in any order and with any workers.

    Dims     (concept, layer, head), before them (time,) with keep="time"; layers in published order: down, mid, up
    Range    >= 0, sums to the number of heads over (layer, head); NaN where a layer has no such head
    Raises   InvalidInput for traces of different models or without factors, UnknownSelection for a probe, word or layer there is not
    Source   Park et al. 2025 (HRV), released code; the middle block is included, as there
    """
    opened, words = open_all(traces), read_concepts(concepts)
    by_time = _kept(keep)
    if whole(draws, "a number of draws") < 1:
        raise InvalidInput(f"{draws} draws; expected 1 or more words of each concept for each call")
    found = _layers(opened[0], layers, probe)
    tasks = []
    for trace in opened:
        chosen = _same_layers(opened[0], trace, found, probe)
        row = _branch(trace, branch)
        for index in chosen:
            task = partial(count_layer, trace, index, _spans(trace, index, probe, words), row, whole(seed, "a seed"), draws)
            tasks.append(delayed(task, pure=False, traverse=False)())  # in a partial, so that dask does not look into the spans
    counted = compute(*tasks)  # type: ignore[no-untyped-call]
    totals = [_total(counted[i :: len(found)], opened, by_time) for i in range(len(found))]
    facts = {
        "kind": "relevance",
        "model": str(opened[0].record.model.get("pipeline", "")),
        "traces": sorted(trace.id for trace in opened),
        "words": {name: list(each) for name, each in words.items()},
        "probe": probe,
        "branch": branch or "",
        "seed": int(seed),
        "draws": int(draws),
    }
    return _assemble(opened, [opened[0].layers[i] for i in found], totals, list(words), by_time, facts)


def open_all(traces: Sources) -> list[Trace]:
    """Traces by themselves, or by the paths, folders and patterns that name them, each once.

    Raises   InvalidInput if there is none, or one comes twice; as `open_trace`
    """
    opened: list[Trace] = []
    for source in [traces] if isinstance(traces, (Trace, str, os.PathLike)) else traces:
        opened += [source] if isinstance(source, Trace) else [open_trace(member.path) for member in find_traces(source)]
    if not opened:
        raise InvalidInput("there are no traces to count; give one or more")
    known: dict[str, Trace] = {}
    for trace in opened:
        if trace.id in known:
            raise InvalidInput(f"{trace.path} and {known[trace.id].path} are the same recording, which would count twice; give it once")
        known[trace.id] = trace
    return opened


def published_order(names: Iterable[str]) -> list[int]:
    """Positions of layers in the order of the published vectors: down, then mid, then up, each as it comes; others after them."""
    listing = list(names)
    return sorted(range(len(listing)), key=lambda i: (_place(listing[i]), i))


def vectors(counts: Counts | NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """R and HRV of counts; a head that was never counted is NaN in both, a concept that never won is 0 everywhere.

    Dims     (..., concept, layer, head) -> the same twice
    """
    calls = counts.sum(-3, keepdims=True, dtype=np.float64)
    share = np.divide(counts, calls, out=np.full(counts.shape, np.nan), where=calls > 0)
    total = np.nansum(share, axis=(-2, -1), keepdims=True)
    present = np.isfinite(share).sum(axis=(-2, -1), keepdims=True)
    relevance = np.divide(present * share, total, out=np.where(np.isnan(share), np.nan, 0.0), where=total > 0)
    return share, relevance


def require_same_heads(relevance: xr.DataArray, trace: Trace) -> None:
    """Refuse a head vector that was made of another model: its layers must be the trace's, and have as many heads of the same width.

    Raises   InvalidInput naming the first difference
    """
    known = {layer.name: layer for layer in trace.layers}
    whose = f"the head vector of {relevance.attrs.get('model') or 'an unknown model'}"
    for name, count, width in zip(*(relevance[key].values.tolist() for key in ("layer", "heads", "head_dim")), strict=True):
        if name not in known:
            raise InvalidInput(
                f"{whose} has the layer {name}, which the trace {trace.path} does not have: it was made of another model, or of layers "
                f"that were not recorded here. The trace has {listed(known)}"
            )
        layer = known[name]
        here = (layer.call_heads or layer.heads, layer.head_dim)
        if here != (count, width):
            raise InvalidInput(
                f"{whose} has {count} heads of {width} channels in the layer {name}, the trace {trace.path} {here[0]} of {here[1]}: "
                "it was made of another model; count the heads on traces of this one"
            )


def _kept(keep: Iterable[str] | str) -> bool:
    kept = {keep} if isinstance(keep, str) else set(keep)
    if kept - {"time"}:
        raise InvalidInput(f"cannot keep {sorted(kept - {'time'})[0]!r}; layers and heads are always kept, and beside them only time")
    return bool(kept)


def _branch(trace: Trace, branch: str | None) -> int:
    branches = trace.record.branches
    if branch is not None and branch not in branches:
        raise UnknownSelection(f"the trace {trace.path} has no branch {branch!r}; it has {', '.join(branches)}")
    return branches.index(branch or ("cond" if "cond" in branches else branches[0]))


def _has(layer: Layer, probe: str) -> bool:
    return any(is_of(group, probe) for group in layer.probes)


def _layers(trace: Trace, layers: Selector | Iterable[Selector] | None, probe: str) -> list[int]:
    """Layers of the first trace that hold the probe, in published order."""
    selected = trace.select(layers)
    found = [index for index in selected if _has(trace.layers[index], probe)]
    how = HOW.format(probe=probe)
    if not found:
        there = dict.fromkeys(group.name for index in selected for group in trace.layers[index].probes)
        if all(trace.layers[index].encoding == "probabilities" for index in selected):
            raise InvalidInput(
                f"{trace.path} was recorded as probabilities, which no other keys can be held against, and has no probe {probe!r}: {how}"
            )
        raise UnknownSelection(f"no selected layer of {trace.path} has a probe {probe!r}; it has {listed(there)}. To have one, {how}")
    for layer in (trace.layers[index] for index in found):
        if layer.encoding != "factors":
            raise InvalidInput(
                f"layer {layer.name} of {trace.path} was recorded as probabilities, which no other keys can be held against; "
                f"{how}, or leave it out with {option('layers')}"
            )
    return [found[i] for i in published_order(trace.layers[index].name for index in found)]


def _same_layers(first: Trace, trace: Trace, found: list[int], probe: str) -> list[int]:
    """The same layers in another trace of the same model."""
    known = {layer.name: index for index, layer in enumerate(trace.layers) if _has(layer, probe)}
    chosen = []
    for layer in (first.layers[index] for index in found):
        other = trace.layers[known[layer.name]] if layer.name in known else None
        if other is None or _shape(other) != _shape(layer) or other.encoding != "factors":
            have = "none" if other is None else f"heads {listed(map(str, head_numbers(other)))} of {other.head_dim} channels"
            raise InvalidInput(
                f"{trace.path} and {first.path} cannot be counted together: of layer {layer.name} with the probe {probe!r} the second has "
                f"heads {listed(map(str, head_numbers(layer)))} of {layer.head_dim} channels as factors, the first {have}"
                + (f" as {other.encoding}" if other else "")
            )
        chosen.append(known[layer.name])
    return chosen


def _shape(layer: Layer) -> tuple[Any, ...]:
    return head_numbers(layer), layer.call_heads or layer.heads, layer.head_dim


def _spans(trace: Trace, index: int, probe: str, words: Concepts) -> list[list[Span]]:
    known = find_spans(trace.record, trace.layers[index], probe)
    missing = [word for each in words.values() for word in each if word not in known]
    if missing:
        raise UnknownSelection(
            f"the probe {probe!r} of {trace.path} lacks {len(missing)} of the concepts' words: {listed(missing)}; it has {listed(known)}. "
            f"Give its own concepts with {option('concepts')}, or {HOW.format(probe=probe)}"
        )
    return [[known[word] for word in each] for each in words.values()]


def _total(counted: Iterable[Counts], opened: list[Trace], by_time: bool) -> Counts:
    """Sum over traces, and over steps unless they are kept.

    Dims     (step, concept, head) each -> (step or 1, concept, head)
    """
    parts = [counts if by_time else counts.sum(0, keepdims=True) for counts in counted]
    if len({len(part) for part in parts}) > 1:
        steps = ", ".join(f"{trace.path}: {len(part)}" for trace, part in list(zip(opened, parts, strict=True))[:4])
        raise InvalidInput(f"time cannot be kept over traces with different numbers of steps ({steps}); give traces of one schedule")
    return np.asarray(np.sum(parts, axis=0))


def _assemble(
    opened: list[Trace], layers: list[Layer], totals: list[Counts], rows: list[str], by_time: bool, facts: dict[str, Any]
) -> xr.DataArray:
    numbers = sorted({number for layer in layers for number in head_numbers(layer)})
    counts = np.zeros((len(totals[0]), len(rows), len(layers), len(numbers)), np.int64)
    for i, (layer, total) in enumerate(zip(layers, totals, strict=True)):
        counts[:, :, i, [numbers.index(number) for number in head_numbers(layer)]] = total
    dims: tuple[str, ...] = ("time", "concept", "layer", "head")
    if not by_time:
        counts, dims = counts[0], dims[1:]
    share, relevance = vectors(counts)
    coords = {
        "concept": rows,
        **head_coordinates(layers),
        "count": (dims, counts),
        "share": (dims, share),
    }
    if by_time:
        first = opened[0].steps["timestep"]
        coords["time"] = np.arange(len(first))
        if all(np.array_equal(trace.steps["timestep"], first) for trace in opened):
            coords["timestep"] = ("time", first)
    return xr.DataArray(relevance, dims=dims, coords=coords, attrs=facts, name="relevance")


def head_coordinates(layers: list[Layer]) -> dict[str, Any]:
    """What names the heads of layers that are in published order: the axes, each layer's shape, and each head's place in the order."""
    numbers = sorted({number for layer in layers for number in head_numbers(layer)})
    position = np.full((len(layers), len(numbers)), -1, np.int64)
    there = np.array([[number in head_numbers(layer) for number in numbers] for layer in layers])
    position[there] = np.arange(there.sum())
    return {
        "layer": [layer.name for layer in layers],
        "head": numbers,
        "heads": ("layer", [layer.call_heads or layer.heads for layer in layers]),
        "head_dim": ("layer", [layer.head_dim for layer in layers]),
        "position": (("layer", "head"), position),
    }


def _place(name: str) -> int:
    parts = re.split(r"[.#]", name)
    for place, starts in enumerate(PLACES):
        if any(part.startswith(starts) for part in parts):
            return place
    return len(PLACES)
