"""Pipelines and attention that cannot be recorded, row by row: what happened to them, and the way out."""

from __future__ import annotations

import fnmatch
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from ..schema.errors import UnsupportedModel
from .capture import attention_modules, reads_adapter

CHANNELS: Final = "is concatenated to the latent's channels"

REFERENCE_ELSEWHERE: Final = (
    # (glob over the pipeline's class name, where its reference goes)
    ("StableUnCLIPImg2ImgPipeline", "is added to the time embedding as a class label"),
    ("StableDiffusion*InstructPix2PixPipeline", CHANNELS),
    ("Marigold*Pipeline", CHANNELS),
    ("StableDiffusionLatentUpscalePipeline", CHANNELS),
    ("StableDiffusionUpscalePipeline", CHANNELS),
    ("LDMSuperResolutionPipeline", CHANNELS),
    ("StableDiffusionDepth2ImgPipeline", "becomes the initial latent, and its depth a channel"),
)

HIDDEN_ATTENTION: Final = (
    # (word in the processor's class name, what it does instead, the way out)
    ("sliced", "computes attention slice by slice without scaled_dot_product_attention", "call pipeline.disable_attention_slicing()"),
    ("xformers", "runs xformers' own kernel", "call pipeline.disable_xformers_memory_efficient_attention()"),
    ("npu", "runs an NPU kernel", "set AttnProcessor2_0 on the denoiser"),
    ("xla", "runs an XLA kernel", "set AttnProcessor2_0 on the denoiser"),
)

SEEN_BACKENDS: Final = ("native", "_native_math", "_native_efficient", "_native_flash", "_native_cudnn")


def refuse_hijack() -> None:
    """Raise UnsupportedModel if another library has put its own function in the place of scaled_dot_product_attention."""
    function: Any = functional.scaled_dot_product_attention
    if function is not torch._C._nn.scaled_dot_product_attention:
        where = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
        raise UnsupportedModel(
            f"torch.nn.functional.scaled_dot_product_attention was replaced by {where}, so attention cannot be seen where it runs; "
            "undo the replacement, or record in a process that does not load that library"
        )


def refuse_pipeline(pipeline: Any, keys: str) -> None:
    """Raise UnsupportedModel if this pipeline's reference never meets its attention, unless only text is wanted."""
    if keys == "text":
        return
    name = type(pipeline).__name__
    adapter = any(reads_adapter(module) for module in attention_modules(pipeline).values())
    for pattern, where in REFERENCE_ELSEWHERE:
        if fnmatch.fnmatchcase(name, pattern) and not adapter:
            raise UnsupportedModel(
                f"{name} has no reference in its attention: the image {where}, so no attention map can show what is taken from it; "
                'use a pipeline that attends to its reference (IP-Adapter, PaintByExample), or keys="text" to record what it does with text'
            )


def hidden_attention(path: str, module: nn.Module) -> UnsupportedModel:
    """The error for a module that ran without one attention call that can be seen."""
    processor = getattr(module, "processor", None)
    name = type(processor).__name__
    backend = getattr(processor, "_attention_backend", None)
    backend = getattr(backend, "value", backend)
    why, way_out = f"its processor {name} multiplies matrices itself", "call denoiser.set_attn_processor(AttnProcessor2_0())"
    if backend is not None and backend not in SEEN_BACKENDS:
        why, way_out = f"its attention backend is {backend!r}", 'call denoiser.set_attention_backend("native")'
    for word, what, remedy in HIDDEN_ATTENTION:
        if word in name.lower():
            why, way_out = f"its processor {name} {what}", remedy
    return UnsupportedModel(
        f"{path} ran, but made no scaled_dot_product_attention call that could be recorded: {why}; {way_out}, "
        "or leave the module out through layers="
    )
