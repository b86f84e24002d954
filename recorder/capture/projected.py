"""Attention of modules that multiply matrices themselves: queries and keys as their projections made them.

What such a module takes its softmax of, or where that does not show its output, is held against these queries and keys in every call,
so that a norm, a rotation, a bias, a mask or a scale of its own is noticed and not recorded as something it is not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ..encoding.scores import default_scale, share_heads

HEADS: Final = ("heads", "num_heads", "n_heads")
"""Attributes that say how many heads a module has."""
OTHER_NAMES: Final = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj"}
"""What projections are called beside their usual names."""
MASKS: Final = ("mask", "attn_mask", "attention_mask")
NORMS: Final = ("q_norm", "k_norm", "norm_q", "norm_k")
"""Children that change what projections made before it is multiplied."""
HIDDEN: Final = -9e3
AGREEMENT: Final = {torch.float32: 2**-9, torch.float64: 2**-9}
"""Greatest difference between a module's numbers and ours, as a share of the largest, by what its projections make; TF32 is float32."""
COARSE: Final = 2**-6
"""The same in half precision."""
OTHER: Final = "takes its softmax of other scores than to_q, to_k and scale make (a norm, a rotation or a bias between, a mask)"
BLOCK: Final = 2**23
"""Scores that are looked at in one piece."""


