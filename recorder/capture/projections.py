"""The projections around an attention call: which made its keys, told by the values, which neither norms nor positions change, and which
takes what the call gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from ..encoding.values import Output
from .call import Call
from .mode import Origins, Segments
from .modules import strip
from .residuals import Residuals

PROJECTION: Final = re.compile(
    r"(?:processor\.)?(to_q|to_v|to_v_ip(?:\.\d+)?|to_kv|to_qkv|to_qkv_mlp_proj|add_v_proj|to_added_q?kv)|([qv])_proj"
)
ENTERING: Final = re.compile(r"(?:processor\.)?(?:to_[qkv]|to_added|add_[qkv]_proj|[qkv]_proj)")
"""How the names of layers begin that make queries, keys and values."""
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
ROUNDING: Final = 8
"""What a projection is given may be this many units in the last place of the largest from what calls gave."""
BLOCK: Final = 2**22
"""Numbers that are compared at once."""
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


CallKey: TypeAlias = tuple[str, str, int]
"""Module path, projection of the values, and repeat of a call."""


class Outputs:
    """The projections that attention goes out through, proven by what they are given in a module's first run.

    Calls whose projection is not known yet are held until their module, or the block around it, has shown it.
    """

    def __init__(
        self, running: Callable[[], bool], tell: Callable[[Call], None], gives: Callable[[Any], bool], residuals: bool = False
    ) -> None:
        self._running, self._tell, self._gives = running, tell, gives
        self.own: dict[str, Output | None] = {}
        """Of modules that multiply matrices themselves, by path; None where nothing was found. `gives` knows what they take of values."""
        self._residuals = Residuals(running, self.settle) if residuals else None
        self._path = ""
        self._known: dict[CallKey, tuple[Output, ...]] = {}
        self._watched: set[nn.Module] = set()
        self._blocks: dict[str, bool] = {}
        self._now: tuple[CallKey, float, tuple[int, int]] | None = None
        self._given: list[tuple[CallKey, float, Tensor]] = []
        """What calls of the running module gave: (row, head, x, channel), and what it is multiplied with."""
        self._found: list[tuple[set[CallKey], Output]] = []
        self._held: list[tuple[CallKey, Call]] = []

    def hooks(self, path: str, module: nn.Module, block: nn.Module | None) -> list[Any]:
        """Watch what linear layers of a module, and of the block around it, are given; returns the handles."""
        inside = [child for name, child in module.named_modules() if _is_linear(child) and not ENTERING.match(strip(name))]
        around = [child for child in ([] if block is None else block.children()) if _is_linear(child)]
        self._blocks[path] = bool(around)
        new = {child: child in around for child in (*inside, *around) if child not in self._watched}
        self._watched |= new.keys()
        handles = [child.register_forward_pre_hook(self._look(outer)) for child, outer in new.items()]
        return handles + (self._residuals.hooks(path, path.rpartition(".")[0], block) if self._residuals is not None else [])

    def enter(self, path: str) -> None:
        """A module is about to run."""
        self.settle()
        self._path = path

    def begin(self, key: CallKey, gain: float, rows_and_heads: tuple[int, int]) -> None:
        """The running module attends."""
        self._now = (key, gain, rows_and_heads)

    def take(self, result: Tensor) -> None:
        """What the call gave that was begun last."""
        if self._now is not None and (self._held or self._now[0] not in self._known):
            key, gain, leading = self._now
            self._given.append((key, gain, result.detach().reshape(*leading, *result.shape[-2:])))
        self._now = None

    def hear(self, key: CallKey, call: Call) -> None:
        """Tell of a call, at once if its projections are known."""
        if key in self._known:
            self._tell_of(call, self._known[key])
        else:
            self._held.append((key, call))

    def leave(self, path: str, output: Any) -> None:
        """A module has run; what it gave may be what a call gave, beside what its projection did. It gives None where it failed."""
        for tensor in output if self._found and isinstance(output, tuple) else ():
            self._match(None, tensor)
        self.own.setdefault(path, None)
        if self._residuals is not None:
            self._residuals.leave(path, output)
        waits = self._residuals is not None and self._residuals.waiting  # to see what the output is added to
        if output is not None and not waits and (self._found or not self._blocks[path]):
            self.settle()

    def settle(self) -> None:
        """Tell of calls that are held: what has not been proven by now is not known."""
        held, found = self._held, self._found
        self.forget()
        for key in {key for key, _ in held}.union(*(keys for keys, _ in found)):
            self._known[key] = tuple(output for keys, output in found if key in keys)
        for key, call in held:
            self._tell_of(call, self._known[key])

    def close(self) -> None:
        """Nothing more runs: tell of what is held, and let go of everything."""
        if self._residuals is not None:
            self._residuals.forget()
        self.settle()

    def _tell_of(self, call: Call, outputs: tuple[Output, ...]) -> None:
        norm = None if self._residuals is None else self._residuals.of(call.path)
        same = norm is not None and norm.shape == (call.query.shape[0], call.query.shape[2])
        self._tell(replace(call, outputs=outputs, residual=norm if same else None))

    def forget(self) -> None:
        """Let go of everything that was given, and of what was held."""
        self._given, self._found, self._held, self._now = [], [], [], None

    def _look(self, outer: bool) -> Callable[[nn.Module, Any], None]:
        def look(child: nn.Module, args: Any) -> None:
            if not (args and self._running()):
                return
            if self._held:
                if self._match(child, args[0]) and outer:
                    self.settle()
            elif self._path not in self.own and self._gives(args[0]):
                self.own[self._path] = Output(child, args[0], args[0].shape[-1])

        return look

    def _match(self, child: nn.Module | None, given: Any) -> bool:
        """Whether a layer is given what calls of the running module gave, all together or one; `child` is None for what it put out."""
        together = [self._given] if len(self._given) > 1 and child is not None else []
        for calls in [*together, *([one] for one in self._given)]:
            heads, channels = calls[0][2].shape[1], calls[0][2].shape[3]
            if (place := _place_of(given, calls, heads * channels, child is None)) is not None:
                self._found.append(({key for key, _, _ in calls}, Output(child, given, heads * channels, *place)))
                return True
        return False


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _place_of(given: Any, calls: list[tuple[CallKey, float, Tensor]], width: int, whole: bool) -> tuple[int | None, bool] | None:
    """Which queries of some calls, summed, stand first in each row of what a layer is given: how many, None for all, and whether they are
    the last; None if none do. Tensors without numbers agree."""
    if not isinstance(given, Tensor) or given.ndim < 2 or (given.shape[-1] != width if whole else given.shape[-1] < width):
        return None
    rows, counts = calls[0][2].shape[0], [one.shape[2] for _, _, one in calls]
    most, least = max(counts), min(counts)
    if any(one.shape[0] != rows or one.shape[1] * one.shape[3] != width for _, _, one in calls) or given.numel() % (rows * given.shape[-1]):
        return None
    taken = given.detach().reshape(rows, -1, given.shape[-1])[..., :width]
    count = taken.shape[1]
    if given.is_meta:
        return (None, False) if count <= least else None
    for last in (False, True) if count <= least else ():
        parts = [(gain, one[:, :, one.shape[2] - count :] if last else one[:, :, :count]) for _, gain, one in calls]
        if _agree(taken, parts):
            return (None if count == most else count), last
    return _overlap(taken, calls[0][2]) if len(calls) == 1 else None


def _overlap(taken: Tensor, one: Tensor) -> tuple[int, bool] | None:
    """How many of a call's first, or last, queries stand first, or last, in what is put together of several calls; None if none do."""
    most = min(taken.shape[1], one.shape[2])
    for last in (True, False):
        part, seen = (one[:, :, -most:], taken[:, -most:]) if last else (one[:, :, :most], taken[:, :most])
        same = (part.transpose(1, 2).flatten(2) == seen).all(2).all(0).long()
        if count := int((same.flip(0) if last else same).cumprod(0).sum()):
            return count, last
    return None


def _agree(taken: Tensor, parts: list[tuple[float, Tensor]]) -> bool:
    """Whether numbers are a sum of others, each multiplied, but for rounding; a few positions at a time.

    Dims     (row, x, head * channel), (row, head, x, channel)
    """
    step, allowed = max(1, BLOCK // (taken.shape[0] * taken.shape[2])), ROUNDING * torch.finfo(parts[0][1].dtype).eps
    for first in range(0, taken.shape[1], step):
        seen = taken[:, first : first + step].float()
        made = sum(gain * part[:, :, first : first + step].float().transpose(1, 2).flatten(2) for gain, part in parts)
        if not bool((seen - made).abs().amax() <= allowed * seen.abs().amax()):  # what is no number agrees with nothing
            return False
    return True


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
