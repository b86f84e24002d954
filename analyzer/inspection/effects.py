"""Effects that `i2am faithfulness` measured, read without the model: what leaving out a cell of the reference changed in each patch."""

from __future__ import annotations

import itertools
import json
from typing import Final

import google_crc32c
import numpy as np
import xarray as xr

from ...schema.errors import CorruptTrace, InvalidInput, NotATrace
from ...schema.experiments.effects import EffectRecord
from ...schema.layout import MOST_DOCUMENT_BYTES, MOST_ROOT_BYTES, ROOT
from ...schema.record import parse_json
from ..storage.location import Location, locate
from ..storage.storage import Storage
from ..store.files import read_file
from ..trace.reader import Trace

CRC_BYTES: Final = 4


def open_effects(path: Location, trace: Trace | None = None) -> xr.DataArray:
    """What leaving out each cell of the reference changed in each patch of the picture.

    `path`   what `i2am faithfulness` wrote: a folder, a zip file or an address
    `trace`  the trace that the effects are to be held against; those of another run are refused

    Dims     (cell_y, cell_x, y, x)
    Units    mean absolute difference, in shares of the way from black to white; NaN for a cell that was not tried yet
    Raises   NotATrace, CorruptTrace, InvalidInput for effects of another run
    """
    storage = locate(path)
    if not storage.has(ROOT):
        raise NotATrace(f"{storage.describe()}; `i2am faithfulness` writes effects")
    record = EffectRecord.from_json(parse_json(read_file(storage, ROOT, MOST_ROOT_BYTES), f"{ROOT} of {storage}"), str(storage))
    plan, where = record.plan, f"effect/{ROOT}"
    if parse_json(read_file(storage, where, MOST_DOCUMENT_BYTES), where) != json.loads(json.dumps(plan.to_json())):
        raise CorruptTrace(f"{where} of {storage} is not what its record plans; measure the effects again")
    if trace is not None and trace.record.id != record.trace:
        raise InvalidInput(f"{storage} holds effects of the run {record.trace}, and the trace is the run {trace.record.id}; open its own")
    effect = np.full(plan.shape, np.nan, np.float32)
    for cell in itertools.product(*map(range, record.cells)):
        if storage.has(name := plan.key(*cell, 0, 0)):
            effect[cell] = _read_cell(storage, name, record.grid)
    attributes = {"id": record.id, "trace": record.trace, "kind": record.kind, "group": record.group, "sample": record.sample}
    return xr.DataArray(effect, dims=plan.dims, name="effect", attrs={**plan.attributes, **attributes})


def _read_cell(storage: Storage, name: str, grid: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    size = 4 * grid[0] * grid[1]
    data = read_file(storage, name, size + CRC_BYTES)
    found = np.frombuffer(data[:size], "<f4") if len(data) == size + CRC_BYTES else None
    if found is None or google_crc32c.value(data[:size]) != int.from_bytes(data[size:], "little") or not (found >= 0).all():
        raise CorruptTrace(f"{name} of {storage} was changed; remove that file and run the same `i2am faithfulness` again")
    return found.reshape(grid)
