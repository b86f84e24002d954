"""Attention computed anew with keys or heads left out, for some rows, heads and queries of a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...schema.errors import InvalidInput
from ..capture.call import Call
from ..encoding.scores import additive
from .request import Kind


@dataclass(frozen=True, slots=True)
class Edit:
    """What is left out of one call, by its own numbers."""

    kind: Kind
    rows: slice
    queries: tuple[int, ...]
    heads: tuple[int, ...]
    keys: tuple[int, ...]
    """Empty for heads that are off."""


def change(call: Call, edits: Sequence[Edit], value: Tensor, output: Tensor) -> Tensor:
    """What a call gives with all edits made; queries that no edit is about keep what they had, bit for bit.

    Dims     value (row, head or fewer, token, channel), output (row, head, x, channel) -> as output
    Raises   InvalidInput where no key is left that a query could attend to
    """
    rows, heads, places = call.query.shape[:3]
    lengths = {"drop": call.key.shape[2], "zero": call.key.shape[2], "off": 1, "changed": places}
    marks = {name: torch.zeros(rows, heads, length, dtype=torch.bool) for name, length in lengths.items()}
    for edit in edits:
        for name, marked in ((edit.kind, edit.keys or (0,)), ("changed", edit.queries)):
            marks[name][edit.rows][:, torch.tensor(edit.heads)[:, None], torch.tensor(marked)] = True
    anything_dropped = bool(marks["drop"].any())  # asked while it is on the host
    drop, zero, off, changed = (mark.to(output.device)[..., None] for mark in marks.values())
    mask = _without(call, drop.transpose(2, 3), changed & ~off) if anything_dropped else call.mask
    key, value = _for_heads(call.key, heads), torch.where(zero, value.new_zeros(()), _for_heads(value, heads))
    taken = functional.scaled_dot_product_attention(call.query, key, value, attn_mask=mask, scale=call.scale)
    return torch.where(changed, taken.masked_fill(off, 0), output)


def _for_heads(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values repeated for grouped queries.

    Dims     (row, head or fewer, token, channel) -> (row, head, token, channel)
    """
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], 1)


def _without(call: Call, dropped: Tensor, changed: Tensor) -> Tensor:
    """The call's mask with these keys hidden as well.

    Dims     dropped (row, head, 1, token), changed (row, head, x, 1)
    """
    hidden = dropped if call.mask is None else dropped | (additive(call.mask) == -math.inf)
    if bool((hidden.all(-1, keepdim=True) & changed).any()):
        raise InvalidInput(
            f"{call.path} would have no key left to attend to, so the others cannot take the share of those that are dropped; "
            "use zero, which leaves the softmax as it is, or off"
        )
    if call.mask is None or call.mask.dtype == torch.bool:
        return ~hidden
    return torch.where(dropped, -math.inf, call.mask)
