"""Kits of tiny parts for pipelines around the UNets of Stable Diffusion, SDXL and their descendants."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, MotionAdapter, T2IAdapter
from pipelines_text import LENGTH, clip_encoder, clip_tokenizer
from pipelines_transformers import noise

import pipelines
from pipelines import SCHEDULERS, WIDTH, generator, picture, processor, unet, vae, vision

LEFT_OUT = object()
"""Of an argument that a kit does not give."""


class Words(torch.nn.Module):
    """Stands for a text encoder: a random vector for each word."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.words = torch.nn.Embedding(200, WIDTH)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (self.words(ids),)


def nothing(_: Any) -> None:
    """Leave a pipeline as it is."""


@dataclass(frozen=True)
class Kit:
    """What the classes that match a glob are made from."""

    glob: str
    parts: Callable[[str], dict[str, Any]] | None
    """Components by the names of the constructor's parameters, for a class name; None leaves out all of them."""
    given: Callable[[str], dict[str, Any]] = lambda _: {}
    """Arguments that are not the usual ones, for a class name; those that its call does not take are dropped."""
    finish: Callable[[Any], None] = nothing
    """What is done to a pipeline that was made."""


XL = {
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "transformer_layers_per_block": (1, 2),
}


def control_net(model: Any, cls: Any = ControlNetModel, **settings: Any) -> Any:
    made = cls.from_unet(model, **settings)
    embedding = made.controlnet_cond_embedding
    # One halving, as the tiny latent has.
    made.controlnet_cond_embedding = type(embedding)(4, block_out_channels=(4, 8))
    return made.eval()


CHANNELS = {"*InstructPix2Pix*": 8, "*LatentUpscale*": 8, "*Upscale*": 7, "*Depth2Img*": 5, "Marigold*": 8, "PIA*": 9}
"""Of the denoiser's input, where they are not the latent's 4."""


