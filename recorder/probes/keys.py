"""Keys that an attention module makes of something else, in the place and the shape of what it is given: proven on its own keys first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ...schema.trace import Layer
from ..capture.call import Call
from ..capture.projections import make_keys
from ..encoding.scores import exact, share_heads

CLOSE: Final = 1e-3
"""How far keys that are computed again may be from the model's own, as a share of the greatest: some GPU kernels add in any order."""

Way: TypeAlias = Callable[[Tensor], Tensor]
"""From what a denoiser is given to what a key projection reads."""


@dataclass(frozen=True, slots=True, eq=False)
class Projector:
    """The way to one attention call's keys."""

    call: Call
    module: nn.Module
    layer: Layer
    given: Tensor
    """What the run's own keys are made of, (row, token, channel)."""
    way: Way
    row: int
    """A row that is conditioned."""

    def keys(self, vectors: Tensor) -> Tensor:
        """Keys of one item, as they are stored.

        Dims     (row or 1, token, channel) -> (head, token, channel)
        Raises   UnsupportedModel if the module does not read such vectors
        """
        vectors = vectors.to(self.given.device, self.given.dtype)
        if vectors.shape[-1] != self.given.shape[-1]:
            raise refused(self.layer, f"it reads {self.given.shape[-1]} channels where the encoder gives {vectors.shape[-1]}")
        batch, place = vectors[-1:], 0
        # In a batch like the run's own, so that every kernel works as it did there.
        if vectors.shape == self.given.shape:
            batch, place = vectors, self.row
        elif vectors.shape[1:] == self.given.shape[1:]:
            batch, place = self.given.clone(), self.row
            batch[place] = vectors[-1]
        made = make_keys(self.module, self.call.projection, self.way(batch), self.call.key.shape[1])
        assert made is not None  # the run's own were made so
        key = share_heads(made[place], self.call.query.shape[1])
        return exact(torch.stack([key[number] for number in self.layer.head_numbers]) if self.layer.head_numbers else key)


def find_way(call: Call, module: nn.Module, layer: Layer, given: Tensor | None, own: Sequence[Tensor], row: int) -> Projector:
    """The way from an encoder's output to a call's keys, proven on the run's own.

    `given` is what the denoiser was given, of which the encoder made `own`; None where an adapter's projection made what is read.

    Raises   UnsupportedModel naming the module and what lies between
    """
    if (call.own and given is not None) or "+" in call.projection:
        raise refused(layer, "its keys are made in each step from a sequence that the image changes")
    if call.context is None:
        raise refused(layer, "its key projection is fused with others")
    read = call.context.flatten(1, -2)
    start = read if given is None else given
    if given is not None and not any(_holds(one, given) for one in own):
        raise refused(layer, "the denoiser is not given what the pipeline's encoder makes, but something made from it")
    ways: list[Way] = [lambda vectors: vectors]
    if getattr(module, "norm_cross", None):
        ways.append(module.norm_encoder_hidden_states)  # type: ignore[arg-type]
    for way in ways:
        if (found := way(start)).shape == read.shape and torch.equal(found, read):
            if (mine := make_keys(module, call.projection, found, call.key.shape[1])) is None:
                raise refused(layer, "it has no key projection of its own")
            if not _agree(mine, call.key):
                raise refused(layer, "its keys are more than its key projection gives (positions, as in RoPE, or a processor of its own)")
            return Projector(call, module, layer, start, way, row)
    raise refused(layer, "a module that is not known lies between the encoder and its key projection")


def refused(layer: Layer, why: str) -> UnsupportedModel:
    """The error for a layer whose keys cannot be made of anything else."""
    return UnsupportedModel(
        f"{layer.name} makes no keys of probes: {why}; leave it out through {option('layers')}, or record without probes"
    )


def _holds(own: Tensor, given: Tensor) -> bool:
    """Whether a row of what was encoded is a row of what the denoiser is given."""
    if own.ndim != given.ndim or own.shape[1:] != given.shape[1:]:
        return False
    return any(torch.equal(one.to(given), other) for one in own for other in given)


def _agree(mine: Tensor, own: Tensor) -> bool:
    if mine.shape != own.shape:
        return False
    return bool(torch.equal(mine, own)) or bool((mine - own).float().abs().max() <= CLOSE * own.float().abs().max())
