"""What values become on their way out of an attention module: its output projection, and the norm of a value through a head of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Output:
    """The projection that a module sends through what its queries took of the values, each head's channels one after another.

    `given` is what it was given; `module` is None where the module's output is what was taken itself. Of a call's queries it takes the
    first `count`, or the last where they are `last`; None is all.
    """

    def __init__(self, module: nn.Module | None, given: Tensor, channels: int, count: int | None = None, last: bool = False) -> None:
        self.channels = channels
        """Of all heads together."""
        self._module, self._count, self._last = module, count, last
        self._width, self._dtype, self._device = given.shape[-1], given.dtype, given.device
        self._gram: Tensor | None = None

    def takes(self, queries: slice, positions: int) -> bool:
        """Whether these of a call's queries are among those that it takes."""
        start = positions - self._count if self._count is not None and self._last else 0
        stop = positions if self._count is None else start + self._count
        return bool(start <= queries.start and queries.stop <= stop)

    @torch.no_grad()
    def weight(self) -> Tensor:
        """What it makes of each channel, without its bias.

        Dims     (channel of all heads, output channel)
        """
        module: Any = self._module
        if module is None:
            return torch.eye(self.channels, dtype=self._dtype, device=self._device)
        if type(module) is nn.Linear and module.weight.device == self._device:
            return module.weight.detach()[:, : self.channels].T
        # One that is adapted, quantized or offloaded is asked for one channel at a time, so large that its bias is lost, and for none.
        size = 2.0**4 if self._dtype == torch.float16 else 2.0**60
        unit = size * torch.eye(self.channels + 1, self._width, dtype=self._dtype, device=self._device)
        unit[self.channels] = 0
        made: Tensor = module(unit)
        return (made[:-1] - made[-1]) / size

    @torch.no_grad()
    def gram(self, heads: int) -> Tensor:
        """Inner products of the rows of each head's part of the projection, float32.

        Dims     (head, channel, channel)
        """
        if self._gram is None:
            weight = self.weight().float().reshape(heads, -1, self.output_channels)
            with torch.autocast(weight.device.type, enabled=False):
                self._gram = weight @ weight.transpose(1, 2)
        return self._gram

    @property
    def output_channels(self) -> int:
        """Channels that it gives."""
        return self.channels if self._module is None else int(self._module.out_features)  # type: ignore[arg-type]


def value_norms(value: Tensor, gram: Tensor, gain: float) -> Tensor:
    """The norm of what each token's value gives through a head of the output projection, float32.

    Dims     value (head, token, channel), gram (head, channel, channel) -> (head, token)
    """
    with torch.no_grad(), torch.autocast(value.device.type, enabled=False):
        numbers = value.float()
        return ((numbers @ gram) * numbers).sum(-1).clamp_(min=0).sqrt_().mul_(abs(gain))
