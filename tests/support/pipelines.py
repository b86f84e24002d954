"""Tiny diffusers pipelines with random weights: the families that a recording must handle, made in a few hundredths of a second.

pipeline, call = build("ip-full")
image = pipeline(**call()).images          # call() makes fresh arguments: the same seed each time
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        PNDMScheduler,
        StableDiffusionImageVariationPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from diffusers.utils import logging as diffusers_logging
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()
torch.set_num_threads(1)

WIDTH = 8
"""Channels of context tokens."""
TEXT_TOKENS = 7
PATCHES = 4
"""Rows and columns of the image encoder's patches."""
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "pndm": lambda: PNDMScheduler(**SCHEDULE, skip_prk_steps=True, steps_offset=1),
    "heun": lambda: HeunDiscreteScheduler(**SCHEDULE, steps_offset=1),
    "euler": lambda: EulerDiscreteScheduler(**SCHEDULE, steps_offset=1),
}

Call = Callable[[], dict[str, Any]]
Built = tuple[Any, Call]


def unet(channels: int = 4, width: int = WIDTH, **settings: Any) -> UNet2DConditionModel:
    """Two resolutions; cross-attention at the lower one and in the middle; 2 heads."""
    return UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=16,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        norm_num_groups=2,
        **{"attention_head_dim": 2, **settings},
    ).eval()


def vae() -> AutoencoderKL:
    """A latent cell is 2 x 2 pixels."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(block_out_channels=[4, 8], in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=2, **blocks).eval()


def vision(width: int = WIDTH) -> CLIPVisionModelWithProjection:
    """32 x 32 pixels in patches of 8: CLS and 4 x 4 patch tokens."""
    return CLIPVisionModelWithProjection(vision_config(width)).eval()


def vision_config(width: int = WIDTH) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        image_size=8 * PATCHES,
        patch_size=8,
    )


def processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def tokenizer() -> CLIPTokenizer:
    """Letters and their word endings; enough for any lower-case prompt."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=TEXT_TOKENS)


