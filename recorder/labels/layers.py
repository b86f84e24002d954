"""Call sites: which layer of the trace a captured call is, and which part of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...schema.codec import factor_dtype
from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ...schema.trace import Layer, TokenGroup
from ..capture.call import Call
from ..capture.projections import UNKNOWN
from ..encoding.scores import additive, mask_of
from ..plan.options import Options, keep_heads
from ..plan.sizes import choose_encoding
from .frames import same_keys, uneven_keys
from .grids import Places
from .tokens import (
    Context,
    Scene,
    adapter_labels,
    columns_of,
    generated_queries,
    keep_groups,
    moved_together,
    resampler_groups,
    token_groups,
)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a call goes in the trace."""

    index: int
    layer: Layer
    generated: slice
    """Queries that are places of the generated image."""
    columns: tuple[slice, ...]
    """Keys that are kept; empty for all."""


class Sites:
    """Finds the site of each call; a new one becomes a layer of the trace."""

    def __init__(self, context: Context, options: Options, add_layer: Callable[[Layer], int]) -> None:
        self._context, self._options, self._add_layer = context, options, add_layer
        self._sites: dict[tuple[Any, ...], Site | None] = {}
        self._layers: dict[tuple[str, str, int], tuple[int, Layer]] = {}
        self.roles: set[str] = set()
        """Of all keys that were met, kept or not, but the image's own."""

    def find(self, call: Call, scene: Scene, row: int | None = None) -> Site | None:
        """The site of a call, or of one row of it where rows have sequences of their own; None if nothing of it is to be kept.

        Raises   UnsupportedModel if the call is not what it was before
        """
        shapes = (call.grid, call.frames, call.query.shape[1:], call.key.shape[1:])
        key = (call.path, call.segments, call.repeat, call.own, call.scale, shapes, scene)
        if key not in self._sites:
            self._sites[key] = self._make(call, scene, row)
        return self._sites[key]

    def find_resampler(self, call: Call, scene: Scene) -> tuple[Site, ...]:
        """The sites of a resampler's call, whose rows are those of the batch times the adapter's references: one a reference.

        All its keys are kept: rows of P then say how much of a token is made of the reference at all.
        """
        assert call.resampler is not None
        if self._options.keys == "text":
            return ()
        labels = adapter_labels(call.resampler, self._context, scene)
        return tuple(self._resampled(call, ordinal, label) for ordinal, label in enumerate(labels))

    def _resampled(self, call: Call, ordinal: int, label: str) -> Site:
        site = (call.path, label, ordinal)
        if site not in self._layers:
            layer = resampler_layer(call, ordinal, label, self._context, self._options)
            self._layers[site] = self._add_layer(layer), layer
        index, layer = self._layers[site]
        return Site(index, layer, slice(0, call.query.shape[2]), ())

    def _make(self, call: Call, scene: Scene, row: int | None) -> Site | None:
        groups = token_groups(call, self._context, scene)
        if not groups:
            return None  # references among themselves
        generated, places = generated_queries(call, groups, scene)
        if places is None and scene.canvas and not call.own:
            return None  # asked by text or reference tokens alone
        self.roles |= {group.role for group in groups} - {"self"}
        kept = keep_groups(groups, self._options.keys, scene.referenced)
        if not kept:
            return None
        columns = () if kept == groups else columns_of(kept)
        masked = hides(call.mask if row is None else mask_of(call.mask, row), generated, columns) or _differ(call)
        encoding = self._options.encoding
        layer = keep_heads(
            describe(call, self._ordinal(call), moved_together(kept), encoding, places, masked),
            self._options.heads,
        )
        index, layer = self._place(call, layer)
        return Site(index, layer, generated, columns)

    def _place(self, call: Call, layer: Layer) -> tuple[int, Layer]:
        """The layer as the trace has it: the same in each evaluation and branch, whatever the keys that are not kept."""
        site = self._same(call)
        if site not in self._layers:
            self._layers[site] = self._add_layer(layer), layer
            return self._layers[site]
        index, known = self._layers[site]
        require_same(known, layer)
        return index, known

    def _same(self, call: Call) -> tuple[str, str, int]:
        """The site of a call in earlier passes; keys that were kept since then had a projection at first."""
        own = (call.path, call.projection, call.repeat)
        return next((site for site in self._layers if site[0] == call.path), own) if call.projection == UNKNOWN else own

    def _ordinal(self, call: Call) -> int:
        """0 for the module's own keys, 1 + i for adapter i: the same whichever adapters are silent at first."""
        site = self._same(call)
        if site in self._layers:
            return self._layers[site][1].call
        adapter = call.projection.partition("to_v_ip")[2]
        ordinal = int(adapter.lstrip(".") or 0) + 1 if "to_v_ip" in call.projection else int(call.projection == "add_v_proj")
        taken = {layer.call for _, layer in self._layers.values() if layer.path == call.path}
        while ordinal in taken:
            ordinal += 1
        return ordinal


