"""Tiny pipelines around transformers, and one UNet, that join reference, text and image in one softmax; as `pipelines`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection, SiglipVisionConfig, SiglipVisionModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    from diffusers import (
        AutoencoderKL,
        AutoencoderKLFlux2,
        AutoencoderKLQwenImage,
        AutoencoderKLWan,
        DDIMScheduler,
        FlowMatchEulerDiscreteScheduler,
        Flux2Transformer2DModel,
        FluxTransformer2DModel,
        QwenImageTransformer2DModel,
        SD3Transformer2DModel,
        UNet2DConditionModel,
        VQModel,
        WanTransformer3DModel,
    )

from pipelines import PATCHES, Built, generator, picture, processor, vision_config

TEXT = 6
WIDE = 32
"""Channels of context tokens."""
HEADS, DEPTH = 2, 16
INNER = HEADS * DEPTH
LINEAR: dict[str, tuple[int, ...]] = {"weight": (WIDE,), "bias": ()}
RESAMPLED = 8
"""Tokens of SD3's image resampler."""


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def texts(tokens: int = TEXT, other: int = TEXT, width: int = WIDE, pooled: bool = True, guided: bool = True) -> dict[str, Any]:
    given = {"prompt_embeds": noise(1, 1, tokens, width)}
    if guided:
        given["negative_prompt_embeds"] = noise(2, 1, other, width)
    if pooled:
        given["pooled_prompt_embeds"] = noise(3, 1, width)
    if pooled and guided:
        given["negative_pooled_prompt_embeds"] = noise(4, 1, width)
    return given


def settings(**changes: Any) -> dict[str, Any]:
    return {"num_inference_steps": 2, "output_type": "np", "height": 16, "width": 12, "generator": generator(), **changes}


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flow_vae(channels: int = 1) -> AutoencoderKL:
    """A latent cell is a pixel; pipelines pack 2 x 2 of them into a token."""
    shifts = {"shift_factor": 0.06, "scaling_factor": 1.5, "use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(block_out_channels=(4,), latent_channels=channels, norm_num_groups=1, **shifts).eval()


def flux_transformer(
    channels: int = 4, context: int = WIDE, pooled: int = WIDE, out: int | None = None, blocks: int = 1
) -> FluxTransformer2DModel:
    """Double blocks and one single block."""
    sizes = {"num_layers": blocks, "num_single_layers": 1, "attention_head_dim": DEPTH, "num_attention_heads": HEADS}
    widths = {"joint_attention_dim": context, "pooled_projection_dim": pooled, "axes_dims_rope": [4, 4, 8]}
    return FluxTransformer2DModel(patch_size=1, in_channels=channels, out_channels=out, **sizes, **widths).eval()


def flux(cls: Any = diffusers.FluxPipeline, **changes: Any) -> Any:
    torch.manual_seed(0)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return quiet(cls(scheduler=FlowMatchEulerDiscreteScheduler(), vae=flow_vae(), transformer=flux_transformer(**changes), **parts))


def flux_text(**changes: Any) -> Built:
    return flux(), lambda: {**texts(guided=False), **settings(), **changes}


def flux_guided() -> Built:
    return flux(), lambda: {**texts(other=TEXT), **settings(), "true_cfg_scale": 3.0}


def kontext(guided: bool = False, samples: int = 1) -> Built:
    size = {"max_area": 16 * 12, "_auto_resize": False, "num_images_per_prompt": samples}
    guidance = {"true_cfg_scale": 3.0} if guided else {}
    given = {**size, **guidance, "image": picture(10, 24, 16)}
    return flux(diffusers.FluxKontextPipeline), lambda: {**texts(guided=guided), **settings(), **given}


def flux_adapter(guided: bool = True, blocks: int = 1) -> Built:
    pipeline = flux(blocks=blocks)
    torch.manual_seed(1)
    weights = {
        f"{i}.to_{part}_ip.{kind}": noise(i, INNER, *shape) for i in range(blocks) for part in "kv" for kind, shape in LINEAR.items()
    }
    projection = {
        "proj.weight": torch.randn(4 * WIDE, 8),
        "proj.bias": torch.zeros(4 * WIDE),
        "norm.weight": torch.ones(WIDE),
        "norm.bias": torch.zeros(WIDE),
    }
    pipeline.transformer._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}], low_cpu_mem_usage=False)
    encoder, extractor = CLIPVisionModelWithProjection(vision_config(8)).eval(), processor()
    pipeline.register_modules(image_encoder=encoder, feature_extractor=extractor)
    pipeline.set_ip_adapter_scale(0.7)
    guidance = {"true_cfg_scale": 3.0} if guided else {}
    return pipeline, lambda: {**texts(guided=guided), **settings(), "ip_adapter_image": picture(10, 48, 32), **guidance}


