"""Kits of tiny parts for pipelines that edit a picture with a model of vision and language, which is left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pipelines_text
import pipelines_transformers as joint
import torch
from every_kits import LEFT_OUT, Kit, Words
from every_transformers import ROPE, SIZES, flow, flux_parts, made, masked, parts_of
from pipelines_text import LENGTH
from pipelines_transformers import HEADS, INNER, TEXT, WIDE, flow_vae, noise

import pipelines
from pipelines import picture

SLOTS = 1
"""Tokens of the encoder that a reference of Qwen-Image 2.1 takes, of 2 x 2 latent tokens each."""


class Processor:
    """Stands for a processor of texts and pictures."""

    image_processor = SimpleNamespace(merge_size=1)
    tokenizer = SimpleNamespace(encode=lambda _: [0])

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[0]]


def fibo_parts(_: str) -> dict[str, Any]:
    sizes = {**SIZES, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": WIDE, "axes_dims_rope": [4, 4, 8]}
    model = made("BriaFiboTransformer2DModel", in_channels=16, **sizes, text_encoder_dim=WIDE // 2)
    return {"transformer": model, "vae": parts_of(joint.wan())["vae"], "scheduler": flow()}


def fibo_given(_: str) -> dict[str, Any]:
    return {"prompt": '{"edit_instruction": "a dog"}', "mask": LEFT_OUT, "_auto_resize": False, "output_type": "latent"}


def fibo_text(pipeline: Any) -> None:
    """Embeddings, positions, masks, and the encoder's layers, one for each block, of a prompt and its negative."""
    ones = torch.ones(1, TEXT)
    layers = [[noise(seed, 1, TEXT, WIDE // 2)] * 2 for seed in (5, 6)]
    encoded = (noise(1, 1, TEXT, WIDE), noise(2, 1, TEXT, WIDE), torch.zeros(TEXT, 3), ones, ones, *layers)
    pipeline.encode_prompt = lambda *_, **__: encoded


def longcat_parts(_: str) -> dict[str, Any]:
    sizes = {**SIZES, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": WIDE, "pooled_projection_dim": WIDE}
    model = made("LongCatImageTransformer2DModel", in_channels=64, axes_dims_rope=ROPE, **sizes)
    return {"transformer": model, "vae": flow_vae(16), "scheduler": flow(), "text_processor": Processor()}


def longcat_given(_: str) -> dict[str, Any]:
    from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit

    pipeline_longcat_image_edit.calculate_dimensions = joint.small_area
    given = {"prompt": "a dog", "negative_prompt": "", "enable_prompt_rewrite": False, "height": 16, "width": 16}
    return {**given, "image": picture(1, 32, 16)}


def longcat_text(pipeline: Any) -> None:
    pipeline.encode_prompt = lambda prompt, *_, **__: (noise(1 if prompt else 2, 1, TEXT, WIDE), torch.zeros(TEXT, 3))


def qwen21_parts(_: str) -> dict[str, Any]:
    sizes = {**SIZES, "context_in_dim": WIDE, "axes_dims_rope": ROPE}
    model = made("QwenImage21Transformer2DModel", in_channels=4, out_channels=4, **sizes)
    blocks = {"base_dim": 4, "decoder_base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1, 1], "num_res_blocks": 1}
    vae = made("AutoencoderKLQwenImage21", **blocks, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    return {"transformer": model, "vae": vae, "scheduler": flow(), "processor": Processor()}


def qwen21_given(_: str) -> dict[str, Any]:
    return {"prompt": "a dog", "negative_prompt": "a cat", "image": picture(10), "output_resolution": 32, "output_type": "latent"}


def qwen21_text(pipeline: Any) -> None:
    """Encoded text, its mask, and the places of the reference in it, before the prompt's last words."""
    slots = torch.zeros(1, TEXT, dtype=torch.bool)
    slots[0, 1 : 1 + SLOTS] = True

    def encode(prompt: str, **_: Any) -> Any:
        return noise(1 if prompt == "a dog" else 2, 1, TEXT, WIDE), None, slots

    pipeline.encode_prompt = encode


def dreamlite_parts(_: str) -> dict[str, Any]:
    """The picture that is edited, or nothing, stands beside the one being made, in one latent."""
    blocks = {"down_block_types": ("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D")}
    blocks |= {"up_block_types": ("DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D")}
    sizes = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": WIDE,
        "attention_head_dim": 2,
        "norm_num_groups": 2,
    }
    return {"unet": made("DreamLiteUNetModel", **blocks, **sizes), "vae": pipelines.vae(), "scheduler": flow(), "text_encoder": Words()}


def dreamlite_text(pipeline: Any) -> None:
    """A row for each prompt."""
    pipeline.encode_prompt = lambda prompts, **_: (
        torch.cat([noise(len(text), 1, TEXT, WIDE) for text in prompts]),
        torch.ones(len(prompts), TEXT, dtype=torch.long),
    )


def joy_parts(name: str) -> dict[str, Any]:
    sizes = {"hidden_size": INNER, "num_attention_heads": HEADS, "text_dim": WIDE, "num_layers": 2, "rope_dim_list": [4, 4, 8]}
    model = made(name.replace("Pipeline", "Transformer3DModel"), **sizes)
    return {"transformer": model, "vae": parts_of(joint.wan())["vae"], "scheduler": flow()}


def cloze_parts(_: str) -> dict[str, Any]:
    text = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    prompted = {key: part for key, part in parts_of(pipelines_text.prompted_flux()).items() if key in text}
    return {**flux_parts("VisualCloze"), **prompted, "resolution": 16}


def cloze_given(_: str) -> dict[str, Any]:
    rows = [[picture(1, 16, 16), picture(2, 16, 16)], [picture(3, 16, 16), None]]
    return {"image": rows, "task_prompt": "a cat", "content_prompt": "a red dog", "max_sequence_length": LENGTH}


KITS: tuple[Kit, ...] = (
    Kit("BriaFibo[!2]*", fibo_parts, fibo_given, fibo_text),
    Kit("LongCatImage*", longcat_parts, longcat_given, longcat_text),
    Kit("QwenImage21*", qwen21_parts, qwen21_given, qwen21_text),
    Kit("DreamLite*", dreamlite_parts, lambda _: {"prompt": "a dog", "negative_prompt": "a hat", "image": None}, dreamlite_text),
    Kit("JoyImageEditPipeline", joy_parts, lambda _: {**masked(), "output_type": "latent"}),
    Kit("VisualClozeGeneration*", cloze_parts, cloze_given),
)