class Factors:
    """What the projections of the running module made; None of it outlives the module's forward."""

    def __init__(self) -> None:
        self._made: dict[str, list[Tensor]] = {}
        self._module: nn.Module | None = None
        self._path = ""
        self._mask: Tensor | None = None
        self._folded: set[str] = set()
        self._seen = False
        self._far: dict[str, Tensor] = {}
        self._signs: dict[tuple[int, torch.device], Tensor] = {}
        self._random = random.Random(0)
        self.unproven: set[str] = set()
        """Paths of modules that showed nothing to compare with."""
        self.sampled: set[str] = set()
        """Paths of modules that showed no scores, and whose output was compared at one query of each row."""

    def hooks(self, module: nn.Module, running: Callable[[], bool]) -> list[Any]:
        """Watch a module's projections while `running` says so; returns the handles."""

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def keep(_: nn.Module, args: Any, output: Any) -> None:
                if running() and isinstance(output, Tensor):
                    self._made.setdefault(name, []).append(output)

            return keep

        children = {name: projection_of(module, name) for name in ("to_q", "to_k", "to_v")}
        return [child.register_forward_hook(hook(name)) for name, child in children.items() if child is not None]

    def begin(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is about to run."""
        self.forget()
        self._path, self._module, self._seen = path, module, False
        masks = [kwargs[name] for name in MASKS if kwargs.get(name) is not None]
        self._mask = next(iter(masks), args[2] if len(args) > 2 and isinstance(args[2], Tensor) else None)

    def forget(self) -> None:
        """Let go of everything."""
        self._made.clear()
        self._module = self._mask = None

    def read(self) -> tuple[Tensor, Tensor, float, Tensor | None] | None:
        """Queries, keys, scale and mask of the module's attention; None if it projected nothing.

        Dims     (row, head, x, channel), (row, head, token, channel), mask broadcast to (row, head, x, token)
        Raises   UnsupportedModel if these cannot be what it multiplies
        """
        module, queries, keys = self._module, self._made.get("to_q", []), self._made.get("to_k", [])
        if module is None or not queries or not keys:
            return None
        if len(queries) > 1 or len(keys) > 1:
            raise self._refusal(f"projects queries {len(queries)} and keys {len(keys)} times in one run, so it is not known which meet")
        heads = heads_of_module(module)
        query = self._split(queries[0], heads)
        key = self._split(keys[0], keys[0].shape[-1] // query.shape[3] if keys[0].shape[-1] % query.shape[3] == 0 else heads)
        if key.shape[3] != query.shape[3] or heads % key.shape[1]:
            raise self._refusal(f"projects keys to {keys[0].shape[-1]} channels, which {heads} heads of {query.shape[3]} do not share")
        return query, key, self._scale(query.shape[3]), self._read_mask(key)

    def _scale(self, channels: int) -> float:
        scale: Any = getattr(self._module, "scale", None)
        if scale is None:
            return default_scale(channels)
        if isinstance(scale, Tensor) and scale.numel() == 1:
            return float(scale)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise self._refusal("has a scale that is not one number, and a trace has one for each layer")
        return float(scale)

    def compare(self, scores: Tensor) -> None:
        """The running module takes a softmax of this: all of it is looked at.

        Each row of scores is compared through its product with one random vector, which costs as much as reading it.

        Raises   UnsupportedModel, at once or from `settle`, if it is one of other numbers than its projections make
        """
        if self._module is None or (found := self.read()) is None:
            return
        query, key, scale, mask = found
        rows, heads, places, tokens = *query.shape[:3], key.shape[2]
        if scores.shape[-2:] != (places, tokens) or scores.shape.numel() != rows * heads * places * tokens:
            return  # of a part of them, or of something else
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            signs = self._random_signs(tokens, scores.device)
            shown = torch.ones(rows, 1, 1, tokens, dtype=torch.bool, device=scores.device) if mask is None else mask
            seen = scores.detach().reshape(rows, heads, places, tokens)
            through = share_heads(key.detach().transpose(0, 1), heads).transpose(0, 1).float() * (shown[:, 0, 0] * signs)[:, None, :, None]
            made = (query.detach().float() @ through.sum(2)[..., None])[..., 0] * scale
            most = made.abs().amax().clamp(min=tokens**0.5) * agreement(query, scores)
            step = max(1, BLOCK // (places * tokens))
            for row, head in itertools.product(range(rows), range(0, heads, step)):
                part = seen[row, head : head + step].float()
                if mask is not None:
                    self._doubt(((part > HIDDEN) != shown[row]).any())
                    part = part.masked_fill(~shown[row], 0)
                self._doubt(~(((part @ signs) - made[row, head : head + step]).abs() <= most).all())  # a score of -inf is not a number
        self._seen = True

    def check_output(self, output: Any, entered: Any) -> None:
        """The running module, whose softmax may not have shown, gave this: one query of each row is computed anew, as it would be.

        Raises   UnsupportedModel, at once or from `settle`, if that gives something else
        """
        if self._seen or self._module is None or (found := self.read()) is None:
            return
        if any(isinstance(getattr(self._module, name, None), nn.Module) for name in NORMS):
            raise self._refusal("normalises its queries or keys after they are projected, in a kernel that cannot be seen")
        output = output[0] if isinstance(output, (tuple, list)) else output
        values, leave, query = self._made.get("to_v", []), _output_of(self._module), found[0]
        shown = isinstance(output, Tensor) and output.ndim == 3 and output.shape[:2] == (query.shape[0], query.shape[2])
        if leave is None or not shown or len(values) != 1 or values[0].shape[:2] != (query.shape[0], found[1].shape[2]):
            self.unproven.add(self._path)
            return
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            value = self._split(values[0], found[1].shape[1]).detach()
            for row in range(query.shape[0]):
                place = self._random.randrange(query.shape[2])
                made = leave(_attend(row, place, value, *found))[0]
                given = output[row, place].detach()
                most = made.abs().amax().clamp(min=torch.finfo(torch.float32).tiny) * agreement(query, output) * 4
                far = (given - made).abs().amax() > most
                if isinstance(entered, Tensor) and entered.shape == output.shape:  # what it was given is added in some
                    far &= (given - entered[row, place] - made).abs().amax() > most
                self._doubt(far)
        self.sampled.add(self._path)

    def values(self) -> Tensor | None:
        """Values of the running module's attention; None where it is not known that it has one for each key.

        Dims     (row, head, token, channel)
        """
        made, found = self._made.get("to_v", []), self.read()
        if found is None or len(made) != 1 or made[0].shape[:2] != (found[1].shape[0], found[1].shape[2]):
            return None
        return self._split(made[0], found[1].shape[1]).detach()

    def gives(self, given: Any) -> bool:
        """Whether this is what the running module takes of its values: one query of each row is computed anew."""
        value, found = self.values(), self.read()
        if value is None or found is None or not isinstance(given, Tensor):
            return False
        query = found[0]
        if given.shape != (query.shape[0], query.shape[2], query.shape[1] * value.shape[3]):
            return False
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            places = [self._random.randrange(query.shape[2]) for _ in range(query.shape[0])]
            made = torch.cat([_attend(row, place, value, *found) for row, place in enumerate(places)])
            seen = torch.stack([given[row, place].detach().float() for row, place in enumerate(places)])
            return bool((seen - made).abs().amax() <= made.abs().amax() * agreement(query, given))

    def settle(self) -> None:
        """Ask the device what it found of the modules that have run.

        Raises   UnsupportedModel if any computed something else than its projections make
        """
        doubts, self._far = self._far, {}
        for path, far in doubts.items():
            if bool(far):
                raise self._refusal(OTHER, path)

    def _doubt(self, far: Tensor) -> None:
        """Take note of a comparison; only on the CPU does it cost nothing to ask at once."""
        if far.device.type == "cpu":
            if bool(far):
                raise self._refusal(OTHER)
        else:
            self._far[self._path] = far | self._far[self._path] if self._path in self._far else far

    def _random_signs(self, tokens: int, device: torch.device) -> Tensor:
        """Numbers about 1 and -1, the same in each run; the model's own random numbers are left alone."""
        if (tokens, device) not in self._signs:
            own = torch.Generator().manual_seed(tokens)
            signs = torch.randint(0, 2, (tokens,), generator=own) * 2 - 1
            self._signs[tokens, device] = (signs * (0.75 + 0.5 * torch.rand(tokens, generator=own))).to(device)
        return self._signs[tokens, device]

    def unfold(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys with rows and heads on axes of their own, if they are what the projections made, folded together.

        Dims     (row * head, x, channel), (row * head, token, channel) -> (row, head, x, channel), (row, head, token, channel)
        """
        heads = 0 if self._module is None else heads_of_module(self._module)
        if not heads or query.shape[0] % heads or len(self._made.get("to_q", [])) != 1:
            return query, key
        if self._path not in self._folded:
            made = self._split(self._made["to_q"][0], heads).flatten(0, 1)
            if made.shape != query.shape or not torch.equal(made, query):
                return query, key
            self._folded.add(self._path)
        return query.unflatten(0, (-1, heads)), key.unflatten(0, (-1, heads))  # type: ignore[no-untyped-call]

    def _split(self, projected: Tensor, heads: int) -> Tensor:
        if projected.ndim != 3 or projected.shape[2] % heads:
            shape = " x ".join(map(str, projected.shape))
            raise self._refusal(f"projects to {shape}, expected (row, token, head * channel) with {heads} heads")
        return projected.view(*projected.shape[:2], heads, -1).transpose(1, 2)

    def _read_mask(self, key: Tensor) -> Tensor | None:
        mask = self._mask
        if mask is None:
            return None
        if mask.dtype != torch.bool or mask.shape[0] != key.shape[0] or mask[0].numel() != key.shape[2]:
            raise self._refusal("is given a mask that is not (row, token) of booleans, so it is not known what it hides")
        return mask.reshape(key.shape[0], 1, 1, key.shape[2])

    def _refusal(self, what: str, path: str = "") -> UnsupportedModel:
        return UnsupportedModel(
            f"{path or self._path} multiplies matrices itself and {what}; let it call torch.nn.functional.scaled_dot_product_attention, "
            f"or leave it out with {option('layers')}"
        )


def agreement(*numbers: Tensor) -> float:
    """Greatest difference for numbers of these types."""
    return max(AGREEMENT.get(one.dtype, COARSE) for one in numbers)


def _output_of(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What a module does with the values it has taken; None if that is not known, or draws random numbers."""
    found = getattr(module, "to_out", None) or getattr(module, "out_proj", None)
    layers = list(found) if isinstance(found, (nn.Sequential, nn.ModuleList)) else [found] if isinstance(found, nn.Module) else []
    if not layers or any(isinstance(part, nn.Dropout) and part.training for layer in layers for part in layer.modules()):
        return None

    weight = next((part for layer in layers for part in layer.parameters() if part.is_floating_point()), None)

    def leave(taken: Tensor) -> Tensor:
        taken = taken if weight is None else taken.to(weight.dtype)  # autocast is off
        for layer in layers:
            taken = layer(taken)
        return taken.float()

    return leave


def _attend(row: int, place: int, value: Tensor, query: Tensor, key: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """What one query takes of the values: (1, head * channel)."""
    heads = query.shape[1]
    keys, values = (share_heads(part[row].detach(), heads).float() for part in (key, value))
    scores = (keys @ query[row, :, place].detach().float()[..., None])[..., 0] * scale  # (head, token)
    scores = scores if mask is None else scores.masked_fill(~mask[row, 0], -torch.inf)
    return (scores.softmax(-1)[:, None] @ values).flatten()[None]


def heads_of_module(module: nn.Module) -> int:
    """How many heads an attention module says it has; 0 if it does not say."""
    return next((int(getattr(module, name)) for name in HEADS if isinstance(getattr(module, name, None), int)), 0)


def projects_attention(module: nn.Module) -> bool:
    """Whether a module outside diffusers attends: it projects queries and keys and says how many heads it has."""
    return all(projection_of(module, name) is not None for name in ("to_q", "to_k")) and heads_of_module(module) > 0


def projection_of(module: nn.Module, name: str) -> nn.Module | None:
    """A projection under its usual name, or the other that is in use."""
    found = (getattr(module, known, None) for known in (name, OTHER_NAMES[name]))
    return next((child for child in found if isinstance(child, nn.Module)), None)
