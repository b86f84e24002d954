"""One attention call as the hooks see it, and the interface of what takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from ..encoding.values import Output


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Call:
    """One attention call, its tensors as the model has them and still on its device."""

    path: str
    """Module path from the pipeline."""
    projection: str
    """What made the values: `to_v`, or `to_v_ip.i` of IP-Adapter i; several joined by `+` in the order of their keys."""
    repeat: int = 0
    """How many calls on the same projection came before it in this run of the module."""
    query: Tensor
    """(row, head, x, channel)"""
    key: Tensor
    """(row, head or fewer, token, channel)"""
    scale: float
    mask: Tensor | None = None
    """Boolean or additive, broadcast to (row, head, x, token)."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of x from the nearest enclosing module that sees an image; None if none fits."""
    parts: tuple[int, ...] = ()
    """Keys of each projection; empty for a single one."""
    own: bool = False
    """Whether `to_v` reads the sequence that the queries come from."""
    joined: bool = False
    """Whether a module that is made for the image's own tokens was given a reference's behind them."""
    context: Tensor | None = None
    """What the values' projection read; None where it is not known, or several did."""
    resampler: int | None = None
    """Number of the IP-Adapter whose tokens the queries are; None where they are places of an image."""
    around: tuple[int, int] | None = None
    """(rows, columns) that the nearest enclosing module works on, whether x runs over them or not."""
    frames: int = 0
    """Frames that x runs over before rows and columns, once a call stands for a whole video."""
    uneven: Tensor | None = None
    """How far keys that stood in rows of their own lay apart before they were made into one; on the device."""
    ordinal: int = 0
    """How many calls came before it in this run of the module."""
    value: Tensor | None = None
    """(row, head or fewer, token, channel); None where values are not asked for, or not seen."""
    gain: float = 1.0
    """What the module multiplies what the call gives with, such as an IP-Adapter's scale."""
    outputs: tuple[Output, ...] = ()
    """Projections that what the queries took of the values goes out through; none where that is not known."""
    concepts: Tensor | None = None
    """(row, concept, x), float32: how far what x gets in this call agrees with what each concept gets; None where none are asked for."""
    residual: Tensor | None = None
    """(row, x), float32: norm of what the module's output is added to; None where it is not asked for, or not known."""

    @property
    def segments(self) -> tuple[tuple[str, int], ...]:
        """Projections and how many keys each made, in order."""
        return tuple(zip(self.projection.split("+"), self.parts or (self.key.shape[2],), strict=True))

    def output_of(self, queries: slice) -> Output | None:
        """The projection that these queries go out through, if it is known."""
        known = self.outputs if self.value is not None else ()
        return next((output for output in known if output.takes(queries, self.query.shape[2])), None)


Change: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Takes a call's values, (row, head or fewer, token, channel), and what it gave, (row, head, x, channel); gives what stands for that."""


class Listener(Protocol):
    """Takes what is captured, in the order it happens."""

    def begin(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A denoiser is about to run; whether its attention is wanted."""

    def hear(self, call: Call) -> Change | None:
        """A chosen module attends; what is to be made of what it gives, None to leave it."""

    def end(self, root: str) -> None:
        """The denoiser ran through."""

    def unseen(self, path: str, module: nn.Module) -> None:
        """A chosen module ran and no call was seen."""
