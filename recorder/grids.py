"""Where the tokens of an image sequence lie: the parts a denoiser's sequence is made of, each with its rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, TypeAlias

from torch import Tensor, nn

from ..schema.errors import UnsupportedModel
from ..schema.trace import Role

VIDEO_AXES: Final = 5
IMAGE_AXES: Final = 4


@dataclass(frozen=True, slots=True)
class Part:
    """One image in a denoiser's sequence, or a stretch of text between images."""

    role: Role
    """`self`, the image being made, `reference`, or `text`."""
    grid: tuple[int, int]
    """(rows, columns), row-major."""
    name: str = ""
    """Of a stretch that its role does not name, such as `time`."""

    @property
    def tokens(self) -> int:
        """How many tokens."""
        return self.grid[0] * self.grid[1]


Canvas: TypeAlias = tuple[Part, ...]
"""The images of one sequence, in order."""


class Canvases:
    """Reads the canvas of each pass, and remembers position ids so that a device is asked once."""

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, Canvas]] = []
        self._references: Canvas = ()

    def read(self, denoiser: nn.Module, sample: Any, kwargs: dict[str, Any]) -> Canvas:
        """The canvas of a pass; empty where the denoiser keeps rows and columns apart itself, as UNets do.

        Raises   UnsupportedModel for more than one frame, or for ids that are no images
        """
        if isinstance(ids := kwargs.get("img_ids"), Tensor):
            canvas = self._by_ids(ids)
            if kwargs.get("kv_cache_mode") == "extract":
                self._references = tuple(part for part in canvas if part.role == "reference")
            # Later passes are given the image alone; the references' keys stand before it.
            return (*self._references, *canvas) if kwargs.get("kv_cache_mode") == "cached" else canvas
        if kwargs.get("img_shapes") is not None:
            return by_shapes(kwargs["img_shapes"])
        return by_patches(denoiser, sample)

    def _by_ids(self, ids: Tensor) -> Canvas:
        known = next((canvas for tensor, canvas in self._seen if tensor is ids), None)
        if known is None:
            table = ids[0] if ids.ndim > 2 else ids
            known = by_positions(table.tolist())
            self._seen = [*self._seen[-3:], (ids, known)]
        return known


def by_positions(ids: Sequence[Sequence[float]]) -> Canvas:
    """Parts from position ids (image, y, x, ...): image 0 is being made, each other number is a reference.

    Raises   UnsupportedModel if an image's ids are not its rows and columns in order
    """
    parts = []
    for image, group in groupby(ids, key=lambda place: place[0]):
        places = [(int(place[1]), int(place[2])) for place in group]
        (top, left), (bottom, right) = places[0], places[-1]
        grid = (bottom - top + 1, right - left + 1)
        if places != [(y, x) for y in range(top, bottom + 1) for x in range(left, right + 1)]:
            raise UnsupportedModel(
                f"the position ids of image {image:g} are not rows and columns in order, so its {len(places)} tokens have no grid; "
                "record a pipeline of diffusers' own, whose ids are"
            )
        parts.append(Part("self" if image == 0 else "reference", grid))
    return tuple(parts)


def by_shapes(shapes: Any) -> Canvas:
    """Parts from (frames, rows, columns) of each image, the generated one first; a batch repeats its first entry.

    Raises   UnsupportedModel for more than one frame
    """
    first = shapes[0] if isinstance(shapes[0], (list, tuple)) and isinstance(shapes[0][0], (list, tuple)) else shapes
    if any(frames != 1 for frames, *_ in first):
        raise video(max(frames for frames, *_ in first))
    return tuple(Part("reference" if index else "self", (int(rows), int(columns))) for index, (_, rows, columns) in enumerate(first))


def by_patches(denoiser: nn.Module, sample: Any) -> Canvas:
    """The one image of a denoiser that cuts its latent into patches; empty for one that does not say so.

    Raises   UnsupportedModel for more than one frame
    """
    patch = getattr(getattr(denoiser, "config", None), "patch_size", None)
    axes = sample.ndim if isinstance(sample, Tensor) else 0
    if axes == VIDEO_AXES:
        if not isinstance(patch, (list, tuple)) or sample.shape[2] != 1:
            raise video(None if patch is None else int(sample.shape[2]))
        return (Part("self", (sample.shape[3] // patch[1], sample.shape[4] // patch[2])),)
    if axes == IMAGE_AXES and isinstance(patch, int):
        return (Part("self", (sample.shape[2] // patch, sample.shape[3] // patch)),)
    return ()


def video(frames: int | None) -> UnsupportedModel:
    """The error for a denoiser that makes more than one frame."""
    return UnsupportedModel(
        f"the denoiser makes {'a video' if frames is None else f'{frames} frames'}; a layer of a trace has rows and columns and no frame "
        "axis, so only single images are recorded; use num_frames=1 where the pipeline allows it"
    )