def redux_prior() -> Built:
    """What turns an image into tokens behind 512 of text."""
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipImageProcessor

    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=16 // PATCHES
    )
    prior = diffusers.FluxPriorReduxPipeline(
        image_encoder=SiglipVisionModel(config).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
        image_embedder=ReduxImageEncoder(redux_dim=8, txt_in_features=4096).eval(),
    )
    return prior, lambda: {"image": picture(10)}


def redux() -> Built:
    """Flux with what its Redux prior made of an image behind 512 tokens of text."""
    prior, given_image = redux_prior()
    made = prior(**given_image())
    pipeline = flux(context=4096, pooled=768)
    given = {"prompt_embeds": made.prompt_embeds, "pooled_prompt_embeds": made.pooled_prompt_embeds}
    return pipeline, lambda: {**given, **settings()}


def flux_fill() -> Built:
    # 4 of the image, 4 of the masked image, 4 for each pixel of a mask cell.
    pipeline = flux(diffusers.FluxFillPipeline, channels=12, out=4)
    return pipeline, lambda: {**texts(guided=False), **settings(), "image": picture(1, 16, 12), "mask_image": picture(2, 16, 12)}


def klein(references: int = 1, keeps_keys: bool = False) -> Built:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",), "block_out_channels": (4,)}
    vae = AutoencoderKLFlux2(**blocks, layers_per_block=1, latent_channels=1, norm_num_groups=1, sample_size=32)
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": DEPTH, "num_attention_heads": HEADS}
    widths = {"joint_attention_dim": WIDE, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4)}
    transformer = Flux2Transformer2DModel(in_channels=4, **sizes, **widths, guidance_embeds=False).eval()
    parts = {"scheduler": FlowMatchEulerDiscreteScheduler(), "vae": vae.eval(), "text_encoder": None, "tokenizer": None}
    pipeline = quiet(diffusers.Flux2KleinPipeline(**parts, transformer=transformer))
    images = [picture(10 + i, 64, 64 + 32 * i) for i in range(references)]
    image = images[0] if references == 1 else images
    if not keeps_keys:
        return pipeline, lambda: {**texts(pooled=False), **settings(), "image": image}
    pipeline = quiet(diffusers.Flux2KleinKVPipeline(**parts, transformer=transformer))
    return pipeline, lambda: {**texts(pooled=False, guided=False), **settings(num_inference_steps=3), "image": image}


def sd3(adapter: bool = False, samples: int = 1) -> Built:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "attention_head_dim": DEPTH, "num_attention_heads": HEADS, "sample_size": 16, "patch_size": 2}
    widths = {"joint_attention_dim": WIDE, "caption_projection_dim": INNER, "pooled_projection_dim": WIDE, "pos_embed_max_size": 96}
    transformer = SD3Transformer2DModel(in_channels=1, out_channels=1, **sizes, **widths).eval()
    parts = dict.fromkeys(
        (
            "text_encoder",
            "tokenizer",
            "text_encoder_2",
            "tokenizer_2",
            "text_encoder_3",
            "tokenizer_3",
            "image_encoder",
            "feature_extractor",
        )
    )
    pipeline = quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=flow_vae().eval(), **parts
        )
    )
    given: dict[str, Any] = {"guidance_scale": 4.0, "num_images_per_prompt": samples}
    if adapter:
        add_sd3_adapter(pipeline)
        given["ip_adapter_image_embeds"] = noise(5, 2, 9, WIDE)
    return pipeline, lambda: {**texts(), **settings(), **given}


def add_sd3_adapter(pipeline: Any) -> None:
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    model = pipeline.transformer
    torch.manual_seed(1)
    processors = {
        name: SD3IPAdapterJointAttnProcessor2_0(hidden_size=INNER, ip_hidden_states_dim=INNER, head_dim=DEPTH, timesteps_emb_dim=WIDE)
        for name in model.attn_processors
    }
    model.set_attn_processor(processors)
    model.image_proj = IPAdapterTimeImageProjection(
        embed_dim=WIDE, output_dim=INNER, hidden_dim=WIDE, depth=1, dim_head=DEPTH, heads=2, num_queries=RESAMPLED, timestep_in_dim=WIDE
    )
    model.eval()
    pipeline.set_ip_adapter_scale(0.8)


