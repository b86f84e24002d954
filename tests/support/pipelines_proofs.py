"""Tiny pipelines whose branches, token groups or grids no constant tells; as `pipelines`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    BriaFiboTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    KandinskyV22Img2ImgPipeline,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from diffusers.modular_pipelines import FluxAutoBlocks, StableDiffusionXLAutoBlocks
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from pipelines_transformers import (
    DEPTH,
    HEADS,
    TEXT,
    WIDE,
    flow_vae,
    flux,
    flux_transformer,
    kandinsky,
    klein,
    noise,
    quiet,
    redux,
    settings,
    texts,
    wan,
)

from pipelines import Built, generator, picture, sdxl, stable_diffusion


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
    size = {"height": 32, "width": 32, "output_type": "latent", "use_resolution_binning": False}
    return pipeline, lambda: {**given, **settings(**size), "prompt": None}


def aura_flow() -> Built:
    """Learned registers before the text; a joint block, then a single one, whose attention calls itself no cross-attention."""
    torch.manual_seed(0)
    sizes = {"num_mmdit_layers": 1, "num_single_dit_layers": 1, "attention_head_dim": DEPTH, "num_attention_heads": HEADS}
    widths = {"joint_attention_dim": WIDE, "caption_projection_dim": HEADS * DEPTH, "sample_size": 8, "pos_embed_max_size": 64}
    transformer = AuraFlowTransformer2DModel(patch_size=2, in_channels=4, **sizes, **widths).eval()
    parts = {"tokenizer": None, "text_encoder": None, "vae": plain_vae(), "scheduler": FlowMatchEulerDiscreteScheduler()}
    pipeline = quiet(AuraFlowPipeline(transformer=transformer, **parts))
    return pipeline, lambda: {**masked_texts(), **settings(), "guidance_scale": 4.0}


class BriaFiboPipeline(diffusers.BriaFiboPipeline):
    """Without the text encoder."""

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        embeds, masks = (noise(1, 1, TEXT, WIDE), noise(2, 1, TEXT, WIDE)), (torch.ones(1, TEXT),) * 2
        return *embeds, torch.zeros(TEXT, 3), *masks, [noise(3, 1, TEXT, WIDE)], [noise(4, 1, TEXT, WIDE)]


def fibo() -> Built:
    """A joint block, then a single one, of another class."""
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": DEPTH, "num_attention_heads": HEADS}
    widths = {"joint_attention_dim": WIDE, "text_encoder_dim": WIDE, "axes_dims_rope": [4, 4, 8]}
    transformer = BriaFiboTransformer2DModel(patch_size=1, in_channels=16, **sizes, **widths).eval()
    parts = {"tokenizer": None, "text_encoder": None, "vae": wan()[0].vae, "scheduler": FlowMatchEulerDiscreteScheduler()}
    return quiet(BriaFiboPipeline(transformer=transformer, **parts)), lambda: {
        **settings(height=128, width=96),
        "prompt": "a man",
        "guidance_scale": 4.0,
    }


class KandinskyPipeline(diffusers.KandinskyPipeline):
    """Without the text encoder."""

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        return noise(1, 2, 8), noise(2, 2, TEXT, 8), None


def kandinsky_text() -> Built:
    """The U-Net puts ten tokens of the image's embedding before those of the text."""
    base, call = kandinsky()
    torch.manual_seed(0)
    config = {**base.unet.config, "encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image", "encoder_hid_dim": 8}
    config.pop("_use_default_values", None)
    unet = UNet2DConditionModel.from_config(config).eval()
    pipeline = quiet(KandinskyPipeline(text_encoder=None, tokenizer=None, unet=unet, scheduler=base.scheduler, movq=base.movq))
    return pipeline, lambda: {**call(), "prompt": "a man"}


def kandinsky_start() -> Built:
    """Starts from a picture, which is not the one that its tokens were made from."""
    base, call = kandinsky()
    pipeline = quiet(KandinskyV22Img2ImgPipeline(unet=base.unet, scheduler=base.scheduler, movq=base.movq))
    return pipeline, lambda: {**call(), "image": picture(1, 64, 64), "strength": 1.0, "height": 64, "width": 64}


def long_text() -> Built:
    """Flux with more tokens of text than its encoders make."""
    return flux(), lambda: {**texts(700, guided=False), **settings()}


def fill_redux() -> Built:
    """Flux Fill with a reference behind the text."""
    base, call = redux()
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    transformer = flux_transformer(channels=12, out=4, context=4096, pooled=768)
    pipeline = quiet(diffusers.FluxFillPipeline(scheduler=base.scheduler, vae=base.vae, transformer=transformer, **parts))
    return pipeline, lambda: {**call(), "image": picture(1, 16, 12), "mask_image": picture(2, 16, 12)}


def kontext_inpaint(own: bool = True) -> Built:
    """With a reference of its own, which then stands in the sequence in the place of the picture that is painted into."""
    given = {"image": picture(10, 24, 16), "mask_image": picture(2, 24, 16), "max_area": 16 * 12, "_auto_resize": False, "strength": 1.0}
    given |= {"image_reference": picture(11, 16, 32)} if own else {}
    return flux(diffusers.FluxKontextInpaintPipeline), lambda: {**texts(guided=False), **settings(), **given}


