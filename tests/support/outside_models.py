"""Small random models of the kinds that diffusers does not ship, written from their published structure, and a sampler for them.

Layer names are those of the published code, since recordings are asked for by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

PATH = Path("nowhere.zarr")
"""Of recordings that stay in memory."""
UNET = {"unet": "model.diffusion_model"}
GUIDED = ("uncond", "cond")

WIDTH = 8
HEADS = 2
LATENT = (8, 6)
CONTEXT = 6
TEXT = 5
IMAGE_TOKENS = 3
TRAINED = 1000


class EinsumAttention(nn.Module):
    """Latent diffusion's own attention: it multiplies matrices itself."""

    def __init__(self, width: int, context: int | None = None) -> None:
        super().__init__()
        self.heads, self.scale = HEADS, (width // HEADS) ** -0.5
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context or width, width, bias=False)
        self.to_v = nn.Linear(context or width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))
        self.attention: list[Tensor] = []
        """What it took of its values, pass by pass: (row, head, x, token)."""

    def fold(self, tokens: Tensor) -> Tensor:
        rows, count, width = tokens.shape
        return tokens.view(rows, count, self.heads, width // self.heads).transpose(1, 2).reshape(rows * self.heads, count, -1)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        query, key, value = self.fold(self.to_q(x)), self.fold(self.to_k(source)), self.fold(self.to_v(source))
        scores = torch.einsum("bid,bjd->bij", query, key) * self.scale
        if mask is not None:
            scores = scores.masked_fill(~mask.repeat_interleave(self.heads, 0)[:, None, :], -torch.finfo(scores.dtype).max)
        weights = scores.softmax(dim=-1)
        self.attention.append(weights.detach().clone().unflatten(0, (-1, self.heads)))
        mixed = torch.einsum("bij,bjd->bid", weights, value).unflatten(0, (-1, self.heads))
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class FusedAttention(EinsumAttention):
    """The same through scaled_dot_product_attention; with an adapter's keys in a softmax of their own."""

    def __init__(self, width: int, context: int | None = None, adapter: bool = False) -> None:
        super().__init__(width, context)
        if adapter:
            self.to_k_ip = nn.Linear(context or width, width, bias=False)
            self.to_v_ip = nn.Linear(context or width, width, bias=False)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        query = self.to_q(x)
        if not hasattr(self, "to_k_ip"):
            return self.to_out(self.attend(query, self.to_k(source), self.to_v(source)))
        text, image = source[:, :-IMAGE_TOKENS], source[:, -IMAGE_TOKENS:]
        mixed = self.attend(query, self.to_k(text), self.to_v(text))
        return self.to_out(mixed + self.attend(query, self.to_k_ip(image), self.to_v_ip(image)))


class SkippedAttention(FusedAttention):
    """CatVTON's cross-attention: in its place, with its weights, and without effect."""

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return x


class FoldedAttention(FusedAttention):
    """Rows and heads on one axis, as older code calls scaled_dot_product_attention."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = functional.scaled_dot_product_attention(self.fold(query), self.fold(key), self.fold(value))
        return mixed.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)


@dataclass
class Conditions:
    """What goes into every block beside the features."""

    context: Tensor | None
    garments: list[Tensor] | None = None
    """Features of a garment's network, one for each self-attention, in order."""
    kept: list[Tensor] | None = None
    """Where a garment's network leaves its own features."""
    controls: list[Tensor] | None = None
    """Feature maps of a garment's encoder, one for each block that reads one, in order."""


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; `chunked` keeps the garment's tokens to the end of self-attention's output."""

    def __init__(self, width: int, attention: Callable[..., nn.Module], context: int | None, chunked: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = attention(width)
        self.attn2 = None if context is None else attention(width, context)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.chunked = chunked

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        tokens = self.norm1(x)
        if conditions.kept is not None:
            conditions.kept.append(tokens)
        if conditions.garments:
            joined = torch.cat([tokens, conditions.garments.pop(0)], dim=1)
            mixed = self.attn1(joined)
            x = x + (mixed.chunk(2, dim=1)[0] if self.chunked else mixed[:, : tokens.shape[1]])
        else:
            x = x + self.attn1(tokens)
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), context=conditions.context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Features to tokens, a block, and back; a residual."""

    def __init__(self, width: int, attention: Callable[..., nn.Module], context: int | None, chunked: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, width)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, attention, context, chunked)])

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, conditions)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


