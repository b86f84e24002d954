"""Lazy arrays of P, S and G of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..store.validation import Contents
from .calls import Calls, Kind
from .softmax import Values

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
        heads, *places, columns, tokens = picked[3:]
        rows = np.ravel_multi_index(np.ix_(*places), self.calls.layer.places[:-1]).ravel()
        for i, j in np.ndindex(out.shape[:2]):
            at, done = (int(picked[0][i]), int(picked[1][j])), 0
            there = np.flatnonzero(self.calls.where[at][picked[2]] >= 0)
            for steps in self.calls.groups(at, picked[2].tolist()) if out.size else ():
                values = self.calls.region(self.kind, at, steps, heads, rows, columns)[..., tokens]
                out[i, j, there[done : done + len(steps)]] = values.reshape(len(steps), *out.shape[3:])
                done += len(steps)
        result: Values = out[tuple(0 if isinstance(i, (int, np.integer)) else slice(None) for i in index)]
        return result


def lazy_array(contents: Contents, index: int, kind: Kind) -> xr.DataArray:
    """P, S or G of the layer at `index`.

    Dims     (sample, branch, step, head, [frame,] y, x, token), float32
    """
    view = View(Calls.of(contents, index), kind)
    record, layer = contents.record, view.calls.layer
    chunks = (1, 1, view.calls.file_steps, layer.heads, *view.calls.file_rows, layer.grid[1], layer.tokens)
    array = da.from_array(  # type: ignore[no-untyped-call]
        view, chunks=chunks, name=f"i2am-{kind}-{contents.token}-{index}", asarray=False, meta=np.empty((0,) * view.ndim, np.float32)
    )
    coords = {
        "sample": np.arange(record.samples),
        "branch": list(record.branches),
        "step": contents.steps["evaluation"],
        "timestep": ("step", contents.steps["timestep"]),
        "head": list(layer.heads_kept),
        **{dim: centres(length) for dim, length in zip(place_dims(layer.places), layer.places, strict=True)},
        "group": ("token", [group.name for group in layer.groups for _ in range(group.tokens)]),
    }
    attrs = {"long_name": MEANING[kind], "layer": layer.name, "trace": record.id}
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
