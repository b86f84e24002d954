"""The paper's custom model with tiny parts and random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import Dinov2Config, Dinov2Model

from i2am.recorder.custom import CustomTryOnPipeline, build_custom

SIZE, REFERENCE, PATCH = (32, 24), (42, 28), 14
WIDTH = 16


def tiny_unet(**config: Any) -> UNet2DConditionModel:
    settings = {
        "sample_size": (16, 12), "in_channels": 12, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 8, "attention_head_dim": 2, "encoder_hid_dim": WIDTH, "encoder_hid_dim_type": "text_proj",
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **config}).eval()


def tiny_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    encoder = Dinov2Config(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=PATCH)
    return {
        "vae": AutoencoderKL(block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2, **blocks).eval(),
        "unet": tiny_unet(),
        "image_encoder": Dinov2Model(encoder).eval(),
    }


def tiny_custom() -> CustomTryOnPipeline:
    """Pictures of 32 x 24 on a latent of 16 x 12; CLS and 3 x 2 patches of the reference."""
    pipeline = CustomTryOnPipeline(**build_custom(**tiny_parts()).components, image_size=SIZE, reference_size=REFERENCE)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
