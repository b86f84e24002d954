"""Probabilities, rounded as they are stored, and log-sum-exps of one attention call, on the model's device, in blocks that bound memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ...schema.codec import MANTISSA, PROBABILITY_SCALE

BLOCK_BYTES: Final = 32 * 2**20
"""Scores held at one time, in bytes of float32 (a few such blocks live at once)."""

HIDDEN: Final = -9e3
"""An additive mask this low hides a key."""
LOWEST: Final = -1e30
"""Stands for -inf where it would be taken from itself."""
VANISHING: Final = 1e-25
"""Sums above this have lost nothing that counts to float32's underflow at 1e-38."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row (one sample in one branch) of one attention call, on the model's device."""

    probability: Tensor
    """float16, P * 2**15, (head, x, token)."""
    query_lse: Tensor
    """float32, logsumexp over all keys, (head, x)."""
    token_lse: Tensor
    """float32, logsumexp over generated positions, (head, token); -inf for a key that the mask hides everywhere."""
    lost: Tensor
    """float32 scalar: worst share by which float16 changed the sum of one token's G column, over heads and tokens. Range [0, 1]."""


@dataclass(frozen=True, slots=True)
class Summing:
    """Which sums of a call are kept."""

    segments: tuple[slice, ...]
    """Stretches of the kept tokens that are summed apart."""
    weights: Tensor
    """Of positions, float32, (weighting, x)."""
    own: tuple[slice, ...]
    """Kept tokens of which P itself is kept."""


@dataclass(frozen=True, slots=True)
class Summed:
    """The sums of one row of a call, on the model's device; the last axis of sums is P, then G."""

    position_sum: Tensor
    """float32, (head, x, segment, 2)."""
    token_sum: Tensor
    """float32, (head, token, weighting, 2)."""
    token_probability: Tensor
    """float16, P * 2**15 of the tokens of their own, (head, x, token)."""
    query_lse: Tensor
    """As of `Encoded`."""
    token_lse: Tensor

    def add(self, values: Tensor, rows: slice, which: int, sums: Summing) -> None:
        """Add a block of one softmax.

        Dims     values (head, row, token)
        """
        for i, part in enumerate(sums.segments):
            self.position_sum[:, rows, i, which] = values[..., part].sum(2)
        self.token_sum[..., which] += torch.matmul(values.transpose(1, 2), sums.weights[:, rows].T)


