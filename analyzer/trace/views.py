"""Lazy arrays of P, S and G of one layer, and of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.arrays.array import STEP
from ...schema.arrays.layers import layer_path
from ...schema.trace import Layer
from ..store.chunks import Blocks, read_heads
from ..store.validation import Contents
from .calls import Calls, Kind, require_attention
from .softmax import Values

PLACES: Final = ("frame", "y", "x")
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


def lazy_array(contents: Contents, index: int, kind: Kind, calls: Calls | None = None, weight: str = "") -> xr.DataArray:
    """P, S or G of the layer at `index`; of other calls than the layer's own if they are given, whose weight names them.

    Dims     (sample, branch, step, head, [frame,] y, x, token), float32
    Raises   InvalidInput for a layer that keeps maps only
    """
    view = View(calls or Calls.of(contents, index), kind)
    layer = view.calls.layer
    require_attention([layer], f"each place's {kind}")
    array = da.from_array(  # type: ignore[no-untyped-call]
        view,
        chunks=view.chunks,
        name=f"i2am-{kind}{weight}-{contents.token}-{index}",
        asarray=False,
        meta=np.empty((0,) * view.ndim, np.float32),
    )
    attrs = {"long_name": MEANING[kind], "layer": layer.name, "trace": contents.record.id}
    return xr.DataArray(array, dims=view_dims(layer), coords=coordinates(contents, layer), attrs=attrs, name=kind)


def lazy_values(contents: Contents, index: int) -> xr.DataArray:
    """The values of the layer at `index`, kept in full, as the model had them.

    Dims     (sample, branch, step, head, token, value_channel)
    """
    blocks, layer = contents.blocks(index, "value"), contents.record.layers[index]
    attrs = {"long_name": "value", "layer": layer.name, "trace": contents.record.id, "gain": layer.gain}
    return _stored(contents, index, blocks, (*LEADING, "token", "value_channel"), attrs)


def lazy_norms(contents: Contents, index: int) -> xr.DataArray:
    """Norms of what each token's value gives through a head of the layer at `index`, as they were recorded or from values in full.

    Dims     (sample, branch, step, head, token), float32
    """
    layer, dims = contents.record.layers[index], (*LEADING, "token")
    attrs = {"long_name": "norm of a token's value through a head of the output projection", "layer": layer.name}
    attrs["trace"] = contents.record.id
    if layer.values == "norms":
        return _stored(contents, index, contents.blocks(index, "value_norm"), dims, attrs)
    output = read_heads(contents.storage, contents.arrays[f"{layer_path(index)}/output"]).astype(np.float64)
    gram = layer.gain**2 * output @ output.swapaxes(1, 2)  # (head, channel, channel)

    def norms(value: Values) -> Values:
        found: Values = np.sqrt(np.maximum(((value @ gram) * value).sum(-1), 0)).astype(np.float32)
        return found

    values = lazy_values(contents, index)
    array = values.data.map_blocks(norms, drop_axis=5, dtype=np.float32)
    return xr.DataArray(array, dims=dims, coords=values.coords, attrs=attrs, name="value_norm")


def lazy_residuals(contents: Contents, index: int) -> xr.DataArray:
    """Norms of what the output of the module of the layer at `index` is added to.

    Dims     (sample, branch, step, [frame,] y, x), float32
    """
    layer = contents.record.layers[index]
    attrs = {"long_name": "norm of the residual stream that the module's output is added to", "layer": layer.name}
    attrs["trace"] = contents.record.id
    return _stored(contents, index, contents.blocks(index, "residual_norm"), (*LEADING[:-1], *place_dims(layer.places)), attrs)


def lazy_concepts(contents: Contents, index: int) -> xr.DataArray:
    """How far each position of the layer at `index` agrees with each concept.

    Dims     (sample, branch, step, concept, [frame,] y, x), float32
    """
    layer, name = contents.record.layers[index], "concept_score"
    attrs = {"long_name": "product of what attention gives a position and a concept", "layer": layer.name, "trace": contents.record.id}
    found = _stored(contents, index, contents.blocks(index, name), (*LEADING[:-1], "concept", *place_dims(layer.places)), attrs)
    return found.assign_coords(concept=np.array(layer.concepts, object))


def _stored(contents: Contents, index: int, blocks: Blocks, dims: tuple[str, ...], attrs: dict[str, Any]) -> xr.DataArray:
    """A recorded array as it is, whole calls at a time; NaN where the call is absent."""
    name, chunks = blocks.plan.path.rpartition("/")[2], (*blocks.plan.chunks[: STEP + 1], *blocks.shape[STEP + 1 :])
    token, meta = f"i2am-{name}-{contents.token}-{index}", np.empty((0,) * blocks.ndim, blocks.dtype)
    array = da.from_array(blocks, chunks=chunks, name=token, asarray=False, meta=meta)  # type: ignore[no-untyped-call]
    labels = coordinates(contents, contents.record.layers[index])
    known = {name: label for name, label in labels.items() if (label[0] if isinstance(label, tuple) else name) in dims}
    return xr.DataArray(array, dims=dims, coords=known, attrs=attrs, name=name)


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
    return PLACES[-len(places) :]


def centres(length: int) -> NDArray[np.float64]:
    """Centres of a grid's rows or columns, as shares of the side.

    Dims     (length,)
    Range    (0, 1), from the top or the left
    """
    return (np.arange(length) + 0.5) / length