class WarpBlock(nn.Module):
    """StableVITON's extra block: cross-attention to the garment encoder's features of the same size, let in through a zero convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transformer = SpatialTransformer(width, EinsumAttention, width)
        self.zero = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        assert conditions.controls is not None
        garment = conditions.controls.pop(0).flatten(2).transpose(1, 2)
        return x + self.zero(self.transformer(x, Conditions(garment)))


class ReferenceBlock(nn.Module):
    """Super-resolution's blocks, as SeeSR pairs them: a transformer that reads text, then one that reads the reference's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attentions = SpatialTransformer(width, FusedAttention, CONTEXT)
        self.image_attentions = SpatialTransformer(width, FoldedAttention, width)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        assert conditions.controls is not None
        features = conditions.controls[0].flatten(2).transpose(1, 2)
        return self.image_attentions(self.attentions(x, conditions), Conditions(features))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv, self.time = nn.GroupNorm(2, width), nn.Conv2d(width, width, 3, padding=1), nn.Linear(WIDTH, width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x + self.conv(functional.silu(self.norm(x))) + self.time(time)[:, :, None, None]


class UNet(nn.Module):
    """Two resolutions, a transformer at each on the way down, one in the middle, two on the way up."""

    def __init__(
        self,
        channels: int,
        transformer: Callable[[int], nn.Module],
        decoder: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(2, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.stem = nn.Conv2d(channels, WIDTH, 3, padding=1)
        self.residuals = nn.ModuleList([Residual(WIDTH) for _ in range(4)])
        self.input_blocks = nn.ModuleList([transformer(WIDTH), transformer(WIDTH)])
        self.middle_block = transformer(WIDTH)
        self.output_blocks = nn.ModuleList([transformer(WIDTH), transformer(WIDTH)])
        self.warp_flow_blks = nn.ModuleList([] if decoder is None else [decoder(WIDTH), decoder(WIDTH)])
        self.out = nn.Conv2d(WIDTH, 4, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        phase = timesteps.float()[:, None] / TRAINED
        time = self.time_embed(torch.cat([phase.sin(), phase.cos()], 1))
        large = self.input_blocks[0](self.residuals[0](self.stem(x), time), conditions)
        small = self.input_blocks[1](self.residuals[1](functional.avg_pool2d(large, 2), time), conditions)
        small = self.middle_block(small, conditions)
        small = self.output_blocks[0](self.residuals[2](small, time), conditions)
        small = self.warp_flow_blks[0](small, conditions) if self.warp_flow_blks else small
        wide = functional.interpolate(small, scale_factor=2) + large
        wide = self.output_blocks[1](self.residuals[3](wide, time), conditions)
        wide = self.warp_flow_blks[1](wide, conditions) if self.warp_flow_blks else wide
        return self.out(wide)


class GarmentEncoder(nn.Module):
    """Feature maps of a garment at the decoder's resolutions, small first: they change with time, as a control network's do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.time = nn.Conv2d(4, WIDTH, 3, padding=1), nn.Linear(1, WIDTH)

    def forward(self, garment: Tensor, timesteps: Tensor) -> list[Tensor]:
        large = self.stem(garment) + self.time(timesteps.float()[:, None] / TRAINED)[:, :, None, None]
        return [functional.avg_pool2d(large, 2), large]


class Diffusion(nn.Module):
    """A denoiser with what conditions it, as published models wrap them: `model.diffusion_model` is the U-Net."""

    def __init__(self, unet: UNet, call: Callable[[Diffusion, Tensor, Tensor, dict[str, Tensor]], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"diffusion_model": unet, **parts})
        self._call = call

    def apply_model(self, x: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self._call(self, x, timesteps, condition)


Condition = dict[str, Tensor]


def sample(
    model: Diffusion,
    cond: Condition,
    uncond: Condition | None = None,
    order: tuple[str, ...] = ("uncond", "cond"),
    sequential: bool = False,
    samples: int = 1,
    steps: int = 3,
    size: tuple[int, int] = LATENT,
    before: Callable[[float], None] = lambda timestep: None,
    scale: float = 3.0,
) -> Tensor:
    """DDIM without noise: guidance in one batch of the branches in `order`, or in one pass for each."""
    x = torch.randn(samples, 4, *size, generator=torch.Generator().manual_seed(0))
    times = [TRAINED - 1 - index * TRAINED // steps for index in range(steps)]
    levels = [float(torch.cos(torch.tensor(t / TRAINED) * 1.5) ** 2) for t in (*times, 0)]
    branches = {"cond": cond, "uncond": uncond}
    with torch.no_grad():
        for index, timestep in enumerate(times):
            before(timestep)
            t = torch.full((samples,), timestep)
            if uncond is None:
                noise = model.apply_model(x, t, cond)
            else:
                found = _guided(model, x, t, [branches[name] or {} for name in order], sequential)
                told = dict(zip(order, found, strict=True))
                noise = told["uncond"] + scale * (told["cond"] - told["uncond"])
            now, following = levels[index], levels[index + 1]
            clean = (x - (1 - now) ** 0.5 * noise) / now**0.5
            x = following**0.5 * clean + (1 - following) ** 0.5 * noise
    return x


def _guided(model: Diffusion, x: Tensor, t: Tensor, conditions: list[Condition], sequential: bool) -> list[Tensor]:
    if sequential:
        return [model.apply_model(x, t, condition) for condition in conditions]
    parts = len(conditions)
    stacked = {name: torch.cat([condition[name] for condition in conditions]) for name in conditions[0]}
    return list(model.apply_model(torch.cat([x] * parts), torch.cat([t] * parts), stacked).chunk(parts))


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def finish(model: Diffusion) -> Diffusion:
    """Weights large enough that attention is far from even."""
    for name, module in model.named_modules():
        if name.endswith(("to_q", "to_k", "to_k_ip", "q_proj", "k_proj")):
            module.weight.data.mul_(3)
    return model.eval()


def paint_by_example(extra: int = 0, samples: int = 1) -> tuple[Diffusion, Condition, Condition]:
    """One CLS token of the reference; masked image and mask in the channels, and `extra` others, such as DCI-VTON's warped garment."""
    torch.manual_seed(0)
    unet = UNet(4 + 5 + extra, lambda width: SpatialTransformer(width, EinsumAttention, CONTEXT))

    def call(this: Diffusion, x: Tensor, t: Tensor, c: Condition) -> Tensor:
        return this.model["diffusion_model"](torch.cat([x, c["c_concat"]], 1), t, Conditions(c["c_crossattn"]))

    concat = random_tensor(1, samples, 5 + extra, *LATENT)
    cond = {"c_crossattn": random_tensor(2, samples, 1, CONTEXT), "c_concat": concat}
    uncond = {"c_crossattn": random_tensor(3, 1, 1, CONTEXT).expand(samples, -1, -1), "c_concat": concat}
    return finish(Diffusion(unet, call)), cond, uncond


def stable_viton(samples: int = 1) -> tuple[Diffusion, Condition, Condition]:
    """Paint-by-Example, and zero-initialised blocks in the decoder that read a garment encoder's feature maps."""
    torch.manual_seed(0)
    unet = UNet(4 + 9, lambda width: SpatialTransformer(width, EinsumAttention, CONTEXT), WarpBlock)

    def call(this: Diffusion, x: Tensor, t: Tensor, c: Condition) -> Tensor:
        controls = this.model["control_model"](c["garment"], t)
        return this.model["diffusion_model"](torch.cat([x, c["c_concat"]], 1), t, Conditions(c["c_crossattn"], controls=controls))

    shared = {"c_concat": random_tensor(1, samples, 9, *LATENT), "garment": random_tensor(4, samples, 4, *LATENT)}
    cond = {"c_crossattn": random_tensor(2, samples, 1, CONTEXT), **shared}
    uncond = {"c_crossattn": random_tensor(3, samples, 1, CONTEXT), **shared, "garment": torch.zeros(samples, 4, *LATENT)}
    return finish(Diffusion(unet, call, control_model=GarmentEncoder())), cond, uncond


def garment_network(adapter: bool, chunked: bool, samples: int = 1) -> tuple[Diffusion, Condition, Condition]:
    """A garment U-Net whose self-attention features join the other's keys: IDM-VTON (with an adapter's tokens), OOTDiffusion (chunked)."""
    torch.manual_seed(0)

    def attention(width: int, context: int | None = None) -> nn.Module:
        return FusedAttention(width, context, adapter and context is not None)

    unet = UNet(9, lambda width: SpatialTransformer(width, attention, CONTEXT, chunked))
    garment = UNet(4, lambda width: SpatialTransformer(width, FusedAttention, CONTEXT))

    def call(this: Diffusion, x: Tensor, t: Tensor, c: Condition) -> Tensor:
        kept: list[Tensor] = []
        this.model["garment_unet"](c["garment"], torch.zeros_like(t), Conditions(c["text"][:, :TEXT], kept=kept))
        return this.model["diffusion_model"](torch.cat([x, c["c_concat"]], 1), t, Conditions(c["text"], garments=kept))

    count = TEXT + IMAGE_TOKENS if adapter else TEXT
    shared = {"c_concat": random_tensor(1, samples, 5, *LATENT), "garment": random_tensor(4, samples, 4, *LATENT)}
    cond = {"text": random_tensor(2, samples, count, CONTEXT), **shared}
    uncond = {"text": random_tensor(3, samples, count, CONTEXT), **shared}
    return finish(Diffusion(unet, call, garment_unet=garment)), cond, uncond


def cat_vton(axis: int = 2, samples: int = 1) -> tuple[Diffusion, Condition, Condition]:
    """Person and garment side by side in the latent, along y (axis 2) or x (axis 3); cross-attention is skipped."""
    torch.manual_seed(0)

    def attention(width: int, context: int | None = None) -> nn.Module:
        return FusedAttention(width) if context is None else SkippedAttention(width, context)

    unet = UNet(9, lambda width: SpatialTransformer(width, attention, CONTEXT))

    def call(this: Diffusion, x: Tensor, t: Tensor, c: Condition) -> Tensor:
        joined = torch.cat([x, c["garment"]], axis)
        return this.model["diffusion_model"](torch.cat([joined, c["c_concat"]], 1), t, Conditions(None)).narrow(axis, 0, x.shape[axis])

    whole = [LATENT[0] * (2 if axis == 2 else 1), LATENT[1] * (2 if axis == 3 else 1)]
    shared = {"c_concat": random_tensor(1, samples, 5, *whole)}
    cond = {"garment": random_tensor(4, samples, 4, *LATENT), **shared}
    return finish(Diffusion(unet, call)), cond, {"garment": torch.zeros(samples, 4, *LATENT), **shared}


REFERENCE = (5, 3)
"""Rows and columns of the super-resolution reference's features."""


def super_resolution(samples: int = 1) -> tuple[Diffusion, Condition, Condition]:
    """Text through cross-attention, a reference's feature map through attention of its own in every block."""
    torch.manual_seed(0)
    unet = UNet(8, ReferenceBlock)

    def call(this: Diffusion, x: Tensor, t: Tensor, c: Condition) -> Tensor:
        return this.model["diffusion_model"](torch.cat([x, c["low"]], 1), t, Conditions(c["text"], controls=[c["features"]]))

    shared = {"low": random_tensor(1, samples, 4, *LATENT), "features": random_tensor(4, samples, WIDTH, *REFERENCE)}
    cond = {"text": random_tensor(2, samples, TEXT, CONTEXT), **shared}
    return finish(Diffusion(unet, call)), cond, {"text": random_tensor(3, samples, TEXT, CONTEXT), **shared}
