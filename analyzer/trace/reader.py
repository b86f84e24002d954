"""Opens a trace: checks it, then hands out what is in it, lazily."""

from __future__ import annotations

import html
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.layers import layer_path
from ...schema.errors import UnknownSelection
from ...schema.messages import listed, option, plain
from ...schema.selection import Layers, Selector, match_layers
from ...schema.trace import Image, Layer, Values
from ..storage.location import Location
from ..storage.storage import Storage
from ..store.chunks import read_heads
from ..store.validation import Contents, inspect

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from .calls import Kind


def open_trace(path: Location | Storage, *, partial: bool = False) -> Trace:
    """Open a trace, checked but unread: no attention is read before something is computed from it.

    It is a folder or a zip file, by its path or its address, such as `https://host/run.zarr.zip` or `s3://bucket/run.zarr`. `partial`
    also opens what an unfinished recording left: its committed steps.

    Raises   NotATrace, UnknownVersion, IncompleteTrace unless `partial`, CorruptTrace naming the file, NoAnswer
    """
    return Trace(**vars(inspect(path, partial)))


class Trace(Contents):
    """A recorded run: what it is, which calls it holds, and their attention, read when computed."""

    @property
    def id(self) -> str:
        """The recording's UUID."""
        return self.record.id

    @property
    def complete(self) -> bool:
        """Whether the recording finished."""
        return self.record.status == "complete"

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The attention call sites."""
        return self.record.layers

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures kept, without their pixels."""
        return self.record.images

    @property
    def notes(self) -> tuple[str, ...]:
        """What the recorder had to say of the run, such as attention that it left out."""
        notes = self.record.provenance.get("notes")
        return tuple(note for note in notes if isinstance(note, str)) if isinstance(notes, list) else ()

    @property
    def unproven(self) -> tuple[int, ...]:
        """Positions of layers whose attention rests on trust, or on samples: what the model computed could not be seen whole."""
        given = self.record.provenance.get("unproven")
        named = [path for paths in given.values() if isinstance(paths, list) for path in paths] if isinstance(given, dict) else []
        return tuple(index for index, layer in enumerate(self.layers) if layer.path in named)

    @property
    def latent_grid(self) -> tuple[int, int]:
        """(rows, columns) that maps are brought to: the latent's, or else the largest layer grid."""
        return self.record.map_grid

    @property
    def latent_frames(self) -> int:
        """Frames that maps of a video have: those of the layers that have most; 0 for images, whose maps have no such axis."""
        return max((layer.frames for layer in self.layers if not layer.is_resampler), default=0)

    @property
    def latent_places(self) -> tuple[int, ...]:
        """The latent grid, frames before it in a video."""
        return (self.latent_frames, *self.latent_grid) if self.latent_frames else self.latent_grid

    def layer(self, selector: Selector) -> int:
        """Position of the one layer that `selector` names.

        Raises   UnknownSelection if it names none, or several
        """
        found = self.select([selector])
        if len(found) > 1:
            raise UnknownSelection(
                f"{selector!r} names {len(found)} layers of the trace, expected one: {listed(self.layers[i].name for i in found)}"
            )
        return found[0]

    def select(self, selectors: Layers = None) -> tuple[int, ...]:
        """Positions of all layers that any of `selectors` names, in trace order; None is all.

        Raises   UnknownSelection for a selector that names none, InvalidInput for none at all
        """
        return match_layers(selectors, [layer.name for layer in self.layers])

    def image(self, name: str) -> NDArray[np.uint8]:
        """Pixels of a picture.

        Dims     ([frame,] y, x, channel), 3 channels or 1
        Raises   UnknownSelection, CorruptTrace
        """
        for image in self.images:
            if image.name == name:
                pixels: NDArray[np.uint8] = self.table(f"images/{name}")
                return pixels
        raise UnknownSelection(f"the trace has no image {name!r}; it has {listed(image.name for image in self.images)}")

    def masks(self) -> dict[str, NDArray[np.uint8]]:
        """The masks of the generated image and of the references, by name.

        Dims     ([frame,] y, x), 0 or 255
        """
        return {image.name: self.image(image.name)[..., 0] for image in self.images if image.role in ("mask", "reference_mask")}

    def layer_table(self) -> pd.DataFrame:
        """One row a layer: name, block, grid, heads, tokens and their groups, encoding, calls that were recorded.

        Units    bytes of its files
        """
        from .tables import layer_table

        return layer_table(self)

    def step_table(self) -> pd.DataFrame:
        """One row a step that counts, in execution order: evaluation, timestep, sigma, scheduler_step, layers that took part."""
        from .tables import step_table

        return step_table(self)

    def to_datatree(self) -> xr.DataTree:
        """The trace as one tree, lazy, in chunks of dask: what `xr.open_datatree(path, engine="i2am", chunks={})` opens.

            trace.to_datatree()["layers/000"]["probability"].sel(branch="cond").mean("head")

        Raises   CorruptTrace where a file is read that was changed
        """
        from .backend import make_datatree

        return make_datatree(self)

    def view(self, other: Trace | None = None, **options: Any) -> Any:
        """The run as a page to look at, beside another run if one is given; arguments and value as of `show`.

        trace.view()                      # in a notebook, shown below the cell
        trace.view().save("run.html")     # one file to send
        """
        # What is shown stands on maps and scores, floors above a trace, which therefore finds it by name.
        return import_module("..view.notebook", __package__).show(self, other, **options)

    def probe_key(self, layer: Selector, probe: str | None = None) -> NDArray[np.float32] | NDArray[np.float16]:
        """Keys of one probe in a layer, or of all of them one after another, exactly as the model makes them.

        Dims     (head, probe token, channel)
        Raises   UnknownSelection for a probe that the layer does not have, CorruptTrace
        """
        index = self.layer(layer)
        known = {group.name: group for group in self.layers[index].probes}
        files = self.arrays.get(f"{layer_path(index)}/probe_key")
        if files is None or (probe is not None and probe not in known):
            wanted = "probes" if probe is None else f"probe {probe!r}"
            raise UnknownSelection(
                f"layer {self.layers[index].name} has no {wanted}; it has {listed(known)}; probes are made "
                f"while recording, with {option('probes')}"
            )
        keys = read_heads(self.storage, files)
        return keys if probe is None else keys[:, known[probe].start : known[probe].stop]

    def probabilities(self, layer: Selector) -> xr.DataArray:
        """P, the model's own softmax over keys: NaN where the call is absent.

        Dims     (sample, branch, step, head, [frame,] y, x, token), float32, lazy
        Range    [0, 1], sums to 1 over token if all keys of the call were kept
        """
        return self._view(layer, "probability")

    def scores(self, layer: Selector) -> xr.DataArray:
        """S = scale * (q . k), with whatever mask the model added: NaN where the call is absent.

        Dims     (sample, branch, step, head, [frame,] y, x, token), float32, lazy
        """
        return self._view(layer, "score")

    def generated_softmax(self, layer: Selector) -> xr.DataArray:
        """G, softmax over the generated positions: NaN where the call is absent.

        Dims     (sample, branch, step, head, [frame,] y, x, token), float32, lazy
        Range    [0, 1], sums to 1 over y and x, in a video over frame, y and x
        """
        return self._view(layer, "generated")

    def value_norms(self, layer: Selector) -> xr.DataArray:
        """Norms |v W| of what each token's value v gives through a head's part W of the output projection: NaN where the call is absent.

        Dims     (sample, branch, step, head, token), float32, lazy
        Raises   UnknownSelection for a layer that was recorded without values
        """
        from .views import lazy_norms

        return lazy_norms(self, self._valued(layer, ("norms", "full")))

    def values(self, layer: Selector) -> xr.DataArray:
        """Values as the model had them: NaN where the call is absent.

        Dims     (sample, branch, step, head, token, value_channel), lazy
        Raises   UnknownSelection for a layer whose values were not recorded in full
        """
        from .views import lazy_values

        return lazy_values(self, self._valued(layer, ("full",)))

    def output_projection(self, layer: Selector) -> NDArray[np.float32] | NDArray[np.float16]:
        """The output projection as the model had it: what a head takes of the values v goes out as gain * v @ W.

        Dims     (head, value_channel, output_channel)
        Raises   as `values`; CorruptTrace
        """
        return read_heads(self.storage, self.arrays[f"{layer_path(self._valued(layer, ('full',)))}/output"])

    def residual_norms(self, layer: Selector) -> xr.DataArray:
        """Norms of the residual stream, to which the output of the layer's module is added: NaN where the call is absent.

        Dims     (sample, branch, step, [frame,] y, x), float32, lazy
        Raises   as `values`; UnknownSelection for a layer whose block does not show the stream
        """
        from .views import lazy_residuals

        index = self._valued(layer, ("full",))
        if not self.layers[index].residual:
            raise UnknownSelection(
                f"layer {self.layers[index].name} has no norms of the residual stream: its block shows no plain sum of the module's output "
                "and something else (gates of adaptive norms, or a sum inside the module), or the trace was recorded before they were kept"
            )
        return lazy_residuals(self, index)

    def concept_scores(self, layer: Selector) -> xr.DataArray:
        """How far what attention gives each position agrees with what it gives each concept: their product, summed over heads; NaN where
        the call is absent.

        Dims     (sample, branch, step, concept, [frame,] y, x), float32, lazy
        Raises   UnknownSelection for a layer that was recorded without concepts
        """
        from .views import lazy_concepts

        index = self.layer(layer)
        if not self.layers[index].concepts:
            way = f"record double blocks of Flux with {option('concepts', '...')}"
            raise UnknownSelection(f"layer {self.layers[index].name} has no concepts; {way}")
        return lazy_concepts(self, index)

    def _valued(self, layer: Selector, kinds: tuple[Values, ...]) -> int:
        index = self.layer(layer)
        if (kept := self.layers[index].values) not in kinds:
            what = "has no values" if kept == "none" else "has norms of values only"
            raise UnknownSelection(f"layer {self.layers[index].name} {what}; record them with {option('values', kinds[0])}")
        return index

    def _view(self, layer: Selector, kind: Kind) -> xr.DataArray:
        from .views import lazy_array  # dask and xarray load slowly, and most of a trace needs neither

        return lazy_array(self, self.layer(layer), kind)

    def _summary(self) -> list[tuple[str, str]]:
        why = f": {self.record.reason}" if self.record.reason else ""
        planned = "" if self.complete else f" of {self.record.steps} planned; {self.record.status}{why}"
        groups = dict.fromkeys(
            f"{g.name} ({g.tokens} tokens{f', {g.grid[0]} x {g.grid[1]}' if g.grid else ''})" for x in self.layers for g in x.groups
        )
        rows = [
            ("model", str(self.record.model.get("pipeline", "unknown"))),
            ("steps", f"{len(self.present)}{planned}"),
            ("samples", str(self.record.samples)),
            ("branches", ", ".join(self.record.branches)),
            ("layers", f"{len(self.layers)} with {sum(x.heads for x in self.layers)} heads"),
            ("encoding", ", ".join(dict.fromkeys(x.encoding for x in self.layers))),
            ("token groups", listed(groups)),
            ("latent grid", " x ".join(map(str, self.latent_places))),
            ("images", listed(image.name for image in self.images)),
        ]
        return [(name, plain(value)) for name, value in rows]

    def __repr__(self) -> str:
        rows = "\n".join(f"  {name:<13} {value}" for name, value in self._summary())
        return f"<i2am Trace {self.id} in {plain(str(self.path))}>\n{rows}"

    def _repr_html_(self) -> str:
        # Everything here was written by whoever made the trace.
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in self._summary()
        )
        layers = "".join(
            f"<tr><td>{index}</td><td>{html.escape(layer.name)}</td><td>{' x '.join(map(str, layer.places))}</td>"
            f"<td>{layer.head_count}</td><td>{layer.tokens}</td><td>{html.escape(layer.encoding)}</td>"
            f"<td>{int(self.present[:, index].sum())}</td></tr>"
            for index, layer in enumerate(self.layers)
        )
        head = "<tr><th></th><th>layer</th><th>grid</th><th>heads</th><th>tokens</th><th>encoding</th><th>calls</th></tr>"
        return (
            f"<div><b>i2am trace</b> <code>{html.escape(self.id)}</code><table>{rows}</table>"
            f"<details><summary>{len(self.layers)} layers</summary><table>{head}{layers}</table></details></div>"
        )
