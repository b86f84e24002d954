"""The reference encoder of the demo model: one token for the whole garment (CLS) and one for each of its patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn


@dataclass
class GarmentTokens(BaseOutput):  # type: ignore[misc]
    """Tokens of reference images."""

    last_hidden_state: Tensor
    """(image, 1 + patches, width): CLS first, then the patches row by row."""


def coordinate_features(height: int, width: int, octaves: int) -> Tensor:
    """Sines and cosines of a grid's cell centres in [-1, 1]^2, from a quarter of a period per unit upwards.

    Dims     -> (4 * octaves, y, x)
    """
    y = (2 * torch.arange(height) + 1) / height - 1
    x = (2 * torch.arange(width) + 1) / width - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"))  # (2, y, x)
    waves = torch.stack([grid * (math.pi / 2 * 2**octave) for octave in range(octaves)]).flatten(0, 1)
    return torch.cat([waves.sin(), waves.cos()])


class GarmentEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Reference image -> CLS and every patch token, positions added; trained together with the denoiser.

    Its config names what is needed to lay tokens back onto the image: image_size and patch_size in pixels, and
    num_special_tokens leading tokens that are no patch.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, image_size: int = 64, patch_size: int = 4, width: int = 96, stem_width: int = 24, num_special_tokens: int = 1
    ) -> None:
        super().__init__()
        side = image_size // patch_size
        self.stem = nn.Conv2d(3, stem_width, 3, padding=1)
        self.patches = nn.Conv2d(stem_width, width, patch_size, stride=patch_size)
        self.position = nn.Linear(16, width, bias=False)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.cls = nn.Parameter(torch.zeros(1, num_special_tokens, width))
        self.summary = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.unconditional = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        features = coordinate_features(side, side, octaves=4).flatten(1).T  # (patch, 16)
        self.register_buffer("features", features.contiguous(), persistent=False)

    def forward(self, pixel_values: Tensor) -> GarmentTokens:
        """Encode reference images in [-1, 1].

        Dims     (image, rgb, y, x) -> (image, 1 + patches, width)
        """
        patches = self.patches(nn.functional.silu(self.stem(pixel_values))).flatten(2).transpose(1, 2)
        tokens = patches + self.position(self.features)
        tokens = tokens + self.mix(tokens)
        cls = self.cls + self.summary(tokens.mean(1, keepdim=True))
        return GarmentTokens(last_hidden_state=self.norm(torch.cat([cls, tokens], dim=1)))

    def unconditional_tokens(self, images: int) -> Tensor:
        """The learned context that stands for "no reference", as many tokens as a real one.

        Dims     -> (image, 1 + patches, width)
        """
        tokens = self.cls.shape[1] + self.features.shape[0]
        return self.unconditional.expand(images, tokens, -1)