def sd_parts(name: str, **settings: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model = unet(next((count for glob, count in CHANNELS.items() if fnmatchcase(name, glob)), 4), **settings)
    if "ControlNetXS" in name:  # which is made for two
        model = type(model).from_config({**model.config, "layers_per_block": 2}).eval()
    if "Adapter" in name:  # whose features come at each resolution before its own halving
        blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
        model = type(model).from_config({**model.config, **blocks}).eval()
    adapter = T2IAdapter(channels=[4, 8], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")
    return {
        "vae": vae(),
        "unet": model,
        "text_encoder": clip_encoder(),
        "tokenizer": clip_tokenizer(),
        "scheduler": SCHEDULERS["ddim"](),
        "feature_extractor": processor(),
        "image_encoder": vision(),
        "requires_safety_checker": False,
        "controlnet": control_of(name, model),
        "adapter": adapter.eval(),
        "pag_applied_layers": "mid",
        "motion_adapter": motion() if "Animate" in name or "PIA" in name else None,
    }


def control_of(name: str, model: Any) -> Any:
    """The ControlNet that a class takes, if it takes one."""
    if "ControlNet" not in name:
        return None
    if "XS" in name:
        sizes = {"size_ratio": 1.0, "conditioning_embedding_out_channels": (4, 8)}
        return diffusers.ControlNetXSAdapter.from_unet(model, **sizes).eval()
    if "Sparse" in name:
        config = {key: model.config[key] for key in ("block_out_channels", "layers_per_block", "cross_attention_dim", "norm_num_groups")}
        blocks = {"down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"), "attention_head_dim": 2}
        sizes = {"conditioning_embedding_out_channels": (4, 8), "motion_num_attention_heads": 2, "conditioning_channels": 4}
        return diffusers.SparseControlNetModel(**config, **blocks, **sizes, use_simplified_condition_embedding=True).eval()
    if "Union" not in name:
        return control_net(model)
    config = {k: v for k, v in ControlNetModel.from_unet(model).config.items() if k in inspect.signature(ControlNetUnionModel).parameters}
    sizes = {"num_trans_channel": 4, "num_trans_head": 2, "num_proj_channel": 4, "conditioning_embedding_out_channels": (4, 8)}
    return ControlNetUnionModel(**{**config, **sizes}).eval()


def motion() -> MotionAdapter:
    sizes = {"block_out_channels": (4, 8), "motion_layers_per_block": 1, "motion_norm_num_groups": 2, "motion_num_attention_heads": 2}
    return MotionAdapter(**sizes, use_motion_mid_block=False).eval()


def xl_parts(name: str) -> dict[str, Any]:
    half = WIDTH // 2
    scored = "requires_aesthetics_score" in inspect.signature(getattr(diffusers, name).__init__).parameters and "Inpaint" not in name
    parts = sd_parts(name, **XL, projection_class_embeddings_input_dim=4 * (5 if scored else 6) + half)
    texts = {"text_encoder": clip_encoder(width=half), "text_encoder_2": clip_encoder(True, half, seed=7)}
    return {
        **parts,
        **texts,
        "tokenizer_2": clip_tokenizer(),
        "scheduler": SCHEDULERS["euler"](),
        "requires_aesthetics_score": scored,
        "add_watermarker": False,
    }


def adapted(pipeline: Any) -> None:
    """Load an IP-Adapter into what takes one; motion modules have none."""
    if "ip_adapter_image" not in inspect.signature(type(pipeline).__call__).parameters:
        return
    processors = {name: part for name, part in pipeline.unet.attn_processors.items() if "motion_modules" not in name}
    model = SimpleNamespace(attn_processors=processors, get_submodule=pipeline.unet.get_submodule, config=pipeline.unet.config)
    pipeline.unet._load_ip_adapter_weights([pipelines.adapter_weights(model, "full")], low_cpu_mem_usage=False)
    pipeline.unet.encoder_hid_proj.eval()


def sd_given(name: str) -> dict[str, Any]:
    given = {"prompt": "a red dog, a cat", "negative_prompt": "a hat", "ip_adapter_image": picture(10, 48, 32)}
    if "ControlNet" in name and "Img2Img" not in name and "Inpaint" not in name:
        given["image"] = picture(5)
    return {
        **given,
        "eta": LEFT_OUT,
        "original_size": (32, 32),
        "target_size": (32, 32),
        "conditioning_frames": [picture(30 + i) for i in range(5)],
        "control_mode": 0,
    }


def plain_given(name: str) -> dict[str, Any]:
    return {**sd_given(name), "ip_adapter_image": LEFT_OUT}


def embedded(_: str) -> dict[str, Any]:
    """The prompt encoded, for what has another text encoder."""
    return {"prompt_embeds": noise(1, 1, LENGTH, WIDTH), "negative_prompt_embeds": noise(2, 1, LENGTH, WIDTH)}


def with_schedulers(name: str) -> dict[str, Any]:
    parts = sd_parts(name, **({"attention_type": "gated"} if "GLIGEN" in name else {}))
    schedule = pipelines.SCHEDULE
    parts |= {"inverse_scheduler": diffusers.DDIMInverseScheduler(**schedule), "low_res_scheduler": diffusers.DDPMScheduler(**schedule)}
    if "Paradigms" in name:
        parts["scheduler"] = diffusers.DDIMParallelScheduler(**schedule)
    return parts


def lcm_parts(name: str) -> dict[str, Any]:
    return {**sd_parts(name, time_cond_proj_dim=8), "scheduler": diffusers.LCMScheduler(**pipelines.SCHEDULE)}


def upscale_parts(name: str) -> dict[str, Any]:
    parts = sd_parts(name, time_cond_proj_dim=128 + WIDTH)
    parts["unet"] = type(parts["unet"]).from_config({**parts["unet"].config, "out_channels": 5}).eval()
    return {**parts, "scheduler": SCHEDULERS["euler"]()}


def edit_parts(name: str) -> dict[str, Any]:
    scheduler = diffusers.DPMSolverMultistepScheduler(**pipelines.SCHEDULE, algorithm_type="sde-dpmsolver++", solver_order=2)
    parts = {**(xl_parts if name.endswith("XL") else sd_parts)(name), "scheduler": scheduler}
    if not name.endswith("XL"):  # which edits by the attention at a quarter of the latent's size
        blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"), "block_out_channels": (4, 8, 8)}
        blocks |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D")}
        parts["unet"] = type(parts["unet"]).from_config({**parts["unet"].config, **blocks}).eval()
    return parts


def inverted(pipeline: Any) -> None:
    """Pipelines that edit an image begin with its inversion."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.invert(image=picture(1), source_prompt="a dog", num_inversion_steps=4, skip=0.1, generator=generator())


EDITS = {"source_prompt": "a cat", "editing_prompt": ["a hat"], "image_latents": noise(1, 1, 1, 4, 16, 16)}
GLIGEN = {"gligen_phrases": ["a dog"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.7]]}
EXCITE = {"token_indices": [2], "attn_res": (8, 8), "max_iter_to_alter": 1}
DEPTH = {"depth_map": noise(3, 1, 32, 32)}
PIXELS = {"source_embeds": noise(4, 1, LENGTH, WIDTH), "target_embeds": noise(5, 1, LENGTH, WIDTH)}


def given_with(given: Callable[[str], dict[str, Any]], **changes: Any) -> Callable[[str], dict[str, Any]]:
    return lambda name: {**given(name), **changes}


KITS: tuple[Kit, ...] = (
    Kit("StableDiffusionXLControlNetXS*", xl_parts, plain_given),
    Kit("StableDiffusionControlNetXS*", sd_parts, plain_given),
    Kit("StableDiffusionXLAdapter*", xl_parts, sd_given, adapted),
    Kit("StableDiffusionXLInstruct*", xl_parts, plain_given),
    Kit("StableDiffusionXL*", xl_parts, sd_given, adapted),
    Kit("StableDiffusionAttendAndExcite*", sd_parts, given_with(plain_given, **EXCITE)),
    Kit("StableDiffusionDepth2Img*", sd_parts, given_with(plain_given, **DEPTH)),
    Kit("StableDiffusionDiffEdit*", with_schedulers, given_with(plain_given, **EDITS, mask_image=np.ones((1, 16, 16)))),
    Kit("StableDiffusionGLIGENPipeline", with_schedulers, given_with(plain_given, **GLIGEN)),
    Kit("StableDiffusionLatentUpscale*", upscale_parts, given_with(plain_given, image=picture(1, 64, 64))),
    Kit("StableDiffusionUpscale*", with_schedulers, plain_given),
    Kit("StableDiffusionParadigms*", with_schedulers, given_with(plain_given, parallel=2)),
    Kit("StableDiffusionPix2PixZero*", with_schedulers, given_with(plain_given, **PIXELS)),
    *(Kit(f"StableDiffusion{kind}*", sd_parts, plain_given) for kind in ("Panorama", "SAG", "InstructPix2Pix", "LDM3D", "PipelineSafe")),
    Kit("StableDiffusionImageVariation*", sd_parts, plain_given),
    Kit("StableDiffusion*", sd_parts, sd_given, adapted),
    Kit("AltDiffusion*", sd_parts, embedded),
    Kit("Cycle*", sd_parts, given_with(plain_given, source_prompt="a cat")),
    Kit("Semantic*", sd_parts, given_with(plain_given, editing_prompt=["a hat"])),
    Kit("LatentConsistency*", lcm_parts, given_with(plain_given, original_inference_steps=20)),
    Kit("LEdits*", edit_parts, given_with(plain_given, editing_prompt=["a hat"]), inverted),
    Kit("Marigold*", sd_parts, lambda _: {"processing_resolution": 0, "match_input_resolution": False}),
    Kit("TextToVideoZeroSDXL*", xl_parts, given_with(plain_given, video_length=3, t0=0, t1=1, num_inference_steps=3)),
    Kit("TextToVideoZero*", sd_parts, given_with(plain_given, video_length=3, t0=0, t1=1, num_inference_steps=3)),
    Kit("PaintByExample*", lambda _: pipelines.paint_by_example()[0].components, lambda _: {"example_image": picture(10)}),
)
