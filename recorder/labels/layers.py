"""Layers of the trace: which one a captured call is, and which of its queries and keys are kept."""

from __future__ import annotations

from collections.abc import Set
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
from ..plan.budget import choose_encoding
from ..plan.options import Options, keep_heads, keep_maps
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Which layer of the trace a call is, and how to read its queries and keys."""

    index: int
    layer: Layer
    generated: slice
    """Queries that are places of the generated image."""
    columns: tuple[slice, ...] = ()
    """Keys that are kept; empty for all."""
    order: tuple[int, ...] = ()
    """Positions of the sequence, panel by panel; empty where they are in that order already."""


class Layers:
    """The layers of a trace, in the order in which their calls were met."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.all: list[Layer] = []
        self.indices: dict[tuple[Any, ...], int] = {}
        """Of layers, by what tells their calls from others."""
        self.roles: set[str] = set()
        """Of all keys that were met, kept or not, but the image's own."""
        self.left_out: dict[str, str] = {}
        """Modules whose self-attention was wanted and is not kept, by path: why not."""

    def site(
        self,
        key: tuple[Any, ...],
        call: Call,
        ordinal: int,
        groups: tuple[TokenGroup, ...],
        generated: slice,
        places: Places | None,
        *,
        mask: Tensor | None,
        referenced: bool = False,
        order: tuple[int, ...] = (),
    ) -> Site | None:
        """The site of a call whose keys are `groups`; None if none of them are kept.

        Raises   UnsupportedModel if it has no layer, or another than before
        """
        self.roles |= {group.role for group in groups} - {"self"}
        kept = self._within(keep_groups(groups, self._options.keys, referenced), call.path, generated)
        if not kept:
            return None
        columns = () if kept == groups else columns_of(kept)
        masked = hides(mask, generated, columns) or _differ(call)
        layer = _with_values(self.describe(call, ordinal, moved_together(kept), places, masked), call, generated, self._options.values_kept)
        layer = keep_maps(layer, self._options.token_maps) if self._options.keep == "maps" else layer
        layer = layer if call.concepts is None else replace(layer, concepts=tuple(self._options.concepts))
        index, layer = self.place(key, layer)
        return Site(index=index, layer=layer, generated=generated, columns=columns, order=order)

    def _within(self, groups: tuple[TokenGroup, ...], path: str, generated: slice) -> tuple[TokenGroup, ...]:
        """The groups without the image's own tokens, where the layer has more positions than self-attention is kept of."""
        most = self._options.self_grid
        rest = tuple(group for group in groups if group.role != "self")
        if len(rest) == len(groups) or generated.stop - generated.start <= most**2:
            return groups
        if most:
            self.left_out[path] = (
                f"has more than {most} x {most} positions; raise {option('self_grid')}, with {option('encoding', 'factors')}"
            )
        return rest

    def describe(
        self, call: Call, ordinal: int, groups: tuple[TokenGroup, ...], places: Places | None = None, masked: bool = False
    ) -> Layer:
        """The layer that a call is; needs shapes only. `groups` are those that are stored; `masked` rules out factors.

        Raises   UnsupportedModel if its queries have no grid or its heads cannot be shared
        """
        _, heads, positions, head_dim = call.query.shape
        places = call.grid if places is None else places
        out = f"leave it out through {option('layers')}"
        if places is None:
            raise UnsupportedModel(
                f"{call.path} attends from {positions} positions, which no enclosing module lays out as rows and columns "
                f"(attention over time alone, or a packed sequence); {out}"
            )
        if heads % call.key.shape[1]:
            raise UnsupportedModel(f"{call.path} has {heads} query heads on {call.key.shape[1]} key heads; {out}")
        dtype = str(call.query.dtype).removeprefix("torch.")
        tokens, call_tokens = groups[-1].stop, call.key.shape[2]
        layer = Layer(
            path=call.path,
            call=ordinal,
            heads=heads,
            head_dim=head_dim,
            scale=call.scale,
            grid=(places[-2], places[-1]),
            frames=places[0] if len(places) > 2 else 0,
            tokens=tokens,
            groups=groups,
            encoding=choose_encoding(self._options.encoding, tokens, head_dim, masked),
            dtype=dtype,
            factor_dtype=factor_dtype(dtype),
            call_tokens=call_tokens if call_tokens > tokens else 0,
        )
        return keep_heads(layer, self._options.heads)

    def place(self, key: tuple[Any, ...], layer: Layer) -> tuple[int, Layer]:
        """The layer as the trace has it: the same in each evaluation and branch, whatever the keys that are not kept.

        Raises   UnsupportedModel if it is not what it was before
        """
        if key not in self.indices:
            self.indices[key] = len(self.all)
            self.all.append(layer)
        known = self.all[self.indices[key]]
        require_same(known, layer)
        return self.indices[key], known


