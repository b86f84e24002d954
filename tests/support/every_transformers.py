"""Kits of tiny parts for pipelines that make images with transformers; text encoders are left out, as prompts are given encoded."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pipelines_transformers as joint
import torch
from diffusers import AutoencoderDC, AutoencoderKL, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from every_kits import LEFT_OUT, Kit, Words
from pipelines_text import LENGTH, clip_encoder, clip_tokenizer
from pipelines_transformers import HEADS, TEXT, WIDE, flow_vae, flux_transformer, noise, texts

import pipelines
from pipelines import picture, processor, square_mask, vae, vision

DEPTH, INNER = joint.DEPTH, joint.INNER
ROPE = (4, 4, 8)
SIZES = {"num_layers": 2, "attention_head_dim": DEPTH, "num_attention_heads": HEADS}


def flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler()


def made(cls: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return getattr(diffusers, cls)(**settings).eval()


def parts_of(built: Any) -> dict[str, Any]:
    """The components of a tiny pipeline that the tests have already, except those that are absent."""
    return {name: part for name, part in built[0].components.items() if part is not None}


def masked(**changes: Any) -> dict[str, Any]:
    """Encoded prompts, with masks under either name."""
    given = {**texts(pooled=False), **changes}
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        ones = torch.ones(1, given[name].shape[1], dtype=torch.long)
        given |= {f"{name}_mask": ones, f"{name.replace('embeds', 'attention_mask')}": ones}
    return {**given, "prompt": None, "negative_prompt": None}


def floats(given: dict[str, Any]) -> dict[str, Any]:
    """The same with masks as numbers."""
    return {name: value.float() if "mask" in name and isinstance(value, torch.Tensor) else value for name, value in given.items()}


def flux_parts(name: str) -> dict[str, Any]:
    channels = {"FluxFillPipeline": 12}.get(name, 8 if name.startswith("FluxControl") and "Net" not in name else 4)
    channels = 12 if name.startswith("VisualCloze") else channels
    torch.manual_seed(0)
    parts = {"scheduler": flow(), "vae": flow_vae(), "transformer": flux_transformer(channels=channels, out=4)}
    if "ControlNet" in name:
        sizes = {**SIZES, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": WIDE, "pooled_projection_dim": WIDE}
        parts["controlnet"] = made("FluxControlNetModel", in_channels=4, axes_dims_rope=[4, 4, 8], **sizes)
    return parts


def flux_given(name: str) -> dict[str, Any]:
    given = {**texts(), "height": 16, "width": 16, "image": picture(1, 16, 16), "mask_image": square_mask(16, 16)}
    given |= {"control_image": picture(5, 16, 16), "max_area": 256, "_auto_resize": False}
    if "KontextInpaint" in name:
        given |= {"image_reference": picture(10, 16, 16)}
    return given


def sd3_parts(name: str) -> dict[str, Any]:
    parts = parts_of(joint.sd3())
    if name == "StableDiffusion3InpaintPipeline":
        config = {**parts["transformer"].config, "in_channels": 16, "out_channels": 16}
        parts["transformer"] = diffusers.SD3Transformer2DModel.from_config(config).eval()
        parts["vae"] = flow_vae(16)
    if "ControlNet" in name:
        sizes = {**SIZES, "num_layers": 1, "joint_attention_dim": WIDE, "caption_projection_dim": INNER, "pooled_projection_dim": WIDE}
        extra = {"extra_conditioning_channels": 1} if "Inpaint" in name else {}
        parts["controlnet"] = made("SD3ControlNetModel", in_channels=1, out_channels=1, sample_size=16, **sizes, **extra)
    return {**parts, "pag_applied_layers": "blocks.1"}


def sd3_given(name: str) -> dict[str, Any]:
    small = {"height": 16, "width": 16, "image": picture(1, 16, 16), "mask_image": square_mask(16, 16)}
    return {**texts(), **small, "control_image": picture(5, 16, 16), "control_mask": square_mask(16, 16), "mu": LEFT_OUT}


def qwen_parts(name: str) -> dict[str, Any]:
    parts = {**parts_of(joint.qwen("Plus" in name)), "text_encoder": Words()}
    if "ControlNet" in name:
        sizes = {**SIZES, "num_layers": 1, "joint_attention_dim": WIDE, "axes_dims_rope": ROPE}
        extra = {"extra_condition_channels": 4} if "Inpaint" in name else {}
        parts["controlnet"] = made("QwenImageControlNetModel", in_channels=16, out_channels=4, **sizes, **extra)
    return parts


def qwen_given(name: str) -> dict[str, Any]:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint, pipeline_qwenimage_layered

    pipeline_qwenimage_edit_inpaint.calculate_dimensions = lambda area, ratio: (*joint.small_area(area, ratio), None)
    pipeline_qwenimage_layered.calculate_dimensions = joint.small_area
    layered = {"prompt": "a dog"} if "Layered" in name else {}
    return {**masked(), **layered, "control_mask": square_mask(), "layers": 2}


def chroma_parts(_: str) -> dict[str, Any]:
    approximator = {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 1}
    sizes = {**SIZES, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": WIDE, "axes_dims_rope": ROPE}
    model = made("ChromaTransformer2DModel", in_channels=4, **sizes, **approximator)
    model.register_to_config(guidance_embeds=False)  # which its inpainting pipeline reads
    return {"scheduler": flow(), "vae": flow_vae(), "transformer": model}


def small(**changes: Any) -> dict[str, Any]:
    """Arguments for latents whose cells are pixels."""
    return {**masked(), "height": 16, "width": 16, "image": picture(1, 16, 16), "mask_image": square_mask(16, 16), **changes}


def pixart_parts(name: str) -> dict[str, Any]:
    widths = {"cross_attention_dim": INNER, "caption_channels": WIDE, "sample_size": 16, "norm_num_groups": 1}
    model = made("PixArtTransformer2DModel", in_channels=4, out_channels=8, **SIZES, **widths, use_additional_conditions=False)
    return {"vae": vae(), "transformer": model, "scheduler": pipelines.SCHEDULERS["ddim"](), "pag_applied_layers": "blocks.1"}


def plain(**changes: Any) -> dict[str, Any]:
    return {**masked(), "use_resolution_binning": False, "clean_caption": False, "complex_human_instruction": None, **changes}


def deep_vae() -> AutoencoderDC:
    blocks = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
    kinds = {"encoder_block_types": ("ResBlock", "ResBlock"), "decoder_block_types": ("ResBlock", "ResBlock")}
    counts = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    scales = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
    return AutoencoderDC(latent_channels=4, **blocks, **kinds, **counts, **scales, scaling_factor=0.4).eval()


def sana_parts(name: str) -> dict[str, Any]:
    cross = {"num_cross_attention_heads": HEADS, "cross_attention_head_dim": DEPTH, "cross_attention_dim": INNER, "caption_channels": WIDE}
    sizes = {"in_channels": 4, "out_channels": 4, **SIZES, **cross, "sample_size": 16}
    sprint = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"} if "Sprint" in name else {}
    parts = {"vae": deep_vae(), "transformer": made("SanaTransformer2DModel", **sizes, **sprint), "scheduler": flow()}
    if "Sprint" in name:
        parts["scheduler"] = diffusers.SCMScheduler()
    else:
        parts["scheduler"] = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    if "ControlNet" in name:
        parts["controlnet"] = made("SanaControlNetModel", **{**sizes, "num_layers": 1})
    return {**parts, "pag_applied_layers": "transformer_blocks.0"}


def wide_vae(shift: float | None = None) -> AutoencoderKL:
    """A latent cell is 8 x 8 pixels, as many pipelines take for granted."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(block_out_channels=(4,) * 4, **kinds, latent_channels=4, norm_num_groups=2, shift_factor=shift).eval()


