"""What a captured call is: its step, branch and sample, and what its keys stand for."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ..schema.codec import factor_dtype
from ..schema.errors import UnsupportedModel
from ..schema.trace import Layer, TokenGroup
from .capture import Call
from .grids import Places
from .sizes import choose_encoding

BRANCHES_OF_ROWS: Final[dict[str, tuple[str | None, ...]]] = {
    # Pipelines whose guided batch is not [uncond, cond], in the order of its parts.
    "StableDiffusionInstructPix2PixPipeline": ("cond", None, "uncond"),
    "StableDiffusionXLInstructPix2PixPipeline": ("cond", None, "uncond"),
}

HALF_STEP: Final = 2**-8
"""Relative error of a bfloat16 timestep."""
PASSES_SEEN: Final = 4
"""Sets of conditioning tensors that are remembered: guidance in several passes takes turns between them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a denoiser's batch that belongs to a guidance branch."""

    index: int
    branch: str
    sample: int


class Rows:
    """Names the rows of each evaluation's batch, and remembers what conditions each so that a later change is noticed."""

    def __init__(self) -> None:
        self._branches: dict[bytes, set[str | None]] = {}
        self._seen: list[tuple[list[tuple[Tensor, int]], list[bytes]]] = []

    def label(self, conditioning: Sequence[Tensor], rows: int, order: Sequence[str | None]) -> tuple[Row, ...]:
        """The rows of both branches; `order` names the equal parts that the batch is expected to have.

        Raises   UnsupportedModel if the batch does not have these parts
        """
        prints = self._fingerprints(conditioning, rows)
        known = [self._branches.get(p, set()) for p in prints]
        if prints and all(len(branches) == 1 for branches in known):
            return number([next(iter(branches)) for branches in known])
        if rows % len(order):
            raise unknown_batch(rows, f"a multiple of {len(order)}", order)
        names = [name for name in order for _ in range(rows // len(order))]
        for fingerprint, name in zip(prints, names, strict=False):
            self._branches.setdefault(fingerprint, set()).add(name)
        return number(names)

    def _fingerprints(self, conditioning: Sequence[Tensor], rows: int) -> list[bytes]:
        """A hash of each row's conditioning; read from the device only when the tensors are not those of the last few times."""
        tensors = [t for t in conditioning if t.ndim > 1 and t.shape[0] == rows and t.device.type != "meta"]
        seen = [(t, _version(t)) for t in tensors]
        for known, prints in self._seen:
            if len(seen) == len(known) and all(a is b and v == w for (a, v), (b, w) in zip(seen, known, strict=True)):
                return prints
        host = [t.detach().to("cpu").contiguous() for t in tensors]
        prints = [b"".join(hashlib.sha256(_bytes(t[row])).digest() for t in host) for row in range(rows if host else 0)]
        self._seen = [*self._seen[1 - PASSES_SEEN :], (seen, prints)]
        return prints


def unknown_batch(rows: int, expected: str, order: Sequence[str | None]) -> UnsupportedModel:
    """The error for a denoiser's batch that has not the expected number of rows."""
    return UnsupportedModel(
        f"the denoiser was given {rows} rows, expected {expected} ({', '.join(name or 'other' for name in order)}); "
        "this pipeline batches its guidance in a way that is not known; record it with guidance_scale=1"
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


def row_order(pipeline: Any, arguments: dict[str, Any]) -> tuple[str | None, ...]:
    """The parts of the denoiser's batch at this moment, by branch."""
    if type(pipeline).__name__ == "OmniGenPipeline":  # guides whatever its scales are, by the references too if there are any
        return ("cond", "uncond") if arguments.get("input_images") is None else ("cond", "uncond", None)
    guided = is_guided(pipeline, arguments)
    if getattr(pipeline, "do_perturbed_attention_guidance", False):
        return ("uncond", "cond", None) if guided else ("cond", None)
    return BRANCHES_OF_ROWS.get(type(pipeline).__name__, ("uncond", "cond")) if guided else ("cond",)


def is_guided(pipeline: Any, arguments: dict[str, Any]) -> bool:
    """Whether the pipeline runs classifier-free guidance now."""
    if hasattr(type(pipeline), "do_classifier_free_guidance"):
        return bool(pipeline.do_classifier_free_guidance)
    scale = arguments.get("guidance_scale")
    return isinstance(scale, (int, float)) and scale > 1


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


def noise_level(scheduler: Any, timestep: float) -> float:
    """The scheduler's sigma at its present place; NaN if it has none."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or not hasattr(scheduler, "step_index"):
        return math.nan
    index = scheduler.step_index
    if index is None:
        index = _place(scheduler, timestep)
    return float(sigmas[min(index, len(sigmas) - 1)])


def scheduler_timestep(scheduler: Any, value: float) -> float:
    """The scheduler's own timestep for what a denoiser is given, which in flow models is that timestep over 1000."""
    times = getattr(scheduler, "timesteps", ())
    times = times.tolist() if hasattr(times, "tolist") else list(times)
    if not times or value in times:
        return value
    scale = float(getattr(getattr(scheduler, "config", None), "num_train_timesteps", 1000))
    nearest = min(times, key=lambda time: abs(time - value * scale))
    return nearest if math.isclose(nearest, value * scale, rel_tol=HALF_STEP) else value


def evaluations_left(scheduler: Any, timestep: float) -> int:
    """Most denoiser evaluations from this one to the end: image-to-image starts in the middle of the schedule."""
    begin = getattr(scheduler, "begin_index", None)
    return max(1, len(scheduler.timesteps) - (_place(scheduler, timestep) if begin is None else begin))


def _place(scheduler: Any, timestep: float) -> int:
    times = scheduler.timesteps
    times = times.tolist() if hasattr(times, "tolist") else list(times)
    return times.index(timestep) if timestep in times else 0


def describe(
    call: Call, ordinal: int, groups: tuple[TokenGroup, ...], encoding: str, places: Places | None = None, masked: bool | None = None
) -> Layer:
    """The layer that a call site is; needs shapes only. `groups` are those that are stored, `masked` whether factors cannot say them.

    Raises   UnsupportedModel if its queries have no grid or its heads cannot be shared
    """
    _, heads, positions, head_dim = call.query.shape
    places = call.grid if places is None else places
    if places is None:
        raise UnsupportedModel(
            f"{call.path} attends from {positions} positions, which no enclosing module lays out as rows and columns "
            "(attention over time alone, or a packed sequence); leave it out through layers="
        )
    if heads % call.key.shape[1]:
        raise UnsupportedModel(f"{call.path} has {heads} query heads on {call.key.shape[1]} key heads; leave it out through layers=")
    dtype = str(call.query.dtype).removeprefix("torch.")
    tokens, call_tokens = groups[-1].stop, call.key.shape[2]
    return Layer(
        path=call.path,
        call=ordinal,
        heads=heads,
        head_dim=head_dim,
        scale=call.scale,
        grid=(places[-2], places[-1]),
        frames=places[0] if len(places) > 2 else 0,
        tokens=tokens,
        groups=groups,
        encoding=choose_encoding(encoding, tokens, head_dim, call.mask is not None if masked is None else masked),
        dtype=dtype,
        factor_dtype=factor_dtype(dtype),
        call_tokens=call_tokens if call_tokens > tokens else 0,
    )
