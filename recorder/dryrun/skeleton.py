"""A pipeline of shapes: denoiser and adapters on the meta device, from configs and file headers alone; no weight is read."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import diffusers
import torch
import transformers
from safetensors import safe_open
from torch import Tensor

from ...schema.errors import InvalidInput, UnsupportedModel
from ..capture.modules import ROOTS, denoisers
from ..families import family_of
from ..specs.loading import encoder_place, explained, find_class, find_dtype, hub_arguments, make_scheduler
from ..specs.spec import Adapter, Spec

META: Final = torch.device("meta")
FLUX_PARTS: Final = {"ip_adapter_proj_model": "image_proj", "double_blocks": "ip_adapter"}
FLUX_NAMES: Final = {"ip_adapter_double_stream_k_proj": "to_k_ip", "ip_adapter_double_stream_v_proj": "to_v_ip", "processor.": ""}
"""How the published Flux adapter's file names what diffusers' loader makes of it."""


def build_skeleton(spec: Spec) -> Any:
    """The spec's pipeline with denoisers on the meta device, a scheduler, and the configs of its encoders.

    Raises   InvalidInput; UnsupportedModel for a pipeline that has no denoiser of diffusers'
    """
    cls = find_class(spec.pipeline, "pipeline")
    with explained(f"cannot read the configs of {spec.pipeline} in {spec.source}"):
        index = cls.load_config(spec.source, **hub_arguments(spec))
        models = {name: _model(spec, index, name) for name in ROOTS if _class_of(index, name) is not None}
        if not models:
            raise UnsupportedModel(
                f"{spec.pipeline} has neither unet nor transformer, so a dry run knows nothing of it; record a few steps instead"
            )
        scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(spec.source, subfolder="scheduler", **hub_arguments(spec))
    if spec.scheduler is not None:
        scheduler = make_scheduler(spec, scheduler.config)
    parts = {**models, "scheduler": scheduler}
    plain = "unet" in models and _class_of(index, "movq") is None
    pipeline = _around_unet(spec, cls, index) if plain else _assembled(spec, cls, index, parts)
    present = [name for name in ("image_encoder", "text_encoder") if _class_of(index, name) is not None and name not in spec.without]
    # A component's config stands where its weights would be.
    configs = {name: _config(spec, spec.source, name) for name in present}
    pipeline.__dict__ |= {"image_encoder": None, "text_encoder": None, **configs, **parts}
    if spec.adapters:
        _add_adapters(pipeline, spec)
    return pipeline


def _class_of(index: dict[str, Any], name: str) -> str | None:
    known = index.get(name) or (None, None)
    return known[1] if isinstance(known, (list, tuple)) else None


def _model(spec: Spec, index: dict[str, Any], name: str) -> Any:
    """A model of the pipeline on the meta device, from its config."""
    cls = getattr(diffusers, str(_class_of(index, name)))
    config = cls.load_config(spec.source, subfolder=name, **hub_arguments(spec))
    with META:
        model = cls.from_config(config).eval()
    return torch.nn.Module.to(model, META, find_dtype(spec))  # diffusers' own `to` warns of what does not matter here


def _around_unet(spec: Spec, cls: Any, index: dict[str, Any]) -> Any:
    """A pipeline that is only its attributes: some refuse to be made without all of their weights."""
    pipeline, factor = cls.__new__(cls), None
    if _class_of(index, "vae") is not None:
        config = diffusers.AutoencoderKL.load_config(spec.source, subfolder="vae", **hub_arguments(spec))
        factor = 2 ** (len(config["block_out_channels"]) - 1)
    pipeline.__dict__["vae_scale_factor"] = factor
    if "reference_size" in index:
        pipeline.__dict__["reference_size"] = index["reference_size"]
    return pipeline


def _assembled(spec: Spec, cls: Any, index: dict[str, Any], parts: dict[str, Any]) -> Any:
    """A pipeline that was made as always, of shapes, so that it knows its sizes; what is no model of diffusers is left out."""
    with explained(f"cannot make {spec.pipeline} of the configs in {spec.source}"):
        signature = inspect.signature(cls.__init__).parameters
        autoencoders = {name: _model(spec, index, name) for name in ("vae", "movq") if _class_of(index, name) is not None}
        plain = {name: value for name, value in index.items() if name in signature and not isinstance(value, (list, tuple))}
        needed = [p.name for p in list(signature.values())[1:] if p.default is inspect.Parameter.empty and p.kind is not p.VAR_KEYWORD]
        return cls(**{**dict.fromkeys(needed), **plain, **autoencoders, **parts})


def _config(spec: Spec, source: str, subfolder: str) -> Any:
    document, _ = transformers.PretrainedConfig.get_config_dict(source, subfolder=subfolder, **hub_arguments(spec))
    if not document:
        raise InvalidInput(f"{source} has no {subfolder}/config.json")
    if "model_type" in document:  # what equals a class's default is left out of its file
        return SimpleNamespace(config=transformers.AutoConfig.for_model(**document))
    return SimpleNamespace(config=SimpleNamespace(**document))


def _add_adapters(pipeline: Any, spec: Spec) -> None:
    with explained(f"cannot read the IP-Adapters of {spec.path.name}"), META:
        denoiser: Any = next(iter(denoisers(pipeline).values()))
        weights: Any = [_adapter_shapes(adapter, spec) for adapter in spec.adapters]
        single = family_of(pipeline).one_adapter
        denoiser._load_ip_adapter_weights(weights[0] if single else weights, low_cpu_mem_usage=False)
        torch.nn.Module.to(denoiser, find_dtype(spec))
        scales = [adapter.scale for adapter in spec.adapters]
        pipeline.set_ip_adapter_scale(scales[0] if single else scales)
    place = encoder_place(spec.adapters[0], type(pipeline))
    if pipeline.image_encoder is None and place is not None:
        with explained(f"cannot read the image encoder's config, {place[1]} of {place[0]}"):
            pipeline.__dict__["image_encoder"] = _config(spec, *place)


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
            part = FLUX_PARTS.get(part, part)
            if part in parts:
                for theirs, ours in FLUX_NAMES.items():
                    name = name.replace(theirs, ours)
                parts[part][name] = torch.empty(file.get_slice(key).get_shape(), device=META)
    return parts