class Sites:
    """Finds the site of each call of a diffusers pipeline."""

    def __init__(self, context: Context, options: Options, alone: Set[str] = frozenset()) -> None:
        self._context, self._options, self._alone = context, options, alone
        self._sites: dict[tuple[Any, ...], Site | None] = {}
        self.layers = Layers(options)

    def find(self, call: Call, scene: Scene, row: int | None = None) -> Site | None:
        """The site of a call, or of one row of it where rows have sequences of their own; None if nothing of it is to be kept.

        Raises   UnsupportedModel if the call is not what it was before
        """
        if scene.frames and call.path in self._alone:
            inside = "attends within single frames, or at single places over time, each with keys of its own"
            raise UnsupportedModel(f"{call.path} {inside}; keep other keys, such as {option('keys', 'text')}")
        shapes = (call.grid, call.frames, call.query.shape[1:], call.key.shape[1:])
        key = (call.path, call.segments, call.repeat, call.own, call.scale, shapes, scene)
        if key not in self._sites:
            self._sites[key] = self._make(call, scene, row)
        return self._sites[key]

    def leave_out(self, path: str, why: UnsupportedModel) -> bool:
        """Go on without a module of self-attention alone that cannot be recorded; whether it is one, and nothing was recorded of it yet."""
        if path not in self._alone or path in {layer.path for layer in self.layers.all}:
            return False
        self.layers.left_out[path] = str(why).removeprefix(path).strip()
        return True

    def find_resampler(self, call: Call, scene: Scene) -> tuple[Site, ...]:
        """The sites of a resampler's call, whose rows are those of the batch times the adapter's references: one a reference.

        All its keys are kept: rows of P then say how much of a token is made of the reference at all.
        """
        assert call.resampler is not None
        if self._options.keys in ("text", "self"):
            return ()
        sites = []
        for ordinal, label in enumerate(adapter_labels(call.resampler, self._context, scene)):
            layer = replace(self.layers.describe(call, ordinal, resampler_groups(call, label, self._context)), queries=label)
            index, layer = self.layers.place((call.path, label, ordinal), layer)
            sites.append(Site(index=index, layer=layer, generated=slice(0, call.query.shape[2])))
        return tuple(sites)

    def _make(self, call: Call, scene: Scene, row: int | None) -> Site | None:
        groups = token_groups(call, self._context, scene)
        if not groups:
            return None  # references among themselves
        generated, places = generated_queries(call, groups, scene)
        if places is None and scene.canvas and not call.own:
            return None  # asked by text or reference tokens alone
        key, ordinal = self._identify(call)
        mask = call.mask if row is None else mask_of(call.mask, row)
        return self.layers.site(key, call, ordinal, groups, generated, places, mask=mask, referenced=scene.referenced)

    def _identify(self, call: Call) -> tuple[tuple[Any, ...], int]:
        """What tells a call's layer from others, and its number in the module: 0 for the module's own keys, 1 + i for adapter i.

        The number is the same whichever adapters are silent at first.
        """
        key: tuple[Any, ...] = (call.path, call.projection, call.repeat)
        if call.projection == UNKNOWN:  # keys that were kept since an earlier pass had a projection then
            key = next((known for known in self.layers.indices if known[0] == call.path), key)
        if key in self.layers.indices:
            return key, self.layers.all[self.layers.indices[key]].call
        adapter = call.projection.partition("to_v_ip")[2]
        ordinal = int(adapter.lstrip(".") or 0) + 1 if "to_v_ip" in call.projection else int(call.projection == "add_v_proj")
        taken = {layer.call for layer in self.layers.all if layer.path == call.path}
        while ordinal in taken:
            ordinal += 1
        return key, ordinal


def _with_values(layer: Layer, call: Call, generated: slice, wanted: str) -> Layer:
    """A layer with what is to be kept of its values, where their way out of the module is known."""
    if wanted == "none" or call.value is None or (output := call.output_of(generated)) is None:
        return layer
    if wanted != "full":
        return replace(layer, values="norms")
    full = replace(layer, values="full", value_dim=call.value.shape[3], output_dim=output.output_channels, gain=call.gain)
    return replace(full, residual=call.residual is not None)


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
