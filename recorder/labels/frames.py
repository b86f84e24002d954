"""Videos whose frames a UNet lays out as rows of its batch: each call made into one over (frame, y, x) again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ..capture.call import Call
from ..families import family_of

TEMPORAL: Final = frozenset(("temporal_transformer_blocks", "motion_modules"))
"""Modules whose rows are places, each attending from all of its frames; elsewhere rows are frames, attending from all places."""
VIDEO_AXES: Final = 5
ROUNDING: Final = 8
"""Keys of two rows that were made from the same numbers differ by at most this many units in the last place of the largest."""


def frames_in_rows(denoiser: nn.Module, sample: Any) -> int:
    """Frames that stand in the rows of a denoiser's batch; 0 for one that makes no video in this way."""
    axis = family_of(denoiser).frame_axis
    return int(sample.shape[axis]) if axis is not None and isinstance(sample, Tensor) and sample.ndim == VIDEO_AXES else 0


def whole_video(call: Call, frames: int) -> Call:
    """A call over some frames, or some places, at a time as the one over the whole video that its rows make up together.

    Dims     query (video and frame, head, y x, channel) or (video and place, head, frame, channel) -> (video, head, frame y x, channel)
    Raises   UnsupportedModel if its rows are neither, or have masks of their own
    """
    if call.around is None:
        return call  # nothing lays its places out; `describe` says so
    area = call.around[0] * call.around[1]
    temporal = not TEMPORAL.isdisjoint(call.path.split("."))
    inner, positions = (area, frames) if temporal else (frames, area)
    rows = call.query.shape[0]
    if rows % inner or call.query.shape[2] != positions or call.mask is not None:
        what = "has a mask for each row" if call.mask is not None else f"attends from {call.query.shape[2]} positions in {rows} rows"
        raise UnsupportedModel(
            f"{call.path} {what}, which is not how {frames} frames of {call.around[0]} x {call.around[1]} places are known to be batched; "
            f"leave it out through {option('layers')}"
        )
    query = call.query.reshape(-1, inner, *call.query.shape[1:])  # (video, row, head, x, channel)
    query = query.permute((0, 2, 3, 1, 4) if temporal else (0, 2, 1, 3, 4)).flatten(2, 3)
    key = call.key.reshape(-1, inner, *call.key.shape[1:])  # (video, row, head, token, channel)
    value = None if call.value is None else call.value.reshape(-1, inner, *call.value.shape[1:])[:, 0]
    norms = None if call.residual is None else call.residual.reshape(-1, inner, positions)  # (video, row, x)
    residual = None if norms is None else (norms.transpose(1, 2) if temporal else norms).flatten(1)
    grid, span = call.around, frames if frames > 1 else 0
    uneven = _unevenness(key) if inner > 1 else None
    return replace(call, query=query, key=key[:, 0], value=value, residual=residual, grid=grid, frames=span, uneven=uneven)


def _unevenness(key: Tensor) -> Tensor:
    """How far the keys of a video's rows lie apart, over the largest of them; stays on the device.

    Dims     (video, row, head, token, channel) -> ()
    """
    first = key[:, :1].detach()
    return (key.detach() - first).abs().amax().float() / first.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny)


def uneven_keys(path: str) -> UnsupportedModel:
    """The error for keys that differ between the frames of one video."""
    return UnsupportedModel(
        f"the keys of {path} differ from frame to frame (a prompt or reference for each frame), and a trace has one set for a whole "
        f"video; give all frames the same, or leave it out through {option('layers')}"
    )


def same_keys(dtype: torch.dtype, unevenness: float) -> bool:
    """Whether the keys of one row stand for those of all, but for rounding."""
    return unevenness <= ROUNDING * torch.finfo(dtype).eps
