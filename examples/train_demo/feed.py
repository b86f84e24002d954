"""Training batches, drawn at random from a pool of pairs that is made once; each time in other colours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from i2am.recorder.demo.pairs import HELD_OUT, Pair, draw_pair
from plan import Plan


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs as tensors: person and reference (image, rgb, y, x) in [-1, 1], the mask (image, 1, y, x) 0 or 1."""

    person: Tensor
    reference: Tensor
    mask: Tensor


def stack(pairs: list[Pair], device: torch.device) -> Batch:
    """Put pairs into one batch."""

    def images(name: str) -> Tensor:
        array = np.stack([getattr(pair, name) for pair in pairs])
        return torch.from_numpy(array).permute(0, 3, 1, 2).to(device, torch.float32) * 2 - 1

    mask = torch.from_numpy(np.stack([pair.mask for pair in pairs]))[:, None].to(device, torch.float32)
    return Batch(images("person"), images("reference"), mask)


def draw_pool(plan: Plan) -> Batch:
    """Draw the training pairs, stored as bytes so that they fit into memory."""
    seeds = np.random.default_rng(plan.seed).integers(0, HELD_OUT, plan.pool)
    packed = []
    for start in range(0, plan.pool, 256):
        part = stack([draw_pair(int(seed), plan.size) for seed in seeds[start : start + 256]], torch.device("cpu"))
        packed.append([((x + 1) * 127.5).round().to(torch.uint8) for x in (part.person, part.reference)])
        packed[-1].append(part.mask.to(torch.uint8))
    return Batch(*(torch.cat(column) for column in zip(*packed, strict=True)))


def batches(pool: Batch, plan: Plan, device: torch.device, generator: torch.Generator) -> Iterator[Batch]:
    """Yield random batches without end. Each pair's colour channels are permuted and inverted at random, in both images alike."""
    while True:
        chosen = torch.randint(len(pool.mask), (plan.batch,), generator=generator)
        swap = torch.rand(plan.batch, 3, generator=generator).argsort(1)[:, :, None, None]
        sign = torch.randint(0, 2, (plan.batch, 3, 1, 1), generator=generator) * 2.0 - 1
        images = []
        for column in (pool.person, pool.reference):
            image = column[chosen].float() / 127.5 - 1
            images.append((image.gather(1, swap.expand_as(image)) * sign).to(device))
        yield Batch(images[0], images[1], pool.mask[chosen].float().to(device))
