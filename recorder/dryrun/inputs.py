"""What a pipeline gives its denoisers, as tensors of shapes: from the spec and configs alone, for one row and one pass."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import PIL.Image
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ...schema.errors import InvalidInput, UnsupportedModel
from ..capture.modules import denoisers
from ..families import PROJECTIONS, family_of
from ..images.pictures import whole_cells
from ..labels.tokens import Context
from ..specs.spec import Spec

Grid: TypeAlias = tuple[int, int]

TEXT_TOKENS: Final = 77
"""Of CLIP's text encoder."""
MILLION: Final = 1024 * 1024
"""Pixels that references are brought to."""


def meta(model: Any, *shape: int) -> Tensor:
    return torch.empty(shape, device="meta", dtype=model.dtype)


def call_argument(pipeline: Any, spec: Spec, name: str, otherwise: Any = None) -> Any:
    """An argument of the pipeline's call: the spec's, else its default."""
    known = inspect.signature(type(pipeline).__call__).parameters.get(name)
    default = otherwise if known is None or known.default in (inspect.Parameter.empty, None) else known.default
    return spec.call.get(name, default)


def image_size(spec: Spec, image: Any) -> tuple[int, int]:
    """(rows, columns) of a picture in pixels."""
    if not isinstance(image, Path):
        raise InvalidInput(f"[images] of {spec.path.name}: a dry run needs the size of an image that is not given; give its path")
    with PIL.Image.open(image) as picture:
        return picture.height, picture.width


def unet_inputs(pipeline: Any, spec: Spec) -> dict[str, Any]:
    """Of a UNet between rows and columns of a latent."""
    unet = pipeline.unet
    added: dict[str, Any] = {}
    if unet.config.addition_embed_type == "text_time":
        ids = 5 if getattr(pipeline, "requires_aesthetics_score", False) else 6
        width = unet.config.projection_class_embeddings_input_dim - ids * unet.config.addition_time_embed_dim
        added = {"text_embeds": meta(unet, 1, width), "time_ids": meta(unet, 1, ids)}
    if spec.adapters and hasattr(unet.encoder_hid_proj, "image_projection_layers"):
        added["image_embeds"] = adapter_embeddings(pipeline, spec, unet)
    width = unet.config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    if unet.config.encoder_hid_dim_type == "text_proj":
        width = unet.config.encoder_hid_dim
    sample, context = meta(unet, 1, unet.config.in_channels, *latent_size(pipeline, spec)), context_tokens(pipeline, spec)
    return {"sample": sample, "timestep": 1, "encoder_hidden_states": meta(unet, 1, context, width), "added_cond_kwargs": added or None}


def latent_size(pipeline: Any, spec: Spec) -> tuple[int, int]:
    """(rows, columns) of the latent: asked for, the input image's, or the model's own."""
    size, factor = pipeline.unet.config.sample_size, pipeline.vae_scale_factor
    rows, columns = (size, size) if isinstance(size, int) else tuple(size)
    if factor is None:
        return rows, columns
    parameters, image = inspect.signature(type(pipeline).__call__).parameters, spec.images.get("image")
    if "height" not in parameters and "strength" in parameters and isinstance(image, Path):
        rows, columns = image_size(spec, image)
        return rows // factor, columns // factor
    return (spec.call.get("height") or rows * factor) // factor, (spec.call.get("width") or columns * factor) // factor


def context_tokens(pipeline: Any, spec: Spec) -> int:
    """Tokens that the cross-attention reads, adapters aside.

    Raises   InvalidInput if only a run could tell
    """
    if spec.tokens is not None:
        return spec.tokens
    context = Context.of(pipeline)
    if context.role == "text":
        return int(getattr(getattr(pipeline.text_encoder, "config", None), "max_position_embeddings", TEXT_TOKENS))
    if family_of(pipeline).pooled:
        return 1
    specials = getattr(getattr(pipeline.image_encoder, "config", None), "num_special_tokens", None)
    if specials is None or context.patches is None:
        raise InvalidInput(
            f"a dry run cannot tell how many reference tokens {type(pipeline).__name__} attends to; "
            f"say it in {spec.path.name}: [dry_run] tokens = ..."
        )
    return int(specials) + context.patches[0] * context.patches[1]


def adapter_embeddings(pipeline: Any, spec: Spec, model: Any) -> list[Tensor]:
    """What each IP-Adapter's projection is given, of as many references as it reads.

    Raises   InvalidInput, UnsupportedModel
    """
    given: Any = spec.images.get("ip_adapter_image")
    given = given if isinstance(given, list) else [given] * len(spec.adapters)
    if len(given) != len(spec.adapters):
        raise InvalidInput(
            f"[images] of {spec.path.name}: ip_adapter_image has {len(given)} entries for {len(spec.adapters)} adapters; "
            "give one for each, a list of paths where an adapter reads several"
        )
    embeddings = []
    for item, projection in zip(given, model.encoder_hid_proj.image_projection_layers, strict=True):
        name = type(projection).__name__
        known = PROJECTIONS.get(name)
        if known is None or not known.first:
            raise UnsupportedModel(f"a dry run does not know the IP-Adapter projection {name}; record a few steps instead")
        width, count = projection.get_submodule(known.first).in_features, len(item) if isinstance(item, list) else 1
        embeddings.append(meta(model, 1, count, *((sequence_tokens(pipeline), width) if known.sequence else (width,))))
    return embeddings


def sequence_tokens(pipeline: Any) -> int:
    """Tokens that the image encoder gives before its pooling: CLS and its patches."""
    patches = Context.of(pipeline).patches
    return 1 if patches is None else 1 + patches[0] * patches[1]


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
    height, width = asked_size(pipeline, spec)
    rows, columns = _module(pipeline, "downscale_height_and_width").downscale_height_and_width(height, width, pipeline.movq_scale_factor)
    unet = pipeline.unet
    added, sample = {"image_embeds": meta(unet, 1, unet.config.encoder_hid_dim)}, meta(unet, 1, unet.config.in_channels, rows, columns)
    return {"sample": sample, "timestep": 1, "encoder_hidden_states": None, "added_cond_kwargs": added}


def pixart(pipeline: Any, spec: Spec) -> dict[str, Any]:
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
    if (make := MAKERS.get(family_of(pipeline).inputs)) is None:
        model = type(next(iter(denoisers(pipeline).values()))).__name__
        raise UnsupportedModel(f"a dry run does not know what {type(pipeline).__name__} gives its {model}; record a few steps instead")
    return make(pipeline, spec)
