"""Torch-function modes that show attention and softmax calls to a function, then run them, and let it change what attention gives; on the
meta device, where tensors hold no values, they follow from one operation to the next which projection made each."""

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
SUMS: Final = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__"})
JOINS: Final = (torch.cat, torch.concat)

Attend: TypeAlias = Callable[..., Callable[[Tensor], Tensor] | None]
"""Takes the arguments of an attention call; gives what makes another output of its output, or None to leave it."""
Segments: TypeAlias = tuple[tuple[str, int], ...]
"""Projections and how many keys each made, in order."""


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


class FirstUse(TorchFunctionMode):
    """Sees whether a tensor is added to something first of all."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self._tensor: Tensor | None = tensor
        self.added = False

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if self._tensor is not None and any(value is self._tensor for value in args):
            self.added, self._tensor = getattr(func, "__name__", "") in SUMS, None
        return func(*args, **(kwargs or {}))


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
