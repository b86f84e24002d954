"""What a pipeline gives its denoisers, as tensors of shapes: from the spec and configs alone, for one row and one pass."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Final, TypeAlias

import PIL.Image
import torch
from torch import Tensor

from ...schema.errors import InvalidInput, UnsupportedModel
from ..families import PROJECTIONS, family_of
from ..labels.tokens import Context
from ..specs.spec import Spec

Grid: TypeAlias = tuple[int, int]

TEXT_TOKENS: Final = 77
"""Of CLIP's text encoder."""


def meta(model: Any, *shape: int) -> Tensor:
    """A tensor of a model's dtype without numbers."""
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
    return {
        "sample": meta(unet, 1, unet.config.in_channels, *latent_size(pipeline, spec)),
        "timestep": 1,
        "encoder_hidden_states": meta(unet, 1, context_tokens(pipeline, spec), width),
        "added_cond_kwargs": added or None,
    }


def latent_size(pipeline: Any, spec: Spec) -> tuple[int, int]:
    """(rows, columns) of the latent: asked for, the input image's, or the model's own."""
    size, factor = pipeline.unet.config.sample_size, pipeline.vae_scale_factor
    rows, columns = (size, size) if isinstance(size, int) else tuple(size)
    if factor is None:
        return rows, columns
    parameters = inspect.signature(type(pipeline).__call__).parameters
    image = spec.images.get("image")
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
    counts = [len(item) if isinstance(item, list) else 1 for item in given]
    shapes = [_embedding_shape(projection, sequence_tokens(pipeline)) for projection in model.encoder_hid_proj.image_projection_layers]
    return [meta(model, 1, count, *shape) for count, shape in zip(counts, shapes, strict=True)]


def sequence_tokens(pipeline: Any) -> int:
    """Tokens that the image encoder gives before its pooling: CLS and its patches."""
    patches = Context.of(pipeline).patches
    return 1 if patches is None else 1 + patches[0] * patches[1]


def _embedding_shape(projection: Any, sequence: int) -> tuple[int, ...]:
    """What one reference is to an adapter's projection, without the batch."""
    name = type(projection).__name__
    known = PROJECTIONS.get(name)
    if known is None or not known.first:
        raise UnsupportedModel(f"a dry run does not know the IP-Adapter projection {name}; record a few steps instead")
    width = projection.get_submodule(known.first).in_features
    return (sequence, width) if known.sequence else (width,)
