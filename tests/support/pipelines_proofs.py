"""Tiny pipelines whose branches, token groups or grids no constant tells; as `pipelines`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    StableDiffusionPipeline,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from pipelines import Built, generator, stable_diffusion
from pipelines_transformers import TEXT, WIDE, noise, quiet, settings


def plain_vae() -> AutoencoderKL:
    """A latent cell is a pixel."""
    return AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=1).eval()


def masked_texts() -> dict[str, Any]:
    """Embeddings for both branches with masks that hide nothing."""
    masks = {name: torch.ones(1, TEXT) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    return {"prompt_embeds": noise(1, 1, TEXT, WIDE), "negative_prompt_embeds": noise(2, 1, TEXT, WIDE), **masks}


def lumina(key_heads: int = 4) -> Built:
    """The conditional half of the batch comes first; published models share key heads between query heads."""
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "hidden_size": 32, "num_layers": 1, "num_attention_heads": 4, "num_kv_heads": key_heads, "multiple_of": 16}
    transformer = LuminaNextDiT2DModel(patch_size=2, in_channels=4, cross_attention_dim=WIDE, **sizes).eval()
    torch.nn.init.normal_(transformer.pad_token)  # left as memory had it
    parts = {"scheduler": FlowMatchEulerDiscreteScheduler(), "vae": plain_vae(), "text_encoder": None, "tokenizer": None}
    pipeline = quiet(LuminaPipeline(transformer=transformer, **parts))
    return pipeline, lambda: {**masked_texts(), **settings(height=32, width=16), "prompt": None, "guidance_scale": 4.0}


class ConditionalFirst(StableDiffusionPipeline):
    """Makes its own embeddings, puts cond first, and guides as asked: towards it, or the other way."""

    @torch.no_grad()
    def __call__(self, towards: int = 0, guidance_scale: float = 5.0, num_inference_steps: int = 3, output_type: str = "np") -> Any:
        self._guidance_scale = guidance_scale
        embeds, latents = torch.randn(2, 7, 8, generator=generator(1)), torch.randn(1, 4, 16, 12, generator=generator())
        self.scheduler.set_timesteps(num_inference_steps)
        for time in self.scheduler.timesteps:
            parts = self.unet(torch.cat([latents] * 2), time, encoder_hidden_states=embeds).sample.chunk(2)
            cond, uncond = parts[towards], parts[1 - towards]
            latents = self.scheduler.step(uncond + guidance_scale * (cond - uncond), time, latents).prev_sample
        return StableDiffusionPipelineOutput(latents, None)


def conditional_first(**changes: Any) -> Built:
    return stable_diffusion(ConditionalFirst), lambda: changes


def sana_sprint(samples: int = 1) -> Built:
    """Guidance is an input of the denoiser, so the batch is not guided though a scale above 1 is given."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "num_cross_attention_heads": 2}
    widths = {"cross_attention_head_dim": 4, "cross_attention_dim": 8, "caption_channels": WIDE, "sample_size": 32, "patch_size": 1}
    extras = {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True}
    transformer = SanaTransformer2DModel(in_channels=4, out_channels=4, **sizes, **widths, **extras).eval()
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    ).eval()
    pipeline = quiet(SanaSprintPipeline(None, None, vae, transformer, SCMScheduler()))
    given = {"prompt_embeds": noise(1, 1, TEXT, WIDE), "prompt_attention_mask": torch.ones(1, TEXT), "num_images_per_prompt": samples}
    size = settings(height=32, width=32, output_type="latent")
    return pipeline, lambda: {**given, **size, "prompt": None, "use_resolution_binning": False}


PROVEN: dict[str, Callable[[], Built]] = {"lumina": lumina}
