"""As `inputs`, of transformers that lay the image, its references and the text out in sequences, and of Kandinsky's UNet."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ...schema.errors import UnsupportedModel
from ..capture.modules import denoisers
from ..families import family_of
from ..images.windows import whole_cells
from ..labels.tokens import Context
from ..specs.spec import Spec
from .inputs import TEXT_TOKENS, Grid, adapter_embeddings, call_argument, image_size, meta, sequence_tokens, unet_inputs

MILLION: Final = 1024 * 1024
"""Pixels that references are brought to."""


def flux(pipeline: Any, spec: Spec, references: Sequence[Grid] = (), size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Text, which Redux puts its reference behind, then the image, then Kontext's reference."""
    model, cell = pipeline.transformer, 2 * pipeline.vae_scale_factor
    text = text_tokens(pipeline, spec) + (spec.tokens or 0)
    height, width = size or asked_size(pipeline, spec)
    parts = [(height // cell, width // cell), *references]
    inputs = packed(model, parts, text) | {
        "pooled_projections": meta(model, 1, model.config.pooled_projection_dim),
        "txt_ids": torch.zeros(text, 3),
        "img_ids": torch.cat([_places(grid, 1 if i else 0) for i, grid in enumerate(parts)]),
    }
    if spec.adapters:
        inputs["joint_attention_kwargs"] = {"ip_adapter_image_embeds": adapter_embeddings(pipeline, spec, model)}
    return inputs


def kontext(pipeline: Any, spec: Spec) -> dict[str, Any]:
    """As `flux`; reference and image are brought to sizes that the model knows."""
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    cell = 2 * pipeline.vae_scale_factor
    height, width = asked_size(pipeline, spec)
    area = call_argument(pipeline, spec, "max_area", MILLION)
    size = round((area * height / width) ** 0.5), round((area * width / height) ** 0.5)
    images = _listed(spec)
    if not images:
        return flux(pipeline, spec, size=size)
    rows, columns = image_size(spec, images[0])
    if call_argument(pipeline, spec, "_auto_resize", True):
        _, columns, rows = min((abs(columns / rows - wide / high), wide, high) for wide, high in PREFERRED_KONTEXT_RESOLUTIONS)
    return flux(pipeline, spec, [(rows // cell, columns // cell)], size)


def flux2(pipeline: Any, spec: Spec) -> dict[str, Any]:
    """Text, then the image, then each reference cut to whole cells; the image is as large as the last one unless asked otherwise."""
    model, cell = pipeline.transformer, 2 * pipeline.vae_scale_factor
    text, sizes = text_tokens(pipeline, spec), [whole_cells(*image_size(spec, image), cell) for image in _listed(spec)]
    height, width = asked_size(pipeline, spec, sizes[-1] if sizes else None)
    parts = [(high // cell, wide // cell) for high, wide in [(height, width), *sizes]]
    places = [torch.nn.functional.pad(_places(grid, 10 * i), (0, 1)) for i, grid in enumerate(parts)]
    return packed(model, parts, text) | {"txt_ids": torch.zeros(1, text, 4), "img_ids": torch.cat(places)[None]}


def flux2_cached(pipeline: Any, spec: Spec) -> dict[str, Any]:
    """As `flux2` in its first pass, where the references stand before the image and their keys are kept for the passes after it."""
    given = flux2(pipeline, spec)
    ids = given["img_ids"]
    references = ids[0, :, 0] > 0
    if not references.any():
        return given
    ids = torch.cat([ids[:, references], ids[:, ~references]], 1)
    return given | {"img_ids": ids, "kv_cache_mode": "extract", "num_ref_tokens": int(references.sum())}


def sd3(pipeline: Any, spec: Spec) -> dict[str, Any]:
    """The image's latent beside CLIP's and T5's text."""
    model, factor = pipeline.transformer, pipeline.vae_scale_factor
    height, width = asked_size(pipeline, spec)
    text = TEXT_TOKENS + text_tokens(pipeline, spec)
    inputs = unpacked(model, (height // factor, width // factor), text, model.config.joint_attention_dim)
    inputs["pooled_projections"] = meta(model, 1, model.config.pooled_projection_dim)
    if spec.adapters:
        patches = Context.of(pipeline).patches or (1, 1)
        embeds = meta(model, 1, patches[0] * patches[1], model.image_proj.proj_in.in_features)
        inputs["joint_attention_kwargs"] = {"ip_adapter_image_embeds": embeds}
    return inputs


def qwen_edit(pipeline: Any, spec: Spec) -> dict[str, Any]:
    """Text, at its longest, then the image and its references, of a million pixels each."""
    model, cell = pipeline.transformer, 2 * pipeline.vae_scale_factor
    resize = _module(pipeline, "calculate_dimensions").calculate_dimensions
    shapes = [image_size(spec, image) for image in _listed(spec)]
    sizes = [resize(MILLION, columns / rows)[1::-1] for rows, columns in shapes]  # it gives (columns, rows, ...)
    height, width = asked_size(pipeline, spec, sizes[-1] if sizes else None)
    parts = [(high // cell, wide // cell) for high, wide in [(height, width), *sizes]]
    return packed(model, parts, text_tokens(pipeline, spec)) | {"img_shapes": [[(1, *grid) for grid in parts]]}


def wan(pipeline: Any, spec: Spec) -> dict[str, Any]:
    """The video's latent beside text and, in 2.1, the patches of its first and last frame."""
    model, factor = pipeline.transformer, pipeline.vae_scale_factor_spatial
    height, width = asked_size(pipeline, spec)
    frames = (int(call_argument(pipeline, spec, "num_frames", 81)) - 1) // pipeline.vae_scale_factor_temporal + 1
    inputs = unpacked(model, (frames, height // factor, width // factor), text_tokens(pipeline, spec), model.config.text_dim)
    if model.config.image_dim is not None and pipeline.image_encoder is not None:
        ends = 2 if "last_image" in spec.images else 1
        inputs["encoder_hidden_states_image"] = meta(model, ends, sequence_tokens(pipeline), model.config.image_dim)
    return inputs


def kandinsky(pipeline: Any, spec: Spec) -> dict[str, Any]:
    """A latent, and an embedding that becomes keys."""
    height, width = asked_size(pipeline, spec)
    rows, columns = _module(pipeline, "downscale_height_and_width").downscale_height_and_width(height, width, pipeline.movq_scale_factor)
    unet = pipeline.unet
    return {
        "sample": meta(unet, 1, unet.config.in_channels, rows, columns),
        "timestep": 1,
        "encoder_hidden_states": None,
        "added_cond_kwargs": {"image_embeds": meta(unet, 1, unet.config.encoder_hid_dim)},
    }


def pixart(pipeline: Any, spec: Spec) -> dict[str, Any]:
    """A latent beside text."""
    model, factor = pipeline.transformer, pipeline.vae_scale_factor
    height, width = asked_size(pipeline, spec)
    sized = bool(getattr(model, "use_additional_conditions", False))
    added = {"resolution": meta(model, 1, 2) if sized else None, "aspect_ratio": meta(model, 1, 1) if sized else None}
    inputs = unpacked(model, (height // factor, width // factor), text_tokens(pipeline, spec), model.config.caption_channels)
    return inputs | {"added_cond_kwargs": added}


def unpacked(model: Any, latent: tuple[int, ...], text: int, width: int) -> dict[str, Any]:
    """A latent with axes of its own, and text beside it."""
    states = meta(model, 1, model.config.in_channels, *latent)
    return {"hidden_states": states, "timestep": meta(model, 1), "encoder_hidden_states": meta(model, 1, text, width)}


def packed(model: Any, parts: Sequence[Grid], text: int) -> dict[str, Any]:
    """Images of these grids as one sequence, and text beside it."""
    return {
        "hidden_states": meta(model, 1, sum(rows * columns for rows, columns in parts), model.config.in_channels),
        "timestep": meta(model, 1),
        "guidance": meta(model, 1) if model.config.guidance_embeds else None,
        "encoder_hidden_states": meta(model, 1, text, model.config.joint_attention_dim),
    }


def asked_size(pipeline: Any, spec: Spec, otherwise: tuple[int, int] | None = None) -> tuple[int, int]:
    """(rows, columns) of the image in pixels: asked for, that of its reference, or the model's own."""
    if otherwise is None and hasattr(pipeline, "default_sample_size"):
        otherwise = (pipeline.default_sample_size * pipeline.vae_scale_factor,) * 2
    height, width = otherwise or (0, 0)
    return int(call_argument(pipeline, spec, "height", height)), int(call_argument(pipeline, spec, "width", width))


def text_tokens(pipeline: Any, spec: Spec) -> int:
    """The most that the pipeline makes of a text, to which most of them pad it."""
    return int(call_argument(pipeline, spec, "max_sequence_length", TEXT_TOKENS))


def _listed(spec: Spec) -> list[Any]:
    image: Any = spec.images.get("image")
    return [] if image is None else image if isinstance(image, list) else [image]


def _places(grid: Grid, image: int) -> Tensor:
    """Position ids of an image's tokens: its number, row, column."""
    return torch.cartesian_prod(torch.tensor([image]), torch.arange(grid[0]), torch.arange(grid[1]))


def _module(pipeline: Any, name: str) -> Any:
    """The module of the pipeline's class, or of one that it is made from, which has a function of this name."""
    modules = (sys.modules[cls.__module__] for cls in inspect.getmro(type(pipeline)))
    return next(module for module in modules if hasattr(module, name))


MAKERS: Final = {make.__name__: make for make in (flux, kontext, flux2, flux2_cached, sd3, qwen_edit, wan, kandinsky, pixart)}
"""By the name that a family's row gives."""


def denoiser_inputs(pipeline: Any, spec: Spec) -> dict[str, Any]:
    """Tensors of the shapes that the pipeline would give its denoiser, for one row of one pass.

    Raises   UnsupportedModel for a pipeline that is not known; InvalidInput
    """
    if isinstance(getattr(pipeline, "unet", None), UNet2DConditionModel) and not hasattr(pipeline, "movq"):
        return unet_inputs(pipeline, spec)
    make = MAKERS.get(family_of(pipeline).inputs)
    if make is None:
        model = type(next(iter(denoisers(pipeline).values()))).__name__
        raise UnsupportedModel(f"a dry run does not know what {type(pipeline).__name__} gives its {model}; record a few steps instead")
    return make(pipeline, spec)
