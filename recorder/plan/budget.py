"""What a trace weighs, from its record alone; whether it fits a limit and the disk, and if not, what would make it fit."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...schema.arrays.array import ArrayPlan
from ...schema.arrays.layers import ONCE, layer_layout
from ...schema.errors import NoSpace
from ...schema.layout import documents, layout
from ...schema.messages import option, size_text
from ...schema.trace import Encoding, TraceRecord
from .options import ENCODINGS_WANTED, keep_maps, select_layers

LEDGERS: Final = 3
"""Root, journal and manifest."""
COMPRESSION: Final = 3
"""No recording was ever seen to compress better than this, unrounded; what needs more room than that cannot fit."""


CHEAP: Final = 0.02
"""Most that norms of values may add to a layer, as a share of its bytes, to be kept unasked."""


@dataclass(frozen=True, slots=True)
class Size:
    """What one choice of encoding comes to."""

    nbytes: int
    """Before compression; keys counted once where they do not change over steps."""
    files: int
    """Without pictures."""


def weigh(trace: TraceRecord) -> Size:
    """The size of a trace in which everything is present, pictures aside."""
    plans = layout(trace)
    files = sum(plan.files // _repeats(plan, trace) for plan in plans)
    return Size(sum(plan.nbytes // _repeats(plan, trace) for plan in plans), files + len(documents(trace)) + LEDGERS)


def layer_bytes(trace: TraceRecord, index: int) -> int:
    """Bytes of one layer before compression."""
    return sum(plan.nbytes // _repeats(plan, trace) for plan in layer_layout(trace, index))


def encoded(trace: TraceRecord, choice: str, token_maps: int = 0) -> TraceRecord:
    """The trace as another choice of encoding would make it, or `maps` with so many tokens of each text that have maps of their own."""
    if choice == "maps":
        return dataclasses.replace(trace, layers=tuple(keep_maps(layer, token_maps) for layer in trace.layers))
    chosen = [choose_encoding(choice, layer.tokens, layer.head_dim, False) for layer in trace.layers]
    layers = (dataclasses.replace(layer, encoding=one, sums=None) for layer, one in zip(trace.layers, chosen, strict=True))
    return dataclasses.replace(trace, layers=tuple(layers))


def choose_values(trace: TraceRecord, wanted: str) -> TraceRecord:
    """The trace whose layers keep what is wanted of their values, where they can: `auto` keeps norms only where they are cheap."""
    if wanted != "auto":
        return trace
    without = dataclasses.replace(trace, layers=tuple(dataclasses.replace(layer, values="none") for layer in trace.layers))
    sizes = [(layer_bytes(without, index), layer_bytes(trace, index)) for index in range(len(trace.layers))]
    cheap = [after <= before * (1 + CHEAP) for before, after in sizes]
    layers = tuple(pair[fits] for pair, fits in zip(zip(without.layers, trace.layers, strict=True), cheap, strict=True))
    return dataclasses.replace(trace, layers=layers)


def choose_encoding(wanted: str, tokens: int, head_dim: int, masked: bool) -> Encoding:
    """The encoding of one layer; a masked call's scores cannot be had from its factors."""
    if masked or wanted == "probabilities" or (wanted == "auto" and tokens < head_dim):
        return "probabilities"
    return "factors"


def free_bytes(path: Path) -> int:
    """Free space where a path is, or would be."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _repeats(plan: ArrayPlan, trace: TraceRecord) -> int:
    """How many times an array's plan counts what is stored once: keys and values made of embeddings, not of the image being made."""
    if plan.path.rpartition("/")[2] not in ONCE:
        return 1
    layer = trace.layers[int(plan.path.split("/")[1])]
    joint = layer.partial_keys or any(group.role == "self" for group in layer.groups)
    return 1 if joint else max(trace.steps, 1)


