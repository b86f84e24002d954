"""How much each generated position counts in G2R: all alike, or as a mask says (v1, Eq. 17)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.sums import middle, spread_mask
from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import listed, option
from ..methods.recipes import Recipe
from ..metrics.masks import shares
from ..storage.storage import Storage
from ..store.chunks import read_table
from ..store.ledger import ArrayFiles
from ..trace.images import masks, own_mask
from ..trace.reader import Trace
from .selection import Positions, pick_positions

Mask: TypeAlias = str | NDArray[Any] | None
"""Name of a mask in the trace, or an array ([frame,] y, x) of shares 0..1 or 0..255; None counts all positions alike."""


@dataclass(frozen=True, eq=False)
class Weighting:
    """Which row of `query_weights` counts, and the row that is not of the trace's own masks."""

    which: int = 0
    extra: NDArray[Any] | None = None

    @property
    def token(self) -> str:
        """What tells `extra` from any other in the names of tasks."""
        facts = b"" if self.extra is None else self.extra.tobytes() + repr(self.extra.shape).encode()
        return hashlib.sha256(facts).hexdigest()[:16]


def query_weights(
    storage: Storage, masks: tuple[ArrayFiles, ...], extra: NDArray[Any] | None, places: tuple[int, ...]
) -> NDArray[np.float64]:
    """Task: how much each generated position counts: all alike, then each mask of the trace, then the caller's.

    Dims     (weighting, [frame,] y, x)
    Range    [0, 1], but for the caller's
    """
    pictures = [read_table(storage, plan)[..., 0] / 255 for plan in masks] + ([] if extra is None else [extra])
    return np.stack([np.ones(places), *(spread_mask(picture, places) for picture in pictures)])


def pick_frames(trace: Trace, frames: Positions) -> tuple[int, ...]:
    """Selected frames of a map, in order.

    Raises   UnknownSelection for one that it does not have, InvalidInput for images
    """
    if not trace.latent_frames:
        raise InvalidInput(f"the trace is of an image, which has no frames; leave out {option('frames')}")
    return pick_positions(frames, trace.latent_frames, "frame")


def recipe_mask(trace: Trace, sample: int, row: Recipe) -> str | None:
    """The trace's own mask of the generated image, if the recipe counts positions by it.

    Raises   UnknownSelection if there are several masks, or none
    """
    if not row.query_mask:
        return None
    if name := own_mask(trace, sample):
        return name
    raise UnknownSelection(
        f"recipe {row.name} counts generated positions by a mask (v1, Eq. 17), and the trace has none of the generated image; "
        f"give one with {option('query_mask')}, or change the recipe's field query_mask"
    )


def weighting(trace: Trace, mask: Mask) -> Weighting:
    """How a mask counts generated positions."""
    names = [image.name for image in masks(trace)]
    if mask is None:
        return Weighting()
    if isinstance(mask, str):
        if mask not in names:
            raise UnknownSelection(f"the trace has no mask {mask!r} of the generated image; it has {listed(names)}")
        return Weighting(1 + names.index(mask))
    values = np.asarray(mask)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    values = _fitting(trace, values)
    for i, name in enumerate(names, 1):
        recorded = trace.image(name)[..., 0] / 255
        if recorded.shape == values.shape and np.array_equal(recorded, values):
            return Weighting(i)
    return Weighting(1 + len(names), values)


def only_frames(trace: Trace, layers: Iterable[int], frames: Positions, all_frames: Weighting) -> Weighting:
    """The weighting of some frames of a video alone, scaled so that a sum over all positions, divided by them, is theirs.

    Raises   UnknownSelection; InvalidInput for images, or layers with other frames than maps have
    """
    if frames is None:
        return all_frames
    count, picked = trace.latent_frames, pick_frames(trace, frames)
    for layer in (trace.layers[index] for index in layers):
        if layer.frames != count:
            raise InvalidInput(
                f"frames are counted in those of the map, {count}, and layer {layer.name} has {layer.frames}; "
                f"select layers that have all of them with {option('layers')}"
            )
    names, base = [image.name for image in masks(trace)], all_frames.extra
    if base is None:
        base = trace.image(names[all_frames.which - 1])[..., 0] / 255 if all_frames.which else np.ones((1, 1))
    counted = np.zeros((count, 1, 1))
    counted[list(picked)] = count / len(picked)
    return Weighting(1 + len(names), (base[middle(len(base), count)] if base.ndim > 2 else base) * counted)


def _fitting(trace: Trace, values: NDArray[Any]) -> NDArray[np.float64]:
    """The caller's mask as shares, if it lies on the generated image or its latent grid and is not empty."""
    sizes = {(image.height, image.width) for image in trace.images if image.role in ("generated", "mask")} | {trace.latent_grid}
    frames = {trace.latent_frames, *(image.frames for image in trace.images if image.role in ("generated", "mask"))} - {0}
    if values.shape not in sizes | {(count, *size) for count in frames for size in sizes}:
        known = " or ".join(f"{h} x {w}" for h, w in sorted(sizes))
        raise InvalidInput(
            f"the query mask has shape {values.shape}; expected (rows, columns) of the generated image or the latent grid, {known}"
            + (f", for all frames or with as many as {' or '.join(map(str, sorted(frames)))} before them" if frames else "")
        )
    found = shares(values, "the query mask")
    if not found.any():
        raise InvalidInput("the query mask is empty: no generated position counts, so there is nothing to average")
    return found
