"""Lazy arrays of P, S and G of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.trace import Layer
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

    @property
    def chunks(self) -> tuple[int, ...]:
        """Lengths of the pieces that are read, or computed, at once."""
        layer = self.calls.layer
        return (1, 1, self.calls.file_steps, layer.heads, *self.calls.file_rows, layer.grid[1], layer.tokens)

    dtype = np.dtype(np.float32)

    def __getitem__(self, index: tuple[Any, ...]) -> Values:
        picked = [np.atleast_1d(np.arange(n)[i]) for i, n in zip(index, self.shape, strict=True)]
        out = np.empty([len(p) for p in picked], np.float32)
        heads, *places, columns, _ = picked[3:]
        tokens = index[-1] if isinstance(index[-1], slice) else picked[-1]  # a slice copies nothing
        rows = np.ravel_multi_index(np.ix_(*places), self.calls.layer.places[:-1]).ravel()
        for i, j in np.ndindex(out.shape[:2]):
            at, done = (int(picked[0][i]), int(picked[1][j])), 0
            called = self.calls.where[at][picked[2]] >= 0
            there, out[i, j, ~called] = np.flatnonzero(called), np.nan
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
    layer = view.calls.layer
    array = da.from_array(  # type: ignore[no-untyped-call]
        view, chunks=view.chunks, name=f"i2am-{kind}-{contents.token}-{index}", asarray=False, meta=np.empty((0,) * view.ndim, np.float32)
    )
    attrs = {"long_name": MEANING[kind], "layer": layer.name, "trace": contents.record.id}
    return xr.DataArray(array, dims=view_dims(layer), coords=coordinates(contents, layer), attrs=attrs, name=kind)


def view_dims(layer: Layer) -> tuple[str, ...]:
    """Names of the axes of a layer's P, S and G."""
    return (*LEADING, *place_dims(layer.places), "token")


def coordinates(contents: Contents, layer: Layer) -> dict[str, Any]:
    """Labels of those axes, in texts of any length: those of a fixed one have no settled form in Zarr v3."""
    return {
        "sample": np.arange(contents.record.samples),
        "branch": np.array(contents.record.branches, object),
        "step": contents.steps["evaluation"],
        "timestep": ("step", contents.steps["timestep"]),
        "head": list(layer.heads_kept),
        **{dim: centres(length) for dim, length in zip(place_dims(layer.places), layer.places, strict=True)},
        "group": ("token", np.array([group.name for group in layer.groups for _ in range(group.tokens)], object)),
    }


def place_dims(places: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the axes of the generated places: frame stands before y and x in a video."""
    return ("frame", "y", "x")[-len(places) :]


def centres(length: int) -> NDArray[np.float64]:
    """Centres of a grid's rows or columns, as shares of the side.

    Dims     (length,)
    Range    (0, 1), from the top or the left
    """
    return (np.arange(length) + 0.5) / length
