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
from ..schema.trace import Encoding, Layer, Role, TokenGroup
from .capture import Call, denoisers

BRANCHES_OF_ROWS: Final[dict[str, tuple[str | None, ...]]] = {
    # Pipelines whose guided batch is not [uncond, cond], in the order of its parts.
    "StableDiffusionInstructPix2PixPipeline": ("cond", None, "uncond"),
    "StableDiffusionXLInstructPix2PixPipeline": ("cond", None, "uncond"),
}
PLACELESS: Final = (
    "ImageProjection",
    "IPAdapterPlusImageProjection",
    "IPAdapterFaceIDImageProjection",
    "IPAdapterFaceIDPlusImageProjection",
)
"""Adapter projections whose tokens are not patches, whatever their number is."""


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
        self._seen: list[tuple[Tensor, int]] = []
        self._prints: list[bytes] = []

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
        """A hash of each row's conditioning; read from the device only when the tensors are not those of the last time."""
        tensors = [t for t in conditioning if t.ndim > 1 and t.shape[0] == rows and t.device.type != "meta"]
        seen = [(t, _version(t)) for t in tensors]
        if len(seen) != len(self._seen) or any(a is not b or v != w for (a, v), (b, w) in zip(seen, self._seen, strict=True)):
            host = [t.detach().to("cpu").contiguous() for t in tensors]
            self._prints = [b"".join(hashlib.sha256(_bytes(t[row])).digest() for t in host) for row in range(rows if host else 0)]
            self._seen = seen
        return self._prints


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


def evaluations_left(scheduler: Any, timestep: float) -> int:
    """Most denoiser evaluations from this one to the end: image-to-image starts in the middle of the schedule."""
    begin = getattr(scheduler, "begin_index", None)
    return max(1, len(scheduler.timesteps) - (_place(scheduler, timestep) if begin is None else begin))


def _place(scheduler: Any, timestep: float) -> int:
    times = scheduler.timesteps
    times = times.tolist() if hasattr(times, "tolist") else list(times)
    return times.index(timestep) if timestep in times else 0


@dataclass(frozen=True, slots=True)
class Context:
    """What a pipeline's cross-attention reads, as far as the pipeline itself tells."""

    role: Role
    """Of the keys that are no adapter's."""
    patches: tuple[int, int] | None
    """Grid of the image encoder's patches."""
    references: tuple[str, ...]
    """Stored reference images, in order."""
    adapters: tuple[str, ...]
    """Class names of the IP-Adapters' projections."""

    @classmethod
    def of(cls, pipeline: Any, references: Sequence[str] = ()) -> Context:
        """Read off a pipeline; `references` are the names of the images it is given."""
        names = [type(p).__name__ for root in denoisers(pipeline).values() for p in _projections(root)]
        return cls(context_role(pipeline), _patches(pipeline), tuple(references), tuple(names))


def context_role(pipeline: Any) -> Role:
    """Text if the pipeline is built around a text encoder, else the reference that an image encoder reads."""
    parts = set(inspect.signature(type(pipeline).__init__).parameters)
    if parts & {"text_encoder", "tokenizer"}:
        return "text"
    if "image_encoder" in parts:
        return "reference"
    return "text" if "prompt" in inspect.signature(type(pipeline).__call__).parameters else "reference"


def _projections(root: Any) -> list[Any]:
    return list(getattr(getattr(root, "encoder_hid_proj", None), "image_projection_layers", ()))


def _patches(pipeline: Any) -> tuple[int, int] | None:
    config = getattr(getattr(pipeline, "image_encoder", None), "config", None)
    config = getattr(config, "vision_config", config)
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if size is None or patch is None:
        return None
    (height, width), (rows, columns) = (tuple(v) if isinstance(v, (list, tuple)) else (v, v) for v in (size, patch))
    return (height // rows, width // columns)


def adapter_images(kwargs: dict[str, Any]) -> tuple[int, ...]:
    """How many references each IP-Adapter reads, from a denoiser's arguments."""
    embeds = (kwargs.get("added_cond_kwargs") or {}).get("image_embeds")
    embeds = embeds if isinstance(embeds, (list, tuple)) else [embeds]
    return tuple(int(e.shape[1]) if e.ndim > 2 else 1 for e in embeds if isinstance(e, Tensor))


def token_groups(call: Call, context: Context, images: Sequence[int] = (), separate: bool = False) -> tuple[TokenGroup, ...]:
    """What the keys of a call are; `images` is how many references each adapter reads, `separate` if in calls of their own.

    Raises   UnsupportedModel for a projection that is not known
    """
    tokens = call.key.shape[2]
    if call.projection == "to_v":
        if context.role == "text":
            return (TokenGroup("text", "text", 0, tokens),)
        image = context.references[0] if len(context.references) == 1 else None
        return (_patch_group("reference", 0, tokens, context.patches, image),)
    if not call.projection.startswith("to_v_ip"):
        raise UnsupportedModel(f"{call.path}: keys made beside {call.projection} are not known yet; leave the module out through layers=")
    adapter = int(call.projection.partition(".")[2] or 0)
    counts = list(images) or [1] * max(1, len(context.adapters))
    first, count = sum(counts[:adapter]), counts[adapter]
    ordinals = [first + call.repeat] if separate else list(range(first, first + count))
    placeless = adapter < len(context.adapters) and context.adapters[adapter] in PLACELESS
    each, groups = tokens // len(ordinals), []
    for i, ordinal in enumerate(ordinals):
        name = "reference" if sum(counts) == 1 else f"reference_{ordinal}"
        image = name if name in context.references else None
        groups.append(_patch_group(name, i * each, (i + 1) * each, None if placeless else context.patches, image))
    return tuple(groups)


def _patch_group(name: str, start: int, stop: int, patches: tuple[int, int] | None, image: str | None) -> TokenGroup:
    """A reference's tokens; they have places only if they are as many as the encoder's patches, with CLS or without."""
    count = 0 if patches is None else patches[0] * patches[1]
    specials = stop - start - count
    if patches is None or specials not in (0, 1):
        return TokenGroup(name, "reference", start, stop, image=image)
    return TokenGroup(name, "reference", start, stop, specials, patches, image)


def describe(call: Call, ordinal: int, groups: tuple[TokenGroup, ...], encoding: str) -> Layer:
    """The layer that a call site is; needs shapes only.

    Raises   UnsupportedModel if its queries have no grid or its heads cannot be shared
    """
    _, heads, positions, head_dim = call.query.shape
    if call.grid is None:
        raise UnsupportedModel(
            f"{call.path} attends from {positions} positions, which no enclosing module lays out as rows and columns "
            "(temporal attention, or a packed sequence); leave it out through layers="
        )
    if heads % call.key.shape[1]:
        raise UnsupportedModel(f"{call.path} has {heads} query heads on {call.key.shape[1]} key heads; leave it out through layers=")
    dtype = str(call.query.dtype).removeprefix("torch.")
    tokens = call.key.shape[2]
    return Layer(
        path=call.path,
        call=ordinal,
        heads=heads,
        head_dim=head_dim,
        scale=call.scale,
        grid=call.grid,
        tokens=tokens,
        groups=groups,
        encoding=choose_encoding(encoding, tokens, head_dim, call.mask is not None),
        dtype=dtype,
        factor_dtype=factor_dtype(dtype),
    )


def choose_encoding(wanted: str, tokens: int, head_dim: int, masked: bool) -> Encoding:
    """The encoding of one layer; a masked call's scores cannot be had from its factors."""
    if masked or wanted == "probabilities" or (wanted == "auto" and tokens < head_dim):
        return "probabilities"
    return "factors"
