"""What a pass through a denoiser is about, read off the arguments it is given."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .frames import frames_in_rows
from .grids import Canvases
from .interleaved import interleaved
from .labels import denoiser_argument
from .tokens import Scene, adapter_images, row_scenes


def read_scene(denoiser: nn.Module, canvases: Canvases, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Scene, tuple[Scene, ...]]:
    """The scene of a pass, and those of its rows where they have sequences of their own.

    Raises   UnsupportedModel for a sequence that is not known
    """
    sample = denoiser_argument(args, kwargs, 0, "sample", "hidden_states")
    canvas = canvases.read(denoiser, sample, kwargs)
    context = denoiser_argument(args, kwargs, 2, "encoder_hidden_states")
    text = context.shape[1] if isinstance(context, Tensor) and context.ndim > 2 and canvas else 0
    separate = "ip_adapter_masks" in (kwargs.get("cross_attention_kwargs") or {})
    keeps, frames = kwargs.get("kv_cache_mode") is not None, frames_in_rows(denoiser, sample)
    scene = Scene(adapter_images(kwargs), separate, canvas, text, keeps, frames=frames)
    return scene, row_scenes(scene, interleaved(denoiser, sample, kwargs))
