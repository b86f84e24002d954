"""Tiny pipelines in which an IP-Adapter meets face embeddings, several images, masks, ControlNet or perturbed guidance; as `pipelines`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPAGPipeline
from diffusers.image_processor import IPAdapterMaskProcessor

from pipelines import (
    WIDTH,
    Built,
    adapter_weights,
    generator,
    ip_adapter,
    load_adapters,
    picture,
    square_mask,
    stable_diffusion,
    text_arguments,
)

SIZE = {"height": 32, "width": 24}
FACE = 16
"""Channels of a face embedding."""


def faceid() -> Built:
    """Four tokens from the embedding of a face."""
    pipeline = stable_diffusion()
    weights = adapter_weights(pipeline.unet, "plain")
    shapes = {"proj.0": (2 * FACE, FACE), "proj.2": (4 * WIDTH, 2 * FACE)}
    torch.manual_seed(2)
    linear = {f"{name}.weight": torch.randn(*shape) for name, shape in shapes.items()}
    biases = {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    weights["image_proj"] = {**linear, **biases, "norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH)}
    # FaceID adapters are told by a LoRA beside each processor's keys and values; theirs is loaded apart.
    weights["ip_adapter"] |= {"0.to_q_lora.down.weight": torch.zeros(1, 4)}
    pipeline.unet._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
    pipeline.unet.encoder_hid_proj.eval()
    face = torch.randn(2, 1, FACE, generator=generator(4))
    return pipeline, lambda: {**text_arguments(), **SIZE, "ip_adapter_image_embeds": [face.clone()], "generator": generator()}


def several_images(masked: bool = False) -> Built:
    """Two images for the first adapter, one for the second."""
    pipeline, call = ip_adapter("full", "plain", ip_adapter_image=[[picture(1), picture(2)], picture(3)])
    if not masked:
        return pipeline, call
    masks = IPAdapterMaskProcessor().preprocess([square_mask(32, 24)] * 3, height=32, width=24)
    masks = [masks[:2].reshape(1, 2, 32, 24), masks[2:].reshape(1, 1, 32, 24)]
    return pipeline, lambda: {**call(), "cross_attention_kwargs": {"ip_adapter_masks": masks}}


def with_scales(scales: Any) -> Built:
    pipeline, call = ip_adapter("full")
    pipeline.set_ip_adapter_scale(scales)
    return pipeline, call


def with_controlnet() -> Built:
    plain = stable_diffusion(encoder=True)
    torch.manual_seed(3)
    control = ControlNetModel.from_unet(plain.unet, conditioning_channels=3).eval()
    # One halving, as the tiny latent has.
    control.controlnet_cond_embedding = type(control.controlnet_cond_embedding)(4, block_out_channels=(4, 8)).eval()
    pipeline = StableDiffusionControlNetPipeline(**{**plain.components, "controlnet": control}, requires_safety_checker=False)
    load_adapters(pipeline, "full")
    given = {"image": picture(5, 32, 24), "ip_adapter_image": picture(10, 48, 32)}
    return pipeline, lambda: {**text_arguments(), **SIZE, **given, "generator": generator()}


def with_perturbation() -> Built:
    pipeline = stable_diffusion(StableDiffusionPAGPipeline, encoder=True)
    load_adapters(pipeline, "full")
    return pipeline, lambda: {**text_arguments(), **SIZE, "ip_adapter_image": picture(10), "pag_scale": 3.0, "generator": generator()}


ADAPTED: dict[str, Callable[[], Built]] = {
    "faceid": faceid,
    "several-images": several_images,
    "several-images-masked": lambda: several_images(masked=True),
    "scale-by-layer": lambda: with_scales({"down": 0.5, "up": {"block_0": [0.0, 1.0]}}),
    "controlnet": with_controlnet,
    "perturbed": with_perturbation,
}


def build(family: str) -> Built:
    """A pipeline of a family, and a function that makes its arguments."""
    return ADAPTED[family]()
