"""What a captured call is: its step, branch and sample, and what its keys stand for."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ...schema.errors import UnsupportedModel
from ..families import family_of

PASSES_SEEN: Final = 4
"""Sets of conditioning tensors that are remembered: guidance in several passes takes turns between them."""


DECLARE: Final = 'say it yourself: recording(..., denoisers={NAME: MODULE}, order=("uncond", "cond"), groups=...)'
"""The way out that leaves the picture as it is."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a denoiser's batch that belongs to a guidance branch."""

    index: int
    branch: str
    sample: int


class Rows:
    """Names the rows of each evaluation's batch, and remembers what conditions each so that a later change is noticed."""

    def __init__(self, told: Callable[[Sequence[Tensor], int], str | None] = lambda conditioning, row: None) -> None:
        self._told = told
        """What a row's own inputs say of its branch."""
        self._said: dict[bytes, str | None] = {}
        self._branches: dict[bytes, set[str | None]] = {}
        self._seen: list[tuple[list[tuple[Tensor, int]], list[bytes]]] = []

    def label(self, conditioning: Sequence[Tensor], rows: int, order: Sequence[str | None]) -> tuple[Row, ...]:
        """The rows of both branches, as their inputs say; else `order` names the equal parts that the batch is expected to have.

        Raises   UnsupportedModel if the batch does not have these parts
        """
        prints = self._fingerprints(conditioning, rows)
        known = [self._branches.get(p, set()) for p in prints]
        if prints and all(len(branches) == 1 for branches in known):
            return number([next(iter(branches)) for branches in known])
        if rows % len(order):
            raise unknown_batch(rows, f"a multiple of {len(order)}", order)
        said = self.say(conditioning, rows)
        names = said if is_told(order, said) else [name for name in order for _ in range(rows // len(order))]
        for fingerprint, name in zip(prints, names, strict=False):
            self._branches.setdefault(fingerprint, set()).add(name)
        return number(names)

    def say(self, conditioning: Sequence[Tensor], rows: int) -> list[str | None]:
        """What each row's own inputs say of its branch; asked once of each."""
        tensors = _of_rows(conditioning, rows)
        prints = self._fingerprints(conditioning, rows)
        for row, fingerprint in enumerate(prints):
            if fingerprint not in self._said:
                self._said[fingerprint] = self._told(tensors, row)
        return [self._said[fingerprint] for fingerprint in prints]

    def _fingerprints(self, conditioning: Sequence[Tensor], rows: int) -> list[bytes]:
        """A hash of each row's conditioning; read from the device only when the tensors are not those of the last few times."""
        tensors = _of_rows(conditioning, rows)
        seen = [(t, _version(t)) for t in tensors]
        for known, prints in self._seen:
            if len(seen) == len(known) and all(a is b and v == w for (a, v), (b, w) in zip(seen, known, strict=True)):
                return prints
        host = [t.detach().to("cpu").contiguous() for t in tensors]
        prints = [b"".join(hashlib.sha256(_bytes(t[row])).digest() for t in host) for row in range(rows if host else 0)]
        self._seen = [*self._seen[1 - PASSES_SEEN :], (seen, prints)]
        return prints


def _of_rows(conditioning: Sequence[Tensor], rows: int) -> list[Tensor]:
    return [t for t in conditioning if t.ndim > 1 and t.shape[0] == rows and t.device.type != "meta"]


def is_told(order: Sequence[str | None], said: Sequence[str | None]) -> bool:
    """Whether the rows' own inputs say of each which branch it is, and that the branches are equally many."""
    return None not in order and len(said) > 0 and all(said.count(name) * len(order) == len(said) for name in order)


def unknown_batch(rows: int, expected: str, order: Sequence[str | None]) -> UnsupportedModel:
    """The error for a denoiser's batch that has not the expected number of rows."""
    return UnsupportedModel(
        f"the denoiser was given {rows} rows, expected {expected} ({', '.join(name or 'other' for name in order)}); "
        "this pipeline batches its guidance in a way that is not known; " + DECLARE
    )


def _version(tensor: Tensor) -> int:
    # Tensors made under inference_mode count no versions; the pipelines do not write into them.
    return 0 if tensor.is_inference() else tensor._version


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def number(names: Sequence[str | None]) -> tuple[Row, ...]:
    """Rows of named branches; the n-th row of a branch is sample n."""
    counts: dict[str, int] = {}
    rows = []
    for index, name in enumerate(names):
        if name is not None:
            rows.append(Row(index, name, counts.get(name, 0)))
            counts[name] = counts.get(name, 0) + 1
    return tuple(rows)


def row_order(pipeline: Any, arguments: dict[str, Any], told: bool = False) -> tuple[str | None, ...]:
    """The parts of the denoiser's batch at this moment, by branch; `told`: the guidance scale is an input of the denoiser."""
    family = family_of(pipeline)
    guided = family.always_guided or is_guided(pipeline, arguments, told)
    if getattr(pipeline, "do_perturbed_attention_guidance", False):
        return ("uncond", "cond", None) if guided else ("cond", None)
    referenced = family.batch_with_references if arguments.get("input_images") is not None else ()
    return (referenced or family.batch) if guided else ("cond",)


def is_guided(pipeline: Any, arguments: dict[str, Any], told: bool = False) -> bool:
    """Whether the pipeline runs classifier-free guidance now."""
    if hasattr(type(pipeline), "do_classifier_free_guidance"):
        return bool(getattr(pipeline, "do_classifier_free_guidance", False))  # some properties read what the call has yet to set
    scale = arguments.get("guidance_scale")
    return not told and isinstance(scale, (int, float)) and scale > 1


def bind_arguments(method: Any, pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call by name, defaults included."""
    try:
        bound = inspect.signature(method).bind(pipeline, *args, **kwargs)
    except TypeError:
        return dict(kwargs)  # the call itself will say what is wrong with it
    bound.apply_defaults()
    named = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name)
    return dict(list(named.items())[1:])


def denoiser_argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, *names: str) -> Any:
    """An argument of a denoiser's forward, by place or by any of its names."""
    found = (kwargs[name] for name in names if kwargs.get(name) is not None)
    return args[position] if position < len(args) else next(found, None)


def conditioning_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that tell one row of a denoiser's batch from another."""
    added = kwargs.get("added_cond_kwargs") or {}
    candidates = [denoiser_argument(args, kwargs, 2, "encoder_hidden_states"), added.get("text_embeds"), kwargs.get("pooled_projections")]
    images = added.get("image_embeds")
    candidates += list(images) if isinstance(images, (list, tuple)) else [images]
    return [c for c in candidates if isinstance(c, Tensor)]
