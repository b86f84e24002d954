"""The projection that an attention call's keys came from, told by the values, which neither norms nor positions change."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from .origins import Origins, Segments

PROJECTION: Final = re.compile(
    r"(?:processor\.)?(to_q|to_v|to_v_ip(?:\.\d+)?|to_kv|to_qkv|to_qkv_mlp_proj|add_v_proj|to_added_q?kv)|([qv])_proj"
)
FUSED: Final = {
    "to_kv": ("to_v", 1),
    "to_qkv": ("to_v", 2),
    "to_qkv_mlp_proj": ("to_v", 2),
    "to_added_kv": ("add_v_proj", 1),
    "to_added_qkv": ("add_v_proj", 2),
}
"""Projections that make several things at once: the one they stand for, and how many others lie before the values."""

GATED: Final = "to_qkv_mlp_proj"
"""The one whose output goes on behind the values."""
UNKNOWN: Final = "?"
"""Stands for keys of which no projection is known, such as those that were kept from an earlier pass."""


class Projections:
    """What the projections of the running attention module have made so far."""

    def __init__(self) -> None:
        self._values: list[tuple[str, Tensor]] = []
        self._inputs: dict[str, Any] = {}
        self._proven: dict[tuple[Any, ...], Segments] = {}
        self.origins = Origins()
        """Of tensors on the meta device."""

    def hooks(self, module: nn.Module, running: Callable[[], bool]) -> list[Any]:
        """Watch a module's projections while `running` says so; returns the handles."""

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def keep(_: nn.Module, args: Any, output: Any) -> None:
                if running() and isinstance(output, Tensor):
                    self._inputs[name] = args[0] if args else None
                    if name != "to_q":
                        self._values.append((name, output))
                        if output.is_meta:
                            self.origins.name(output, ((_unfused(name), _tokens(output)),))

            return keep

        handles = []
        for path, projection in module.named_modules():
            if match := PROJECTION.fullmatch(path.replace("_orig_mod.", "")):
                handles.append(projection.register_forward_hook(hook(match[1] or f"to_{match[2]}")))
        return handles

    def forget(self) -> None:
        """Let go of everything that was made."""
        self._values.clear()
        self._inputs.clear()
        self.origins.forget()

    @property
    def ran(self) -> bool:
        """Whether any projection ran."""
        return bool(self._inputs)

    @property
    def own(self) -> bool:
        """Whether `to_v` read the sequence that the queries were made from."""
        if not self._inputs.keys().isdisjoint(("to_qkv", "to_qkv_mlp_proj")):
            return True
        source = self._inputs.get("to_v")
        return source is not None and source is self._inputs.get("to_q")

    def input(self, name: str) -> Tensor | None:
        """What a projection read."""
        source = self._inputs.get(name)
        return source if isinstance(source, Tensor) else None

    def segments(self, path: str, ordinal: int, value: Tensor) -> Segments:
        """Which projections' outputs the values of a module's n-th call are, one after another along the keys.

        Outputs are held while the module runs, so memory shared with one of them is proof; a copy is compared by content,
        and what was proven once is not compared again for values of the same shapes.
        """
        if value.is_meta:
            found, whole = self.origins.of(value), {(_unfused(name), _tokens(output)) for name, output in self._values}
            return found if found is not None and whole.issuperset(found) else ((UNKNOWN, value.shape[2]),)
        memory, width = value.untyped_storage().data_ptr(), value.shape[1] * value.shape[3]
        for name, output in reversed(self._values):
            shared = output.untyped_storage().data_ptr() == memory and _tokens(output) == value.shape[2]
            if shared and (name == GATED or output.shape[-1] == width * (1 + _before(name))):  # else it is of some heads only
                return ((_unfused(name), value.shape[2]),)
        case = (path, ordinal, value.shape, tuple((name, output.shape) for name, output in self._values))
        if case not in self._proven:
            self._proven[case] = self._prove(value.transpose(1, 2))
        return self._proven[case]

    def _prove(self, value: Tensor) -> Segments:
        """Which outputs some values are.

        Dims     (row, token, head, channel)
        """
        found: list[tuple[str, int]] = []
        start, width = 0, value.shape[2] * value.shape[3]
        while start < value.shape[1]:
            rest = value[:, start:]
            matches = (pair for pair in reversed(self._values) if _begins(rest, _values_of(*pair, width)))
            name, output = next(matches, (None, None))
            if name is None or output is None:
                return ((UNKNOWN, value.shape[1]),)
            found.append((_unfused(name), _tokens(output)))
            start += _tokens(output)
        return tuple(found)


def _unfused(name: str) -> str:
    return FUSED[name][0] if name in FUSED else name


def _before(name: str) -> int:
    """How many other things lie before the values in a projection's output."""
    return FUSED[name][1] if name in FUSED else 0


def _tokens(output: Tensor) -> int:
    return output.numel() // (output.shape[0] * output.shape[-1])


def _values_of(name: str, output: Tensor, width: int) -> Tensor:
    """The values in a projection's output, fused or not: (row, token, head * channel)."""
    before = _before(name) * width
    return output.reshape(output.shape[0], -1, output.shape[-1])[..., before : before + width]


def _begins(rest: Tensor, values: Tensor) -> bool:
    """Whether a projection's values stand first among these, each head's or, where several share one, repeated for each of them.

    Dims     (row, token, head, channel), (row, token, head or fewer * channel)
    """
    (rows, tokens, width), (heads, channels) = values.shape, rest.shape[2:]
    if rows != rest.shape[0] or not 0 < tokens <= rest.shape[1] or not width or width % channels or (heads * channels) % width:
        return False
    own = values.unflatten(2, (-1, channels)).repeat_interleave(heads * channels // width, 2)  # type: ignore[no-untyped-call]
    return torch.equal(rest[:, :tokens], own)


def make_keys(module: nn.Module, name: str, context: Tensor, heads: int) -> Tensor | None:
    """Keys as an attention module makes them, without positions; None if it has no projection for them.

    Dims     context (row, token, channel) -> (row, head, token, channel)
    """
    path = name.replace("to_v", "to_k")
    try:
        projection = module.get_submodule(path if name == "to_v" else f"processor.{path}")
    except AttributeError:
        return None
    key: Tensor = projection(context)
    key = key.view(key.shape[0], -1, heads, key.shape[-1] // heads).transpose(1, 2)
    norm: Any = getattr(module, "norm_k", None)
    return norm(key) if norm is not None and name == "to_v" else key
