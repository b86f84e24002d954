"""Pictures of many traces as files, and how alike the generated ones are to those they were made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final

from PIL import Image as Picture
from tqdm import tqdm

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import listed, option, refuse_taken
from ..metrics.likeness import psnr, ssim
from ..progress import hidden
from ..store.discovery import Source, find_traces
from ..trace.images import Pixels, still_picture
from ..trace.reader import Trace, open_trace

GENERATED: Final = "generated_0"
INPUT: Final = "input"


@dataclass(frozen=True, slots=True)
class Likeness:
    """A picture of a trace, and how alike it is to another."""

    trace: str
    file: Path
    psnr: float | None
    ssim: float | None
    """None where the trace does not hold the other picture."""


def save_pictures(
    traces: Source | Iterable[Source],
    folder: str | PathLike[str],
    image: str = GENERATED,
    against: str | None = None,
    *,
    partial: bool = False,
    overwrite: bool = False,
) -> list[Likeness]:
    """Write one picture of each trace to FOLDER/NAME.png, for tools that take sets of pictures, and compare it with another of the trace.

    `folder`  is made if it is not there
    `image`  which picture
    `against`  the one that it is compared with; None is what an inpainting pipeline was given, where that has the same size

    Raises   UnknownSelection for a picture that a trace does not have, AlreadyExists for a file that is there, InvalidInput for two
             pictures of different sizes, or a video
    """
    members = find_traces(traces)
    files = [Path(folder) / f"{member.name}.png" for member in members]
    for file in files:
        refuse_taken(file, overwrite)
    rows = []
    for member, file in zip(tqdm(members, desc="pictures", unit="trace", leave=False, disable=hidden()), files, strict=True):
        trace = open_trace(member.path, partial=partial)
        pixels = _pixels(trace, image, "image")
        other = _pixels(trace, against, "against") if against else _input_like(trace, pixels)
        alike = (None, None) if other is None else (psnr(pixels, other), ssim(pixels, other))
        file.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(pixels).save(file)
        rows.append(Likeness(member.name, file, *alike))
    return rows


def _input_like(trace: Trace, pixels: Pixels) -> Pixels | None:
    """What the pipeline was given to paint on, if it is of the same size."""
    found = next((image for image in trace.images if image.name == INPUT and not image.frames), None)
    return still_picture(trace, found) if found and (found.height, found.width) == pixels.shape[:2] else None


def _pixels(trace: Trace, name: str, what: str) -> Pixels:
    found = {image.name: image for image in trace.images}.get(name)
    if found is None:
        raise UnknownSelection(
            f"{trace.path} has no picture {name!r}; say which with {option(what)}: {listed(image.name for image in trace.images)}"
        )
    if found.frames:
        raise InvalidInput(f"{name} of {trace.path} is a video of {found.frames} frames; pictures are of images")
    return still_picture(trace, found)