def shifted_vae() -> AutoencoderKL:
    model = vae()
    model.register_to_config(shift_factor=0.1)
    return model


def hunyuan_dit_parts(name: str) -> dict[str, Any]:
    widths = {"cross_attention_dim": WIDE, "cross_attention_dim_t5": WIDE, "pooled_projection_dim": 8, "hidden_size": INNER}
    tokens = {"text_len": TEXT, "text_len_t5": TEXT, "sample_size": 16, "patch_size": 2, "in_channels": 4}
    sizes = {"attention_head_dim": DEPTH, "num_attention_heads": HEADS, **widths, **tokens}
    parts = {
        "vae": wide_vae(),
        "transformer": made("HunyuanDiT2DModel", num_layers=4, **sizes),
        "scheduler": pipelines.SCHEDULERS["ddim"](),
    }
    if "ControlNet" in name:
        parts["controlnet"] = made("HunyuanDiT2DControlNetModel", transformer_num_layers=4, **sizes)
    return {**parts, "pag_applied_layers": "blocks.1"}


def hunyuan_dit_given(_: str) -> dict[str, Any]:
    second = {f"{name}_2": value for name, value in masked().items()}
    return plain(**{**second, "height": 64, "width": 64, "control_image": picture(5, 64, 64)})


def cogview_parts(name: str) -> dict[str, Any]:
    widths = {"text_embed_dim": WIDE, "time_embed_dim": 8, "condition_dim": 2, "pos_embed_max_size": 16, "sample_size": 16}
    sizes = {"in_channels": 8 if "Control" in name else 4, "out_channels": 4, **SIZES, **widths}
    four = "CogView4" in name
    extra = {"rope_axes_dim": (8, 8)} if four else {}
    model = made("CogView4Transformer2DModel" if four else "CogView3PlusTransformer2DModel", **sizes, **extra)
    schedule = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    scheduler = FlowMatchEulerDiscreteScheduler() if four else diffusers.CogVideoXDDIMScheduler(**schedule)
    return {"vae": vae(), "transformer": model, "scheduler": scheduler}