def klein_inpaint(own: bool = True) -> Built:
    """With a reference of its own, which stands behind the picture that is painted into."""
    base, _ = klein()
    parts = {"scheduler": base.scheduler, "vae": base.vae, "transformer": base.transformer, "text_encoder": None, "tokenizer": None}
    given = {"image": picture(10, 64, 64), "mask_image": picture(2, 64, 64), "strength": 1.0}
    given |= {"image_reference": picture(11, 32, 96)} if own else {}
    pipeline = quiet(diffusers.Flux2KleinInpaintPipeline(**parts))
    return pipeline, lambda: {**texts(pooled=False), **settings(height=None, width=None), **given}


def vace(references: int = 1) -> Built:
    """References are encoded as frames before those of the video."""
    base, call = wan(frames=5)
    torch.manual_seed(1)
    config = {**base.transformer.config, "vace_layers": [0], "vace_in_channels": 96}
    config.pop("_use_default_values", None)
    transformer = WanVACETransformer3DModel.from_config(config).eval()
    parts = {"tokenizer": None, "text_encoder": None, "vae": base.vae, "scheduler": base.scheduler}
    images = [picture(10 + i, 32, 48) for i in range(references)] or None
    return quiet(WanVACEPipeline(transformer=transformer, **parts)), lambda: {**call(), "reference_images": images}


class LongCatImagePipeline(diffusers.LongCatImagePipeline):
    """Without the text encoder."""

    def encode_prompt(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        return noise(1 if prompt == ["a man"] else 2, 1, TEXT, WIDE), torch.zeros(TEXT, 3)


def longcat() -> Built:
    """A pass for each branch, as its caches are named; the image's position ids say 1, where a text's say 0."""
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": DEPTH, "num_attention_heads": HEADS}
    widths = {"joint_attention_dim": WIDE, "pooled_projection_dim": WIDE, "axes_dims_rope": [4, 4, 8]}
    transformer = diffusers.LongCatImageTransformer2DModel(patch_size=1, in_channels=64, **sizes, **widths).eval()
    parts = {"text_encoder": None, "tokenizer": None, "text_processor": None, "vae": flow_vae(16)}
    pipeline = quiet(LongCatImagePipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts))
    given = {"prompt": ["a man"], "negative_prompt": [""], "guidance_scale": 4.0, "enable_prompt_rewrite": False}
    return pipeline, lambda: {**settings(), **given}


def modular_flux() -> Built:
    """Flux of blocks, whose class says nothing of what it takes."""
    blocks, base = FluxAutoBlocks(), flux()
    blocks.sub_blocks.pop("text_encoder")
    pipeline = blocks.init_pipeline()
    pipeline.update_components(transformer=base.transformer, vae=base.vae, scheduler=base.scheduler)
    return quiet(pipeline), lambda: {**texts(guided=False), **settings(), "output": "images"}


def modular_sdxl(guided: bool = False) -> Built:
    """SDXL of blocks, whose guider runs a pass for each branch."""
    from diffusers.guiders import ClassifierFreeGuidance

    blocks, (base, call) = StableDiffusionXLAutoBlocks(), sdxl()
    base.unload_ip_adapter()
    blocks.sub_blocks.pop("text_encoder")
    pipeline = blocks.init_pipeline()
    pipeline.update_components(unet=base.unet, vae=base.vae, scheduler=base.scheduler, guider=ClassifierFreeGuidance(5.0, enabled=guided))

    def given() -> dict[str, Any]:
        arguments = call()
        return {name: arguments[name] for name in arguments if name not in ("ip_adapter_image", "guidance_scale")} | {"output": "images"}

    return quiet(pipeline), given


def hidream() -> Built:
    """Its denoiser names its arguments, and its projections, as no other does."""
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 4, "axes_dims_rope": (4, 2, 2)}
    widths = {"caption_channels": [WIDE, 16], "text_emb_dim": 64, "max_resolution": (32, 32), "llama_layers": (0, 1)}
    experts = {"num_routed_experts": 4, "num_activated_experts": 2, "force_inference_output": True}
    transformer = diffusers.HiDreamImageTransformer2DModel(patch_size=2, in_channels=4, **sizes, **widths, **experts).eval()
    parts = dict.fromkeys(f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3", "_4"))
    parts |= {"scheduler": FlowMatchEulerDiscreteScheduler(), "vae": plain_vae()}
    pipeline = quiet(diffusers.HiDreamImagePipeline(transformer=transformer, **parts))
    shapes = {"prompt_embeds_t5": (1, TEXT, WIDE), "prompt_embeds_llama3": (2, 1, TEXT, 16), "pooled_prompt_embeds": (1, 64)}
    given = {f"{sign}{name}": noise(1, *shape) for name, shape in shapes.items() for sign in ("", "negative_")}
    return pipeline, lambda: {**given, **settings(height=32, width=32)}


PROVEN: dict[str, Callable[[], Built]] = {
    "lumina": lumina,
    "sana-sprint": sana_sprint,
    "aura-flow": aura_flow,
    "fibo": fibo,
    "kandinsky-text": kandinsky_text,
    "kandinsky-start": kandinsky_start,
    "fill-redux": fill_redux,
    "kontext-inpaint": kontext_inpaint,
    "klein-inpaint": klein_inpaint,
    "vace": vace,
    "longcat": longcat,
    "modular-flux": modular_flux,
    "modular-sdxl": modular_sdxl,
    "modular-guided": lambda: modular_sdxl(guided=True),
}
