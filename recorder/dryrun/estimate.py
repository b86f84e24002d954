"""What a recording would weigh, from shapes alone: no weight is loaded and no GPU is used."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...schema.errors import UnsupportedModel
from ...schema.record import JSON
from ...schema.trace import Codec, TraceRecord
from ..capture.call import Call
from ..capture.hooks import Capture
from ..capture.modules import attention_modules, denoisers, double_blocks
from ..families import family_of
from ..labels.grids import Canvases
from ..labels.layers import Layers, Sites
from ..labels.refusals import hidden_attention, refuse_pipeline
from ..labels.scenes import read_scene
from ..labels.tokens import Context, Scene
from ..plan.budget import Size, choose_encoding, choose_values, encoded, layer_bytes, weigh
from ..plan.options import ENCODINGS_WANTED, Options, select_layers, select_steps
from ..specs.loading import check_call, find_class
from ..specs.spec import Spec
from .inputs import call_argument, denoiser_inputs
from .skeleton import build_skeleton


@dataclass(frozen=True, slots=True)
class Estimate:
    """A recording that was not made."""

    trace: TraceRecord
    """With every layer as probabilities."""
    evaluations: int
    """Of the denoiser in the whole run."""
    sizes: Mapping[str, Size]
    """By choice of encoding."""
    layers: tuple[Mapping[str, int], ...]
    """Bytes of each layer by encoding, and as maps."""
    left_out: Mapping[str, str]
    """Modules whose self-attention was wanted and would not be kept, by path: why not."""

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
                "values": layer.values,
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
            "left_out": dict(self.left_out),
            "sizes": {name: {"bytes": size.nbytes, "files": size.files} for name, size in self.sizes.items()},
        }


def estimate(spec: Spec) -> Estimate:
    """Layers, bytes for each encoding, and files of the recording that a spec describes.

    Raises   InvalidInput, UnknownSelection, UnsupportedModel
    """
    options = Options(**spec.options)
    check_call(spec, find_class(spec.pipeline, "pipeline"))
    pipeline = build_skeleton(spec)
    refuse_pipeline(pipeline, options.keys, appended=bool(spec.tokens) and family_of(pipeline).longest_text is not None)
    evaluations = count_evaluations(pipeline, spec)
    inputs = denoiser_inputs(pipeline, spec)
    found = call_sites(pipeline, inputs, options)
    latent = inputs.get("sample", inputs.get("hidden_states"))
    trace = TraceRecord(
        id="dry-run",
        status="recording",
        samples=count_samples(pipeline, spec),
        branches=options.axis,
        steps=len(select_steps(options.steps, evaluations)),
        layers=tuple(found.all),
        codec=Codec(options.codec, options.level, options.keep_bits),  # type: ignore[arg-type]
        # Rows and columns of a packed latent are one axis.
        latent_grid=None if latent is None or latent.ndim == 3 else (latent.shape[-2], latent.shape[-1]),
    )
    choices = (*ENCODINGS_WANTED, "maps")
    made = {choice: choose_values(encoded(trace, choice, options.token_maps), options.values) for choice in choices}
    shown = [choice for choice in choices if choice != "auto"]
    layers = tuple({choice: layer_bytes(made[choice], index) for choice in shown} for index in range(len(trace.layers)))
    return Estimate(made["probabilities"], evaluations, {choice: weigh(made[choice]) for choice in made}, layers, found.left_out)


def call_sites(pipeline: Any, inputs: dict[str, Any], options: Options) -> Layers:
    """Every attention call that would be recorded, found by one forward pass of shapes."""
    modules = attention_modules(pipeline, options.wants_self)
    chosen = {path: modules[path] for path in select_layers(options.layers, list(modules))}
    listener = _Shapes(pipeline, options)
    seen = {"values": options.values != "none", "residuals": options.values == "full"}
    with torch.no_grad(), Capture(denoisers(pipeline), chosen, listener, shapes_only=True, **seen):
        for denoiser in denoisers(pipeline).values():
            denoiser(**inputs)
    return listener.sites.layers


def count_evaluations(pipeline: Any, spec: Spec) -> int:
    """Denoiser evaluations of the whole run: Heun and PNDM need more than steps, image-to-image starts in the middle."""
    steps, scheduler = int(call_argument(pipeline, spec, "num_inference_steps", 50)), pipeline.scheduler
    shifted = {"mu": 1.0} if getattr(scheduler.config, "use_dynamic_shifting", False) else {}  # of whatever size: their number is asked
    scheduler.set_timesteps(steps, **shifted)
    total = len(scheduler.timesteps)
    if "strength" in inspect.signature(type(pipeline).__call__).parameters:
        skipped = steps - min(int(steps * float(call_argument(pipeline, spec, "strength", 1.0))), steps)
        total -= skipped * int(getattr(scheduler, "order", 1))
    return max(total, 1)


def count_samples(pipeline: Any, spec: Spec) -> int:
    edits = family_of(pipeline).edits  # several references make one image
    given = (spec.call.get("prompt"), None if edits else spec.images.get("image"))
    several = next((value for value in given if isinstance(value, list)), [None])
    return len(several) * int(spec.call.get("num_images_per_prompt", 1))


class _Shapes:
    """Listens to a capture and keeps what each call site is."""

    def __init__(self, pipeline: Any, options: Options) -> None:
        self._denoisers, self._canvases = denoisers(pipeline), Canvases()
        alone = attention_modules(pipeline, options.wants_self).keys() - attention_modules(pipeline).keys()
        wanted = replace(options, encoding="probabilities", probes=None, keep="attention")
        self.sites = Sites(Context.of(pipeline, appended=True), wanted, alone)
        self._scene = Scene()
        self._double, self._concepts = double_blocks(pipeline), len(options.concepts)

    def begin(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        self._scene, _ = read_scene(self._denoisers[root], self._canvases, args, kwargs)
        return True

    def hear(self, call: Call) -> None:
        if call.resampler is not None:
            self.sites.find_resampler(call, self._scene)
            return
        joint = self._concepts > 0 and call.path in self._double and call.own and "add_v_proj" in call.projection
        scores = call.query.new_empty(call.query.shape[0], self._concepts, call.query.shape[2]) if joint else None
        try:
            self.sites.find(replace(call, concepts=scores), self._scene)
        except UnsupportedModel as why:
            if not self.sites.leave_out(call.path, why):
                raise

    def end(self, root: str) -> None:
        pass

    def unseen(self, path: str, module: nn.Module) -> None:
        if not self.sites.leave_out(path, why := hidden_attention(path, module)):
            raise why
