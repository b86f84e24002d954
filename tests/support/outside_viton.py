"""VITON-v1, the I2AM author's own try-on model, small and with random weights, written from its published structure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from outside_models import CONTEXT, HEADS, LATENT, REFERENCE, TRAINED, Condition, Conditions, Diffusion, UNet, finish, random_tensor
from torch import Tensor, nn
from torch.nn import functional


class PatchAttention(nn.Module):
    """VITON-v1's cross-attention: projections of other names, rows and heads on one axis for its kernel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(CONTEXT, width, bias=False) for _ in range(2))
        self.out_proj, self.n_heads = nn.Linear(width, width), HEADS
        self.attention: list[Tensor] = []

    def fold(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.n_heads, -1)).transpose(1, 2).flatten(0, 1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        mixed = self.attend(self.fold(self.q_proj(x)), self.fold(self.k_proj(context)), self.fold(self.v_proj(context)))
        return self.out_proj(mixed.unflatten(0, (-1, self.n_heads)).transpose(1, 2).flatten(2))


class HiddenPatchAttention(PatchAttention):
    """The same in a kernel that torch does not show, as xformers' is."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = sum(query[:, :, None, c] * key[:, None, :, c] for c in range(query.shape[2])) / query.shape[2] ** 0.5
        weights = (scores - scores.amax(2, keepdim=True)).exp()
        weights = weights / weights.sum(2, keepdim=True)
        return (weights[..., None] * value[:, None]).sum(2)


class PatchBlock(nn.Module):
    """VITON-v1's block: self-attention from one fused projection, then cross-attention to all patches of the garment."""

    def __init__(self, width: int, attention: Callable[[int], nn.Module] = PatchAttention) -> None:
        super().__init__()
        self.in_proj, self.norm = nn.Linear(width, 3 * width), nn.LayerNorm(width)
        self.attention_2 = attention(width)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + functional.scaled_dot_product_attention(*self.in_proj(self.norm(tokens)).chunk(3, dim=-1))
        tokens = tokens + self.attention_2(self.norm(tokens), conditions.context)
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class UntoldUNet(UNet):
    """A U-Net that is given what was made of the timestep, not the timestep: (row, 1)."""

    def forward(self, x: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return super().forward(x, timesteps.flatten() * TRAINED, conditions)


def viton_v1(
    samples: int = 1, attention: Callable[[int], nn.Module] = PatchAttention, told: bool = True
) -> tuple[Diffusion, Condition, Condition]:
    """CLS and every patch of the garment, the conditional branch first; `told` says whether the U-Net is given the timestep."""
    torch.manual_seed(0)
    unet = (UNet if told else UntoldUNet)(4 + 8, lambda width: PatchBlock(width, attention))

    def call(this: Diffusion, x: Tensor, t: Tensor, c: Condition) -> Tensor:
        return this.unet(torch.cat([x, c["c_concat"]], 1), t if told else t[:, None] / TRAINED, Conditions(c["patches"]))

    concat, count = random_tensor(1, samples, 8, *LATENT), 1 + REFERENCE[0] * REFERENCE[1]
    cond = {"patches": random_tensor(2, samples, count, CONTEXT), "c_concat": concat}
    model = Diffusion(unet, call)
    model.unet = unet
    return finish(model), cond, {"patches": random_tensor(3, 1, count, CONTEXT).expand(samples, -1, -1), "c_concat": concat}
