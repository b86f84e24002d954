"""Whether a recording fits a limit and the disk, and if not, the ways to make it fit and what each comes to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

from ...schema.errors import NoSpace
from ...schema.messages import option, size_text
from ...schema.trace import TraceRecord
from .options import ENCODINGS_WANTED, select_layers
from .sizes import encoded, layer_bytes, weigh

COMPRESSION: Final = 3
"""No recording was ever seen to compress better than this, unrounded; what needs more room than that cannot fit."""


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
        (option("encoding", encoding), encoded(trace, encoding) if encoding else trace),
        (option("layers", layers), _with_layers(trace, layers)),
        (option("steps", f"::{steps}"), _with_stride(trace, evaluations, steps)),
    ]
    whole, sizes = weigh(trace).nbytes, [weigh(made).nbytes for _, made in smaller]
    told = [f"{name} makes it {size_text(size)}" for (name, _), size in zip(smaller, sizes, strict=True)]
    nothing = ("no other encoding is smaller", "no part of the layers is smaller", "no fewer steps are left")
    told = [way if size < whole else none for way, size, none in zip(told, sizes, nothing, strict=True)]
    if min(sizes) <= most:
        return ", ".join(told)
    kept = smaller[0][1]
    layers = _layers(kept, most)
    stride = _stride(_with_layers(kept, layers), evaluations, most)
    together = weigh(_with_stride(_with_layers(kept, layers), evaluations, stride)).nbytes
    first = f"{option('encoding', encoding)}, " if encoding else ""
    both = f"{option('layers', layers)} and {option('steps', f'::{stride}')}"
    return f"{', '.join(told)}, {first}{both} together {size_text(together)}"


def _encoding(trace: TraceRecord) -> str:
    """The choice of encoding that makes the trace smallest; empty if that is what it has."""
    sizes = {choice: weigh(encoded(trace, choice)).nbytes for choice in ENCODINGS_WANTED}
    best = min(sizes, key=lambda choice: sizes[choice])
    return best if sizes[best] < weigh(trace).nbytes else ""


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
