"""A pipeline of shapes: denoiser and adapters on the meta device, from configs and file headers alone; no weight is read."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import diffusers
import PIL.Image
import torch
import transformers
from safetensors import safe_open
from torch import Tensor

from ..schema.errors import InvalidInput, UnsupportedModel
from .loading import explained, find_class, find_dtype, hub_arguments, make_scheduler
from .spec import Adapter, Spec
from .tokens import Context

POOLED: Final = ("PaintByExamplePipeline", "StableDiffusionImageVariationPipeline")
"""Pipelines whose image encoder gives one token for the whole reference."""
TEXT_TOKENS: Final = 77
"""Of CLIP's text encoder."""
META: Final = torch.device("meta")


def build_skeleton(spec: Spec) -> Any:
    """The spec's pipeline with a denoiser on the meta device, a scheduler, and the config of its image encoder.

    Raises   InvalidInput; UnsupportedModel for a denoiser that is no UNet
    """
    cls = find_class(spec.pipeline, "pipeline")
    with explained(f"cannot read the configs of {spec.pipeline} in {spec.source}"):
        index = cls.load_config(spec.source, **hub_arguments(spec))
    unet_class = (index.get("unet") or (None, "none"))[1]
    if unet_class != "UNet2DConditionModel":
        raise UnsupportedModel(
            f"a dry run knows pipelines around a UNet2DConditionModel; {spec.pipeline} has {unet_class}; record a few steps instead"
        )
    pipeline = cls.__new__(cls)
    parts = pipeline.__dict__
    with explained(f"cannot read the configs of {spec.pipeline} in {spec.source}"):
        config = diffusers.UNet2DConditionModel.load_config(spec.source, subfolder="unet", **hub_arguments(spec))
        with META:
            unet = diffusers.UNet2DConditionModel.from_config(config).eval()
        parts["unet"] = torch.nn.Module.to(unet, find_dtype(spec))  # diffusers' own `to` warns of what does not matter here
        scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(spec.source, subfolder="scheduler", **hub_arguments(spec))
        parts["image_encoder"] = _component(spec, index, "image_encoder")
        parts["text_encoder"] = _component(spec, index, "text_encoder")
        parts["vae_scale_factor"] = _vae_factor(spec, index)
        if "reference_size" in index:
            parts["reference_size"] = index["reference_size"]
    parts["scheduler"] = make_scheduler(spec, scheduler.config) if spec.scheduler is not None else scheduler
    if spec.adapters:
        _add_adapters(pipeline, spec)
    return pipeline


