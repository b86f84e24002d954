"""Attention of modules that multiply matrices themselves: queries and keys as their projections made them.

Where such a module takes its softmax in torch, the scores it takes it of are held against these queries and keys once, so that a
norm, a rotation or a bias between the projections and the softmax is noticed and not recorded as something it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ..encoding.scores import default_scale

HEADS: Final = ("heads", "num_heads", "n_heads")
"""Attributes that say how many heads a module has."""
OTHER_NAMES: Final = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj"}
"""What projections are called beside their usual names."""
MASKS: Final = ("mask", "attn_mask", "attention_mask")
NORMS: Final = ("q_norm", "k_norm", "norm_q", "norm_k")
"""Children that change what projections made before it is multiplied."""
SEEN_ROWS: Final = 16
"""Queries whose scores are compared."""
AGREEMENT: Final = 2**-6
"""Greatest difference between a half precision module's scores and ours, as a share of the largest."""
HIDDEN: Final = -9e3


class Factors:
    """What the projections of the running module made; None of it outlives the module's forward."""

    def __init__(self) -> None:
        self._made: dict[str, list[Tensor]] = {}
        self._module: nn.Module | None = None
        self._path = ""
        self._mask: Tensor | None = None
        self._proven: set[str] = set()
        self.unproven: set[str] = set()
        """Paths of modules that showed no scores to compare with."""

    def hooks(self, module: nn.Module, running: Callable[[], bool]) -> list[Any]:
        """Watch a module's projections of queries and keys while `running` says so; returns the handles."""

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def keep(_: nn.Module, args: Any, output: Any) -> None:
                if running() and isinstance(output, Tensor):
                    self._made.setdefault(name, []).append(output)

            return keep

        children = {name: projection_of(module, name) for name in ("to_q", "to_k")}
        return [child.register_forward_hook(hook(name)) for name, child in children.items() if child is not None]

    def begin(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is about to run."""
        self.forget()
        self._path, self._module = path, module
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
        if self._path not in self._proven:
            if any(isinstance(getattr(module, name, None), nn.Module) for name in NORMS):
                raise self._refusal("normalises its queries or keys after they are projected, in a kernel that cannot be seen")
            self.unproven.add(self._path)
        heads = heads_of_module(module)
        query, key = self._split(queries[0], heads), self._split(keys[0], heads)
        scale = getattr(module, "scale", None)
        return query, key, default_scale(query.shape[3]) if scale is None else float(scale), self._read_mask(key)

    def compare(self, scores: Tensor) -> None:
        """The running module takes a softmax of this.

        Raises   UnsupportedModel if it is one of other numbers than its projections make
        """
        if self._module is None or self._path in self._proven or (found := self.read()) is None:
            return
        query, key, scale, mask = found
        rows, heads, places, tokens = *query.shape[:3], key.shape[2]
        if scores.shape[-2:] != (places, tokens) or scores.shape.numel() != rows * heads * places * tokens:
            return  # of a part of them, or of something else
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            seen = scores.detach().reshape(rows, heads, places, tokens)[0, :, :SEEN_ROWS].float()
            made = query[0, :, :SEEN_ROWS].float() * scale @ key[0].float().transpose(1, 2)
            shown = seen > HIDDEN if mask is not None else torch.ones_like(seen, dtype=torch.bool)
            far = ((seen - made).abs() * shown).max() > AGREEMENT * made.abs().max().clamp(min=1)
        if bool(far):
            raise self._refusal("takes its softmax of other scores than to_q, to_k and scale make (a norm, a rotation or a bias between)")
        self._proven.add(self._path)
        self.unproven.discard(self._path)

    def unfold(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys with rows and heads on axes of their own, if they are what the projections made, folded together.

        Dims     (row * head, x, channel), (row * head, token, channel) -> (row, head, x, channel), (row, head, token, channel)
        """
        heads = 0 if self._module is None else heads_of_module(self._module)
        if not heads or query.shape[0] % heads or len(self._made.get("to_q", [])) != 1:
            return query, key
        if self._path not in self._proven:
            made = self._split(self._made["to_q"][0], heads).flatten(0, 1)
            if made.shape != query.shape or not torch.equal(made, query):
                return query, key
            self._proven.add(self._path)
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

    def _refusal(self, what: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self._path} multiplies matrices itself and {what}; let it call torch.nn.functional.scaled_dot_product_attention, "
            f"or leave it out with {option('layers')}"
        )


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
