"""Relevance vectors of heads over any number of traces: how much each head looks for each concept.

N[c, h]   how often concept c wins head h, over traces, samples, steps and draws (`counting.py`)
R[c, h] = N[c, h] / sum_c N[c, h]            what share of its calls a head gives to a concept
HRV_c   = H * R[c, :] / sum_h R[c, :]        how much each head looks for concept c: its vector over all H heads, of sum H
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed
from numpy.typing import NDArray
from tqdm import tqdm

from ...schema.errors import InvalidInput
from ...schema.selection import Selector
from ...schema.trace import Layer
from ..aggregation.selection import find_branch, whole
from ..progress import hidden
from ..store.discovery import find_traces
from ..trace.heads import head_coordinates
from ..trace.reader import Trace, open_trace
from .concepts import load_concepts
from .counting import Counts, Drawing, count_layer
from .probes import PROBE, ProbeWords

Source: TypeAlias = Trace | str | os.PathLike[str]
Sources: TypeAlias = Iterable[Source] | Source

TOGETHER: Final = 8
"""Traces that are counted at once."""


def list_sources(traces: Sources) -> list[Source]:
    """Traces, and what paths, folders and patterns name, unopened.

    Raises   InvalidInput if there is none; as `find_traces`
    """
    found: list[Source] = []
    for source in [traces] if isinstance(traces, (Trace, str, os.PathLike)) else traces:
        found += [source] if isinstance(source, Trace) else [member.path for member in find_traces(source)]
    if not found:
        raise InvalidInput("there are no traces to count; give one or more")
    return found


def open_source(source: Source) -> Trace:
    """The trace of a source."""
    return source if isinstance(source, Trace) else open_trace(source)


def open_all(traces: Sources) -> list[Trace]:
    """All traces at once, each recording once.

    Raises   InvalidInput if there is none, or one comes twice; as `open_trace`
    """
    found = [open_source(source) for source in list_sources(traces)]
    known: dict[str, Path | str] = {}
    for trace in found:
        require_new(trace.id, trace.path, known)
    return found


def require_new(name: str, path: Path | str, known: dict[str, Path | str]) -> None:
    """Refuse a recording that came before, by its id, and remember it."""
    if name in known:
        raise InvalidInput(f"{path} and {known[name]} are the same recording, which would count twice; give it once")
    known[name] = path


def head_relevance(
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
    Raises   InvalidInput for traces of different models or without factors, UnknownSelection for an unknown probe, word or layer
    Source   Park et al. 2025 (HRV), released code; the middle block is included, as there
    """
    listing, kept = load_concepts(concepts), {keep} if isinstance(keep, str) else set(keep)
    if unknown := sorted(kept - {"time"}):
        raise InvalidInput(f"cannot keep {unknown[0]!r}; layers and heads are always kept, and beside them only time")
    if whole(draws, "a number of draws") < 1:
        raise InvalidInput(f"{draws} draws; expected 1 or more words of each concept for each call")
    drawing = Drawing(whole(seed, "a seed"), int(draws))
    sources = list_sources(traces)
    first, by_time = open_source(sources[0]), bool(kept)
    words = ProbeWords(first, listing, probe, layers, branch)
    times, known = _check(sources, words, first, by_time)
    totals = _count(sources, words, drawing, by_time)
    facts = {
        "kind": "relevance",
        "model": str(first.record.model.get("pipeline", "")),
        "traces": sorted(known),
        "words": {name: list(each) for name, each in listing.items()},
        "probe": probe,
        "branch": branch or "",
        "seed": drawing.seed,
        "draws": drawing.draws,
    }
    return _assemble(words.layers, totals, list(listing), times if by_time else None, facts)


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


def _check(sources: list[Source], words: ProbeWords, first: Trace, by_time: bool) -> tuple[NDArray[np.float64], dict[str, Path | str]]:
    """Look for the words in every trace, and keep none of them: thousands would fill the memory.

    Dims     -> timesteps of the first trace, NaN where others have different ones; and paths by the recordings' ids
    """
    shared, known = np.array(first.steps["timestep"], np.float64), dict[str, Path | str]()
    for source in tqdm(sources, desc="check", unit="trace", leave=False, disable=hidden()):
        trace = open_source(source)
        times = trace.steps["timestep"]
        require_new(trace.id, trace.path, known)
        find_branch(trace, words.branch)
        words.rows(trace)
        if by_time and len(times) != len(shared):
            raise InvalidInput(
                f"time cannot be kept over traces with different numbers of steps ({words.path}: {len(shared)}, "
                f"{trace.path}: {len(times)}); give traces of one schedule"
            )
        if by_time:
            shared[shared != times] = np.nan
    return shared, known


def _count(sources: list[Source], words: ProbeWords, drawing: Drawing, by_time: bool) -> list[Counts]:
    """Counts of each layer over all traces, a few traces at a time.

    Dims     -> (step or 1, concept, head) for each layer
    """
    totals: list[Any] = [0] * len(words.layers)
    with tqdm(total=len(sources), desc="heads", unit="trace", leave=False, disable=hidden()) as bar:
        for start in range(0, len(sources), TOGETHER):
            part = [open_source(source) for source in sources[start : start + TOGETHER]]
            tasks = [
                # In a partial, so that dask does not look into the spans.
                partial(count_layer, trace, index, spans, find_branch(trace, words.branch), drawing)
                for trace in part
                for index, spans in words.rows(trace)
            ]
            counted = compute(*(delayed(task, pure=False, traverse=False)() for task in tasks))  # type: ignore[no-untyped-call]
            for i, counts in enumerate(counted):
                totals[i % len(totals)] = totals[i % len(totals)] + (counts if by_time else counts.sum(0, keepdims=True))
            bar.update(len(part))
    return totals


def _assemble(
    layers: list[Layer], totals: list[Counts], rows: list[str], times: NDArray[np.float64] | None, facts: dict[str, Any]
) -> xr.DataArray:
    numbers = sorted({number for layer in layers for number in layer.heads_kept})
    counts = np.zeros((len(totals[0]), len(rows), len(layers), len(numbers)), np.int64)
    for i, (layer, total) in enumerate(zip(layers, totals, strict=True)):
        counts[:, :, i, [numbers.index(number) for number in layer.heads_kept]] = total
    dims: tuple[str, ...] = ("time", "concept", "layer", "head")
    if times is None:
        counts, dims = counts[0], dims[1:]
    share, relevance = vectors(counts)
    coords = {"concept": rows, **head_coordinates(layers), "count": (dims, counts), "share": (dims, share)}
    if times is not None:
        coords |= {"time": np.arange(len(times)), "timestep": ("time", times)}
    return xr.DataArray(relevance, dims=dims, coords=coords, attrs=facts, name="relevance")
