"""The small arrays of a trace, made from its journal: the table of steps, what was present, and each layer's coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.layers import ONCE, layer_path, step_tables
from ...schema.journal import Step, present_of, steps_of, table_of
from ...schema.record import BRANCHES
from ...schema.trace import TraceRecord

Columns: TypeAlias = dict[str, NDArray[Any]]
"""Path of an array -> its values."""
Called: TypeAlias = dict[int, dict[tuple[int, int], dict[str, int]]]
"""Layer -> sample and branch -> by the name of a table, the step at which what is stored once lies."""


def columns(trace: TraceRecord, entries: Sequence[Step]) -> Columns:
    """Every array that is neither attention nor picture, for a trace of as many steps as the journal has entries."""
    table = steps_of(entries)
    arrays: Columns = {"present": present_of(entries, len(trace.layers)), **{f"step/{name}": values for name, values in table.items()}}
    for index in range(len(trace.layers)):
        arrays |= {f"{layer_path(index)}/{name}": values for name, values in _layer(trace, index, table, entries).items()}
    return arrays


def serving_steps(trace: TraceRecord, called: Called) -> dict[str, Any]:
    """The tables of one step, `key_step` and `value_step`, as its line in the journal has them."""
    samples, branches = range(trace.samples), range(len(trace.branches))
    return {
        name: {
            str(layer): tuple(tuple(at.get((s, b), {}).get(name, -1) for b in branches) for s in samples)
            for layer, at in sorted(called.items())
            if name in step_tables(trace.layers[layer])
        }
        for name in ONCE.values()
    }


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
    shape = (trace.samples, len(trace.branches))
    arrays |= {name: table_of(entries, name, index, *shape) for name in step_tables(layer)}
    return arrays


def _centres(count: int) -> NDArray[np.float64]:
    """Centres of `count` equal cells of [0, 1]."""
    return (np.arange(count) + 0.5) / count
