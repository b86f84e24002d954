"""Effects that `i2am faithfulness` measured, read without the model: what each trial changed in each patch of the picture."""

from __future__ import annotations

import json
from typing import Final

import google_crc32c
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import CorruptTrace, InvalidInput, NotATrace
from ...schema.experiments.effects import EffectRecord
from ...schema.layout import MOST_DOCUMENT_BYTES, MOST_ROOT_BYTES, ROOT
from ...schema.record import parse_json
from ..storage.location import Location, locate
from ..storage.storage import Storage
from ..store.files import read_file
from ..trace.reader import Trace

CRC_BYTES: Final = 4


def open_effects(path: Location, trace: Trace | None = None) -> xr.Dataset:
    """What interventions on a run changed in each patch of the picture, one variable for each kind of trial that was asked for.

    `path`   what `i2am faithfulness` wrote: a folder, a zip file or an address
    `trace`  the trace that the effects are to be held against; those of another run are refused

    Dims     effect, pixels (cell_y, cell_x, y, x), without (y, x), layers (layer, y, x), heads (layer, head, y, x),
             deletion, insertion (order, share, y, x)
    Units    mean absolute difference, in shares of the way from black to white; NaN for what was not tried yet
    Raises   NotATrace, CorruptTrace, InvalidInput for effects of another run
    """
    storage = locate(path)
    if not storage.has(ROOT):
        raise NotATrace(f"{storage.describe()}; `i2am faithfulness` writes effects")
    record = EffectRecord.from_json(parse_json(read_file(storage, ROOT, MOST_ROOT_BYTES), f"{ROOT} of {storage}"), str(storage))
    if trace is not None and trace.record.id != record.trace:
        raise InvalidInput(f"{storage} holds effects of the run {record.trace}, and the trace is the run {trace.record.id}; open its own")
    arrays = {name: xr.Variable(plan.dims, _read_array(storage, record, name), plan.attributes) for name, plan in record.plans.items()}
    dims = {dim for variable in arrays.values() for dim in variable.dims}
    labels = {
        "layer": record.layer_names,
        "head": range(max(record.layer_heads, default=0)),
        "order": record.orders,
        "share": record.shares,
    }
    told = ("id", "trace", "kind", "group", "sample", "layers", "branches", "batch")
    return xr.Dataset(
        arrays,
        {name: (name, list(values)) for name, values in labels.items() if name in dims},
        {name: getattr(record, name) for name in told},
    )


def _read_array(storage: Storage, record: EffectRecord, name: str) -> NDArray[np.float32]:
    """One array, NaN where a trial is still to be made."""
    plan = record.plans[name]
    where = f"{name}/{ROOT}"
    if parse_json(read_file(storage, where, MOST_DOCUMENT_BYTES), where) != json.loads(json.dumps(plan.to_json())):
        raise CorruptTrace(f"{where} of {storage} is not what its record plans; measure the effects again")
    found = np.full(plan.shape, np.nan, np.float32)
    for place in record.places(name):
        if storage.has(file := plan.key(*place, 0, 0)):
            found[place] = _read_trial(storage, file, record.grid)
    return found


def _read_trial(storage: Storage, name: str, grid: tuple[int, int]) -> NDArray[np.float32]:
    size = 4 * grid[0] * grid[1]
    data = read_file(storage, name, size + CRC_BYTES)
    found = np.frombuffer(data[:size], "<f4") if len(data) == size + CRC_BYTES else None
    if found is None or google_crc32c.value(data[:size]) != int.from_bytes(data[size:], "little") or not (found >= 0).all():
        raise CorruptTrace(f"{name} of {storage} was changed; remove that file and run the same `i2am faithfulness` again")
    return found.reshape(grid)
