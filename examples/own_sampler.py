"""Record a model that diffusers does not know: a small random U-Net with attention of its own, in a DDIM loop of its own.

    python examples/own_sampler.py own.zarr
    i2am info own.zarr
    i2am map own.zarr --r2g -o r2g.png

Nothing of the model is changed for the recording; the block `with recording(...)` says what cannot be told from its modules.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from i2am.recorder import recording

WIDTH, HEADS, PATCHES, LATENT, CELL = 16, 2, (4, 4), (12, 9), 8


class CrossAttention(nn.Module):
    """Multiplies matrices itself, as latent diffusion's first code does; keys are made of the reference, or of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.to_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        query, key, value = (t.unflatten(2, (HEADS, -1)) for t in (self.to_q(x), self.to_k(source), self.to_v(source)))
        weights = (torch.einsum("bxhc,brhc->bhxr", query, key) * self.scale).softmax(dim=-1)
        return self.to_out(torch.einsum("bhxr,brhc->bxhc", weights, value).flatten(2))


class Denoiser(nn.Module):
    """Convolution, self-attention, cross-attention to the reference, convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.exit = nn.Conv2d(4, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 4, 3, padding=1)
        self.time, self.block = nn.Linear(1, WIDTH), Block()

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        features = self.entry(x) + self.time(timesteps[:, None] / 1000)[:, :, None, None]
        return self.exit(self.block(features, context))


class Block(nn.Module):
    """The module that sees rows and columns: queries get their grid from it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(), CrossAttention()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attn1(tokens)
        tokens = tokens + self.attn2(tokens, context)
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def sample(denoiser: nn.Module, cond: Tensor, uncond: Tensor, steps: int = 10, guidance: float = 2.0) -> Tensor:
    """DDIM with both branches of the guidance in one batch, the unconditional first."""
    x = torch.randn(1, 4, *LATENT)
    levels = torch.linspace(0.05, 0.99, steps + 1)
    for index in range(steps):
        time = torch.full((2,), 1000.0 * (1 - index / steps))
        away, toward = denoiser(torch.cat([x, x]), time, torch.cat([uncond, cond])).chunk(2)
        noise = away + guidance * (toward - away)
        now, after = levels[index], levels[index + 1]
        x = after**0.5 * (x - (1 - now) ** 0.5 * noise) / now**0.5 + (1 - after) ** 0.5 * noise
    return x


def encode(picture: Tensor) -> Tensor:
    """One token for the whole reference, then one for each of its patches."""
    patches = nn.functional.adaptive_avg_pool2d(picture, PATCHES).flatten(1).T  # (token, rgb)
    tokens = torch.cat([patches.mean(0, keepdim=True), patches])
    return (tokens @ torch.randn(3, WIDTH))[None]


@click.command()
@click.argument("out", type=click.Path(path_type=Path), default=Path("own.zarr"))
def main(out: Path) -> None:
    """Record one run of random weights to OUT."""
    torch.manual_seed(0)
    model = Denoiser().eval()
    reference = torch.rand(3, 64, 64)
    groups = {"*attn2": [{"name": "reference", "specials": 1, "grid": PATCHES}]}
    with torch.no_grad(), recording(model, out, denoisers={"unet": model}, groups=groups, order=("uncond", "cond")) as running:
        running.images(reference=reference)
        cond = encode(reference)
        latent = sample(model, cond, torch.zeros_like(cond))
        pixels = np.kron(latent[0, :3].permute(1, 2, 0).sigmoid().numpy(), np.ones((CELL, CELL, 1), dtype=np.float32))
        running.images(generated=pixels)
    click.echo(f"{out}: {running.trace.steps if running.trace else 0} steps; i2am info {out}")


if __name__ == "__main__":
    main()
