"""What names a head: its layer and number, the published order of both, and the shapes that tell one model from another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import listed
from ...schema.selection import Positions, pick_positions
from ...schema.trace import Layer
from .reader import Trace

PLACES: Final = (("down", "input_blocks"), ("mid", "middle"), ("up", "output_blocks"))
"""How module paths name the three parts of a U-Net, in the order in which the published vectors list their heads."""


def published_order(names: Iterable[str]) -> list[int]:
    """Positions of layers in the order of the published vectors: down, then mid, then up, each as it comes; others after them."""
    listing = list(names)
    return sorted(range(len(listing)), key=lambda i: (_place(listing[i]), i))


def head_coordinates(layers: list[Layer]) -> dict[str, Any]:
    """What names the heads of layers that are in published order: the axes, each layer's shape, and each head's place in the order."""
    numbers = sorted({number for layer in layers for number in layer.heads_kept})
    position = np.full((len(layers), len(numbers)), -1, np.int64)
    there = np.array([[number in layer.heads_kept for number in numbers] for layer in layers])
    position[there] = np.arange(there.sum())
    return {
        "layer": [layer.name for layer in layers],
        "head": numbers,
        "heads": ("layer", [layer.model_heads for layer in layers]),
        "head_dim": ("layer", [layer.head_dim for layer in layers]),
        "position": (("layer", "head"), position),
    }


def pick_heads(wanted: Positions, layers: Sequence[Layer]) -> tuple[int, ...]:
    """Selected heads by the model's numbers; those named one by one must have been kept, of a range those that were.

    Raises   UnknownSelection, InvalidInput
    """
    kept = sorted({number for layer in layers for number in layer.heads_kept})
    most = max(layer.model_heads for layer in layers)
    found = pick_positions(wanted, most, "head", kept=kept)
    if gone := [number for number in found if number not in kept]:
        raise UnknownSelection(f"head {gone[0]} was not recorded; of {most} the trace has {listed(map(str, kept))}")
    return found


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
        here = (layer.model_heads, layer.head_dim)
        if here != (count, width):
            raise InvalidInput(
                f"{whose} has {count} heads of {width} channels in the layer {name}, the trace {trace.path} {here[0]} of {here[1]}: "
                "it was made of another model; count the heads on traces of this one"
            )


def _place(name: str) -> int:
    parts = re.split(r"[.#]", name)
    return next((place for place, starts in enumerate(PLACES) if any(part.startswith(starts) for part in parts)), len(PLACES))
