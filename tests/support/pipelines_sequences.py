"""Tiny pipelines whose reference stands in one sequence with the text, or whose denoiser runs on the reference first; as `pipelines`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, OmniGenPipeline, OmniGenTransformer2DModel, StableDiffusionPipeline
from diffusers.models.attention import BasicTransformerBlock
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from pipelines import Built, generator, picture, stable_diffusion, text_arguments, tokenizer

HEADS = 2


def compose(steps: Any) -> Callable[[PIL.Image.Image], torch.Tensor]:
    """Stands for torchvision's, which is not needed for anything else: crop, then numbers from -1 to 1."""
    return lambda image: torch.from_numpy(np.asarray(steps[0](image), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def omnigen(references: int = 1, samples: int = 1) -> Built:
    processor_omnigen.transforms = SimpleNamespace(
        Compose=compose, Lambda=lambda crop: crop, ToTensor=lambda: None, Normalize=lambda **_: None
    )
    pipeline_omnigen.OmniGenMultiModalProcessor = processor_omnigen.OmniGenMultiModalProcessor
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
    ).eval()
    rope = {"long_factor": [1] * 4, "short_factor": [1] * 4}
    sizes = {"hidden_size": 16, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "intermediate_size": 16, "num_layers": 2}
    tokens = {"pad_token_id": 0, "vocab_size": 64, "time_step_dim": 8}
    transformer = OmniGenTransformer2DModel(in_channels=4, **sizes, **tokens, rope_scaling=rope).eval()
    words = tokenizer()
    words.model_max_length = 10_000
    pipeline = OmniGenPipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, tokenizer=words)
    pipeline.set_progress_bar_config(disable=True)
    # Larger than the bound, and than whole tokens.
    images = [picture(10, 70, 40), picture(11, 32, 48)][:references]
    marks = " and ".join(f"<img><|image_{i + 1}|></img>" for i in range(references))
    given = {"prompt": f"a man in {marks} sits", "height": 48, "width": 32, "num_inference_steps": 2, "output_type": "np"}
    image = {"input_images": images, "max_input_image_size": 64} if references else {}

    def call() -> dict[str, Any]:
        torch.manual_seed(1)  # its references' latents are drawn without a generator
        return {**given, **image, "num_images_per_prompt": samples, "generator": generator()}

    return pipeline, call


class Reading:
    """A transformer block's forward: keeps what its self-attention reads in one run of the U-Net, reads it beside its own in the next."""

    def __init__(self, block: BasicTransformerBlock, unguided: int, fidelity: float) -> None:
        self.block, self.unguided, self.fidelity = block, unguided, fidelity
        self.kept: list[torch.Tensor] = []

    def __call__(self, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **_: Any) -> torch.Tensor:
        block = self.block
        own = block.norm1(hidden_states)
        if self.kept:
            attended = block.attn1(own, encoder_hidden_states=torch.cat([own, self.kept.pop()], 1))
            if self.unguided and self.fidelity:
                first = own[: self.unguided]
                alone = attended.clone()
                alone[: self.unguided] = block.attn1(first, encoder_hidden_states=first)
                attended = torch.lerp(attended, alone, self.fidelity)
        else:
            self.kept.append(own.clone())
            attended = block.attn1(own)
        hidden_states = hidden_states + attended
        hidden_states = hidden_states + block.attn2(block.norm2(hidden_states), encoder_hidden_states=encoder_hidden_states)
        return hidden_states + block.ff(block.norm3(hidden_states))


class StableDiffusionReferencePipeline(StableDiffusionPipeline):
    """The published reference-only method: at every step the U-Net runs on the noised reference, then on the image."""

    @torch.no_grad()
    def __call__(
        self,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        ref_image: Any = None,
        num_inference_steps: int = 3,
        guidance_scale: float = 5.0,
        reference_attn: bool = True,
        style_fidelity: float = 0.5,
        output_type: str = "np",
        generator: Any = None,
    ) -> Any:
        self._guidance_scale = guidance_scale
        embeds = torch.cat([negative_prompt_embeds, prompt_embeds]) if guidance_scale > 1 else prompt_embeds
        clean = self.vae.encode(self.image_processor.preprocess(ref_image, height=32, width=24)).latent_dist.mode()
        latents = torch.randn(1, 4, 16, 12, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        blocks = [module for module in self.unet.modules() if isinstance(module, BasicTransformerBlock)] if reference_attn else []
        for block in blocks:
            block.forward = Reading(block, len(embeds) - 1, style_fidelity)
        for time in self.scheduler.timesteps:
            noisy = self.scheduler.add_noise(clean, torch.randn(clean.shape, generator=generator), time.reshape(1))
            self.unet(torch.cat([noisy] * len(embeds)), time, encoder_hidden_states=embeds)
            noise = self.unet(torch.cat([latents] * len(embeds)), time, encoder_hidden_states=embeds).sample
            if guidance_scale > 1:
                noise = noise[:1] + guidance_scale * (noise[1:] - noise[:1])
            latents = self.scheduler.step(noise, time, latents).prev_sample
        for block in blocks:
            del block.forward
        image = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return StableDiffusionPipelineOutput(self.image_processor.postprocess(image, output_type=output_type), None)


def reference_only(**changes: Any) -> Built:
    pipeline = stable_diffusion(StableDiffusionReferencePipeline)
    return pipeline, lambda: {**text_arguments(), "ref_image": picture(10, 32, 24), "generator": generator(), **changes}


SEQUENCES: dict[str, Callable[[], Built]] = {
    "omnigen": omnigen,
    "omnigen-two": lambda: omnigen(references=2),
    "omnigen-text": lambda: omnigen(references=0),
    "reference-only": reference_only,
    "reference-only-unguided": lambda: reference_only(guidance_scale=1.0),
}


def build(family: str) -> Built:
    """A pipeline of a family, and a function that makes its arguments."""
    return SEQUENCES[family]()
