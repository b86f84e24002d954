"""What a pipeline painted, as numbers: pictures and videos of its output, and how far two of them differ in each patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from ...schema.errors import InvalidInput, UnsupportedModel

NEAR: Final = 1.0
"""Mean difference, of 255, up to which a repeated picture is the recorded one: other hardware rounds otherwise."""
VIDEO_AXES: Final = 4
SAME_RUN: Final = "so its effects would say nothing about that trace; give the spec, seed and weights that it was recorded with"


def pictures_of(output: Any) -> list[NDArray[np.float32]]:
    """The pictures or videos of a pipeline's output.

    Dims     each (frame, y, x, channel); a picture is one frame
    Range    [0, 1]
    Raises   UnsupportedModel if it has none
    """
    found = next((given for name in ("images", "frames") if (given := getattr(output, name, None)) is not None), None)
    if found is None:
        raise UnsupportedModel(f"effects are of pictures and videos, and the pipeline returned a {type(output).__name__} without any")
    return [one if one.ndim == VIDEO_AXES else one[None] for one in map(_numbers, found)]


def _numbers(one: Any) -> NDArray[np.float32]:
    if isinstance(one, torch.Tensor):
        return one.detach().cpu().float().movedim(-3, -1).numpy()
    if isinstance(one, PIL.Image.Image):
        return np.asarray(one.convert("RGB"), np.float32) / np.float32(255)
    return np.stack([_numbers(frame) for frame in one]) if isinstance(one, list) else np.asarray(one, np.float32)


def distance(picture: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """How far two pictures are from each other, on average, as bytes.

    Range    [0, 255]
    """
    first, second = (np.rint(one * np.float32(255)).clip(0, 255) for one in (picture, other))
    return float(np.abs(first - second).mean()) if first.shape == second.shape else 255.0


def check_inputs(inputs: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Raise InvalidInput if a call has another seed, or another argument that both name, than the one that was recorded."""
    for name, now in inputs.items():
        if (then := recorded.get(name)) is None or now is None or now == then:
            continue
        raise InvalidInput(f"the spec paints another picture than the trace has, whose run had {name}={then!r}, not {now!r}, {SAME_RUN}")


def check_recorded(picture: NDArray[np.float32], recorded: NDArray[np.uint8]) -> None:
    """Raise InvalidInput if a repeated picture is not the one that a trace has."""
    far = distance(picture, recorded.astype(np.float32) / np.float32(255))
    if far > NEAR:
        raise InvalidInput(f"the spec paints another picture than the trace has (they differ by {far:.3g} of 255 on average), {SAME_RUN}")


def place_effect(before: NDArray[np.float32], after: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Mean absolute difference of two pictures, or of two videos over all frames, over each patch of a grid.

    Dims     (frame, y, x, channel) twice -> grid
    """
    moved: NDArray[np.float64] = np.abs(before - after).mean(axis=(0, 3), dtype=np.float64)
    for axis, count in enumerate(grid):
        edges = np.arange(count + 1) * moved.shape[axis] / count
        starts, stops = np.floor(edges[:-1]).astype(int), np.maximum(np.ceil(edges[1:]), 1).astype(int)
        parts = [moved.take(range(start, stop), axis).mean(axis) for start, stop in zip(starts, stops, strict=True)]
        moved = np.stack(parts, axis)
    return moved.astype(np.float32)
