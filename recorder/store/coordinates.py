"""The small arrays of a trace, made from its journal: the table of steps, what was present, and each layer's coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.journal import Step, present_of, steps_of
from ...schema.layout import layer_path
from ...schema.record import BRANCHES
from ...schema.trace import TraceRecord

Columns: TypeAlias = dict[str, NDArray[Any]]
"""Path of an array -> its values."""


def columns(trace: TraceRecord, entries: Sequence[Step]) -> Columns:
    """Every array that is neither attention nor picture, for a trace of as many steps as the journal has entries."""
    table = steps_of(entries)
    arrays: Columns = {"present": present_of(entries, len(trace.layers)), **{f"step/{name}": values for name, values in table.items()}}
    for index in range(len(trace.layers)):
        arrays |= {f"{layer_path(index)}/{name}": values for name, values in _layer(trace, index, table, entries).items()}
    return arrays


def _layer(trace: TraceRecord, index: int, table: Columns, entries: Sequence[Step]) -> Columns:
    layer = trace.layers[index]
    arrays = {
        "step": table["evaluation"],
        "timestep": table["timestep"],
        "branch": np.array([BRANCHES.index(branch) for branch in trace.branches], dtype=np.int8),
        "y": _centres(layer.grid[0]),
        "x": _centres(layer.grid[1]),
    }
    if layer.frames:
        arrays["frame"] = _centres(layer.frames)
    if layer.head_numbers:
        arrays["head"] = np.array(layer.head_numbers, dtype=np.int32)
    if layer.encoding == "factors":
        key_step = np.full((trace.samples, len(trace.branches), len(entries)), -1, dtype=np.int32)
        for step, entry in enumerate(entries):
            key_step[:, :, step] = entry.key_step.get(str(index), -1)
        arrays["key_step"] = key_step
    return arrays


def _centres(count: int) -> NDArray[np.float64]:
    """Centres of `count` equal cells of [0, 1]."""
    return (np.arange(count) + 0.5) / count