def aura_parts(_: str) -> dict[str, Any]:
    sizes = {"attention_head_dim": DEPTH, "num_attention_heads": HEADS, "num_mmdit_layers": 1, "num_single_dit_layers": 2}
    widths = {"joint_attention_dim": WIDE, "caption_projection_dim": INNER, "pos_embed_max_size": 256, "sample_size": 16}
    return {"vae": vae(), "transformer": made("AuraFlowTransformer2DModel", **sizes, **widths), "scheduler": flow()}


def lumina_parts(name: str) -> dict[str, Any]:
    if "Lumina2" in name:
        rope = {"axes_dim_rope": (4, 6, 6), "axes_lens": (64, 64, 64), "multiple_of": 8}
        sizes = {"hidden_size": INNER, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": HEADS, "num_kv_heads": HEADS}
        return {
            "vae": shifted_vae(),
            "transformer": made("Lumina2Transformer2DModel", in_channels=4, cap_feat_dim=WIDE, **sizes, **rope),
            "scheduler": flow(),
        }
    sizes = {"hidden_size": INNER, "num_layers": 2, "num_attention_heads": HEADS, "num_kv_heads": HEADS, "multiple_of": 8}
    model = made("LuminaNextDiT2DModel", in_channels=4, cross_attention_dim=WIDE, sample_size=16, **sizes)
    return {"vae": vae(), "transformer": model, "scheduler": flow()}


def zimage_parts(name: str) -> dict[str, Any]:
    rope = {"axes_dims": [4, 4, 8], "axes_lens": [256, 64, 64]}
    sizes = {"dim": INNER, "n_refiner_layers": 1, "n_heads": HEADS, "n_kv_heads": HEADS}
    model = made("ZImageTransformer2DModel", in_channels=4, n_layers=2, cap_feat_dim=WIDE, **sizes, **rope)
    parts = {"vae": shifted_vae(), "transformer": model, "scheduler": flow()}
    if "ControlNet" in name:
        places = {"control_layers_places": [0], "control_refiner_layers_places": [0], "add_control_noise_refiner": "control_noise_refiner"}
        width = 9 if "Inpaint" in name else 4
        parts["controlnet"] = made("ZImageControlNetModel", control_in_dim=width, **places, **sizes)
    return parts


def zimage_given(_: str) -> dict[str, Any]:
    return {"prompt_embeds": [noise(1, TEXT, WIDE)], "negative_prompt_embeds": [noise(2, TEXT, WIDE)]}


def streamed(cls: str, **changes: Any) -> dict[str, Any]:
    """A transformer of double and single blocks, as Flux's."""
    widths = {"joint_attention_dim": WIDE, "in_channels": 4, "axes_dims_rope": ROPE}
    return {
        "scheduler": flow(),
        "vae": flow_vae(),
        "transformer": made(cls, **{**SIZES, "num_layers": 1, "num_single_layers": 1}, **widths, **changes),
    }


def klein_given(_: str) -> dict[str, Any]:
    large = {"height": 64, "width": 64, "image": picture(1, 64, 64), "mask_image": square_mask(64, 64)}
    return small(**large, image_reference=picture(10, 64, 96))


def kandinsky_parts(name: str) -> dict[str, Any]:
    parts = parts_of(joint.kandinsky())
    if "Inpaint" in name:
        parts["unet"] = type(parts["unet"]).from_config({**parts["unet"].config, "in_channels": 9}).eval()
    prior = kandinsky_prior()
    combined = {f"prior_{key}": part for key, part in prior.items()}
    return {**combined, **(prior if "Prior" in name else parts), "prior_prior": prior["prior"]}


def kandinsky_prior() -> dict[str, Any]:
    sizes = {"num_attention_heads": HEADS, "attention_head_dim": 4, "num_layers": 1, "embedding_dim": 8, "num_embeddings": LENGTH}
    prior = made("PriorTransformer", **sizes)
    scheduler = diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=100)
    encoders = {"image_encoder": vision(), "text_encoder": clip_encoder(True), "tokenizer": clip_tokenizer()}
    return {"prior": prior, **encoders, "image_processor": processor(), **({"scheduler": scheduler})}


