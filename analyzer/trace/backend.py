"""The xarray backend `i2am`: a trace as one tree of datasets, lazy, decoded, and checked as `open_trace` checks it.

    xr.open_datatree("run.zarr", engine="i2am", chunks={})
    xr.open_dataset("run.zarr", engine="i2am", group="layers/000")

    /            the steps, which layers took part in each, and the record as attributes
    /layers/NNN  the attention of one layer
    /images      the pictures

Every session of xarray loads this module; what reads a trace is loaded when one is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from ...schema.arrays.layers import layer_path
from ...schema.arrays.sums import SOFTMAXES
from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.layout import CONVENTION, ROOT, image_layout
from ...schema.messages import listed
from ..facts import plain_attrs

if TYPE_CHECKING:
    from ..store.chunks import Blocks
    from .reader import Trace

Read: TypeAlias = Callable[[Any], NDArray[Any]]

HEAD_BYTES: Final = 4096
"""Of the root document, in whose first bytes a trace says by which convention it was written."""
ELSEWHERE: Final = ("layers", "images", "texts")
"""Fields of the record that are no attributes of the root: layers and images have groups of their own."""


class TraceBackend(BackendEntrypoint):
    """Opens traces for xarray; `partial=True` opens unfinished ones too."""

    description = "Recorded attention of diffusion runs (i2am)"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = ("filename_or_obj", "drop_variables", "group", "partial")
    supports_groups = True

    def guess_can_open(self, filename_or_obj: object) -> bool:
        """Whether it is a folder, or a file that ends in .zip, and says that it is a trace; addresses are not asked."""
        from ..storage.location import locate

        try:
            place = Path(filename_or_obj)  # type: ignore[arg-type]
            if not place.is_dir() and not (place.suffix == ".zip" and place.is_file()):
                return False
            storage = locate(place)
            head = storage.read(ROOT, 0, min(HEAD_BYTES, storage.size(ROOT)))
            return CONVENTION["uuid"].encode() in head.tobytes()
        except Exception:  # whatever is wrong with it, it is nothing to open here
            return False

    def open_dataset(
        self,
        filename_or_obj: object,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        partial: bool = False,
    ) -> xr.Dataset:
        """One group of a trace, by default the root.

        Raises   UnknownSelection for a group that the trace does not have; as `open_trace`
        """
        groups, name = _groups(filename_or_obj, partial), f"/{(group or '').strip('/')}"
        if name not in groups:
            raise UnknownSelection(f"the trace has no group {group!r}; it has {listed(groups)}")
        return groups[name]().drop_vars(_names(drop_variables), errors="ignore")

    def open_groups_as_dict(
        self, filename_or_obj: object, *, drop_variables: str | Iterable[str] | None = None, partial: bool = False
    ) -> dict[str, xr.Dataset]:
        """All groups of a trace, by path; raises as `open_trace`."""
        dropped = _names(drop_variables)
        return {name: make().drop_vars(dropped, errors="ignore") for name, make in _groups(filename_or_obj, partial).items()}

    def open_datatree(
        self, filename_or_obj: object, *, drop_variables: str | Iterable[str] | None = None, partial: bool = False
    ) -> xr.DataTree:
        """A trace as one tree; raises as `open_trace`."""
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables, partial=partial))


def make_datatree(trace: Trace) -> xr.DataTree:
    """A trace as one tree, what is lazy in chunks of dask."""
    groups = {path: make() for path, make in trace_groups(trace).items()}
    for path, group in groups.items():
        for name, array in group.data_vars.items():
            if chunks := array.encoding.get("preferred_chunks"):
                group[name] = array.variable.chunk(chunks, name=f"i2am-tree-{trace.token}-{path}-{name}")
    return xr.DataTree.from_dict(groups)


def trace_groups(trace: Trace) -> dict[str, Callable[[], xr.Dataset]]:
    """What makes each group of a trace, by path; nothing of attention or pictures is read."""
    layers = {f"/{layer_path(index)}": partial(layer_dataset, trace, index) for index in range(len(trace.layers))}
    return {"/": partial(root_dataset, trace), "/images": partial(image_dataset, trace), **layers}


def _groups(source: object, unfinished: bool) -> dict[str, Callable[[], xr.Dataset]]:
    from .reader import open_trace  # loads slowly, and most of what xarray opens is no trace

    if not isinstance(source, (str, os.PathLike)):
        raise InvalidInput(f"a trace is opened by its path, got {type(source).__name__}")
    return trace_groups(open_trace(source, partial=unfinished))


def _names(given: str | Iterable[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def root_dataset(trace: Trace) -> xr.Dataset:
    """The steps that count, and which layers took part in each.

    Dims     present (step, layer)
    """
    record, steps = trace.record, trace.steps
    coords = {
        "sample": np.arange(record.samples),
        "branch": np.array(record.branches, object),
        "step": steps["evaluation"],
        **{name: ("step", steps[name]) for name in ("timestep", "sigma", "scheduler_step")},
        "layer_name": ("layer", np.array([layer.name for layer in trace.layers], object)),
    }
    facts = {name: value for name, value in record.to_json().items() if name not in ELSEWHERE}
    return xr.Dataset({"present": (("step", "layer"), trace.present)}, coords, said(facts))


def layer_dataset(trace: Trace, index: int) -> xr.Dataset:
    """The attention of one layer, P, decoded from either encoding; of a layer that keeps maps only, its sums.

    Dims     probability (sample, branch, step, head, [frame,] y, x, token), float32; NaN where the call is absent; or position_sum
             (sample, branch, step, head, [frame,] y, x, segment, softmax) and token_sum (..., head, token, weighting, softmax)
    """
    from .calls import Calls
    from .views import MEANING, View, coordinates, view_dims

    view, layer = View(calls := Calls.of(trace, index), "probability"), trace.layers[index]
    facts = {"layer": layer.name, **trace.record.to_json()["layers"][index], "column_mass_lost": trace.lost[index]}
    facts |= {"call_heads": layer.model_heads, "call_tokens": layer.call_tokens or layer.tokens}
    if layer.sums is not None:
        labels = coordinates(trace, layer) | {"softmax": list(SOFTMAXES), "weighting": np.array(["", *layer.sums.masks], object)}
        sums = {name: _lazy_blocks(calls.arrays[name]) for name in ("position_sum", "token_sum")}
        return xr.Dataset(sums, labels, said(facts)).set_xindex("group")
    array = LazyArray(view.shape, "float32", view.__getitem__, indexing.IndexingSupport.OUTER)
    attention = lazy_variable(view_dims(layer), array, view.chunks, {"long_name": MEANING["probability"]})
    return xr.Dataset({"probability": attention}, coordinates(trace, layer), said(facts)).set_xindex("group")


def _lazy_blocks(blocks: Blocks) -> xr.Variable:
    """A recorded array as it is stored, in whole calls."""
    plan, shape = blocks.plan, blocks.shape
    array = LazyArray(shape, plan.dtype, blocks.__getitem__, indexing.IndexingSupport.OUTER)
    return lazy_variable(plan.dims, array, (*plan.chunks[:3], *shape[3:]), {"long_name": plan.attributes["long_name"]})


def image_dataset(trace: Trace) -> xr.Dataset:
    """The pictures, each on axes of its own.

    Dims     ([NAME_frame,] NAME_y, NAME_x, rgb or grey), uint8
    """
    found = {}
    for image in trace.images:
        plan = image_layout(image)
        array = LazyArray(plan.shape, plan.dtype, partial(read_picture, trace, image.name), indexing.IndexingSupport.BASIC)
        found[image.name] = lazy_variable(plan.dims, array, plan.shape, {"role": image.role, "window": image.window})
    return xr.Dataset(found)


def said(facts: dict[str, Any]) -> dict[str, Any]:
    """What is said, as attributes: fields that are empty say nothing."""
    return plain_attrs({name: value for name, value in facts.items() if value not in ("", [], (), {})})


def read_picture(trace: Trace, name: str, index: Any) -> NDArray[np.uint8]:
    """A part of a picture."""
    found: NDArray[np.uint8] = trace.image(name)[index]
    return found


class LazyArray(BackendArray):
    """An array of a trace that `read` reads by position."""

    def __init__(self, shape: tuple[int, ...], dtype: str, read: Read, support: indexing.IndexingSupport) -> None:
        self.shape, self.dtype, self.read, self.support = shape, np.dtype(dtype), read, support

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray[Any]:
        found: NDArray[Any] = indexing.explicit_indexing_adapter(key, self.shape, self.support, self.read)
        return found


def lazy_variable(dims: tuple[str, ...], array: LazyArray, chunks: tuple[int, ...], facts: dict[str, Any]) -> xr.Variable:
    """A variable that is read in these chunks when it is needed."""
    encoding = {"preferred_chunks": dict(zip(dims, chunks, strict=True))}
    return xr.Variable(dims, indexing.LazilyIndexedArray(array), plain_attrs(facts), encoding)
