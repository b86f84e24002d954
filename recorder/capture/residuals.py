"""The residual stream that a module's output is added to: found in the block around it, and proven by the sum in the module's first run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from .mode import FirstUse

SEQUENCE: Final = 3
"""Axes of a stream: (row, x, channel)."""


class Residuals:
    """What each module's output is added to, of modules in whose block a module before them is given it, and a module after them the sum.

    `settled` is told once that is known of the module that ran last. A sum that is gated, as adaptive norms do it, proves nothing.
    """

    def __init__(self, running: Callable[[], bool], settled: Callable[[], None]) -> None:
        self._running, self._settled = running, settled
        self._sources: dict[str, str | None] = {}
        """By path: the module of the block that is given the stream; None where none was proven to be."""
        self._around: dict[str, str] = {}
        """The block around each module."""
        self._inside: dict[str, list[str]] = {}
        """The modules in each block."""
        self._given: dict[str, dict[str, Tensor]] = {}
        """By block: what its modules were given in this run of it."""
        self._open: tuple[str, Tensor] | None = None
        """The module that ran last, and its output, if it is not known what that is added to."""
        self._use: FirstUse | None = None
        """Of that output, on the meta device, where no numbers tell a sum."""

    def hooks(self, path: str, name: str, block: nn.Module | None) -> list[Any]:
        """Watch what the modules of the block `name` around a module are given; returns the handles."""
        if block is None:
            self._sources[path] = None
            return []
        self._around[path] = name
        self._inside.setdefault(name, []).append(path)
        if name in self._given:
            return []
        self._given[name] = {}
        handles = [child.register_forward_pre_hook(self._look(name, part), with_kwargs=True) for part, child in block.named_children()]
        return [*handles, block.register_forward_hook(self._finish(name), always_call=True)]

    def leave(self, path: str, output: Any) -> None:
        """A module has run; None where it failed."""
        self._close()
        if path not in self._sources and isinstance(output, Tensor):
            self._open = (path, output.detach())
            if output.is_meta:
                self._use = FirstUse(output)
                self._use.__enter__()  # type: ignore[no-untyped-call]
        else:
            self._sources.setdefault(path, None)

    @property
    def waiting(self) -> bool:
        """Whether it is still to be seen what the module that ran last is added to."""
        return self._open is not None

    def of(self, path: str) -> Tensor | None:
        """The norm of what the output of a module that runs, or has just run, is added to, float32.

        Dims     (row, x)
        """
        source = self._sources.get(path)
        stream = None if source is None else self._given[self._around[path]].get(source)
        return None if stream is None else torch.linalg.vector_norm(stream.detach(), dim=-1, dtype=torch.float32)

    def forget(self) -> None:
        """Let go of everything that was given."""
        self._open = None
        self._stop()
        for given in self._given.values():
            given.clear()

    def _look(self, block: str, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_: nn.Module, args: Any, kwargs: Any) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            if not isinstance(given, Tensor) or not self._running():
                return
            self._compare(block, given)
            if name in {self._sources.get(path, name) for path in self._inside[block]}:
                self._given[block][name] = given.detach()

        return look

    def _finish(self, block: str) -> Callable[[nn.Module, Any, Any], None]:
        def finish(_: nn.Module, args: Any, output: Any) -> None:
            if self._running():
                for tensor in output if isinstance(output, tuple) else (output,):
                    if isinstance(tensor, Tensor):
                        self._compare(block, tensor)
                self._close()
                self._given[block].clear()

        return finish

    def _compare(self, block: str, total: Tensor) -> None:
        """Whether this is the sum of the open module's output and something that a module of its block was given before."""
        if self._open is None or self._around[self._open[0]] != block:
            return
        path, output = self._open
        for name, stream in self._given[block].items():
            same = total.shape == stream.shape == output.shape and total.ndim == SEQUENCE
            if same and (_is_sum(total.detach(), stream, output) if self._use is None else self._use.added):
                self._sources[path] = name
                self._close()
                return

    def _close(self) -> None:
        """What is not known by now of the open module is not known at all."""
        if self._open is not None:
            self._sources.setdefault(self._open[0], None)
            self._open = None
            self._stop()
            self._settled()

    def _stop(self) -> None:
        if self._use is not None:
            self._use.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._use = None


def _is_sum(total: Tensor, one: Tensor, other: Tensor) -> bool:
    """Whether a tensor is the sum of two others, bit for bit, in their dtype or, where norms are given float32, in the second's; and the
    second adds something."""
    sums = (one + other, total), (one.to(other.dtype) + other, total.to(other.dtype))
    return any(torch.equal(made.to(seen.dtype), seen) for made, seen in sums) and not torch.equal(one.to(total.dtype), total)