def kandinsky_given(_: str) -> dict[str, Any]:
    embeds = {"image_embeds": noise(1, 1, 8), "negative_image_embeds": noise(2, 1, 8)}
    return {**embeds, "hint": noise(3, 1, 3, 32, 32), "prompt": "a red dog, a cat", "mask_image": np.ones((32, 32), dtype=np.float32)}


KITS: tuple[Kit, ...] = (
    Kit("StableDiffusion3*", sd3_parts, sd3_given),
    Kit("Flux2*", lambda _: parts_of(joint.klein()), klein_given),
    Kit("Flux[CFIK]*", flux_parts, flux_given),
    Kit("FluxPipeline", flux_parts, flux_given),
    Kit("QwenImage[!2]*", qwen_parts, qwen_given),
    Kit("Chroma*", chroma_parts, lambda _: floats(small())),
    Kit("PixArt*", pixart_parts, lambda _: plain()),
    Kit("SanaSprintImg2Img*", sana_parts, lambda _: plain(num_inference_steps=2, strength=0.6)),
    Kit("Sana[CPS]*", sana_parts, lambda _: plain()),
    Kit("HunyuanDiT*", hunyuan_dit_parts, hunyuan_dit_given),
    Kit("CogView*", cogview_parts, lambda _: plain()),
    Kit("AuraFlow*", aura_parts, lambda _: plain()),
    Kit("Lumina*", lumina_parts, lambda _: plain()),
    Kit("ZImage[!O]*", zimage_parts, zimage_given),
    Kit("BriaPipeline", lambda _: streamed("BriaTransformer2DModel"), lambda _: small()),
    Kit("Ovis*", lambda _: streamed("OvisImageTransformer2DModel", out_channels=4), lambda _: small()),
    Kit("KandinskyV22*", kandinsky_parts, kandinsky_given),
)