def denoiser_inputs(pipeline: Any, spec: Spec) -> dict[str, Any]:
    """Meta tensors of the shapes that the pipeline would give its denoiser, for one row."""
    unet = pipeline.unet
    added: dict[str, Any] = {}
    if unet.config.addition_embed_type == "text_time":
        ids = 5 if getattr(pipeline, "requires_aesthetics_score", False) else 6
        width = unet.config.projection_class_embeddings_input_dim - ids * unet.config.addition_time_embed_dim
        added = {"text_embeds": _meta(unet, 1, width), "time_ids": _meta(unet, 1, ids)}
    projections = getattr(unet.encoder_hid_proj, "image_projection_layers", ()) if spec.adapters else ()
    if projections:
        sequence = _sequence(pipeline)
        counts = reference_counts(spec)
        added["image_embeds"] = [_meta(unet, 1, n, *_embedding(p, sequence)) for n, p in zip(counts, projections, strict=True)]
    width = unet.config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    if unet.config.encoder_hid_dim_type == "text_proj":
        width = unet.config.encoder_hid_dim
    return {
        "sample": _meta(unet, 1, unet.config.in_channels, *latent_size(pipeline, spec)),
        "timestep": 1,
        "encoder_hidden_states": _meta(unet, 1, context_tokens(pipeline, spec), width),
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
        with PIL.Image.open(image) as picture:
            return picture.height // factor, picture.width // factor
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
    if type(pipeline).__name__ in POOLED:
        return 1
    specials = getattr(getattr(pipeline.image_encoder, "config", None), "num_special_tokens", None)
    if specials is None or context.patches is None:
        raise InvalidInput(
            f"a dry run cannot tell how many reference tokens {type(pipeline).__name__} attends to; "
            f"say it in {spec.path.name}: [dry_run] tokens = ..."
        )
    return int(specials) + context.patches[0] * context.patches[1]


def reference_counts(spec: Spec) -> list[int]:
    """How many references each adapter is given."""
    given: Any = spec.images.get("ip_adapter_image")
    given = given if isinstance(given, list) else [given] * len(spec.adapters)
    if len(given) != len(spec.adapters):
        raise InvalidInput(
            f"[images] of {spec.path.name}: ip_adapter_image has {len(given)} entries for {len(spec.adapters)} adapters; "
            "give one for each, a list of paths where an adapter reads several"
        )
    return [len(item) if isinstance(item, list) else 1 for item in given]


def _meta(unet: Any, *shape: int) -> Tensor:
    return torch.empty(shape, device=META, dtype=unet.dtype)


def _component(spec: Spec, index: dict[str, Any], name: str) -> Any:
    """A component's config where its weights would be."""
    present = (index.get(name) or (None, None))[1] is not None and name not in spec.without
    return _config(spec, spec.source, name) if present else None


def _config(spec: Spec, source: str, subfolder: str) -> Any:
    document, _ = transformers.PretrainedConfig.get_config_dict(source, subfolder=subfolder, **hub_arguments(spec))
    if not document:
        raise InvalidInput(f"{source} has no {subfolder}/config.json")
    if "model_type" in document:  # what equals a class's default is left out of its file
        return SimpleNamespace(config=transformers.AutoConfig.for_model(**document))
    return SimpleNamespace(config=SimpleNamespace(**document))


def _vae_factor(spec: Spec, index: dict[str, Any]) -> int | None:
    if (index.get("vae") or (None, None))[1] is None:
        return None
    config = diffusers.AutoencoderKL.load_config(spec.source, subfolder="vae", **hub_arguments(spec))
    return int(2 ** (len(config["block_out_channels"]) - 1))


def _add_adapters(pipeline: Any, spec: Spec) -> None:
    with explained(f"cannot read the IP-Adapters of {spec.path.name}"), META:
        pipeline.unet._load_ip_adapter_weights([_adapter_shapes(adapter, spec) for adapter in spec.adapters], low_cpu_mem_usage=False)
        pipeline.set_ip_adapter_scale([adapter.scale for adapter in spec.adapters])
    first = spec.adapters[0]
    if pipeline.image_encoder is None and first.image_encoder_folder is not None:
        folder = first.image_encoder_folder
        folder = folder if "/" in folder else f"{first.subfolder}/{folder}".lstrip("/")
        with explained(f"cannot read the image encoder's config, {folder} of {first.source}"):
            pipeline.__dict__["image_encoder"] = _config(spec, first.source, folder)


def _adapter_shapes(adapter: Adapter, spec: Spec) -> dict[str, dict[str, Tensor]]:
    """An adapter's state dict on the meta device."""
    path = Path(adapter.source) / adapter.subfolder / adapter.weight_name
    if not Path(adapter.source).is_dir():
        from huggingface_hub import hf_hub_download

        only = bool(spec.arguments.get("local_files_only"))
        path = Path(hf_hub_download(adapter.source, adapter.weight_name, subfolder=adapter.subfolder or None, local_files_only=only))
    if not path.is_file():
        raise InvalidInput(f"{path} does not exist; correct subfolder or weight_name in [[adapters]] of {spec.path.name}")
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="meta", weights_only=True)  # type: ignore[no-any-return]
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a dict)
            part, _, name = key.partition(".")
            if part in parts:
                parts[part][name] = torch.empty(file.get_slice(key).get_shape(), device=META)
    return parts


def _sequence(pipeline: Any) -> int:
    """Tokens that the image encoder gives before its pooling: CLS and its patches."""
    patches = Context.of(pipeline).patches
    return 1 if patches is None else 1 + patches[0] * patches[1]


def _embedding(projection: Any, sequence: int) -> tuple[int, ...]:
    """What one reference is to an adapter's projection, without the batch."""
    match type(projection).__name__:
        case "ImageProjection":
            return (projection.image_embeds.in_features,)
        case "IPAdapterFullImageProjection":
            return (sequence, projection.ff.net[0].proj.in_features)
        case "IPAdapterPlusImageProjection":
            return (sequence, projection.proj_in.in_features)
        case "IPAdapterFaceIDImageProjection":
            return (projection.ff.net[0].proj.in_features,)
        case name:
            raise UnsupportedModel(f"a dry run does not know the IP-Adapter projection {name}; record a few steps instead")
