"""What a trace weighs, from its record alone, and sizes as people write them."""

from __future__ import annotations

import dataclasses
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...schema.errors import InvalidInput
from ...schema.layout import ArrayPlan, documents, layer_layout, layout
from ...schema.messages import option
from ...schema.trace import Encoding, TraceRecord

LEDGERS: Final = 3
"""Root, journal and manifest."""
UNITS: Final = {
    **{name: 1000**power for power, name in enumerate(("", "k", "m", "g", "t"))},
    **{f"{name}i": 1024**power for power, name in enumerate(("k", "m", "g", "t"), 1)},
}
WRITTEN: Final = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)


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


def encoded(trace: TraceRecord, choice: str) -> TraceRecord:
    """The trace as another choice of encoding would make it."""
    layers = (dataclasses.replace(layer, encoding=choose_encoding(choice, layer.tokens, layer.head_dim, False)) for layer in trace.layers)
    return dataclasses.replace(trace, layers=tuple(layers))


def choose_encoding(wanted: str, tokens: int, head_dim: int, masked: bool) -> Encoding:
    """The encoding of one layer; a masked call's scores cannot be had from its factors."""
    if masked or wanted == "probabilities" or (wanted == "auto" and tokens < head_dim):
        return "probabilities"
    return "factors"


def parse_bytes(written: int | str | None) -> int | None:
    """`5GB`, `500 MB`, `1.5GiB` or a number of bytes; None stays None.

    Raises   InvalidInput for what is no size above 0
    """
    if written is None:
        return None
    match = WRITTEN.fullmatch(str(written)) if not isinstance(written, bool) else None
    size = int(float(match[1]) * UNITS[(match[2] or "").lower()]) if match else 0
    if size <= 0:
        raise InvalidInput(f"{option('max_bytes', written)} is no size; use a number with a unit, such as 5GB or 500MB")
    return size


def free_bytes(path: Path) -> int:
    """Free space where a path is, or would be."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _repeats(plan: ArrayPlan, trace: TraceRecord) -> int:
    """How many times an array's plan counts what is stored once: keys made of embeddings, not of the image that is being made."""
    if not plan.path.endswith("/key"):
        return 1
    layer = trace.layers[int(plan.path.split("/")[1])]
    joint = layer.partial_keys or any(group.role == "self" for group in layer.groups)
    return 1 if joint else max(trace.steps, 1)
