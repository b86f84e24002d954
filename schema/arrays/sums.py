"""What a layer of maps keeps in place of its attention: sums of softmax values over stretches of tokens, and over weighted positions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ..record import require

if TYPE_CHECKING:
    from ..trace import TokenGroup

SOFTMAXES: Final = ("keys", "generated")
"""The axis `softmax` of sums: P, then G."""


@dataclass(frozen=True, slots=True)
class KeptSums:
    """What is kept beside the sums over all tokens and all positions."""

    tokens: tuple[int, ...] = ()
    """Keys of the layer, in order, whose probabilities are kept too, so that each of them has maps of its own."""
    masks: tuple[str, ...] = ()
    """Masks of the generated image by which positions were weighed."""

    def __post_init__(self) -> None:
        ordered = all(a < b for a, b in itertools.pairwise((-1, *self.tokens)))
        require(ordered, f"tokens with maps of their own, {self.tokens}, are not in order")
        require(len(set(self.masks)) == len(self.masks), f"two masks that weigh positions have one name: {', '.join(self.masks)}")


def token_segments(groups: Iterable[TokenGroup]) -> tuple[slice, ...]:
    """Stretches of tokens that are summed apart: each group's specials, and the rest of it."""
    cuts = [(g.start, g.start + g.specials, g.stop) for g in groups]
    return tuple(slice(a, b) for low, middle, high in cuts for a, b in ((low, middle), (middle, high)) if a < b)


def stretches(positions: Sequence[int]) -> tuple[slice, ...]:
    """Positions in order as slices, each of those that follow one another."""
    runs = itertools.groupby(enumerate(positions), lambda pair: pair[1] - pair[0])
    return tuple(slice(run[0][1], run[-1][1] + 1) for run in (list(found) for _, found in runs))


def spread_mask(mask: NDArray[Any], places: tuple[int, ...]) -> NDArray[Any]:
    """A mask on a layer's places, each of which takes the nearest pixel; one picture serves all frames of a video, and a mask of frames is
    brought to those of the layer.

    Dims     ([frame,] y, x) -> places
    """
    rows, columns = (nearest(source, target) for source, target in zip(mask.shape[-2:], places[-2:], strict=True))
    values = mask[..., rows[:, None], columns]
    if values.ndim > 2:
        values = values[middle(len(values), places[0])] if len(places) > 2 else values.mean(0)
    return np.broadcast_to(values, places)


def nearest(source: int, target: int) -> NDArray[np.intp]:
    """Which pixel of an axis each place of another length takes, as torch's `interpolate` works it out, in float32.

    Dims     (target,)
    """
    scale = np.float32(source) / np.float32(target)
    places: NDArray[np.intp] = np.floor(np.arange(target, dtype=np.float32) * scale).astype(np.intp)
    return places.clip(0, source - 1)


def middle(source: int, target: int) -> NDArray[np.intp]:
    """Which of some frames is in the middle of each of fewer, or more, frames of the same video.

    Dims     (target,)
    """
    places: NDArray[np.intp] = (2 * np.arange(target) + 1) * source // (2 * target)
    return places
