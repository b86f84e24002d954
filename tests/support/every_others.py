"""Kits of tiny parts for pipelines of further families, of which each has few classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pipelines_sequences
import pipelines_transformers as joint
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from every_kits import LEFT_OUT, Kit, Words, sd_parts
from every_transformers import ROPE, SIZES, flow, made, masked, parts_of, shifted_vae, wide_vae
from pipelines_text import clip_encoder, clip_tokenizer
from pipelines_transformers import HEADS, TEXT, WIDE, noise, texts

import pipelines
from pipelines import picture

DEPTH, INNER = joint.DEPTH, joint.INNER


def with_methods(**methods: Any) -> Callable[[Any], None]:
    """Stand-ins for what needs a text encoder of billions."""

    def replace(pipeline: Any) -> None:
        for name, method in methods.items():
            setattr(pipeline, name, method)

    return replace


# Of DeepFloyd IF and Kandinsky 2.1: text and image share a softmax in each UNet block.

ADDED = {
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "attention_head_dim": 2,
    "norm_num_groups": 2,
    "cross_attention_dim": 8,
    "resnet_time_scale_shift": "scale_shift",
}


def if_parts(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    large = "SuperResolution" in name
    text = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2, "encoder_hid_dim": WIDE, "encoder_hid_dim_type": "text_proj"}
    sizes = {"in_channels": 6 if large else 3, "out_channels": 6, "class_embed_type": "timestep" if large else None, "sample_size": 16}
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range", clip_sample=True)
    parts = {"unet": UNet2DConditionModel(**ADDED, **text, **sizes).eval(), "scheduler": scheduler}
    return {**parts, "image_noising_scheduler": diffusers.DDPMScheduler(), "requires_safety_checker": False}


def if_given(name: str) -> dict[str, Any]:
    given = {**texts(pooled=False), "original_image": picture(2, 16, 16) if "Inpaint" not in name else picture(2), "noise_level": 5}
    return {**given, "height": 32 if "Super" in name else 16, "width": 32 if "Super" in name else 16, "eta": LEFT_OUT}


def kandinsky_parts(name: str) -> dict[str, Any]:
    from every_transformers import kandinsky_prior

    torch.manual_seed(0)
    text = {"addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": 8}
    channels = {"in_channels": 9 if "Inpaint" in name else 4, "out_channels": 8, "cross_attention_dim": 8}
    unet = UNet2DConditionModel(**{**ADDED, **text, **channels}).eval()
    parts = {"unet": unet, "movq": parts_of(joint.kandinsky())["movq"], "scheduler": pipelines.SCHEDULERS["ddim"]()}
    prior = kandinsky_prior()
    combined = {f"prior_{key}": part for key, part in prior.items()}
    return {**combined, **parts, "prior_prior": prior["prior"]}


def kandinsky_given(_: str) -> dict[str, Any]:
    embeds = {"image_embeds": noise(1, 1, 8), "negative_image_embeds": noise(2, 1, 8), "prompt": "a red dog"}
    return {**embeds, "mask_image": np.ones((32, 32), dtype=np.float32)}


def kandinsky_text(pipeline: Any) -> None:
    """Two rows of encoded text, the negative one first."""
    encoded = (noise(3, 2, 8), noise(4, 2, TEXT, 8), torch.ones(2, TEXT))
    for owner in (pipeline, getattr(pipeline, "decoder_pipe", None)):
        if owner is not None:
            owner._encode_prompt = lambda *_, **__: encoded


def kandinsky3_parts(_: str) -> dict[str, Any]:
    widths = {"block_out_channels": (8, 16, 32, 64), "groups": 2, "layers_per_block": 2, "time_embedding_dim": 8, "attention_head_dim": 4}
    model = made("Kandinsky3UNet", cross_attention_dim=8, encoder_hid_dim=WIDE, **widths)
    return {"unet": model, "movq": parts_of(joint.kandinsky())["movq"], "scheduler": diffusers.DDPMScheduler()}


def kandinsky3_given(_: str) -> dict[str, Any]:
    masks = {"attention_mask": torch.ones(1, TEXT), "negative_attention_mask": torch.ones(1, TEXT)}
    return {**texts(pooled=False), **masks, "height": 128, "width": 128, "image": picture(1, 128, 128)}


def kandinsky5_parts(name: str) -> dict[str, Any]:
    widths = {"in_text_dim": WIDE, "in_text_dim2": WIDE, "time_dim": 8, "model_dim": INNER, "ff_dim": 16, "axes_dims": ROPE}
    blocks = {"num_text_blocks": 1, "num_visual_blocks": 2, "visual_cond": "I2" in name or "T2V" in name}
    model = made("Kandinsky5Transformer3DModel", in_visual_dim=4, out_visual_dim=4, **widths, **blocks)
    return {"transformer": model, "vae": kandinsky5_vae(name), "scheduler": flow()}


def kandinsky5_vae(name: str) -> Any:
    if name == "Kandinsky5I2VPipeline":
        sizes = {"block_out_channels": (8,) * 4, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2}
        return made("AutoencoderKLHunyuanVideo", **sizes)
    return wide_vae() if "2I" in name else None


def kandinsky5_given(_: str) -> dict[str, Any]:
    given: dict[str, Any] = {"output_type": "latent"}
    for seed, prefix in enumerate(("prompt", "negative_prompt")):
        given[f"{prefix}_embeds_qwen"] = noise(seed, 1, TEXT, WIDE)
        given[f"{prefix}_embeds_clip"] = noise(seed + 2, 1, WIDE)
        given[f"{prefix}_cu_seqlens"] = torch.tensor([0, TEXT], dtype=torch.int32)
    return given


# Transformers of images.


def prx_parts(name: str) -> dict[str, Any]:
    sizes = {"hidden_size": INNER, "num_heads": HEADS, "depth": 2, "axes_dim": [8, 8], "context_in_dim": WIDE}
    channels = 3 if "Pixel" in name else 4
    model = made("PRXTransformer2DModel", in_channels=channels, patch_size=2, **sizes)
    return {"transformer": model, "vae": shifted_vae(), "scheduler": flow()}


def prx_given(_: str) -> dict[str, Any]:
    ones = torch.ones(1, TEXT, dtype=torch.bool)
    masks = {"prompt_attention_mask": ones, "negative_prompt_attention_mask": ones}
    return {**masked(), **masks, "use_resolution_binning": False}


def ernie_parts(_: str) -> dict[str, Any]:
    sizes = {"hidden_size": INNER, "num_attention_heads": HEADS, "num_layers": 2, "ffn_hidden_size": 16, "rope_axis_dim": ROPE}
    sizes = {("rope_axes_dim" if key == "rope_axis_dim" else key): value for key, value in sizes.items()}
    model = made("ErnieImageTransformer2DModel", in_channels=16, out_channels=16, text_in_dim=WIDE, **sizes)
    return {"transformer": model, "vae": parts_of(joint.klein())["vae"], "scheduler": flow()}


def listed(_: str) -> dict[str, Any]:
    return {"prompt_embeds": [noise(1, TEXT, WIDE)], "negative_prompt_embeds": [noise(2, TEXT, WIDE)], "output_type": "latent"}


def glm_parts(_: str) -> dict[str, Any]:
    widths = {"text_embed_dim": WIDE, "time_embed_dim": 8, "condition_dim": 2, "prior_vq_quantizer_codebook_size": 16}
    model = made("GlmImageTransformer2DModel", in_channels=4, out_channels=4, **SIZES, **widths)
    return {"transformer": model, "vae": pipelines.vae(), "scheduler": flow()}


def hidream_parts(_: str) -> dict[str, Any]:
    sizes = {**SIZES, "num_layers": 1, "num_single_layers": 1, "caption_channels": [WIDE, WIDE], "text_emb_dim": WIDE}
    rope = {"axes_dims_rope": (8, 4, 4), "max_resolution": (16, 16), "llama_layers": (0, 1), "patch_size": 2}
    model = made("HiDreamImageTransformer2DModel", in_channels=4, **sizes, **rope, force_inference_output=True)
    return {"transformer": model, "vae": shifted_vae(), "scheduler": flow()}


def hidream_given(_: str) -> dict[str, Any]:
    given: dict[str, Any] = texts()
    for seed, prefix in enumerate(("prompt_embeds", "negative_prompt_embeds")):
        given |= {f"{prefix}_t5": noise(seed, 1, TEXT, WIDE), f"{prefix}_llama3": noise(seed + 3, 2, 1, TEXT, WIDE)}
    return given


def krea_parts(_: str) -> dict[str, Any]:
    text = {"text_hidden_dim": WIDE, "num_text_layers": 2, "text_num_attention_heads": 2, "text_num_key_value_heads": 2}
    sizes = {"num_layers": 2, "attention_head_dim": DEPTH, "num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    blocks = {"num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "intermediate_size": 16, "text_intermediate_size": 16}
    model = made("Krea2Transformer2DModel", in_channels=16, timestep_embed_dim=16, axes_dims_rope=ROPE, **text, **sizes, **blocks)
    return {"transformer": model, "vae": parts_of(joint.qwen())["vae"], "scheduler": flow()}


def krea_given(_: str) -> dict[str, Any]:
    masks = {f"{prefix}_mask": torch.ones(1, TEXT, dtype=torch.bool) for prefix in ("prompt_embeds", "negative_prompt_embeds")}
    return {"prompt_embeds": noise(1, 1, TEXT, 2, WIDE), "negative_prompt_embeds": noise(2, 1, TEXT, 2, WIDE), **masks}


def nucleus_parts(_: str) -> dict[str, Any]:
    sizes = {**SIZES, "joint_attention_dim": WIDE, "axes_dims_rope": ROPE, "moe_enabled": False, "num_key_value_heads": HEADS}
    model = made("NucleusMoEImageTransformer2DModel", in_channels=16, out_channels=4, **sizes, capacity_factors=[1.0, 1.0])
    return {"transformer": model, "vae": parts_of(joint.qwen())["vae"], "scheduler": flow()}


def dit_parts(_: str) -> dict[str, Any]:
    model = made("DiTTransformer2DModel", in_channels=4, out_channels=8, **SIZES, sample_size=16, norm_num_groups=1)
    return {"transformer": model, "vae": pipelines.vae(), "scheduler": pipelines.SCHEDULERS["ddim"]()}


def amused_parts(_: str) -> dict[str, Any]:
    widths = {"hidden_size": 8, "cond_embed_dim": 8, "micro_cond_encode_dim": 2, "micro_cond_embed_dim": 10, "encoder_hidden_size": 8}
    heads = {"block_num_heads": 1, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "num_res_blocks": 1}
    codes = {"vocab_size": 32, "codebook_size": 32, "in_channels": 8, "block_out_channels": 8, "sample_size": 32}
    blocks = {"block_out_channels": (8,), "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    sizes = {
        "latent_channels": 8,
        "norm_num_groups": 2,
        "num_vq_embeddings": 32,
        "vq_embed_dim": 8,
        "layers_per_block": 1,
        "lookup_from_codebook": True,
    }
    parts = {"transformer": made("UVit2DModel", **widths, **heads, **codes), "vqvae": made("VQModel", **blocks, **sizes)}
    return {
        **parts,
        "text_encoder": clip_encoder(True),
        "tokenizer": clip_tokenizer(),
        "scheduler": diffusers.AmusedScheduler(mask_token_id=31),
    }


def unconditional_parts(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    channels = 6 if name.startswith("LDMSuper") else 4 if name.startswith("LDM") else 3
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 16}
    model = UNet2DModel(in_channels=channels, out_channels=3 if channels == 6 else channels, **blocks, **sizes).eval()
    schedulers = {"Consistency*": "CMStochasticIterativeScheduler", "KarrasVe*": "KarrasVeScheduler", "ScoreSde*": "ScoreSdeVeScheduler"}
    other = {"DDPM*": "DDPMScheduler", "RePaint*": "RePaintScheduler", "PNDM*": "PNDMScheduler"}
    cls = next((cls for glob, cls in {**schedulers, **other}.items() if name.startswith(glob[:-1])), "DDIMScheduler")
    vqvae = diffusers.VQModel(**VQ, latent_channels=channels if channels == 4 else 3) if name.startswith("LDM") else None
    return {"unet": model, "scheduler": getattr(diffusers, cls)(), "vqvae": vqvae}


VQ = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
    "num_vq_embeddings": 12,
}


def ldm_parts(_: str) -> dict[str, Any]:
    parts = sd_parts("")
    return {"unet": parts["unet"], "vqvae": parts["vae"], "bert": Words(), "tokenizer": clip_tokenizer(), "scheduler": parts["scheduler"]}


def unclip_parts(_: str) -> dict[str, Any]:
    absent = ("feature_extractor", "image_encoder", "image_normalizer", "image_noising_scheduler")
    return {**sd_parts(""), **dict.fromkeys(absent)}


def unclip_given(_: str) -> dict[str, Any]:
    return {"prompt": "a dog", "image": picture(1)}


def glm_given(_: str) -> dict[str, Any]:
    return {
        **texts(pooled=False),
        "prior_token_ids": torch.zeros(1, 64, dtype=torch.long),
        "prompt": None,
        "image": None,
        "output_type": "latent",
    }


def audio_parts(_: str) -> dict[str, Any]:
    from diffusers import StableAudioProjectionModel

    sizes = {"num_layers": 2, "attention_head_dim": 4, "num_attention_heads": HEADS, "num_key_value_attention_heads": HEADS}
    widths = {"cross_attention_dim": 8, "cross_attention_input_dim": 8, "global_states_input_dim": 16, "time_proj_dim": 8}
    model = made("StableAudioDiTModel", sample_size=4, in_channels=3, out_channels=3, **sizes, **widths)
    vae = made(
        "AutoencoderOobleck",
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    projection = StableAudioProjectionModel(text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32)
    return {"transformer": model, "vae": vae, "projection_model": projection.eval(), "scheduler": pipelines.SCHEDULERS["euler"]()}


def audio_given(_: str) -> dict[str, Any]:
    masks = {f"{prefix}attention_mask": torch.ones(1, TEXT, dtype=torch.long) for prefix in ("", "negative_")}
    return {**texts(width=8, pooled=False), **masks, "output_type": "pt"}


def no_parts(_: str) -> dict[str, Any]:
    return {}


UNNAMED = (
    "*Prior*",
    "*Cascade*",
    "Wuerstchen*",
    "UnCLIP*",
    "ShapE*",
    "Versatile*",
    "DiffusionGemma*",
    "LLaDA2*",
    "*LatentUpsample*",
    "*DiffusionDecode*",
)
"""Classes whose denoiser is no `unet` and no `transformer`, or which have none: refused before any part is looked at."""

KITS: tuple[Kit, ...] = (
    Kit("IF*", if_parts, if_given),
    Kit("Kandinsky3*", kandinsky3_parts, kandinsky3_given),
    Kit("Kandinsky5*", kandinsky5_parts, kandinsky5_given),
    *(Kit(glob, None) for glob in UNNAMED),
    Kit("Kandinsky[!6]*", kandinsky_parts, kandinsky_given, kandinsky_text),
    Kit("PRX*", prx_parts, prx_given),
    Kit("Ernie*", ernie_parts, listed),
    Kit("HiDream*", hidream_parts, hidream_given),
    Kit("Krea2*", krea_parts, krea_given),
    Kit("Nucleus*", nucleus_parts, lambda _: masked()),
    Kit("DiT*", dit_parts, lambda _: {"class_labels": [1]}),
    Kit("Amused*", amused_parts, lambda _: {"prompt": "a dog", "height": LEFT_OUT, "width": LEFT_OUT}),
    *(Kit(f"{kind}*", unconditional_parts, no_parts) for kind in ("DDIM", "DDPM", "KarrasVe", "ScoreSde", "Consistency", "RePaint")),
    *(Kit(f"{kind}*", unconditional_parts, no_parts) for kind in ("LDMPipeline", "LDMSuper")),
    Kit("PNDM*", unconditional_parts, lambda _: {"num_inference_steps": 8}),
    Kit("LDMText*", ldm_parts, lambda _: {"prompt": "a dog"}),
    Kit("StableUnCLIPImg2Img*", unclip_parts, unclip_given),
    Kit("Glm*", glm_parts, glm_given),
    Kit("StableAudioPipeline", audio_parts, audio_given),
    Kit("OmniGen*", lambda _: parts_of(pipelines_sequences.omnigen()), lambda _: pipelines_sequences.omnigen()[1]()),
)
