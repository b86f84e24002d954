"""The pictures of a run as the trace keeps them: uint8, with the part of each that token grids cover."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ...schema.record import NAME
from ...schema.trace import Image, ImageRole, Role
from ..capture.modules import reads_ends
from ..families import family_of

Picture: TypeAlias = tuple[Image, NDArray[np.uint8]]
Window: TypeAlias = tuple[float, float, float, float]
"""Of a reference that its encoder sees, in the picture's own pixels: top, left, bottom, right."""

REFERENCES: Final = ("example_image", "ip_adapter_image", "input_images", "ref_image")
"""Arguments that always hold reference images; the first name wins over `image`."""
CELL: Final = 16
"""Pixels of one of OmniGen's tokens, on each side."""
ENDS: Final = ("image", "last_image")
"""Arguments of the pictures that a video begins and ends with, in the order of their tokens."""


def input_pictures(pipeline: Any, arguments: Mapping[str, Any], context: Role, reference_mask: Any, reference_image: Any) -> list[Picture]:
    """The images that a pipeline's call is given, named by what they are: `reference`, `mask`, `input`.

    `reference_image` stands for references that the call is given as embeddings; it comes after those that it is given as pictures.

    Raises   InvalidInput if the reference mask or image is none
    """
    pictures, most = [], arguments.get("max_input_image_size")
    encoded = list(flatten(reference_image))
    if any(to_pixels(value) is None for value in encoded):
        raise InvalidInput("reference_image is no picture; give a PIL image, an array or a tensor, or several in a list")
    whole = encoded if family_of(pipeline).longest_text else []  # a prior was given all of the picture
    if family_of(pipeline).inpaints == "behind":
        whole += flatten(arguments.get("image"))  # stretched to whole cells
    for role, base, values in _roles(pipeline, arguments, context):
        flat = list(flatten(values)) + (encoded if role == "reference" else [])
        # Reference names count across adapters, as token groups do.
        for index, value in enumerate(flat):
            if (pixels := to_pixels(_undo_encoder(pipeline, value, role), mask=role == "mask")) is not None:
                cropped = role == "reference" and not any(value is one for one in whole)
                name = numbered(base, index, len(flat))
                pictures.append(make_picture(name, role, pixels, reference_window(pipeline, value, most) if cropped else None))
    if reference_mask is not None:
        if (pixels := to_pixels(reference_mask, mask=True)) is None:
            raise InvalidInput(f"reference_mask is a {type(reference_mask).__name__}; give a PIL image, an array or a tensor")
        references = [image for image, _ in pictures if image.role == "reference"]
        window = references[0].window if len(references) == 1 and (references[0].height, references[0].width) == pixels.shape[:2] else None
        pictures.append(make_picture("reference_mask", "reference_mask", pixels, window))
    return pictures


def reference_values(pipeline: Any, arguments: Mapping[str, Any], context: Role) -> dict[str, Any]:
    """The references among the arguments of a pipeline's call, as they are given, by the names that a trace has for them."""
    flat = [one for role, _, values in _roles(pipeline, arguments, context) if role == "reference" for one in flatten(values)]
    return {numbered("reference", index, len(flat)): one for index, one in enumerate(flat)}


def numbered(name: str, index: int, count: int) -> str:
    """The name of one of several pictures; one alone has no number."""
    return name if count == 1 else f"{name}_{index}"


def leading_frames(pipeline: Any, arguments: Mapping[str, Any]) -> int:
    """How many frames of references a pipeline puts before those of its video: one for each picture."""
    return sum(one is not None for one in flatten(arguments.get(family_of(pipeline).leading)))


def probe_picture(pipeline: Any, name: str, value: Any) -> Picture | None:
    """A picture that is encoded as a reference is, though the run is not given it; None if it is none."""
    pixels = to_pixels(_undo_encoder(pipeline, value, "reference"))
    return None if pixels is None else make_picture(name, "input", pixels, reference_window(pipeline, value))


def generated_pictures(output: Any, output_type: Any = None) -> list[Picture]:
    """The images or videos of a pipeline's output, `generated_0` and on; none if it holds latents."""
    if output_type == "latent":
        return []
    videos, images = getattr(output, "frames", None), getattr(output, "images", None)
    if videos is None and images is None:
        bare = output[0] if isinstance(output, tuple) and output else output
        nested = isinstance(bare, (list, tuple)) and len(bare) > 0 and isinstance(bare[0], (list, tuple))
        batch = isinstance(bare, (np.ndarray, torch.Tensor)) and bare.ndim == 5
        videos, images = (bare, None) if nested or batch else (None, bare)
    values = flatten(images) if videos is None else videos
    found = [pixels for value in values if (pixels := stack_frames(value)) is not None]
    return [make_picture(f"generated_{index}", "generated", pixels, None) for index, pixels in enumerate(found)]


def named_pictures(name: str, value: Any, role: ImageRole, window: Window | None = None) -> list[Picture]:
    """The pictures that a caller hands over under one name; several are numbered, and so is what was generated, one for each sample.

    Raises   InvalidInput for what is no picture
    """
    flat, pictures = list(flatten(value)), []
    for index, one in enumerate(flat):
        if (pixels := to_pixels(one, mask=role in ("mask", "reference_mask"))) is None:
            raise InvalidInput(f"images: {name} is a {type(one).__name__}, expected a PIL image, an array (y, x, 3) or a tensor (3, y, x)")
        pictures.append(make_picture(f"{name}_{index}" if role == "generated" else numbered(name, index, len(flat)), role, pixels, window))
    return pictures


def _roles(pipeline: Any, arguments: Mapping[str, Any], context: Role) -> Iterator[tuple[ImageRole, str, Any]]:
    references = [arguments[name] for name in REFERENCES if arguments.get(name) is not None]
    image = arguments.get("image")
    ends = [arguments[name] for name in ENDS if arguments.get(name) is not None] if reads_ends(pipeline) else []
    family, own = family_of(pipeline), arguments.get("image_reference")
    # What starts from a picture and is given its reference as embeddings has no encoder that could read the picture.
    read = family.edits or (context == "reference" and getattr(pipeline, "image_encoder", None) is not None)
    if family.inpaints and own is not None:
        references, image = ([own], image) if family.inpaints == "instead" else ([image, own], None)
    elif ends:
        references, image = [*references, *ends], None
    elif read and image is not None and arguments.get("example_image") is None:
        references, image = [*references, image], None
    yield "reference", "reference", references
    yield "input", "input", image
    yield "mask", "mask", arguments.get("mask_image")
    for name, value in arguments.items():
        taken = name in (*REFERENCES, "mask_image", "image") or (ends and name in ENDS) or (family.inpaints and value is own)
        if not taken and isinstance(value, PIL.Image.Image) and NAME.fullmatch(name):
            yield "input", name, value


def _undo_encoder(pipeline: Any, value: Any, role: ImageRole) -> Any:
    """A reference tensor is what the encoder's processor made; bring it back to [0, 1]."""
    processor = getattr(pipeline, "feature_extractor", None)
    mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if role != "reference" or not isinstance(value, torch.Tensor) or value.ndim != 3 or mean is None or deviation is None:
        return value
    if family_of(pipeline).window == "whole":  # its encoder is given tensors in [0, 1], whatever its processor is set to
        return value
    shape = (-1, 1, 1)
    numbers = value.detach().to("cpu", torch.float32) * torch.tensor(deviation).view(shape) + torch.tensor(mean).view(shape)
    return numbers.clamp(0, 1)


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
