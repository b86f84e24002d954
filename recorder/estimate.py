"""What a recording would weigh, from shapes alone: no weight is loaded and no GPU is used."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..schema.record import JSON
from ..schema.trace import ENCODINGS, Codec, Encoding, Layer, Trace
from .capture import Call, Capture, attention_modules, denoisers
from .labels import describe
from .loading import check_call, find_class
from .refusals import hidden_attention, refuse_pipeline
from .selection import ENCODINGS_WANTED, Options, keep_heads, select_layers, select_steps
from .sites import resampler_layer
from .sizes import Size, choose_encoding, encoded, layer_bytes, weigh
from .skeleton import build_skeleton, denoiser_inputs
from .spec import Spec
from .tokens import Context, Scene, adapter_images, adapter_labels, keep_groups, token_groups


@dataclass(frozen=True, slots=True)
class Estimate:
    """A recording that was not made."""

    trace: Trace
    """With every layer as probabilities."""
    evaluations: int
    """Of the denoiser in the whole run."""
    sizes: Mapping[str, Size]
    """By choice of encoding."""
    layers: tuple[Mapping[Encoding, int], ...]
    """Bytes of each layer by encoding."""

    def to_json(self) -> dict[str, JSON]:
        """As `--dry-run --json` prints it."""
        rows: list[JSON] = [
            {
                "layer": layer.name,
                "heads": layer.heads,
                "head_numbers": list(layer.head_numbers),
                "head_dim": layer.head_dim,
                "grid": list(layer.grid),
                "tokens": layer.tokens,
                "groups": [dataclasses.asdict(group) for group in layer.groups],
                "bytes": dict(sizes),
                "auto": choose_encoding("auto", layer.tokens, layer.head_dim, False),
            }
            for layer, sizes in zip(self.trace.layers, self.layers, strict=True)
        ]
        return {
            "samples": self.trace.samples,
            "branches": list(self.trace.branches),
            "evaluations": self.evaluations,
            "steps": self.trace.steps,
            "latent_grid": list(self.trace.latent_grid or ()),
            "layers": rows,
            "sizes": {name: {"bytes": size.nbytes, "files": size.files} for name, size in self.sizes.items()},
        }


def estimate(spec: Spec) -> Estimate:
    """Layers, bytes for each encoding, and files of the recording that a spec describes.

    Raises   InvalidInput, UnknownSelection, UnsupportedModel
    """
    options = Options(**spec.options)
    check_call(spec, find_class(spec.pipeline, "pipeline"))
    pipeline = build_skeleton(spec)
    refuse_pipeline(pipeline, options.keys)
    evaluations = count_evaluations(pipeline, spec)
    inputs = denoiser_inputs(pipeline, spec)
    trace = Trace(
        id="dry-run",
        status="recording",
        samples=count_samples(spec),
        branches=options.axis,
        steps=len(select_steps(options.steps, evaluations)),
        layers=tuple(call_sites(pipeline, inputs, options)),
        codec=Codec(options.codec, options.level, options.keep_bits),  # type: ignore[arg-type]
        latent_grid=tuple(inputs["sample"].shape[2:]),
    )
    made = {choice: encoded(trace, choice) for choice in ENCODINGS_WANTED}
    layers = tuple({choice: layer_bytes(made[choice], index) for choice in ENCODINGS} for index in range(len(trace.layers)))
    return Estimate(trace, evaluations, {choice: weigh(made[choice]) for choice in made}, layers)


def call_sites(pipeline: Any, inputs: dict[str, Any], options: Options) -> list[Layer]:
    """Every attention call that would be recorded, found by one forward pass of shapes."""
    modules = attention_modules(pipeline)
    chosen = {path: modules[path] for path in select_layers(options.layers, list(modules))}
    listener = _Shapes(pipeline, inputs, options)
    with torch.no_grad(), Capture(denoisers(pipeline), chosen, listener):
        pipeline.unet(**inputs)
    return listener.layers


def count_evaluations(pipeline: Any, spec: Spec) -> int:
    """Denoiser evaluations of the whole run: Heun and PNDM need more than steps, image-to-image starts in the middle."""
    parameters = inspect.signature(type(pipeline).__call__).parameters

    def argument(name: str, otherwise: Any) -> Any:
        known = parameters.get(name)
        return spec.call.get(name, otherwise if known is None or known.default is inspect.Parameter.empty else known.default)

    steps, scheduler = int(argument("num_inference_steps", 50)), pipeline.scheduler
    scheduler.set_timesteps(steps)
    total = len(scheduler.timesteps)
    if "strength" in parameters:
        skipped = steps - min(int(steps * float(argument("strength", 1.0))), steps)
        total -= skipped * int(getattr(scheduler, "order", 1))
    return max(total, 1)


def count_samples(spec: Spec) -> int:
    """Generated images."""
    prompt = spec.call.get("prompt")
    several = next((value for value in (prompt, spec.images.get("image")) if isinstance(value, list)), [None])
    return len(several) * int(spec.call.get("num_images_per_prompt", 1))


class _Shapes:
    """Listens to a capture and keeps what each call site is."""

    def __init__(self, pipeline: Any, inputs: dict[str, Any], options: Options) -> None:
        self._context = Context.of(pipeline)
        self._scene = Scene(adapter_images(inputs))
        self._options = options
        self.layers: list[Layer] = []

    def begin(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return True

    def hear(self, call: Call) -> None:
        if call.resampler is not None:
            labels = adapter_labels(call.resampler, self._context, self._scene) if self._options.keys != "text" else []
            self.layers += [resampler_layer(call, i, label, self._context, self._options) for i, label in enumerate(labels)]
            return
        groups = keep_groups(token_groups(call, self._context, self._scene), self._options.keys)
        if groups:
            # The ordinals of a recording: 0 the module's own keys, 1 + i adapter i.
            ordinal = 0 if call.projection == "to_v" else 1 + int(call.projection.rpartition(".")[2])
            self.layers.append(keep_heads(describe(call, ordinal, groups, "probabilities"), self._options.heads))

    def end(self, root: str) -> None:
        pass

    def silence(self, path: str, module: nn.Module) -> None:
        raise hidden_attention(path, module)
