"""Denoisers whose one sequence holds text, references, the time and the image that is being made (OmniGen): where each lies in a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from torch import Tensor, nn

from .grids import Canvas, Part

CELL: Final = 16
"""Pixels of one token's side."""


def interleaved(denoiser: nn.Module, sample: Any, kwargs: dict[str, Any]) -> tuple[Canvas, ...]:
    """The sequence of each row of the batch; empty for a denoiser of another kind.

    Source   diffusers, OmniGenTransformer2DModel: prompt with the images' latents in the place of their marks, time, image
    """
    places, ids = kwargs.get("input_image_sizes"), kwargs.get("input_ids")
    if places is None or not isinstance(sample, Tensor):
        return ()
    patch = int(denoiser.config.patch_size)  # type: ignore[union-attr, arg-type]
    grids = iter([(int(latent.shape[-2]) // patch, int(latent.shape[-1]) // patch) for latent in kwargs.get("input_img_latents") or ()])
    # The latents stand in one list for all rows, in the order in which the rows are named.
    found = {row: [(int(start), int(stop), next(grids)) for start, stop in spans] for row, spans in places.items()}
    image = Part("self", (sample.shape[2] // patch, sample.shape[3] // patch))
    prompt = 0 if ids is None else int(ids.shape[1])
    return tuple((*_prompt(found.get(row, []), prompt), Part("text", (1, 1), name="time"), image) for row in range(len(sample)))


def _prompt(references: list[tuple[int, int, tuple[int, int]]], length: int) -> Iterator[Part]:
    at = 0
    for start, stop, grid in references:
        if start > at:
            yield Part("text", (1, start - at))
        yield Part("reference", grid)
        at = stop
    if length > at:
        yield Part("text", (1, length - at))


def cropped_window(height: int, width: int, most: int) -> tuple[float, float, float, float] | None:
    """The part of a reference that is left once it is scaled to at most `most` pixels and its middle is cut to whole tokens.

    Source   diffusers, OmniGen's processor
    """
    tall, wide = height, width
    while min(tall, wide) >= 2 * most:
        tall, wide = tall // 2, wide // 2
    for edge, bound in ((max(tall, wide), most), (min(tall, wide), CELL)):
        if (edge > bound) if bound == most else (edge < bound):
            tall, wide = round(tall * bound / edge), round(wide * bound / edge)
    y, x = height / tall, width / wide
    top, left = (tall % CELL) // 2, (wide % CELL) // 2
    window = (top * y, left * x, (top + tall // CELL * CELL) * y, (left + wide // CELL * CELL) * x)
    return None if window == (0, 0, height, width) else window
