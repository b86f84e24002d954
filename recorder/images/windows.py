"""The window of a reference that its encoder sees, in the picture's own pixels."""

from __future__ import annotations

import math
from typing import Any, Final, TypeAlias

import PIL.Image
import torch

from ..capture.modules import reads_ends
from ..families import family_of

Window: TypeAlias = tuple[float, float, float, float]
CELL: Final = 16
"""Pixels of one token's side."""


def cropped_window(height: int, width: int, most: int) -> Window | None:
    """The part of a reference that is left once it is scaled to at most `most` pixels and its middle is cut to whole tokens.

    Source   diffusers, OmniGen's processor
    """
    tall, wide = height, width
    while min(tall, wide) >= 2 * most:
        tall, wide = tall // 2, wide // 2
    for edge, bound in ((max(tall, wide), most), (min(tall, wide), CELL)):
        if (edge > bound) if bound == most else (edge < bound):
            tall, wide = round(tall * bound / edge), round(wide * bound / edge)
    return _centre((height, width), (tall, wide), (tall // CELL * CELL, wide // CELL * CELL))


def reference_window(pipeline: Any, value: Any, most: int | None = None) -> Window | None:
    """The part of a reference that the image encoder sees, in the image's own pixels; None is all of it.

    `most` is OmniGen's bound on an edge.

    Source   CLIPImageProcessor: the shorter edge is resized, then the centre is cropped
    """
    kind = family_of(pipeline).window
    if kind == "cells" and isinstance(value, PIL.Image.Image):
        return _whole_cells(value.height, value.width, 2 * pipeline.vae_scale_factor)
    if most is not None and isinstance(value, PIL.Image.Image):
        return cropped_window(value.height, value.width, most)
    if kind == "whole":
        return None
    processor, encoded = getattr(pipeline, "feature_extractor", None), isinstance(value, torch.Tensor)
    if processor is None and reads_ends(pipeline):
        # Elsewhere this name is the VAE's.
        processor, encoded = getattr(pipeline, "image_processor", None), False
    if processor is None or encoded or not getattr(processor, "do_center_crop", False):
        return None
    if isinstance(value, PIL.Image.Image):
        height, width = value.height, value.width
    else:
        height, width = value.shape[-2:] if isinstance(value, torch.Tensor) else value.shape[:2]
    return _centre((height, width), _resized(processor, height, width), (processor.crop_size["height"], processor.crop_size["width"]))


def _centre(size: tuple[int, int], resized: tuple[int, int], cut: tuple[int, int]) -> Window | None:
    """The middle that is cut out of a resized image, in the image's own pixels; None is all of it."""
    y, x = size[0] / resized[0], size[1] / resized[1]
    top, left = (resized[0] - cut[0]) // 2, (resized[1] - cut[1]) // 2
    window = (top * y, left * x, (top + cut[0]) * y, (left + cut[1]) * x)
    return None if window == (0, 0, *size) else window


def whole_cells(height: int, width: int, cell: int) -> tuple[int, int]:
    """(rows, columns) in pixels of what Flux 2 makes of a reference: at most a million of them, in whole cells of tokens."""
    shrink = min(1.0, math.sqrt(1024 * 1024 / (height * width)))
    return max(1, int(height * shrink) // cell) * cell, max(1, int(width * shrink) // cell) * cell


def _whole_cells(height: int, width: int, cell: int) -> Window | None:
    """The part of an image that is left once it is scaled to whole cells of tokens and what is over is cut off on both sides.

    Source   diffusers, VaeImageProcessor with resize_mode "crop"
    """
    tall, wide = whole_cells(height, width, cell)
    scale = max(tall / height, wide / width)
    top, left = (height - tall / scale) / 2, (width - wide / scale) / 2
    window = (top, left, height - top, width - left)
    return None if max(top, left) == 0 else window


def _resized(processor: Any, height: int, width: int) -> tuple[int, int]:
    size = processor.size
    if not getattr(processor, "do_resize", False):
        return height, width
    edge = size.get("shortest_edge") if hasattr(size, "get") else None
    if edge is None:
        return size["height"], size["width"]
    longer = int(edge * max(height, width) / min(height, width))
    return (edge, longer) if height <= width else (longer, edge)
