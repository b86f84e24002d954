"""Where the tokens of an image sequence lie: the parts a denoiser's sequence is made of, each with its rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, TypeAlias

from torch import Tensor, nn

from ...schema.errors import UnsupportedModel
from ...schema.trace import Role
from .frames import VIDEO_AXES, frames_in_rows

IMAGE_AXES: Final = 4

Places: TypeAlias = tuple[int, ...]
"""(rows, columns), frames before them in a video."""


@dataclass(frozen=True, slots=True)
class Part:
    """One image or video in a denoiser's sequence, or a stretch of text between images."""

    role: Role
    """`self`, the image being made, `reference`, or `text`."""
    grid: tuple[int, int]
    """(rows, columns), row-major."""
    name: str = ""
    """Of a stretch that its role does not name, such as `time`."""
    frames: int = 0
    """Frames of a video, which run slower than rows; 0 for an image."""

    @property
    def tokens(self) -> int:
        """How many tokens."""
        return max(self.frames, 1) * self.grid[0] * self.grid[1]

    @property
    def places(self) -> Places:
        """(rows, columns), frames before them in a video."""
        return (self.frames, *self.grid) if self.frames else self.grid


Canvas: TypeAlias = tuple[Part, ...]
"""The images of one sequence, in order."""


class Canvases:
    """Reads the canvas of each pass, and remembers position ids so that a device is asked once."""

    def __init__(self, leading: int = 0) -> None:
        self._leading = leading
        """Frames of references before those of the video."""
        self._seen: list[tuple[Tensor, Canvas]] = []
        self._references: Canvas = ()

    def read(self, denoiser: nn.Module, sample: Any, kwargs: dict[str, Any]) -> Canvas:
        """The canvas of a pass; empty where the denoiser keeps rows and columns apart itself, as UNets do.

        Raises   UnsupportedModel for ids that are no images, or a video in a layout that is not known
        """
        if isinstance(ids := kwargs.get("img_ids"), Tensor):
            canvas = self._by_ids(ids)
            if kwargs.get("kv_cache_mode") == "extract":
                self._references = tuple(part for part in canvas if part.role == "reference")
            # Later passes are given the image alone; the references' keys stand before it.
            return (*self._references, *canvas) if kwargs.get("kv_cache_mode") == "cached" else canvas
        if kwargs.get("img_shapes") is not None:
            return by_shapes(kwargs["img_shapes"])
        return by_patches(denoiser, sample, self._leading)

    def _by_ids(self, ids: Tensor) -> Canvas:
        known = next((canvas for tensor, canvas in self._seen if tensor is ids), None)
        if known is None:
            table = ids[0] if ids.ndim > 2 else ids
            known = by_positions(table.tolist())
            self._seen = [*self._seen[-3:], (ids, known)]
        return known


def by_positions(ids: Sequence[Sequence[float]]) -> Canvas:
    """Parts from position ids (image, y, x, ...): the lowest number is being made, as the scheduler's steps show; others are references.

    Raises   UnsupportedModel if an image's ids are not its rows and columns in order
    """
    parts, made = [], min((place[0] for place in ids), default=0)
    for image, group in groupby(ids, key=lambda place: place[0]):
        places = [(int(place[1]), int(place[2])) for place in group]
        (top, left), (bottom, right) = places[0], places[-1]
        grid = (bottom - top + 1, right - left + 1)
        if places != [(y, x) for y in range(top, bottom + 1) for x in range(left, right + 1)]:
            raise UnsupportedModel(
                f"the position ids of image {image:g} are not rows and columns in order, so its {len(places)} tokens have no grid; "
                "record a pipeline of diffusers' own, whose ids are"
            )
        parts.append(Part("self" if image == made else "reference", grid))
    return tuple(parts)


def by_shapes(shapes: Any) -> Canvas:
    """Parts from (frames, rows, columns) of each image, the generated one first; a batch repeats its first entry."""
    first = shapes[0] if isinstance(shapes[0], (list, tuple)) and isinstance(shapes[0][0], (list, tuple)) else shapes
    return tuple(_part("reference" if index else "self", *map(int, shape)) for index, shape in enumerate(first))


def by_patches(denoiser: nn.Module, sample: Any, leading: int = 0) -> Canvas:
    """The one image, or video, of a denoiser that cuts its latent into patches; empty for one that does not say so.

    The first `leading` frames of a video are references.

    Raises   UnsupportedModel for a video in a layout that is not known
    """
    patch = getattr(getattr(denoiser, "config", None), "patch_size", None)
    axes = sample.ndim if isinstance(sample, Tensor) else 0
    if axes == VIDEO_AXES and not frames_in_rows(denoiser, sample):
        if not isinstance(patch, (list, tuple)) or len(patch) != len(sample.shape[2:]):
            raise UnsupportedModel(
                f"{type(denoiser).__name__} makes a video and does not say how it is cut into patches, so its frames, rows and columns are "
                "not known; record a pipeline whose denoiser says so (Wan, Stable Video Diffusion)"
            )
        frames, rows, columns = (length // size for length, size in zip(sample.shape[2:], patch, strict=True))
        if leading and (patch[0] != 1 or leading >= frames):
            raise UnsupportedModel(
                f"{type(denoiser).__name__} was given {frames} frames, {leading} of them references, so it is not known which are the "
                "video's; give it fewer references, or more frames"
            )
        return (*([_part("reference", leading, rows, columns)] if leading else ()), _part("self", frames - leading, rows, columns))
    if axes == IMAGE_AXES and isinstance(patch, int):
        return (Part("self", (sample.shape[2] // patch, sample.shape[3] // patch)),)
    return ()


def _part(role: Role, frames: int, rows: int, columns: int) -> Part:
    """A video of one frame is an image."""
    return Part(role, (rows, columns), frames=frames if frames > 1 else 0)
