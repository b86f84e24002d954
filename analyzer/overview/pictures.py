"""The pictures that an overview shows, as large as its budget allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from ..numerics.resize import middle
from ..trace.reader import Trace
from .group import pack
from .views import View, shown_frames

Values: TypeAlias = NDArray[Any]

SIDES: Final = (768, 512, 384, 256, 192, 128, 96, 64)
"""Longest side of a picture in pixels: the first at which pictures take no more than their share of the budget."""
SHARE: Final = 0.25
"""Share of the budget that pictures may take."""


def list_images(views: list[View]) -> dict[str, str]:
    """The pictures that views show, by name, with their roles."""
    found: dict[str, str] = {}
    for view in views:
        for image in (view.generated, view.reference):
            if image is not None:
                found[image.name] = image.role
        for name, role in ((view.mask, "mask"), (view.reference_mask, "reference_mask")):
            if name is not None:
                found.setdefault(name, role)
    return found


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures that views show, as large as they may be."""

    pixels: dict[str, Values]
    """(frame, y, x, c) by name."""
    images: list[dict[str, Any]]
    """Facts of each."""
    nbytes: int
    """What they take when they are packed."""
    dropped: tuple[str, ...]
    """What was left out of them, in words."""


def write_images(trace: Trace, views: list[View], most: float) -> Pictures:
    """The pictures, packed in at most so many bytes, or as small as they get."""
    for side in SIDES:
        pixels = {name: _frames(trace, name, side) for name in list_images(views)}
        size = sum(len(pack(shown.tobytes())) for shown in pixels.values())
        if size <= most:
            break
    roles = list_images(views)
    sizes = {name: dict(zip(("frames", "height", "width"), shown.shape, strict=False)) for name, shown in pixels.items()}
    images = [{"name": name, "role": roles[name], **sizes[name]} for name in pixels]
    larger = any(max(image.height, image.width) > side for image in trace.images if image.name in pixels)
    return Pictures(pixels, images, size, (f"pixels of pictures, which have at most {side} a side",) if larger else ())


def _frames(trace: Trace, name: str, side: int) -> Values:
    """The shown frames of a picture, of which there is one for each shown frame of a video, or one for all.

    Dims     (frame, y, x, c)
    """
    pixels = trace.image(name)
    if pixels.ndim == 4:
        shown = middle(len(pixels), trace.latent_frames)[shown_frames(trace)] if trace.latent_frames else [0]
        return np.stack([shrink(frame, side) for frame in pixels[shown]])
    return shrink(pixels, side)[None]


def shrink(pixels: Values, side: int) -> Values:
    """A picture with at most so many pixels a side; masks stay black and white.

    Dims     (y, x, c) -> the same
    """
    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if pixels.shape[-1] == 1:
        return np.asarray(Picture.fromarray(pixels[..., 0]).resize(size, Picture.Resampling.NEAREST))[..., None]
    return np.asarray(Picture.fromarray(pixels).resize(size, Picture.Resampling.BOX))
