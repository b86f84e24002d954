"""Lazy arrays of P, S and G of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.trace import Layer
from .calls import Calls, Kind, Values
from .reader import Trace

LEADING: Final = ("sample", "branch", "step", "head")
MEANING: Final[dict[Kind, str]] = {
    "probability": "attention probability, softmax over all keys of the call",
    "score": "scaled dot product of query and key",
    "generated": "softmax over the generated positions",
}


@dataclass(frozen=True, eq=False)
class View:
    """P, S or G of a layer as an array that computes what is indexed."""

    calls: Calls
    kind: Kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of `LEADING`, of the places that queries lie on, and of token."""
        layer = self.calls.layer
        return (*self.calls.where.shape, layer.heads, *layer.places, layer.tokens)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    dtype = np.dtype(np.float32)

    def __getitem__(self, index: tuple[Any, ...]) -> Values:
        picked = [np.atleast_1d(np.arange(n)[i]) for i, n in zip(index, self.shape, strict=True)]
        out = np.full([len(p) for p in picked], np.nan, np.float32)
        heads, *frames, rows, columns, tokens = picked[3:]
        if frames:
            rows = (frames[0][:, None] * self.calls.layer.grid[0] + rows).ravel()
        for cell in np.ndindex(out.shape[:3]):
            at = (int(picked[0][cell[0]]), int(picked[1][cell[1]]), int(picked[2][cell[2]]))
            if self.calls.where[at] >= 0 and out.size:
                out[cell] = self.calls.region(self.kind, at, heads, rows, columns)[..., tokens].reshape(out.shape[3:])
        result: Values = out[tuple(0 if isinstance(i, (int, np.integer)) else slice(None) for i in index)]
        return result


def probabilities(trace: Trace, index: int) -> xr.DataArray:
    """P of the layer at `index`; see `Trace.probabilities`."""
    return _lazy(trace, index, "probability")


def scores(trace: Trace, index: int) -> xr.DataArray:
    """S of the layer at `index`; see `Trace.scores`."""
    return _lazy(trace, index, "score")


def generated_softmax(trace: Trace, index: int) -> xr.DataArray:
    """G of the layer at `index`; see `Trace.generated_softmax`."""
    return _lazy(trace, index, "generated")


def _lazy(trace: Trace, index: int, kind: Kind) -> xr.DataArray:
    calls = Calls.of(trace, index)
    view, layer = View(calls, kind), calls.layer
    plan = next(iter(calls.arrays.values())).plan
    rows = plan.file_shape[4 : 3 + len(layer.places)] if layer.encoding == "probabilities" else _rows(layer)
    chunks = (1, 1, 1, layer.heads, *rows, layer.grid[1], layer.tokens)
    array = da.from_array(  # type: ignore[no-untyped-call]
        view, chunks=chunks, name=f"i2am-{kind}-{trace.token}-{index}", asarray=False, meta=np.empty((0,) * view.ndim, np.float32)
    )
    coords = {
        "sample": np.arange(trace.record.samples),
        "branch": list(trace.record.branches),
        "step": trace.steps["evaluation"],
        "timestep": ("step", trace.steps["timestep"]),
        "head": list(layer.heads_kept),
        **{dim: centres(length) for dim, length in zip(place_dims(layer.places), layer.places, strict=True)},
        "group": ("token", [group.name for group in layer.groups for _ in range(group.tokens)]),
    }
    attrs = {"long_name": MEANING[kind], "layer": layer.name, "trace": trace.id}
    return xr.DataArray(array, dims=(*LEADING, *place_dims(layer.places), "token"), coords=coords, attrs=attrs, name=kind)


def place_dims(places: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the axes of the generated places: frame stands before y and x in a video."""
    return ("frame", "y", "x")[-len(places) :]


def centres(length: int) -> NDArray[np.float64]:
    """Centres of a grid's rows or columns, as shares of the side.

    Dims     (length,)
    Range    (0, 1), from the top or the left
    """
    return (np.arange(length) + 0.5) / length


def _rows(layer: Layer) -> tuple[int, ...]:
    """Rows, frames before them, of a chunk of P that is computed from factors: at most 64 MB of it."""
    row = layer.heads * layer.grid[1] * layer.tokens * 4
    rows = max(1, min(layer.grid[0], 2**26 // row))
    return (1, rows) if layer.frames else (rows,)
