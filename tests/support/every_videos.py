"""Kits of tiny parts for pipelines that make videos; many return latents, so that they need no VAE."""

from __future__ import annotations

from typing import Any

import diffusers
import pipelines_transformers as joint
import pipelines_video
import torch
from every_kits import LEFT_OUT, Kit, adapted, sd_given, sd_parts, xl_parts
from every_transformers import SIZES, flow, made, masked, parts_of, plain
from pipelines_transformers import HEADS, TEXT, WIDE, noise, texts
from transformers import CLIPVisionModel

import pipelines
from pipelines import picture, processor, vision_config

LATENT = {"output_type": "latent"}
FRAMES = 5
DEPTH = 12
"""Channels of a head, which rotary embeddings of three axes divide."""
WAN = {
    "num_attention_heads": HEADS,
    "attention_head_dim": DEPTH,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": WIDE,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def wan_parts(name: str) -> dict[str, Any]:
    parts = parts_of(joint.wan(frames=FRAMES))
    image = {"image_dim": 8, "added_kv_proj_dim": HEADS * DEPTH, "in_channels": 36}
    encoder = {"image_encoder": CLIPVisionModel(vision_config(8)).eval(), "image_processor": processor()}
    if "ImageToVideo" in name and "Forcing" not in name:
        parts |= {"transformer": made("WanTransformer3DModel", **{**WAN, **image}), **encoder}
    if name.startswith("Lucy"):
        parts["transformer"] = made("WanTransformer3DModel", **{**WAN, "in_channels": 32})
    if "VACE" in name:
        parts["transformer"] = made("WanVACETransformer3DModel", **WAN, vace_layers=[0, 1], vace_in_channels=96)
    if name.startswith("SkyReels"):
        changes = image if name == "SkyReelsV2ImageToVideoPipeline" else {}
        parts |= {"transformer": made("SkyReelsV2Transformer3DModel", **{**WAN, **changes}), **encoder}
        parts["scheduler"] = diffusers.UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True)
    if name.startswith("Chrono"):
        parts |= {"transformer": made("ChronoEditTransformer3DModel", **{**WAN, **image}), **encoder}
    if name.startswith("AnyFlow"):
        far = {"chunk_partition": (1, 1), "full_chunk_limit": 2} if "FAR" in name else {}
        settings = {key: value for key, value in WAN.items() if key != "rope_max_seq_len"} | {"rope_max_seq_len": 64}
        parts["transformer"] = made(name.replace("Pipeline", "Transformer3DModel"), **settings, **far)
        parts["scheduler"] = diffusers.FlowMapEulerDiscreteScheduler()
    return parts


def wan_given(name: str) -> dict[str, Any]:
    length = 512 if "ImageToVideo" in name or name.startswith("Chrono") else TEXT
    absent = ("chunk_partition", "mask", *(("video",) if name.startswith("AnyFlow") else ()))
    given = {**texts(length, length, pooled=False), "image": picture(10, 32, 32), "reference_images": [picture(10, 32, 32)]}
    return {
        **given,
        "height": 32,
        "width": 32,
        "base_num_frames": FRAMES,
        "prompt": None,
        "negative_prompt": None,
        "overlap_history": 1,
        **dict.fromkeys(absent, LEFT_OUT),
    }


def animate_given(name: str) -> dict[str, Any]:
    return {**sd_given(name), "prompt": "a red dog, a cat", "strength": 0.8, "controlnet_frame_indices": [0]}


def cog_parts(name: str) -> dict[str, Any]:
    sizes = {"sample_width": 4, "sample_height": 4, "sample_frames": FRAMES, "time_embed_dim": 8, "text_embed_dim": WIDE}
    channels = {"in_channels": 8 if "Control" in name or "Image" in name else 4, "out_channels": 4}
    rope = {"use_rotary_positional_embeddings": True, "max_text_seq_length": TEXT}
    model = made("CogVideoXTransformer3DModel", num_layers=2, num_attention_heads=HEADS, attention_head_dim=16, **sizes, **channels, **rope)
    blocks = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
    widths = {"block_out_channels": (8,) * 4, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2}
    return {
        "vae": made("AutoencoderKLCogVideoX", **blocks, **widths),
        "transformer": model,
        "scheduler": diffusers.CogVideoXDDIMScheduler(),
    }


def video(**changes: Any) -> dict[str, Any]:
    """Arguments of a text-to-video call that returns latents."""
    return {**masked(), **LATENT, **changes}


