"""Torch-function modes that show attention and softmax calls to a function, then run them, and let it change what attention gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .wrapping import only_here

ATTENTION: Final = torch._C._nn.scaled_dot_product_attention
PRODUCTS: Final = frozenset({"linear", "matmul", "__matmul__", "bmm", "baddbmm", "einsum", "softmax"})
"""What no module can attend without, under the names of torch's functions."""

Attend: TypeAlias = Callable[..., Callable[[Tensor], Tensor] | None]
"""Takes the arguments of an attention call; gives what makes another output of its output, or None to leave it."""


class Mode(TorchFunctionMode):
    """Shows each attention call, and what a softmax is taken of, to a function, then runs it; what attention gave, to another."""

    def __init__(
        self, attend: Attend, soften: Callable[[Tensor], None] | None = None, give: Callable[[Tensor], None] | None = None
    ) -> None:
        super().__init__()
        self._attend, self._soften, self._give = attend, soften, give
        self.worked = False
        """Whether anything was multiplied since this was last set."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            change = self._attend(*args, **kwargs)
            output = func(*args, **kwargs)
            output = output if change is None else change(output)
            if self._give is not None:
                self._give(output)
            return output
        if self._soften is not None and (name := getattr(func, "__name__", "")) in PRODUCTS:
            self.worked = True
            if name == "softmax":
                self._soften(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)


class Census:
    """Attention of modules that are not listened to, as their first run shows it: how many queries and keys."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, int, int]] = {}
        """(rows, queries, keys) of the call with most keys, by the module's path."""
        self._on: list[tuple[str, Mode]] = []

    def hooks(self, path: str, module: nn.Module, wanted: Callable[[], bool]) -> list[Any]:
        """Watch a module's first run while `wanted` says so; returns the handles."""

        def note(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> None:
            seen = (query.shape[0], query.shape[-2], key.shape[-2])
            self.found[path] = max(self.found.get(path, seen), seen, key=lambda one: one[2])

        def enter(*_: Any) -> None:
            if wanted() and path not in self.found:
                self._on.append((path, Mode(note)))
                self._on[-1][1].__enter__()  # type: ignore[no-untyped-call]

        def leave(*_: Any) -> None:
            if self._on and self._on[-1][0] == path:
                self.close()

        return [module.register_forward_pre_hook(only_here(enter)), module.register_forward_hook(only_here(leave), always_call=True)]

    def close(self) -> None:
        """Look no longer."""
        while self._on:
            self._on.pop()[1].__exit__(None, None, None)  # type: ignore[no-untyped-call]
