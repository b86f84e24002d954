"""Tiny pipelines that make videos; as `pipelines`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel, WanTransformer3DModel

from pipelines_transformers import quiet, texts, wan

from pipelines import PATCHES, WIDTH, Built, adapter_weights, generator, picture, processor, stable_diffusion, text_arguments, vision_config

FRAMES = 3
"""Of Stable Video Diffusion and AnimateDiff."""
LATENT_FRAMES = 2
"""Of Wan, for 5 frames: its first frame is a latent of its own, then 4 share one."""
IMAGE_TOKENS = 1 + PATCHES**2


def svd(samples: int = 1, guidance: float = 3.0, frames: int = FRAMES, **changes: Any) -> Built:
    """Rows of the batch are frames in spatial blocks, and places in temporal ones; one CLIP token is given to each."""
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=WIDTH,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=frames,
    ).eval()
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",), latent_channels=4, layers_per_block=1, sample_size=16
    ).eval()
    config = CLIPVisionConfig(
        hidden_size=8, projection_dim=WIDTH, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, image_size=224, patch_size=56
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
    )
    pipeline = quiet(
        diffusers.StableVideoDiffusionPipeline(
            vae=vae,
            image_encoder=CLIPVisionModelWithProjection(config).eval(),
            unet=unet,
            scheduler=scheduler,
            feature_extractor=CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
        )
    )
    given = {"image": picture(10, 24, 16), "height": 8, "width": 16, "num_inference_steps": 2, "output_type": "np"}
    given |= {"num_videos_per_prompt": samples, "max_guidance_scale": guidance, "num_frames": frames}
    return pipeline, lambda: {**given, "generator": generator(), **changes}


def wan_video(first: bool = False, last: bool = False, samples: int = 1, two: bool = False, frames: int = 5) -> Built:
    """From text, from a first frame, or from a first and a last one, whose patches are keys of a call of their own."""
    base, call = wan(two=two, frames=frames)
    several = {"num_videos_per_prompt": samples}
    if not first:
        return base, lambda: {**call(), **several}
    torch.manual_seed(1)
    config = {**base.transformer.config, "in_channels": 36, "image_dim": WIDTH, "added_kv_proj_dim": 24}
    config |= {"pos_embed_seq_len": 2 * IMAGE_TOKENS} if last else {}
    config.pop("_use_default_values", None)
    parts = {name: part for name, part in base.components.items() if not name.startswith("transformer")}
    parts |= {"image_encoder": CLIPVisionModel(vision_config(WIDTH)).eval(), "image_processor": processor()}
    pipeline = quiet(diffusers.WanImageToVideoPipeline(**parts, transformer=WanTransformer3DModel.from_config(config).eval()))
    ends = {"image": picture(10, 48, 32), **({"last_image": picture(11, 32, 48)} if last else {})}
    return pipeline, lambda: {**call(), **texts(512, 512, pooled=False), **ends, **several}


def wan_channels(latent: bool = False) -> Built:
    """Wan 2.2: the first frame is in the channels and in nothing else, or stands in the latent, as a frame without noise."""
    base, call = wan(frames=5)
    torch.manual_seed(1)
    config = {**base.transformer.config, "in_channels": 16 if latent else 36}
    config.pop("_use_default_values", None)
    parts = {name: part for name, part in base.components.items() if not name.startswith("transformer")}
    parts |= {"transformer": WanTransformer3DModel.from_config(config).eval(), "image_encoder": None, "image_processor": None}
    pipeline = quiet(diffusers.WanImageToVideoPipeline(**parts, expand_timesteps=latent))
    return pipeline, lambda: {**call(), "image": picture(10, 48, 32)}


def animate(kind: str = "full") -> Built:
    """An image pipeline's UNet with motion modules between its blocks, and an IP-Adapter."""
    torch.manual_seed(0)
    still = stable_diffusion(encoder=True)
    motion = diffusers.MotionAdapter(
        block_out_channels=(4, 8),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    parts = {name: getattr(still, name) for name in ("vae", "unet", "scheduler", "feature_extractor", "image_encoder")}
    pipeline = quiet(diffusers.AnimateDiffPipeline(**parts, text_encoder=None, tokenizer=None, motion_adapter=motion.eval()))
    pipeline.unet._load_ip_adapter_weights([adapter_weights(still.unet, kind)], low_cpu_mem_usage=False)
    pipeline.unet.eval()
    given = {"num_frames": FRAMES, "height": 32, "width": 24, "ip_adapter_image": picture(10, 48, 32)}
    return pipeline, lambda: {**text_arguments(), **given, "generator": generator()}


VIDEO: dict[str, Callable[[], Built]] = {
    "svd": svd,
    "svd-two": lambda: svd(samples=2),
    "svd-unguided": lambda: svd(guidance=1.0),
    "wan-video": wan_video,
    "wan-video-two": lambda: wan_video(samples=2),
    "wan-first": lambda: wan_video(first=True),
    "wan-first-last": lambda: wan_video(first=True, last=True),
    "wan-denoisers": lambda: wan_video(two=True),
    "animate": animate,
}


def build(family: str) -> Built:
    """A pipeline of a family, and a function that makes its arguments."""
    return VIDEO[family]()