def small_area(area: int, ratio: float) -> tuple[int, ...]:
    """Stands for what Qwen's pipelines scale a reference to, which is always a million pixels."""
    return (int(64 * ratio) // 16 * 16, 64)


def qwen(plus: bool = False, guided: bool = True) -> Built:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

    pipeline_qwenimage_edit.calculate_dimensions = lambda area, ratio: (*small_area(area, ratio), None)
    pipeline_qwenimage_edit_plus.calculate_dimensions = small_area
    torch.manual_seed(0)
    z = 4
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=z,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, False, False],
        latents_mean=[0.0] * z,
        latents_std=[1.0] * z,
    ).eval()
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * z,
        out_channels=z,
        num_layers=1,
        attention_head_dim=DEPTH,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDE,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    parts = dict.fromkeys(("text_encoder", "tokenizer", "processor"))
    cls = diffusers.QwenImageEditPlusPipeline if plus else diffusers.QwenImageEditPipeline
    pipeline = quiet(cls(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=transformer, **parts))
    masks = {"prompt_embeds_mask": torch.ones(1, TEXT, dtype=torch.long)}
    if guided:
        masks["negative_prompt_embeds_mask"] = torch.ones(1, TEXT - 2, dtype=torch.long)
    image = [picture(10, 64, 48), picture(11, 32, 64)] if plus else picture(10, 64, 48)
    given = {"true_cfg_scale": 3.0 if guided else 1.0, "image": image, "height": 32, "width": 48}
    return pipeline, lambda: {**texts(other=TEXT - 2, pooled=False, guided=guided), **masks, **settings(), **given}


def kandinsky(samples: int = 1, guidance_scale: float = 4.0) -> Built:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        in_channels=4,
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=2,
        norm_num_groups=2,
        cross_attention_dim=8,
        addition_embed_type="image",
        encoder_hid_dim_type="image_proj",
        encoder_hid_dim=8,
        resnet_time_scale_shift="scale_shift",
    ).eval()
    movq = VQModel(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    ).eval()
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)
    pipeline = quiet(diffusers.KandinskyV22Pipeline(unet=model, scheduler=scheduler, movq=movq))
    given = {"guidance_scale": guidance_scale, "num_images_per_prompt": samples, "height": 16, "width": 24}
    return pipeline, lambda: {"image_embeds": noise(1, 1, 8), "negative_image_embeds": noise(2, 1, 8), **settings(), **given}


def wan(two: bool = False, frames: int = 1) -> Built:
    """Text to a single frame; with two denoisers the second takes over below half of the noise."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]).eval()

    def transformer() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            num_attention_heads=HEADS,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=WIDE,
            freq_dim=16,
            ffn_dim=16,
            num_layers=1,
            rope_max_seq_len=32,
        ).eval()

    parts = {"tokenizer": None, "text_encoder": None, "vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0)}
    second = {"transformer_2": transformer(), "boundary_ratio": 0.9} if two else {}
    pipeline = quiet(diffusers.WanPipeline(**parts, transformer=transformer(), **second))
    given = {"num_frames": frames, "height": 32, "width": 48, "guidance_scale": 4.0, "num_inference_steps": 3}
    return pipeline, lambda: {**texts(pooled=False), **settings(), **given}


def wan_image() -> Built:
    """An image to a single frame: its patches are keys of a call of their own, before the text's, which is always 512 tokens."""
    base, call = wan()
    torch.manual_seed(1)
    config = {**base.transformer.config, "in_channels": 36, "image_dim": 8, "added_kv_proj_dim": 24}
    config.pop("_use_default_values", None)
    parts = {name: part for name, part in base.components.items() if not name.startswith("transformer")}
    parts |= {"image_encoder": CLIPVisionModel(vision_config(8)).eval(), "image_processor": processor()}
    pipeline = quiet(diffusers.WanImageToVideoPipeline(**parts, transformer=WanTransformer3DModel.from_config(config).eval()))
    return pipeline, lambda: {**call(), **texts(512, 512, pooled=False), "image": picture(10, 32, 48)}


SHARED: dict[str, Callable[[], Built]] = {
    "flux": flux_text,
    "flux-guided": flux_guided,
    "kontext": kontext,
    "kontext-guided": lambda: kontext(guided=True),
    "kontext-two": lambda: kontext(samples=2),
    "flux-ip": flux_adapter,
    "redux": redux,
    "klein": klein,
    "klein-two": lambda: klein(references=2),
    "klein-kv": lambda: klein(references=2, keeps_keys=True),
    "sd3": sd3,
    "sd3-ip": lambda: sd3(adapter=True),
    "qwen-edit": qwen,
    "qwen-edit-plus": lambda: qwen(plus=True),
    "kandinsky": kandinsky,
    "kandinsky-two": lambda: kandinsky(samples=2),
    "wan": wan,
    "wan-image": wan_image,
    "wan-two": lambda: wan(two=True),
}


def build(family: str) -> Built:
    """A pipeline of a family, and a function that makes its arguments."""
    return SHARED[family]()