def check_budget(trace: TraceRecord, evaluations: int, where: object, limit: int | None, free: int, others: int = 0) -> None:
    """Hold a planned trace against a limit on its bytes before compression, and against the free disk.

    `evaluations` are the denoiser's in the whole run; `others` is what else, in bytes, is to go onto the same disk.

    Raises   NoSpace with the ways to shrink it: another encoding, fewer layers, fewer steps
    """
    size, packed = weigh(trace).nbytes, COMPRESSION * 16 / (6 + trace.codec.keep_bits)
    if limit is not None and size > limit:
        most, against = limit, f"the limit is {option('max_bytes', size_text(limit).replace(' ', ''))}"
    elif size + others > packed * free:
        most, against = max(int(packed * free) - others, 0), f"{size_text(free)} are free, too little even if compressed"
    else:
        return
    more = f" ({size_text(others)} of others besides)" if others and most != limit else ""
    raise NoSpace(f"{where} would hold {size_text(size)} before compression{more} and {against}; {_ways(trace, evaluations, most)}")


def _ways(trace: TraceRecord, evaluations: int, most: int) -> str:
    """The three ways to shrink a trace, each with its size, and their sum if none is enough alone."""
    encoding, layers, steps = _encoding(trace), _layers(trace, most), _stride(trace, evaluations, most)
    smaller = [
        (option("encoding", encoding), encoded(trace, encoding) if encoding else trace, "no other encoding is smaller"),
        (option("layers", layers), _with_layers(trace, layers), "no part of the layers is smaller"),
        (option("steps", f"::{steps}"), _with_stride(trace, evaluations, steps), "no fewer steps are left"),
    ]
    whole, sizes = weigh(trace).nbytes, [weigh(made).nbytes for _, made, _ in smaller]
    ways = [f"{name} makes it {size_text(size)}" if size < whole else none for (name, _, none), size in zip(smaller, sizes, strict=True)]
    if min(sizes) <= most:
        return ", ".join(ways)
    layers = _layers(smaller[0][1], most)
    kept = _with_layers(smaller[0][1], layers)
    stride = _stride(kept, evaluations, most)
    together = weigh(_with_stride(kept, evaluations, stride)).nbytes
    first = f"{option('encoding', encoding)}, " if encoding else ""
    both = f"{option('layers', layers)} and {option('steps', f'::{stride}')}"
    return f"{', '.join(ways)}, {first}{both} together {size_text(together)}"


def _encoding(trace: TraceRecord) -> str:
    """The choice of encoding that makes the trace smallest; empty if that is what it has."""
    best = min(ENCODINGS_WANTED, key=lambda choice: weigh(encoded(trace, choice)).nbytes)
    return best if weigh(encoded(trace, best)).nbytes < weigh(trace).nbytes else ""


def _layers(trace: TraceRecord, most: int) -> str:
    """The glob over the largest part of the network that fits, or over the smallest part if none does."""
    sizes = {layer.path: 0 for layer in trace.layers}
    for index, layer in enumerate(trace.layers):
        sizes[layer.path] += layer_bytes(trace, index)
    parts = {glob: sum(sizes[path] for path in select_layers(glob, list(sizes))) for path in sizes for glob in _globs(path)}
    fitting = {glob: size for glob, size in parts.items() if size <= 0.99 * most and size < sum(sizes.values())}
    return max(fitting, key=lambda glob: fitting[glob]) if fitting else min(parts, key=lambda glob: parts[glob])


def _globs(path: str) -> Iterator[str]:
    """A module's path, and the stretches of the network that it lies in, widest first."""
    names = path.split(".")
    yield from (".".join([*names[:depth], "*"]) for depth in range(2, len(names)))
    yield path


def _stride(trace: TraceRecord, evaluations: int, most: int) -> int:
    """The smallest N for which steps `::N` fit, or the one that leaves a single step."""
    strides = range(2, max(evaluations, 2) + 1)
    return next((n for n in strides if weigh(_with_stride(trace, evaluations, n)).nbytes <= most), strides[-1])


def _with_stride(trace: TraceRecord, evaluations: int, stride: int) -> TraceRecord:
    return dataclasses.replace(trace, steps=min(trace.steps, -(-evaluations // stride)))


def _with_layers(trace: TraceRecord, glob: str) -> TraceRecord:
    paths = set(select_layers(glob, [layer.path for layer in trace.layers]))
    return dataclasses.replace(trace, layers=tuple(layer for layer in trace.layers if layer.path in paths))