def ltx_parts(name: str) -> dict[str, Any]:
    widths = {"cross_attention_dim": 32, "caption_channels": WIDE}
    model = made("LTXVideoTransformer3DModel", in_channels=8, out_channels=8, **SIZES, **widths)
    scales = {"spatio_temporal_scaling": (True, True, False, False), "decoder_spatio_temporal_scaling": (True, True, False, False)}
    layers = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
    widths = {"block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4, "latent_channels": 8}
    sizes = {"patch_size": 1, "patch_size_t": 1, "encoder_causal": True, "decoder_causal": False}
    return {"vae": made("AutoencoderKLLTXVideo", **scales, **layers, **widths, **sizes), "transformer": model, "scheduler": flow()}


def hunyuan_parts(name: str) -> dict[str, Any]:
    kind = {"HunyuanVideoImageToVideoPipeline": "latent_concat"}.get(name)
    channels = {"HunyuanVideoImageToVideoPipeline": 9, "HunyuanSkyreelsImageToVideoPipeline": 8}.get(name, 4)
    sizes = {**SIZES, "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "rope_axes_dim": (4, 4, 8)}
    widths = {"text_embed_dim": WIDE, "pooled_projection_dim": WIDE, "in_channels": channels, "out_channels": 4}
    cls = "HunyuanVideoFramepackTransformer3DModel" if "Framepack" in name else "HunyuanVideoTransformer3DModel"
    framepack = {"has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True} if "Framepack" in name else {}
    model = made(cls, **sizes, **widths, **framepack, image_condition_type=kind)
    vae = {"block_out_channels": (8,) * 4, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2}
    seen = {key: part for key, part in parts_of(joint.redux_prior()).items() if key in ("image_encoder", "feature_extractor")}
    return {**seen, "vae": made("AutoencoderKLHunyuanVideo", **vae), "transformer": model, "scheduler": flow()}


def hunyuan_given(_: str) -> dict[str, Any]:
    return {**video(), **texts()}


def mochi_parts(_: str) -> dict[str, Any]:
    sizes = {**SIZES, "pooled_projection_dim": 16, "text_embed_dim": WIDE, "time_embed_dim": 4, "max_sequence_length": TEXT}
    return {"transformer": made("MochiTransformer3DModel", in_channels=12, **sizes), "scheduler": flow()}


def latte_parts(_: str) -> dict[str, Any]:
    sizes = {"num_attention_heads": HEADS, "attention_head_dim": 16, "num_layers": 2, "cross_attention_dim": 32, "caption_channels": WIDE}
    norms = {"norm_type": "ada_norm_single", "norm_elementwise_affine": False, "num_embeds_ada_norm": 1000, "attention_bias": True}
    shape = {"in_channels": 4, "out_channels": 8, "sample_size": 16, "patch_size": 2, "video_length": FRAMES}
    model = made("LatteTransformer3DModel", **sizes, **norms, **shape)
    return {"transformer": model, "vae": pipelines.vae(), "scheduler": pipelines.SCHEDULERS["ddim"]()}


def allegro_parts(_: str) -> dict[str, Any]:
    sizes = {"num_attention_heads": HEADS, "attention_head_dim": 24, "num_layers": 2, "cross_attention_dim": 48, "caption_channels": WIDE}
    shape = {"sample_height": 4, "sample_width": 4, "sample_frames": FRAMES, "in_channels": 4, "out_channels": 4}
    return {"transformer": made("AllegroTransformer3DModel", **sizes, **shape), "scheduler": pipelines.SCHEDULERS["ddim"]()}


def unet3d_parts(_: str) -> dict[str, Any]:
    blocks = {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 2}
    model = made("UNet3DConditionModel", sample_size=16, **blocks, **sizes)
    return {**sd_parts(""), "unet": model}


def motif_parts(_: str) -> dict[str, Any]:
    sizes = {**SIZES, "num_single_layers": 1, "text_embed_dim": WIDE, "rope_axes_dim": (4, 4, 8)}
    model = made("MotifVideoTransformer3DModel", in_channels=33, out_channels=16, **sizes)
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    return {"transformer": model, "vae": parts_of(joint.wan())["vae"], "scheduler": flow(), "guider": guider}


def easy_parts(name: str) -> dict[str, Any]:
    channels = {"EasyAnimateControlPipeline": 32, "EasyAnimateInpaintPipeline": 33}.get(name, 16)
    sizes = {"num_attention_heads": HEADS, "attention_head_dim": 16, "num_layers": 2, "mmdit_layers": 2, "time_embed_dim": 2}
    shape = {"in_channels": channels, "out_channels": 16, "patch_size": 2, "text_embed_dim": WIDE}
    model = made("EasyAnimateTransformer3DModel", **sizes, **shape)
    blocks = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 16}
    return {"transformer": model, "vae": made("AutoencoderKLMagvit", **blocks), "scheduler": flow()}


def easy_given(_: str) -> dict[str, Any]:
    clip = {"video": noise(5, 1, 3, 5, 32, 32), "mask_video": torch.ones(1, 1, 5, 32, 32) * 255}
    return {**masked(), **clip, "output_type": "latent"}


def sana_video_parts(_: str) -> dict[str, Any]:
    cross = {"num_cross_attention_heads": HEADS, "cross_attention_head_dim": 12, "cross_attention_dim": 24, "caption_channels": WIDE}
    sizes = {"num_attention_heads": HEADS, "attention_head_dim": 12, "num_layers": 2, "sample_size": 4}
    parts = {"transformer": made("SanaVideoTransformer3DModel", in_channels=16, out_channels=16, **sizes, **cross)}
    return {**parts, "vae": parts_of(joint.wan())["vae"], "scheduler": flow()}


def hunyuan15_parts(_: str) -> dict[str, Any]:
    sizes = {
        "num_attention_heads": HEADS,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "rope_axes_dim": (4, 4, 8),
    }
    widths = {"in_channels": 9, "out_channels": 4, "text_embed_dim": WIDE, "text_embed_2_dim": WIDE, "image_embed_dim": WIDE}
    model = made("HunyuanVideo15Transformer3DModel", **sizes, **widths, target_size=32, task_type="t2v")
    blocks = {"latent_channels": 4, "block_out_channels": (16,) * 5, "layers_per_block": 1}
    vae = made("AutoencoderKLHunyuanVideo15", **blocks)
    return {"transformer": model, "vae": vae, "scheduler": flow(), "guider": diffusers.ClassifierFreeGuidance(guidance_scale=3.0)}


def hunyuan15_given(name: str) -> dict[str, Any]:
    return {**hunyuan_image_given(name), "height": 32, "width": 32}


def hunyuan_image_parts(name: str) -> dict[str, Any]:
    sizes = {**SIZES, "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": WIDE}
    refiner = "Refiner" in name
    patch = {"patch_size": (1, 1, 1), "rope_axes_dim": (4, 4, 8)} if refiner else {"patch_size": (1, 1), "rope_axes_dim": (8, 8)}
    channels = {"in_channels": 8 if refiner else 4, "out_channels": 4, "text_embed_2_dim": None if refiner else WIDE}
    guider = diffusers.AdaptiveProjectedMixGuidance(guidance_scale=3.0)
    parts = {"transformer": made("HunyuanImageTransformer2DModel", **sizes, **patch, **channels), "scheduler": flow(), "guider": guider}
    return {**parts, "ocr_guider": guider}


def hunyuan_image_given(_: str) -> dict[str, Any]:
    second = {f"{name}_2": value for name, value in masked().items() if value is not None and "attention" not in name}
    second |= {f"{name}_mask_2": torch.ones(1, TEXT, dtype=torch.long) for name in ("prompt_embeds", "negative_prompt_embeds")}
    return {**masked(), **second, "output_type": "latent", "height": 128, "width": 128}


KITS: tuple[Kit, ...] = (
    Kit("HunyuanImagePipeline", hunyuan_image_parts, hunyuan_image_given),
    Kit("EasyAnimate[!C]*", easy_parts, easy_given),
    Kit("SanaVideo*", sana_video_parts, lambda _: {**plain(), "frames": 5, "output_type": "latent"}),
    Kit("SanaImageToVideo*", sana_video_parts, lambda _: {**plain(), "frames": 5, "output_type": "latent"}),
    Kit("HunyuanVideo15Pipeline", hunyuan15_parts, hunyuan15_given),
    Kit("AnimateDiffSDXL*", xl_parts, animate_given, adapted),
    Kit("AnimateDiff*", sd_parts, animate_given, adapted),
    Kit("PIA*", sd_parts, animate_given, adapted),
    *(Kit(glob, wan_parts, wan_given) for glob in ("Wan[IPV]*", "SkyReels*", "Lucy*", "Chrono*", "AnyFlow*")),
    Kit("CogVideoX*", cog_parts, lambda _: video(control_video=[picture(40 + i) for i in range(FRAMES)])),
    Kit("MotifVideoPipeline", motif_parts, lambda _: video()),
    Kit("LTX*", ltx_parts, lambda _: video()),
    Kit("HunyuanVideo[!1]*", hunyuan_parts, hunyuan_given),
    Kit("HunyuanSky*", hunyuan_parts, hunyuan_given),
    Kit("Mochi*", mochi_parts, lambda _: video()),
    Kit("Latte*", latte_parts, lambda _: video(video_length=FRAMES)),
    Kit("Allegro*", allegro_parts, lambda _: video()),
    Kit("TextToVideoSD*", unet3d_parts, sd_given),
    Kit("VideoToVideoSD*", unet3d_parts, sd_given),
    Kit("StableVideo*", lambda _: parts_of(pipelines_video.svd()), lambda _: {"num_frames": 3, "height": 8, "width": 16}),
)
