"""The training objective: paint the person, given noise, the reference and the person without the torso."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from feed import Batch
from i2am.recorder.demo.pipeline import TryOnPipeline, denoiser_input
from plan import Plan


class FullPrecisionAttention(TorchFunctionMode):
    """Compute attention in float32 under autocast: the backward pass of the CPU kernel is twice as fast as in bfloat16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            args = tuple(x.float() if isinstance(x, Tensor) else x for x in args)
            with torch.autocast("cpu", enabled=False):
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def noise_level(pipeline: TryOnPipeline, step: Tensor) -> Tensor:
    """Standard deviation of the noise at training steps.

    Dims     (image,) -> (image, 1, 1, 1)
    Range    (0, 1]
    """
    cumulative: Tensor = pipeline.scheduler.alphas_cumprod.to(step.device)[step]
    return (1 - cumulative).sqrt()[:, None, None, None]


def paint(pipeline: TryOnPipeline, batch: Batch, noise: Tensor, step: Tensor, kept: Tensor | None) -> Tensor:
    """Predict the clean image from a noisy one in one call.

    Dims     noise (image, 3*p*p, y/p, x/p), step and kept (image,) -> (image, 3*p*p, y/p, x/p) in [-1, 1]; where
             kept is False the reference is withheld
    """
    clean = pipeline.to_latent(batch.person)
    sigma = noise_level(pipeline, step)
    noisy = (1 - sigma**2).sqrt() * clean + sigma * noise
    agnostic = pipeline.to_latent(batch.person * (1 - batch.mask))
    mask = functional.pixel_unshuffle(batch.mask, pipeline.block)
    tokens = pipeline.image_encoder(batch.reference).last_hidden_state
    if kept is not None:
        tokens = torch.where(kept[:, None, None], tokens, pipeline.image_encoder.unconditional_tokens(len(tokens)))
    predicted: Tensor = pipeline.unet(denoiser_input(noisy, agnostic, mask), step, tokens).sample
    return predicted.float() / float(pipeline.config.scaling_factor)


def painting_loss(pipeline: TryOnPipeline, batch: Batch, plan: Plan) -> Tensor:
    """Squared error of the clean image, 16 times heavier under the mask, up to four times heavier on nearly clean ones.

    Noisy steps are drawn more often, because only the reference tells there what to paint.
    """
    count, device = len(batch.mask), batch.mask.device
    last = int(pipeline.scheduler.config.num_train_timesteps)
    step = (torch.rand(count, device=device).sqrt() * last).long().clamp(max=last - 1)
    target = functional.pixel_unshuffle(batch.person, pipeline.block)
    kept = torch.rand(count, device=device) >= plan.dropout
    clean = paint(pipeline, batch, torch.randn_like(target), step, kept)
    mask = torch.cat([functional.pixel_unshuffle(batch.mask, pipeline.block)] * 3, dim=1)
    precision = 1 / (noise_level(pipeline, step) ** 2 + 0.25)
    return (precision * (0.2 + 3 * mask) * (clean - target) ** 2).mean()


@torch.no_grad()
def one_step_error(pipeline: TryOnPipeline, batch: Batch) -> float:
    """Squared error under the mask of painting from pure noise in one call, over that of the garment's mean colour."""
    generator = torch.Generator().manual_seed(0)
    target = functional.pixel_unshuffle(batch.person, pipeline.block)
    noise = torch.randn(target.shape, generator=generator).to(target)
    step = torch.full((len(target),), int(pipeline.scheduler.config.num_train_timesteps) - 1, device=target.device)
    painted = functional.pixel_shuffle(paint(pipeline, batch, noise, step, None).clamp(-1, 1), pipeline.block)
    area = batch.mask.sum((2, 3), keepdim=True)
    mean = (batch.person * batch.mask).sum((2, 3), keepdim=True) / area
    error = ((painted - batch.person) ** 2 * batch.mask).sum((1, 2, 3)) / area.flatten()
    plain = ((mean - batch.person) ** 2 * batch.mask).sum((1, 2, 3)) / area.flatten()
    return float((error.mean() / plain.mean()).item())
