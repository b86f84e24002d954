"""Pictures of a trace, found by role or name, and masks from the trace or from a file."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Final
from warnings import catch_warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import UnidentifiedImageError

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import listed, option
from ...schema.trace import Image, ImageRole, TokenGroup
from ..store.discovery import name_of
from .reader import Trace

Pixels = NDArray[np.uint8]
MOST_PIXELS: Final = 2**23
"""Of a mask that is larger than every picture of the trace, and is read only to say so."""
TINT: Final = 16
"""Distance between a pixel's red, green and blue from which on a picture is no mask."""


def load_mask(trace: Trace, name: str) -> Pixels:
    """A mask by the name of one of the trace's images or, failing that, from a picture file, in whose path `{trace}` is the trace's name.

    Dims     (y, x), 0 to 255
    Raises   UnknownSelection if neither is there, InvalidInput if the file is no picture
    """
    if name in {image.name for image in trace.images}:
        pixels = trace.image(name)
        if pixels.shape[-1] != 1:
            raise InvalidInput(f"the trace's image {name} is in colour, not a mask; its masks are {_masks(trace)}")
        return pixels[..., 0]
    path = Path(name.replace("{trace}", name_of(trace.path)))
    if not path.is_file():
        raise UnknownSelection(f"{path} is neither a picture file nor an image of the trace; the trace's masks are {_masks(trace)}")
    largest = max(((image.height, image.width) for image in trace.images), key=prod, default=(0, 0))
    try:
        with catch_warnings(action="ignore"), Picture.open(path) as picture:  # Pillow warns of what is refused here
            if prod(picture.size) > max(prod(largest), MOST_PIXELS):
                raise InvalidInput(
                    f"{name} is {picture.height} x {picture.width} (height x width), and a mask has the size of its picture, "
                    f"of which the trace's largest is {largest[0]} x {largest[1]}"
                )
            colours = np.asarray(picture.convert("RGB")).astype(np.int16)
            pixels = np.asarray(picture.convert("L"))
    except (UnidentifiedImageError, Picture.DecompressionBombError, OSError) as error:
        raise InvalidInput(
            f"{name} cannot be read as a picture ({error}); give a PNG that is white where the mask is and black elsewhere"
        ) from error
    # Lossy formats tint a grey picture a little.
    if np.ptp(colours, axis=-1).max() > TINT:
        raise InvalidInput(f"{name} is in colour, not a mask; give a PNG that is white where the mask is and black elsewhere")
    return pixels


def _masks(trace: Trace) -> str:
    return listed(image.name for image in trace.images if image.channels == 1)


def masks(trace: Trace) -> list[Image]:
    """The trace's masks of the generated image."""
    return [image for image in trace.images if image.role == "mask"]


def own_mask(trace: Trace, sample: int) -> str | None:
    """Name of the trace's mask of a generated image: that sample's, or the only one; None if there is none.

    Raises   UnknownSelection if there are several, none of them the sample's
    """
    return _find_mask(trace, "mask", (f"mask_{sample}", "mask"))


def own_reference_mask(trace: Trace, image: str | None) -> str | None:
    """Name of the trace's mask of a reference: that of the image of this name, or the only one; None if there is none.

    Raises   UnknownSelection if there are several, none of them the image's
    """
    return _find_mask(trace, "reference_mask", (f"{image}_mask", "reference_mask"))


def _find_mask(trace: Trace, role: ImageRole, preferred: tuple[str, ...]) -> str | None:
    names = [image.name for image in trace.images if image.role == role]
    for name in preferred:
        if name in names:
            return name
    if len(names) > 1:
        which = option("mask" if role == "mask" else "reference_mask")
        raise UnknownSelection(f"the trace has several masks of this kind, {listed(names)}; choose one with {which}")
    return names[0] if names else None


def key_image(trace: Trace, group: TokenGroup, sample: int) -> Image | None:
    """The picture that a group's tokens are places of: a reference, or what was generated for the image's own tokens."""
    return find_image(trace, f"generated_{sample}", "generated") if group.role == "self" else find_image(trace, group.image, "reference")


def find_image(trace: Trace, name: str | None, role: str) -> Image | None:
    """The picture that maps lie on: that of the name, or else the only one of the role."""
    found = [image for image in trace.images if image.name == name]
    only = [image for image in trace.images if image.role == role]
    return found[0] if found else only[0] if len(only) == 1 and name is None else None


def still_picture(trace: Trace, image: Image) -> Pixels:
    """The pixels of a picture in colour, of a video its middle frame.

    Dims     (y, x, colour)
    """
    pixels = trace.image(image.name)
    still = pixels[len(pixels) // 2] if pixels.ndim == 4 else pixels
    return np.broadcast_to(still, (*still.shape[:2], 3))
