"""A pipeline's denoisers and which modules under them attend."""

from __future__ import annotations

import inspect
from typing import Any, Final

from torch import nn

from .resampler import resampler_of

ATTENTION: Final = ("Attention", "Attn")
"""What the names of classes hold whose modules attend."""
DOUBLE_BLOCKS: Final = {"FluxTransformer2DModel": "transformer_blocks"}
"""Denoisers whose blocks with weights of their own for text are known, by class, and where these blocks are."""
ROOTS: Final = ("unet", "transformer", "transformer_2")
"""Attributes of a pipeline that hold a denoiser."""


def denoisers(pipeline: Any) -> dict[str, nn.Module]:
    """The pipeline's denoisers by attribute name, taken out of torch.compile's wrapper."""
    found = {name: getattr(pipeline, name, None) for name in ROOTS}
    return {name: getattr(module, "_orig_mod", module) for name, module in found.items() if isinstance(module, nn.Module)}


def attention_modules(pipeline: Any, alone: bool = False) -> dict[str, nn.Module]:
    """Cross-attention modules under the denoisers by path, in the order they are registered; with `alone`, those of self-attention too."""
    joins = alone or reads_features(pipeline)
    return {
        f"{root}.{strip(name)}": module
        for root, denoiser in denoisers(pipeline).items()
        for streams in [_streams(denoiser)]
        for name, module in denoiser.named_modules()
        if is_cross_attention(module)
        or name in streams
        or (joins and is_self_attention(module))
        or resampler_of(f"{root}.{strip(name)}") is not None
    }


def double_blocks(pipeline: Any) -> dict[str, nn.Module]:
    """Blocks with weights of their own for text, by the path of their attention module, in the order they run."""
    return {
        f"{root}.{DOUBLE_BLOCKS[type(denoiser).__name__]}.{index}.attn": block
        for root, denoiser in denoisers(pipeline).items()
        if type(denoiser).__name__ in DOUBLE_BLOCKS
        for index, block in enumerate(getattr(denoiser, DOUBLE_BLOCKS[type(denoiser).__name__]))
    }


def _streams(denoiser: nn.Module) -> set[str]:
    """Paths of self-attention that may be given text and images as one sequence: it stands alone in its block, and others join the two."""
    found = dict(denoiser.named_modules())
    crossing = {name for name, module in found.items() if is_cross_attention(module)}
    if not any(getattr(found[name], "added_kv_proj_dim", None) is not None for name in crossing):
        return set()
    blocks = {name.rpartition(".")[0] for name in crossing}
    return {name for name, module in found.items() if is_self_attention(module) and name.rpartition(".")[0] not in blocks}


def other_attention(name: str, root: nn.Module) -> dict[str, nn.Module]:
    """Modules under a denoiser that seem to attend and are none of `attention_modules`, by path."""
    every = {f"{name}.{strip(path)}": module for path, module in root.named_modules() if path}
    streams = {f"{name}.{strip(path)}" for path in _streams(root)}
    known = {path for path, module in every.items() if is_cross_attention(module) or path in streams or resampler_of(path) is not None}
    seem = [path for path, module in every.items() if any(word in type(module).__name__ for word in ATTENTION)]
    inside = {path.rpartition(".")[0] for path in (*seem, *known)}
    inside = {path for inner in inside for path in _above(inner)}
    return {path: every[path] for path in seem if path not in known | inside and known.isdisjoint(_above(path))}


def _above(path: str) -> list[str]:
    """A path and those of what it lies in."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def reads_features(pipeline: Any) -> bool:
    """Whether a pipeline runs its denoiser on the reference first and joins what its self-attention reads to the image's own
    (the published reference-only method)."""
    return {"ref_image", "reference_attn"} <= set(inspect.signature(type(pipeline).__call__).parameters)


def is_self_attention(module: nn.Module) -> bool:
    """Whether a module is made for the image's own tokens alone."""
    return getattr(module, "is_cross_attention", None) is False and hasattr(module, "to_q") and not is_cross_attention(module)


def is_cross_attention(module: nn.Module) -> bool:
    """Whether a module's queries meet keys that were made from something else, in a sequence of its own or joined to theirs."""
    projects = all(hasattr(module, name) for name in ("to_q", "to_k", "to_v")) or hasattr(module, "to_qkv_mlp_proj")
    # Not asked of a whole model, which would warn that this is a field of its config.
    return projects and (getattr(module, "added_kv_proj_dim", None) is not None or bool(getattr(module, "is_cross_attention", True)))


def is_single_stream(module: nn.Module) -> bool:
    """Whether a module may be given text and images as one sequence."""
    return not hasattr(module, "is_cross_attention") or is_self_attention(module)


def reads_adapter(module: nn.Module) -> bool:
    """Whether an attention module has an IP-Adapter's keys."""
    return hasattr(getattr(module, "processor", None), "to_v_ip")


def adapter_scale(module: nn.Module, projection: str, repeat: int) -> float | None:
    """What a processor multiplies what an IP-Adapter's call gives with; None for other calls, and where it says no number.

    Not every processor leaves out a call that it multiplies by 0.
    """
    _, adapter, number = projection.partition("to_v_ip")
    scale = getattr(getattr(module, "processor", None), "scale", None) if adapter else None
    # One for each adapter, and within it, where masks part them, one for each of its images.
    for index in (int(number.lstrip(".") or 0), repeat):
        if isinstance(scale, list):
            scale = scale[index] if index < len(scale) else None
    return float(scale) if isinstance(scale, (int, float)) else None


def strip(path: str) -> str:
    """A module path without torch.compile's wrappers."""
    return path.replace("_orig_mod.", "")


def reads_ends(pipeline: Any) -> bool:
    """Whether a denoiser has keys of the pictures that its video begins and ends with (Wan 2.1); else they are in its channels only."""
    return any(getattr(getattr(root, "config", None), "image_dim", None) is not None for root in denoisers(pipeline).values())
