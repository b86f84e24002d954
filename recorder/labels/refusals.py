"""Pipelines and attention that cannot be recorded, row by row: what happened to them, and the way out."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Final

import torch
from diffusers.models import attention_processor
from torch import nn
from torch.nn import functional

from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ..capture.modules import attention_modules, denoisers, reads_adapter, reads_ends
from ..families import family_of, input_goes
from .tokens import context_role

OWN_SOFTMAX: Final = (
    # (glob over the class name of a module under a denoiser, what it does instead)
    ("PerceiverCrossAttention", "reads the reference with a softmax of its own"),
    ("SanaLinearAttn*", "attends without a softmax"),
)

HIDDEN_ATTENTION: Final = (
    # (word in the processor's class name, what it does instead, the way out)
    ("sliced", "computes attention slice by slice without scaled_dot_product_attention", "call pipeline.disable_attention_slicing()"),
    ("xformers", "runs xformers' own kernel", "call pipeline.disable_xformers_memory_efficient_attention()"),
    ("npu", "runs an NPU kernel", "set AttnProcessor2_0 on its denoiser"),
    ("xla", "runs an XLA kernel", "set AttnProcessor2_0 on its denoiser"),
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


def refuse_other_models(model: Any) -> None:
    """Raise UnsupportedModel for what is not built as diffusers pipelines are."""
    if not denoisers(model) or not hasattr(model, "scheduler"):
        raise UnsupportedModel(
            f"{type(model).__name__} has no unet or transformer with a scheduler, as diffusers pipelines have; of "
            'another model name the modules that denoise: denoisers={"unet": model.diffusion_model}'
        )


def refuse_pipeline(pipeline: Any, keys: str, appended: bool = False) -> None:
    """Raise UnsupportedModel if this pipeline's reference never meets attention that can be seen, unless it is not wanted.

    `appended`: a reference stands behind the text that it is given.
    """
    family, name = family_of(pipeline), type(pipeline).__name__
    if getattr(pipeline, "free_init_enabled", False):
        raise UnsupportedModel(
            f"{name} samples its video several times in one call (FreeInit), and a trace holds one run; call pipeline.disable_free_init()"
        )
    if keys in ("text", "self"):
        return
    where = family.reference_goes
    if not where and keys == "reference" and context_role(pipeline) == "text":
        where = input_goes(pipeline)
    reads = (
        appended or family.edits or reads_ends(pipeline) or any(reads_adapter(module) for module in attention_modules(pipeline).values())
    )
    if where and not reads:
        raise UnsupportedModel(
            f"{name} has no reference in its attention: the image {where}, so no attention map can show what is taken from it; "
            f"use a pipeline that attends to its reference (IP-Adapter, PaintByExample), or {option('keys', 'text')} to record what "
            "it does with text"
        )
    for root, denoiser in denoisers(pipeline).items():
        for path, module in denoiser.named_modules():
            if what := next((what for glob, what in OWN_SOFTMAX if fnmatchcase(type(module).__name__, glob)), None):
                raise UnsupportedModel(
                    f"{root}.{path} ({type(module).__name__}) {what}, which scaled_dot_product_attention does not show; "
                    f"use {option('keys', 'text')} to record what the other modules do with text"
                )


def hidden_attention(path: str, module: nn.Module) -> UnsupportedModel:
    """The error for a module that ran without one attention call that can be seen."""
    processor: Any = getattr(module, "processor", None)
    name, root = type(processor).__name__, path.partition(".")[0]
    dispatches = hasattr(processor, "_attention_backend")
    backend = (processor._attention_backend or _active_backend()) if dispatches else None
    backend = getattr(backend, "value", backend)
    why, way_out = f"its processor {name} multiplies matrices itself", _restore(root, module, name)
    if backend is not None and backend not in SEEN_BACKENDS:
        why, way_out = f"its attention backend is {backend!r}", f'call pipeline.{root}.set_attention_backend("native")'
    if getattr(processor, "_parallel_config", None) is not None:
        why, way_out = "its sequence is split over several devices (context parallel)", "run it on one device, without enable_parallelism()"
    for word, what, remedy in HIDDEN_ATTENTION:
        if word in name.lower():
            why, way_out = f"its processor {name} {what}", remedy
    return UnsupportedModel(
        f"{path} ran, but made no scaled_dot_product_attention call that could be recorded: {why}; {way_out}, "
        f"or leave the module out through {option('layers')}"
    )


def _restore(root: str, module: Any, name: str) -> str:
    """How a module comes by a processor that calls scaled_dot_product_attention and does the same."""
    if reads_adapter(module):
        return "call pipeline.unload_ip_adapter() and load it again, which gives it processors that do"
    kin = f"{name}2_0" if hasattr(attention_processor, f"{name}2_0") else ""
    plain = "AttnProcessor2_0" if getattr(module, "added_kv_proj_dim", None) is None and hasattr(module, "is_cross_attention") else ""
    usual = getattr(getattr(module, "_default_processor_cls", None), "__name__", "") or kin or plain
    return f"call pipeline.{root}.set_attn_processor({usual}())" if usual else "give it back the processor that it was loaded with"


def _active_backend() -> Any:
    """The backend that diffusers' context manager or environment variable has chosen for processors that have none of their own."""
    try:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry
    except ImportError:  # a private place, which may move
        return None
    return getattr(registry, "_active_backend", None)
