"""The pictures of a run as the trace keeps them: uint8, with the part of each that token grids cover."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import PIL.Image
import torch

from ...schema.errors import InvalidInput
from ...schema.record import NAME
from ...schema.trace import ImageRole, Role
from ..capture.modules import reads_ends
from ..families import family_of
from .pixels import Picture, flatten, make_picture, stack_frames, to_pixels
from .windows import Window, reference_window

REFERENCES: Final = ("example_image", "ip_adapter_image", "input_images", "ref_image")
"""Arguments that always hold reference images; the first name wins over `image`."""
MASKS: Final = ("mask_image",)
ENDS: Final = ("image", "last_image")
"""Arguments of the pictures that a video begins and ends with, in the order of their tokens."""


def input_pictures(
    pipeline: Any, arguments: Mapping[str, Any], context: Role, reference_mask: Any = None, reference_image: Any = None
) -> list[Picture]:
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
            name = base if len(flat) == 1 else f"{base}_{index}"
            if (pixels := to_pixels(_undo_encoder(pipeline, value, role), mask=role == "mask")) is not None:
                cropped = role == "reference" and not any(value is one for one in whole)
                pictures.append(make_picture(name, role, pixels, reference_window(pipeline, value, most) if cropped else None))
    if reference_mask is not None:
        pixels = to_pixels(reference_mask, mask=True)
        if pixels is None:
            raise InvalidInput(f"reference_mask is a {type(reference_mask).__name__}; give a PIL image, an array or a tensor")
        references = [image for image, _ in pictures if image.role == "reference"]
        window = references[0].window if len(references) == 1 and (references[0].height, references[0].width) == pixels.shape[:2] else None
        pictures.append(make_picture("reference_mask", "reference_mask", pixels, window))
    return pictures


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
        videos, images = (bare, None) if _holds_videos(bare) else (None, bare)
    values = flatten(images) if videos is None else videos
    found = [pixels for value in values if (pixels := stack_frames(value)) is not None]
    return [make_picture(f"generated_{index}", "generated", pixels, None) for index, pixels in enumerate(found)]


def named_pictures(name: str, value: Any, role: ImageRole, window: Window | None = None) -> list[Picture]:
    """The pictures that a caller hands over under one name; several are numbered, and so is what was generated, one for each sample.

    Raises   InvalidInput for what is no picture
    """
    flat = list(flatten(value))
    mask = role in ("mask", "reference_mask")
    pictures = []
    for index, one in enumerate(flat):
        pixels = to_pixels(one, mask=mask)
        if pixels is None:
            raise InvalidInput(f"images: {name} is a {type(one).__name__}, expected a PIL image, an array (y, x, 3) or a tensor (3, y, x)")
        numbered = name if len(flat) == 1 and role != "generated" else f"{name}_{index}"
        pictures.append(make_picture(numbered, role, pixels, window))
    return pictures


def _holds_videos(values: Any) -> bool:
    if isinstance(values, (np.ndarray, torch.Tensor)):
        return values.ndim == 5
    return isinstance(values, (list, tuple)) and len(values) > 0 and isinstance(values[0], (list, tuple))


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
    for name in MASKS:
        yield "mask", "mask", arguments.get(name)
    for name, value in arguments.items():
        taken = name in (*REFERENCES, *MASKS, "image") or (ends and name in ENDS) or (family.inpaints and value is own)
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
