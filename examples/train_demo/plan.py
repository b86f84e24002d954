"""The settings of a training run, and the untrained pipeline that it starts from."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import DDIMScheduler, UNet2DConditionModel

from i2am.recorder.demo.encoder import GarmentEncoder
from i2am.recorder.demo.pipeline import COORDINATE_CHANNELS, TryOnPipeline


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of a training run."""

    minutes: float = 60.0
    """Budget of training time, before and after --resume together."""
    steps: int = 0
    """Budget in optimiser steps; 0 means that `minutes` is the budget."""
    batch: int = 32
    rate: float = 2e-2
    """Peak learning rate of Muon; AdamW has a tenth of it."""
    seed: int = 0
    size: int = 64
    """Image side in pixels."""
    patch: int = 4
    """Pixels to a side of one latent cell and of one reference token."""
    channels: tuple[int, ...] = (64, 96)
    """UNet channels by resolution, finest first."""
    layers: int = 1
    """Residual and attention blocks per resolution."""
    heads: int = 4
    width: int = 96
    """Width of the reference tokens."""
    pool: int = 16384
    """How many pairs are drawn before training starts."""
    dropout: float = 0.1
    """Share of samples from which the reference is withheld, for guidance."""
    decay: float = 0.999
    """Of the moving average of the weights, which is what is saved."""
    threads: int = 2


def build_pipeline(plan: Plan) -> TryOnPipeline:
    """The untrained pipeline of a plan."""
    squares = plan.patch**2
    unet = UNet2DConditionModel(
        sample_size=plan.size // plan.patch,
        in_channels=7 * squares + COORDINATE_CHANNELS,
        out_channels=3 * squares,
        layers_per_block=plan.layers,
        block_out_channels=plan.channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(plan.channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(plan.channels),
        cross_attention_dim=plan.width,
        attention_head_dim=plan.heads,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )
    encoder = GarmentEncoder(image_size=plan.size, patch_size=plan.patch, width=plan.width)
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        # The clean latent: to predict velocity, the network would have to pass on 48 channels of noise, through a width of 64.
        prediction_type="sample",
        timestep_spacing="trailing",
        clip_sample=True,
        clip_sample_range=0.5,
        set_alpha_to_one=True,
    )
    return TryOnPipeline(image_encoder=encoder, unet=unet, scheduler=scheduler, scaling_factor=0.5)