def text_encoder() -> CLIPTextModel:
    size = {"hidden_size": WIDTH, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return CLIPTextModel(CLIPTextConfig(**size, **special, vocab_size=60, max_position_embeddings=TEXT_TOKENS)).eval()


def picture(seed: int, height: int = 32, width: int = 32) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def square_mask(height: int = 32, width: int = 32) -> PIL.Image.Image:
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[height // 4 : height // 2, width // 4 :] = 255
    return PIL.Image.fromarray(pixels)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text_arguments(prompts: int = 1, width: int = WIDTH) -> dict[str, Any]:
    return {
        "prompt_embeds": torch.randn(prompts, TEXT_TOKENS, width, generator=generator(1)),
        "negative_prompt_embeds": torch.randn(prompts, TEXT_TOKENS, width, generator=generator(2)),
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "output_type": "np",
    }


def adapter_weights(model: UNet2DConditionModel, kind: str, width: int = WIDTH) -> dict[str, Any]:
    """The state dict of an IP-Adapter, as its published files are laid out: `plain`, `plus` or `full`."""
    weights: dict[str, torch.Tensor] = {}
    # diffusers numbers the processors of a UNet in order, and gives the n-th cross-attention the number 2 n + 1.
    crossing = [name for name in model.attn_processors if name.endswith("attn2.processor")]
    for ordinal, name in enumerate(crossing):
        attention = model.get_submodule(name.removesuffix(".processor"))
        for part in ("k", "v"):
            weights[f"{2 * ordinal + 1}.to_{part}_ip.weight"] = torch.randn(attention.to_q.out_features, model.config.cross_attention_dim)
    return {"image_proj": ADAPTERS[kind](width, model.config.cross_attention_dim), "ip_adapter": weights}


def _plain(width: int, context: int) -> dict[str, torch.Tensor]:
    return {"proj.weight": torch.randn(4 * context, width), "proj.bias": torch.zeros(4 * context), **_norm("norm", context)}


def _full(width: int, context: int) -> dict[str, torch.Tensor]:
    shapes = {"proj.0": (width, width), "proj.2": (context, width)}
    linear = {f"{name}.weight": torch.randn(*shape) for name, shape in shapes.items()}
    return {**linear, **{f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}, **_norm("proj.3", context)}


def _plus(width: int, context: int) -> dict[str, torch.Tensor]:
    inner, latents = 64, 16  # as many latents as there are patches: they must not be taken for places
    weights = {
        "latents": torch.randn(1, latents, inner),
        "proj_in.weight": torch.randn(inner, width),
        "proj_in.bias": torch.zeros(inner),
        "proj_out.weight": torch.randn(context, inner),
        "proj_out.bias": torch.zeros(context),
        **_norm("norm_out", context),
    }
    for layer in range(4):
        weights |= {
            **_norm(f"layers.{layer}.0.norm1", inner),
            **_norm(f"layers.{layer}.0.norm2", inner),
            f"layers.{layer}.0.to_q.weight": torch.randn(inner, inner),
            f"layers.{layer}.0.to_kv.weight": torch.randn(2 * inner, inner),
            f"layers.{layer}.0.to_out.weight": torch.randn(inner, inner),
            **_norm(f"layers.{layer}.1.0", inner),
            f"layers.{layer}.1.1.weight": torch.randn(4 * inner, inner),
            f"layers.{layer}.1.3.weight": torch.randn(inner, 4 * inner),
        }
    return weights


def _norm(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


ADAPTERS = {"plain": _plain, "full": _full, "plus": _plus}


def load_adapters(pipeline: Any, *kinds: str) -> None:
    """Load adapters; all weights stay in memory."""
    pipeline.unet._load_ip_adapter_weights([adapter_weights(pipeline.unet, kind) for kind in kinds], low_cpu_mem_usage=False)
    pipeline.unet.encoder_hid_proj.eval()
    pipeline.set_progress_bar_config(disable=True)


def stable_diffusion(cls: Any = StableDiffusionPipeline, scheduler: str = "ddim", channels: int = 4, encoder: bool = False) -> Any:
    torch.manual_seed(0)
    parts = {"image_encoder": vision(), "feature_extractor": processor()} if encoder else {"feature_extractor": None}
    pipeline = cls(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet(channels),
        scheduler=SCHEDULERS[scheduler](),
        safety_checker=None,
        requires_safety_checker=False,
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text_to_image(scheduler: str = "ddim", **changes: Any) -> Built:
    size = {"height": 32, "width": 32}
    return stable_diffusion(scheduler=scheduler), lambda: {**text_arguments(), **size, "generator": generator(), **changes}


def img2img() -> Built:
    pipeline = stable_diffusion(StableDiffusionImg2ImgPipeline)
    return pipeline, lambda: {**text_arguments(), "image": picture(1), "strength": 0.7, "num_inference_steps": 4, "generator": generator()}


def inpaint(channels: int = 9) -> Built:
    pipeline = stable_diffusion(StableDiffusionInpaintPipeline, channels=channels)
    images = {"image": picture(1), "mask_image": square_mask(), "height": 32, "width": 32}
    return pipeline, lambda: {**text_arguments(), **images, "generator": generator()}


def ip_adapter(*kinds: str, **changes: Any) -> Built:
    pipeline = stable_diffusion(encoder=True)
    load_adapters(pipeline, *kinds)
    references = [picture(10 + index, 48, 32) for index in range(len(kinds))]
    image = references[0] if len(kinds) == 1 else references
    size = {"height": 32, "width": 24}
    return pipeline, lambda: {**text_arguments(), **size, "ip_adapter_image": image, "generator": generator(), **changes}


def sdxl() -> Built:
    torch.manual_seed(0)
    settings = {
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": 32,
    }
    pipeline = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet(**settings),
        scheduler=SCHEDULERS["euler"](),
        image_encoder=vision(),
        feature_extractor=processor(),
        add_watermarker=False,
    )
    load_adapters(pipeline, "full")
    pooled = {name: torch.randn(1, 8, generator=generator(3)) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")}
    size = {"height": 32, "width": 32}
    return pipeline, lambda: {**text_arguments(), **pooled, **size, "ip_adapter_image": picture(10), "generator": generator()}


def paint_by_example(**changes: Any) -> Built:
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder

    torch.manual_seed(0)
    pipeline = diffusers.PaintByExamplePipeline(
        vae=vae(),
        image_encoder=PaintByExampleImageEncoder(vision_config(), proj_size=WIDTH).eval(),
        unet=unet(9),
        scheduler=SCHEDULERS["pndm"](),
        safety_checker=None,
        feature_extractor=processor(),
    )
    pipeline.set_progress_bar_config(disable=True)
    images = {"image": picture(1), "mask_image": square_mask(), "example_image": picture(10)}
    settings = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np", "height": 32, "width": 32}
    return pipeline, lambda: {**images, **settings, "generator": generator(), **changes}


def image_variation() -> Built:
    torch.manual_seed(0)
    pipeline = StableDiffusionImageVariationPipeline(
        vae=vae(),
        image_encoder=vision(),
        unet=unet(),
        scheduler=SCHEDULERS["pndm"](),
        safety_checker=None,
        feature_extractor=processor(),
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np", "height": 32, "width": 32}
    return pipeline, lambda: {"image": picture(10), **settings, "generator": generator()}


FAMILIES: dict[str, Callable[[], Built]] = {
    "text": text_to_image,
    "text-pndm": lambda: text_to_image("pndm"),
    "text-heun": lambda: text_to_image("heun"),
    "text-euler": lambda: text_to_image("euler"),
    "text-wide": lambda: text_to_image(height=24, width=40),
    "text-unguided": lambda: text_to_image(guidance_scale=1.0),
    "text-two": lambda: text_to_image(num_images_per_prompt=2),
    "img2img": img2img,
    "inpaint": inpaint,
    "inpaint-plain": lambda: inpaint(channels=4),
    "ip-plain": lambda: ip_adapter("plain"),
    "ip-plus": lambda: ip_adapter("plus"),
    "ip-full": lambda: ip_adapter("full"),
    "ip-two": lambda: ip_adapter("full", "plain", num_images_per_prompt=2),
    "ip-unguided": lambda: ip_adapter("full", guidance_scale=1.0),
    "sdxl": sdxl,
    "paint-by-example": paint_by_example,
    "paint-by-example-unguided": lambda: paint_by_example(guidance_scale=1.0),
    "image-variation": image_variation,
}


def build(family: str) -> Built:
    """A pipeline of a family, and a function that makes its arguments."""
    return FAMILIES[family]()
