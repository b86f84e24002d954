"""Resamplers of IP-Adapters: attention inside a denoiser whose queries are the adapter's tokens, not places of the image.

IP-Adapter Plus and SD3's adapter squeeze all patches of the reference into a few tokens there. Recorded, it carries maps back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from torch import Tensor, nn

from ..encoding.scores import default_scale

RESAMPLER: Final = re.compile(r"\w+\.(?:encoder_hid_proj\.image_projection_layers\.(\d+)|image_proj)\.layers\.\d+\.attn")
"""Path of a resampler's attention, and the number of its adapter where several are loaded."""

Tell: TypeAlias = Callable[[Tensor, Tensor, float], None]
"""Takes query and key, (row, head, token, channel), and the scale."""


def resampler_of(path: str) -> int | None:
    """Number of the IP-Adapter whose resampler an attention module is part of; None for any other module."""
    match = RESAMPLER.fullmatch(path)
    return None if match is None else int(match[1] or 0)


def watch_resampler(module: Any, wanted: Callable[[], bool], tell: Tell) -> list[Any]:
    """Report each attention of a resampler's module while `wanted` says so; returns the handles.

    Read off its projections: one kind attends through the fused function, the other multiplies matrices itself.
    """
    queries: list[Tensor] = []
    fused = module.to_k is None

    def keep_query(_: nn.Module, args: Any, output: Tensor) -> None:
        if wanted():
            queries[:] = [output]

    def keep_key(_: nn.Module, args: Any, output: Tensor) -> None:
        if wanted() and queries:
            query = _split_heads(queries.pop(), module.heads)
            key = _split_heads(output.chunk(2, -1)[0] if fused else output, module.heads)
            # The one with fused projections takes its scale twice, once on each side.
            tell(query, key, float(module.scale) ** 2 if fused else default_scale(query.shape[-1]))

    keys = module.to_kv if fused else module.to_k
    return [module.to_q.register_forward_hook(keep_query), keys.register_forward_hook(keep_key)]


def _split_heads(output: Tensor, heads: int) -> Tensor:
    return output.reshape(*output.shape[:-1], heads, -1).transpose(1, 2)