def require_same(known: Layer, layer: Layer) -> None:
    """Raise UnsupportedModel if a layer is not what it was before."""
    if any(getattr(known, name) != getattr(layer, name) for name in ("groups", "grid", "frames", "scale", "heads", "call_heads")):
        raise UnsupportedModel(
            f"{known.name} changed during the run: {known.tokens} keys on grid {known.places} before, {layer.tokens} on {layer.places};"
            " a trace has one shape for each layer, so keep guidance and size constant, record one branch, or "
            f"{option('keys', 'reference')}, or leave it out through {option('layers')}"
        )


def _differ(call: Call) -> bool:
    """Whether the keys of a video's rows differ by their rounding, so that one row's are not exactly all; asks the device."""
    unevenness = 0.0 if call.uneven is None else float(call.uneven)
    if not same_keys(call.key.dtype, unevenness):
        raise uneven_keys(call.path)
    return unevenness > 0


def resampler_layer(call: Call, ordinal: int, label: str, context: Context, options: Options) -> Layer:
    """The layer that a resampler's attention to one reference is."""
    layer = describe(call, ordinal, resampler_groups(call, label, context), options.encoding)
    return keep_heads(replace(layer, queries=label), options.heads)


def part_of_mask(mask: Tensor | None, generated: slice, columns: tuple[slice, ...] = ()) -> Tensor | None:
    """A mask for some of a call's queries and keys; an axis of length 1 serves all.

    Dims     broadcast to (..., x, token)
    """
    if mask is None or mask.ndim < 2:
        return mask
    if mask.shape[-2] > 1:
        mask = mask[..., generated, :]
    if columns and mask.shape[-1] > 1:
        mask = mask[..., [i for column in columns for i in range(column.start, column.stop)]]
    return mask


def hides(mask: Tensor | None, generated: slice, columns: tuple[slice, ...] = ()) -> bool:
    """Whether a mask changes any score that is kept; asks the device."""
    part = part_of_mask(mask, generated, columns)
    return part is not None and (part.device.type == "meta" or bool((additive(part) != 0).any()))


def describe(
    call: Call, ordinal: int, groups: tuple[TokenGroup, ...], encoding: str, places: Places | None = None, masked: bool | None = None
) -> Layer:
    """The layer that a call site is; needs shapes only. `groups` are those that are stored, `masked` whether factors cannot say them.

    Raises   UnsupportedModel if its queries have no grid or its heads cannot be shared
    """
    _, heads, positions, head_dim = call.query.shape
    places = call.grid if places is None else places
    if places is None:
        raise UnsupportedModel(
            f"{call.path} attends from {positions} positions, which no enclosing module lays out as rows and columns "
            f"(attention over time alone, or a packed sequence); leave it out through {option('layers')}"
        )
    if heads % call.key.shape[1]:
        raise UnsupportedModel(
            f"{call.path} has {heads} query heads on {call.key.shape[1]} key heads; leave it out through {option('layers')}"
        )
    dtype = str(call.query.dtype).removeprefix("torch.")
    tokens, call_tokens = groups[-1].stop, call.key.shape[2]
    return Layer(
        path=call.path,
        call=ordinal,
        heads=heads,
        head_dim=head_dim,
        scale=call.scale,
        grid=(places[-2], places[-1]),
        frames=places[0] if len(places) > 2 else 0,
        tokens=tokens,
        groups=groups,
        encoding=choose_encoding(encoding, tokens, head_dim, call.mask is not None if masked is None else masked),
        dtype=dtype,
        factor_dtype=factor_dtype(dtype),
        call_tokens=call_tokens if call_tokens > tokens else 0,
    )
