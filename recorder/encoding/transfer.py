"""Copies from the model's device to the host that do not make the model wait."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Block:
    """One array that leaves the device; calling it waits until it has arrived.

    The copy is the block's own: the model may overwrite its tensor right away. A `fresh` tensor, which nobody else holds, needs none.
    """

    __slots__ = ("_event", "_host", "nbytes")

    def __init__(self, tensor: Tensor, stream: torch.cuda.Stream | None = None, fresh: bool = False) -> None:
        self._event: torch.cuda.Event | None = None
        if stream is None:
            self._host = tensor.detach().to("cpu", copy=not fresh, memory_format=torch.contiguous_format)
        else:
            self._host, self._event = _send(tensor.detach(), stream)
        self.nbytes = self._host.numel() * self._host.element_size()

    def __call__(self) -> NDArray[Any]:
        """The array, once it is on this machine's side."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()


def _send(tensor: Tensor, stream: torch.cuda.Stream) -> tuple[Tensor, torch.cuda.Event]:
    """Start a copy into pinned memory beside the model's own work."""
    tensor = tensor.contiguous()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
    # The allocator must not hand this memory out again before the side stream has read it.
    tensor.record_stream(stream)
    return host, event


class Outbox:
    """Makes blocks, with one side stream for each device it meets."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def block(self, tensor: Tensor, fresh: bool = False) -> Block:
        """A block of this tensor's present values; nobody else holds a `fresh` one."""
        if tensor.device.type != "cuda":
            return Block(tensor, fresh=fresh)
        if tensor.device not in self._streams:
            self._streams[tensor.device] = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
        return Block(tensor, self._streams[tensor.device])

    def number(self, value: Tensor) -> float | Block:
        """One number; on a GPU it is fetched beside the model's work, not before it."""
        return self.block(value) if value.device.type == "cuda" else float(value)