class Scratch:
    """Host memory for two blocks of scores that every call uses again: fresh memory takes longer than the arithmetic in it."""

    def __init__(self) -> None:
        self._held = [torch.empty(0), torch.empty(0)]

    def take(self, which: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Float32 of this shape with any content, until it is taken again; other devices have allocators that keep memory."""
        if device.type != "cpu":
            return torch.empty(shape, device=device)
        size = math.prod(shape)
        if self._held[which].numel() < size:
            with torch.inference_mode(False):  # calls outside of that mode could not write into it
                self._held[which] = torch.empty(size)
        return self._held[which][:size].view(shape)


def default_scale(head_dim: int) -> float:
    """The scale of scaled dot-product attention when a call names none."""
    return 1 / math.sqrt(head_dim)


def encode_scores(
    query: Tensor,
    key: Tensor,
    scale: float,
    mask: Tensor | None = None,
    keep_bits: int = MANTISSA,
    columns: Sequence[slice] = (),
    scratch: Scratch | None = None,
) -> Encoded:
    """The model's own softmax of one row, with both log-sum-exps, so that scores and both softmaxes can be had back.

    Only the keys in `columns` are kept, none meaning all; the softmax runs over all of them either way.

    Dims     query (head, x, channel), key (head or fewer, token, channel), mask broadcast to (head, x, token)
    Error    as schema.codec.encode_probability, on scores computed in float32; that of round_mantissa with fewer bits
    """
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        heads, positions, _ = query.shape
        keys, bias = _prepare(key, heads, positions, mask)
        scratch = scratch or Scratch()
        tokens = sum(column.stop - column.start for column in columns) if columns else key.shape[1]
        probability = torch.empty(heads, positions, tokens, dtype=torch.float16, device=query.device)
        query_lse = torch.empty(heads, positions, dtype=torch.float32, device=query.device)
        token_lse = torch.full((heads, tokens), -math.inf, dtype=torch.float32, device=query.device)
        blocks = _blocks(positions, heads * key.shape[1] * 4)
        for rows in blocks:
            scores = _scores(query, keys, bias, scale, rows, scratch)
            weights, share = _softmax(scores, rows, columns, query_lse, token_lse, scratch)
            probability[:, rows] = weights.mul_(share.mul_(1 / PROBABILITY_SCALE))
        round_mantissa(probability, keep_bits)  # before its losses are measured
        return Encoded(probability, query_lse, token_lse, _column_mass_lost(probability, query_lse, token_lse, blocks, scratch))


def sum_scores(
    query: Tensor,
    key: Tensor,
    scale: float,
    mask: Tensor | None,
    columns: Sequence[slice],
    sums: Summing,
    scratch: Scratch | None = None,
) -> Summed:
    """Sums of both softmaxes of one row, in float32 and of nothing that was rounded; else as `encode_scores`.

    Scores are computed twice, a block at a time, so that memory does not grow with the call.
    """
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        heads, positions, _ = query.shape
        keys, bias = _prepare(key, heads, positions, mask)
        scratch, blocks = scratch or Scratch(), _blocks(positions, heads * key.shape[1] * 4)
        tokens = sum(column.stop - column.start for column in columns) if columns else key.shape[1]
        own = sum(part.stop - part.start for part in sums.own)
        made = Summed(
            torch.empty(heads, positions, len(sums.segments), 2, device=query.device),
            torch.zeros(heads, tokens, len(sums.weights), 2, device=query.device),
            torch.empty(heads, positions, own, dtype=torch.float16, device=query.device),
            torch.empty(heads, positions, device=query.device),
            torch.full((heads, tokens), -math.inf, device=query.device),
        )
        for rows in blocks:
            scores = _scores(query, keys, bias, scale, rows, scratch)
            weights, share = _softmax(scores, rows, columns, made.query_lse, made.token_lse, scratch)
            made.add(weights.mul_(share), rows, 0, sums)
            if own:
                made.token_probability[:, rows] = take_keys(weights[..., None], sums.own)[..., 0] / PROBABILITY_SCALE
        # A key that the mask hides everywhere has no column of G to sum.
        columns_lse = torch.where(torch.isneginf(made.token_lse), 0.0, made.token_lse)[:, None]
        for rows in blocks:
            scores = _scores(query, keys, bias, scale, rows, scratch)
            scores = take_keys(scores[..., None], columns)[..., 0] if columns else scores
            made.add((scores - columns_lse).exp_(), rows, 1, sums)
        return made


def round_mantissa(stored: Tensor, keep_bits: int) -> None:
    """Round non-negative float16 in place, half to even, to `keep_bits` of its 10 mantissa bits; the rest become 0.

    Error    relative 2**-(keep_bits + 1) for normal numbers, absolute 2**-(keep_bits + 15) for subnormal ones
    Source   Kloewer et al. 2021, Nature Computational Science 1, 713: bit rounding before lossless compression
    """
    drop = MANTISSA - keep_bits
    if drop <= 0:
        return
    bits = stored.view(torch.int16)  # its order is that of the numbers, so a carry into the exponent is right
    odd = (bits >> drop).bitwise_and_(1)
    bits.add_(odd.add_((1 << (drop - 1)) - 1)).bitwise_and_(-(1 << drop))


def sum_rows(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None, scratch: Scratch | None = None) -> Tensor:
    """Logsumexp of one row's scores over all keys, float32.

    Dims     as encode_scores -> (head, x)
    """
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        heads, positions, _ = query.shape
        keys, bias = _prepare(key, heads, positions, mask)
        blocks, scratch = _blocks(positions, heads * key.shape[1] * 4), scratch or Scratch()
        return torch.cat([torch.logsumexp(_scores(query, keys, bias, scale, rows, scratch), 2) for rows in blocks], 1)


def take_keys(key: Tensor, columns: Sequence[slice]) -> Tensor:
    """Some of the keys, one stretch after another; none means all.

    Dims     (..., token, channel) -> the same with fewer tokens
    """
    if len(columns) < 2:
        return key[..., columns[0], :] if columns else key
    return torch.cat([key[..., column, :] for column in columns], -2)


def _prepare(key: Tensor, heads: int, positions: int, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    keys = share_heads(key, heads).float().transpose(1, 2)  # (head, channel, token)
    return keys, None if mask is None else additive(mask).expand(heads, positions, keys.shape[2])


def _scores(query: Tensor, keys: Tensor, bias: Tensor | None, scale: float, rows: slice, scratch: Scratch) -> Tensor:
    queries = query[:, rows].float() * scale
    scores = torch.matmul(queries, keys, out=scratch.take(0, (*queries.shape[:2], keys.shape[2]), query.device))  # (head, row, token)
    return scores if bias is None else scores.add_(bias[:, rows])


def _softmax(
    scores: Tensor, rows: slice, columns: Sequence[slice], query_lse: Tensor, token_lse: Tensor, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """Numbers and, for each row, the factor that make P of a block of scores; fills in its rows of `query_lse`, and adds to `token_lse`."""
    if columns:
        query_lse[:, rows] = torch.logsumexp(scores, 2)
        scores = take_keys(scores[..., None], columns)[..., 0].contiguous()
    summed, top, weights = _add_columns(token_lse, scores, scratch)
    token_lse.copy_(summed)
    if columns:
        return weights, (top - query_lse[:, rows, None]).exp_()
    total = weights.sum(2, keepdim=True)
    query_lse[:, rows] = (total.log() + top)[..., 0]
    return weights, total.reciprocal_()


def _add_columns(token_lse: Tensor, scores: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor, Tensor]:
    """The column log-sum-exps with a block of scores added; each row's maximum; and the block's exp(score - maximum).

    A column is summed from the exponentials that P needs anyway, unless it is so far below the rest that they vanish.
    """
    top = scores.amax(2, keepdim=True).clamp_(min=LOWEST)  # a mask may hide every key that is kept
    peak = top.amax(1)  # (head, 1)
    if scores.device.type != "cpu":
        # Looking at the sums would make the device wait; there an exponential more is cheap.
        columns = torch.logsumexp(scores, 1)
        return torch.logaddexp(token_lse, columns), top, scores.sub_(top).exp_()
    weights = torch.sub(scores, top, out=scratch.take(1, tuple(scores.shape), scores.device)).exp_()
    sums = torch.matmul((top - peak[:, None]).exp_().transpose(1, 2), weights)[:, 0]  # (head, token)
    columns = sums.log() + peak if bool((sums > VANISHING).all()) else torch.logsumexp(scores, 1)
    return torch.logaddexp(token_lse, columns), top, weights


def _column_mass_lost(probability: Tensor, query_lse: Tensor, token_lse: Tensor, blocks: list[slice], scratch: Scratch) -> Tensor:
    """Worst |1 - sum over x of the decoded G|: what float16 took from one token's column, or, rounding up, gave it.

    Range    [0, 1]
    """
    kept = torch.zeros_like(token_lse)
    peak = query_lse.amax(1, keepdim=True)
    quick = probability.device.type == "cpu" and bool((token_lse - peak > math.log(VANISHING)).all())
    for rows in blocks:
        part = probability[:, rows]
        stored = scratch.take(1, tuple(part.shape), part.device).copy_(part)
        if quick:
            kept += torch.matmul((query_lse[:, rows] - peak).exp_()[:, None], stored)[:, 0]
        else:
            # Where the stored P is not 0 it is at least 2**-39, and P * exp(a - b) <= 1, so a - b < 28: the clamp touches
            # only entries that count 0, and keeps 0 * inf out.
            shift = (query_lse[:, rows, None] - token_lse[:, None, :]).clamp_(max=60)
            kept += shift.exp_().mul_(stored).sum(1)
    if quick:
        kept *= (peak - token_lse).exp_()
    lost = 1 - kept * PROBABILITY_SCALE
    return torch.where(torch.isneginf(token_lse), 0.0, lost).abs().max().clamp(max=1)


def _blocks(positions: int, row_bytes: int) -> list[slice]:
    size = max(1, BLOCK_BYTES // row_bytes)
    return [slice(start, min(start + size, positions)) for start in range(0, positions, size)]


def share_heads(key: Tensor, heads: int) -> Tensor:
    """Keys repeated for grouped queries: query head h reads key head h // (heads // key heads).

    Dims     (key head, token, channel) -> (head, token, channel)
    """
    return key if key.shape[0] == heads else key.repeat_interleave(heads // key.shape[0], 0)


def heads_of(query: Tensor, key: Tensor, mask: Tensor | None, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
    """One row of a call with the heads of these numbers only; no numbers keep all.

    Dims     query (head, x, channel), key (head or fewer, token, channel), mask broadcast to (head, x, token)
    """
    if not numbers:
        return query, key, mask
    shared = share_heads(key, query.shape[0])
    if mask is not None and mask.ndim > 2 and mask.shape[-3] > 1:
        mask = torch.stack([mask[number] for number in numbers])
    # Not by an index, which a GPU would have to be sent first.
    return torch.stack([query[number] for number in numbers]), torch.stack([shared[number] for number in numbers]), mask


def mask_of(mask: Tensor | None, row: int) -> Tensor | None:
    """One row's part of a call's mask.

    Dims     broadcast to (row, head, x, token) -> broadcast to (head, x, token)
    """
    if mask is None or mask.ndim < 4:
        return mask
    return mask[row if mask.shape[0] > 1 else 0]


def additive(mask: Tensor) -> Tensor:
    """An attention mask as numbers to add to scores: -inf where it hides; a boolean one keeps where it is True."""
    # diffusers hides with -10000, whose exponential is 0 as well.
    hidden = ~mask if mask.dtype == torch.bool else mask <= HIDDEN
    return torch.where(hidden, -math.inf, 0.0 if mask.dtype == torch.bool else mask.float())


def exact(factor: Tensor) -> Tensor:
    """Query or key as stored: float16 stays, everything else becomes float32; both lose nothing."""
    return factor.detach() if factor.dtype in (torch.float16, torch.float32) else factor.detach().float()
