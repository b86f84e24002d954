"""Keys that an attention module makes of something else, in the place and the shape of what it is given: proven on its own keys first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Projector:
    """The way from an encoder's output to one attention call's keys, proven on the run's own.

    `given` is what the denoiser was given, of which the encoder made `own`; None where an adapter's projection made what is read.
    `row` is one that is conditioned.

    Raises   UnsupportedModel naming the module and what lies between
    """

    def __init__(self, call: Call, module: nn.Module, layer: Layer, given: Tensor | None, own: Sequence[Tensor], row: int) -> None:
        self._call, self._module, self._layer, self._row = call, module, layer, row
        if (call.own and given is not None) or "+" in call.projection:
            raise refused(layer, "its keys are made in each step from a sequence that the image changes")
        if call.context is None:
            raise refused(layer, "its key projection is fused with others")
        read = call.context.flatten(1, -2)
        self._given = read if given is None else given  # (row, token, channel)
        if given is not None and not any(_holds(one, given) for one in own):
            raise refused(layer, "the denoiser is not given what the pipeline's encoder makes, but something made from it")
        ways: list[Way] = [lambda vectors: vectors]
        if getattr(module, "norm_cross", None):
            ways.append(module.norm_encoder_hidden_states)  # type: ignore[arg-type]
        way = next((one for one in ways if (made := one(self._given)).shape == read.shape and torch.equal(made, read)), None)
        if way is None:
            raise refused(layer, "a module that is not known lies between the encoder and its key projection")
        self._way = way
        if (mine := make_keys(module, call.projection, read, call.key.shape[1])) is None:
            raise refused(layer, "it has no key projection of its own")
        if not _agree(mine, call.key):
            raise refused(layer, "its keys are more than its key projection gives (positions, as in RoPE, or a processor of its own)")

    def keys(self, vectors: Tensor) -> Tensor:
        """Keys of one item, as they are stored.

        Dims     (row or 1, token, channel) -> (head, token, channel)
        Raises   UnsupportedModel if the module does not read such vectors
        """
        vectors = vectors.to(self._given.device, self._given.dtype)
        if vectors.shape[-1] != self._given.shape[-1]:
            raise refused(self._layer, f"it reads {self._given.shape[-1]} channels where the encoder gives {vectors.shape[-1]}")
        batch, place = vectors[-1:], 0
        # In a batch like the run's own, so that every kernel works as it did there.
        if vectors.shape == self._given.shape:
            batch, place = vectors, self._row
        elif vectors.shape[1:] == self._given.shape[1:]:
            batch, place = self._given.clone(), self._row
            batch[place] = vectors[-1]
        made = make_keys(self._module, self._call.projection, self._way(batch), self._call.key.shape[1])
        assert made is not None  # the run's own were made so
        key = share_heads(made[place], self._call.query.shape[1])
        return exact(torch.stack([key[number] for number in self._layer.head_numbers]) if self._layer.head_numbers else key)


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
