"""Images of any kind that diffusers takes, as uint8 arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from ...schema.trace import Image, ImageRole
from .windows import Window

Picture: TypeAlias = tuple[Image, NDArray[np.uint8]]


def stack_frames(value: Any) -> NDArray[np.uint8] | None:
    """An image, or a video as one array; a video of one frame is an image.

    Dims     image, or (frame, y, x, channel), or (frame, channel, y, x) -> ([frame,] y, x, channel)
    """
    frames = [pixels for frame in flatten(value) if (pixels := to_pixels(frame)) is not None]
    if len({frame.shape for frame in frames}) != 1:
        return None
    return np.stack(frames) if len(frames) > 1 else frames[0]


def flatten(values: Any) -> Iterator[Any]:
    """One image after another out of nested lists and batches."""
    batch = isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim in (4, 5)
    if batch or isinstance(values, (list, tuple)):
        for value in values:
            yield from flatten(value)
    elif values is not None:
        yield values


def to_pixels(value: Any, mask: bool = False) -> NDArray[np.uint8] | None:
    """An image of any kind that diffusers takes, as uint8; None if it is none.

    Dims     PIL, array (y, x[, channel]) or tensor ([channel,] y, x) -> (y, x, channel)
    Range    floats [0, 1], or [-1, 1] if any is negative; a mask becomes 0 or 255
    """
    if isinstance(value, PIL.Image.Image):
        pixels = np.asarray(value.convert("L" if mask else "RGB"))
    elif isinstance(value, torch.Tensor):
        array = value.detach().to("cpu", torch.float32).numpy()
        pixels = array.transpose(1, 2, 0) if array.ndim == 3 else array
    elif isinstance(value, np.ndarray):
        pixels = value
    else:
        return None
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        return None
    return _to_channels(_to_bytes(pixels), mask)


def _to_bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return (pixels * np.uint8(255)).astype(np.uint8)
    numbers = np.nan_to_num(pixels.astype(np.float32))
    if numbers.min() < 0:
        numbers = numbers * np.float32(0.5) + np.float32(0.5)
    return np.asarray((numbers * 255).round().clip(0, 255), dtype=np.uint8)


def _to_channels(pixels: NDArray[np.uint8], mask: bool) -> NDArray[np.uint8] | None:
    if mask:
        return np.where(pixels.mean(axis=2, keepdims=True) >= 127.5, np.uint8(255), np.uint8(0))
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, :3]) if pixels.shape[2] in (3, 4) else None


def make_picture(name: str, role: ImageRole, pixels: NDArray[np.uint8], window: Window | None) -> Picture:
    height, width, channels = pixels.shape[-3:]
    frames = pixels.shape[0] if pixels.ndim > 3 else 0
    return Image(name, role, height, width, channels, window, frames), np.ascontiguousarray(pixels)
