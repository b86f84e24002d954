"""What a pass through a denoiser is about, read off the arguments it is given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from torch import Tensor, nn

from .frames import frames_in_rows
from .grids import Canvas, Canvases, Part
from .rows import denoiser_argument
from .tokens import Scene, adapter_images, row_scenes

TEXTS: Final = re.compile(r"encoder_hidden_states_(?!.*(image|mask)).*")
"""Names under which a denoiser is given further texts."""


def read_scene(denoiser: nn.Module, canvases: Canvases, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Scene, tuple[Scene, ...]]:
    """The scene of a pass, and those of its rows where they have sequences of their own.

    Raises   UnsupportedModel for a sequence that is not known
    """
    sample = denoiser_argument(args, kwargs, 0, "sample", "hidden_states")
    canvas = canvases.read(denoiser, sample, kwargs)
    context = denoiser_argument(args, kwargs, 2, "encoder_hidden_states")
    text = context.shape[1] if isinstance(context, Tensor) and context.ndim > 2 else 0
    further = [one.shape[1] for name, one in kwargs.items() if TEXTS.fullmatch(name) and isinstance(one, Tensor) and one.ndim > 2]
    separate = "ip_adapter_masks" in (kwargs.get("cross_attention_kwargs") or {})
    keeps, frames = kwargs.get("kv_cache_mode") is not None, frames_in_rows(denoiser, sample)
    scene = Scene(adapter_images(kwargs), separate, canvas, text, keeps, frames=frames, leading=_leading(denoiser), further=tuple(further))
    return scene, row_scenes(scene, interleaved(denoiser, sample, kwargs))


def _leading(denoiser: nn.Module) -> Canvas:
    """What a denoiser itself puts before the text it is given: tokens it has learned, or an image's (Kandinsky 2.1)."""
    registers = getattr(denoiser, "register_tokens", None)
    if isinstance(registers, Tensor) and registers.ndim > 2:
        return (Part("text", (1, registers.shape[1]), name="registers"),)
    projection = getattr(denoiser, "encoder_hid_proj", None)
    images = getattr(projection, "num_image_text_embeds", 0) if hasattr(projection, "text_proj") else 0
    return (Part("reference", (1, int(images)), name="reference"),) if images else ()


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
