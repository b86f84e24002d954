"""Origins of meta tensors: which projection made each, followed from one operation to the next since they hold no values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from .mode import ATTENTION, Attend, Mode

Segments: TypeAlias = tuple[tuple[str, int], ...]
"""Projections and how many keys each made, in order."""

JOINS: Final = (torch.cat, torch.concat)


class Origins:
    """Follows what the projections of the running attention module made, on the meta device."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, Segments]] = {}

    def forget(self) -> None:
        """Let go of everything."""
        self._known.clear()

    def name(self, tensor: Tensor, segments: Segments) -> None:
        """Say what a tensor is."""
        self._known[id(tensor)] = (tensor, segments)  # held, so that no other takes its id

    def of(self, tensor: Tensor) -> Segments | None:
        """What a tensor is, if it is known."""
        known = self._known.get(id(tensor))
        return None if known is None else known[1]

    def follow(self, function: Any, args: Any, result: Any) -> None:
        """What an operation made of known tensors is known too: joined, cut, or laid out anew."""
        if function in JOINS:
            parts = [self.of(part) for part in args[0]]
            if all(part is not None for part in parts):
                self.name(result, _joined([segment for part in parts if part is not None for segment in part]))
            return
        source = next((value for value in args if isinstance(value, Tensor)), None)
        known = None if source is None else self.of(source)
        if source is None or known is None:
            return
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, Tensor):
                self._cut(source, known, part)

    def _cut(self, source: Tensor, known: Segments, part: Tensor) -> None:
        """A part of the channels is still of the same tokens; a part of the tokens is known if all came from one projection."""
        if part.numel() == source.numel() or (part.ndim == source.ndim and part.shape[:-1] == source.shape[:-1]):
            self.name(part, known)
        elif len(known) == 1 and part.ndim == source.ndim and part.shape[-1] == source.shape[-1]:
            name, tokens = known[0]
            self.name(part, ((name, tokens * part.numel() // source.numel()),))


def _joined(segments: list[tuple[str, int]]) -> Segments:
    """Segments one after another, neighbours of one projection made one."""
    joined: list[tuple[str, int]] = []
    for name, tokens in segments:
        if joined and joined[-1][0] == name:
            joined[-1] = (name, joined[-1][1] + tokens)
        else:
            joined.append((name, tokens))
    return tuple(joined)


class FollowingMode(Mode):
    """A mode that follows tensors without numbers through what is made of them."""

    def __init__(
        self, attend: Attend, soften: Callable[[Tensor], None] | None, give: Callable[[Tensor], None] | None, origins: Origins
    ) -> None:
        super().__init__(attend, soften, give)
        self._origins = origins

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if func is ATTENTION:  # laid out as the kernels lay it out, which some processors rely on
            result = result.transpose(1, 2).contiguous().transpose(1, 2)
        self._origins.follow(func, args, result)
        return result
