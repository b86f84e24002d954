"""Model folders of published shapes without weights: configs, and adapter files that are all header."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import PIL.Image
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPVisionConfig

VISION = {"hidden_size": 1280, "num_attention_heads": 16, "patch_size": 14, "image_size": 224, "projection_dim": 1024}
SDXL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
SD15 = {"sample_size": 64, "cross_attention_dim": 768}
LIBRARY = {
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "image_encoder": "CLIPVisionModelWithProjection",
}


def save_model(folder: Path, pipeline: str, unet: dict[str, Any], *parts: str, scheduler: Any = None) -> Path:
    """A folder as save_pretrained writes it, with `parts` of text_encoder, text_encoder_2, image_encoder."""
    with torch.device("meta"):
        model = UNet2DConditionModel(**unet)
        model.save_config(folder / "unet")
        AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).save_config(folder / "vae")  # fmt: skip
    scheduler = scheduler or DDIMScheduler(clip_sample=False)
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.1", "unet": ["diffusers", "UNet2DConditionModel"]}
    index |= {"vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", type(scheduler).__name__]}
    for part in parts:
        index[part] = ["transformers", LIBRARY[part]]
        (CLIPVisionConfig(**VISION) if part == "image_encoder" else CLIPTextConfig()).save_pretrained(folder / part)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_adapter(file: Path, unet: dict[str, Any], kind: str, encoder: bool = True) -> Path:
    """An IP-Adapter's safetensors header; its data is a hole in the file."""
    context = unet["cross_attention_dim"]
    with torch.device("meta"):
        model = UNet2DConditionModel(**unet)
    shapes: dict[str, tuple[int, ...]] = {}
    sites = [name.removesuffix(".processor") for name in model.attn_processors if name.endswith("attn2.processor")]
    for i, site in enumerate(sites):
        width = model.get_submodule(site).inner_dim
        shapes |= {f"ip_adapter.{2 * i + 1}.to_{x}_ip.weight": (width, context) for x in "kv"}
    shapes |= {f"image_proj.{name}": shape for name, shape in projection(kind, context).items()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + offset)
    if encoder:
        CLIPVisionConfig(**VISION).save_pretrained(file.parent / "image_encoder")
    return file


def projection(kind: str, context: int) -> dict[str, tuple[int, ...]]:
    """The image projection of one kind of adapter."""
    if kind == "plain":
        return {"proj.weight": (4 * context, 1024), "proj.bias": (4 * context,), "norm.weight": (context,), "norm.bias": (context,)}
    if kind == "full":
        first = {"proj.0.weight": (1280, 1280), "proj.0.bias": (1280,), "proj.2.weight": (context, 1280), "proj.2.bias": (context,)}
        return {**first, "proj.3.weight": (context,), "proj.3.bias": (context,)}
    shapes = {"latents": (1, 16, 768), "proj_in.weight": (768, 1280), "proj_in.bias": (768,), "proj_out.weight": (context, 768)}
    shapes |= {"proj_out.bias": (context,), "norm_out.weight": (context,), "norm_out.bias": (context,)}
    for i in range(4):
        at = f"layers.{i}."
        shapes |= {f"{at}0.norm{n}.{x}": (768,) for n in (1, 2) for x in ("weight", "bias")}
        shapes |= {f"{at}0.to_q.weight": (768, 768), f"{at}0.to_kv.weight": (1536, 768), f"{at}0.to_out.weight": (768, 768)}
        shapes |= {f"{at}1.0.weight": (768,), f"{at}1.0.bias": (768,), f"{at}1.1.weight": (3072, 768), f"{at}1.3.weight": (768, 3072)}
    return shapes


def picture(file: Path, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> Path:
    """A blank image, (width, height)."""
    PIL.Image.new(mode, size).save(file)
    return file


KONTEXT = {
    # As published for Flux Kontext dev.
    "transformer": {
        "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
        "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
        "guidance_embeds": True, "axes_dims_rope": [16, 56, 56],
    },
    "vae": {
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "latent_channels": 16, "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "sample_size": 1024,
        "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
    },
    "scheduler": {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True,
        "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096,
    },
}  # fmt: skip


def save_kontext(folder: Path) -> Path:
    """A spec of Flux Kontext at its published size, with one reference of a million pixels."""
    index: dict[str, Any] = {"_class_name": "FluxKontextPipeline", "_diffusers_version": "0.42.1"}
    index |= dict.fromkeys(
        ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder", "feature_extractor"), (None, None)
    )
    for name, config in KONTEXT.items():
        index[name] = ["diffusers", config["_class_name"]]
        (folder / "model" / name).mkdir(parents=True)
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / "model" / name / file).write_text(json.dumps(config))
    (folder / "model" / "model_index.json").write_text(json.dumps(index))
    picture(folder / "reference.png", (1024, 1024))
    text = '[pipeline]\nclass = "FluxKontextPipeline"\nfrom_pretrained = "model"\narguments = { torch_dtype = "bfloat16" }\n'
    (folder / "kontext.toml").write_text(text + '[call]\nprompt = "in a coat"\n[images]\nimage = "reference.png"\n')
    return folder / "kontext.toml"
