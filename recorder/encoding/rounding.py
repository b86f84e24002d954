"""Rounding of stored probabilities to fewer mantissa bits, so that they compress better."""

from __future__ import annotations

import torch
from torch import Tensor

from ...schema.codec import MANTISSA


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
