"""Runs with interventions: a pipeline's call, or whatever a declared model samples in a block, and whether two runs agree at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from ...schema.errors import InvalidInput, UnsupportedModel
from ...schema.messages import guess
from ..capture.hooks import Capture, is_captured
from ..capture.modules import reads_features
from ..capture.wrapping import replaced
from ..labels.refusals import refuse_hijack, refuse_other_models, refuse_pipeline
from ..labels.rows import bind_arguments
from ..outside.declaration import declare
from ..session.declared import DeclaredLabels
from ..session.guard import uncompiled
from ..session.pipeline import PipelineLabels
from ..session.recording import DECLARED
from .experiment import Experiment, options_of
from .request import Intervention


def intervene(pipeline: Any, interventions: Intervention | Iterable[Intervention], **call: Any) -> Any:
    """Run a pipeline with the arguments `call` while interventions are made, and return its output.

        painted = intervene(pipeline, Intervention("drop", group="reference", cells=[(3, 4)]), image=person, generator=generator)

    `interventions`  one or several; several are made together, and none leave every bit as it is
    `call`           arguments of the pipeline; a generator is set back afterwards, so that the next run starts from the same noise

    Raises   InvalidInput, UnknownSelection for heads, keys, steps and layers that there are not, UnsupportedModel where attention cannot be
             changed; what the pipeline itself raises
    """
    with _same_noise(call), intervening(pipeline, interventions):
        return pipeline(**call)


def check_determinism(pipeline: Any, **call: Any) -> Any:
    """Run a pipeline twice, once hooked as an intervention hooks it, and return the output if both are equal bit for bit.

    `call`  arguments of the pipeline; a generator is set back after each run

    Raises   UnsupportedModel if they differ: what an intervention does could not be told from chance
    """
    with _same_noise(call):
        output = pipeline(**call)
    first, second = list(_arrays(output)), list(_arrays(intervene(pipeline, (), **call)))
    if len(first) == len(second) and all(np.array_equal(one, other, equal_nan=True) for one, other in zip(first, second, strict=True)):
        return output
    way = "turn off what draws numbers of its own (dropout, a guard that changes pictures), or torch.use_deterministic_algorithms(True)"
    if not list(_generators(call)):
        way = "pass generator=torch.Generator().manual_seed(0), or give the spec a seed"
    raise UnsupportedModel(
        f"{type(pipeline).__name__} gave two different outputs for the same arguments, so what an intervention does cannot be told from "
        f"chance; {way}"
    )


def intervening(model: Any, interventions: Intervention | Iterable[Intervention], **options: Any) -> Intervening:
    """Make interventions in every call of a diffusers pipeline within the block.

    With `denoisers={"unet": model.diffusion_model}` they are made in the one run of any torch sampler in the block, and `groups`, `grid`,
    `order`, `sequential`, `evaluations` and `attention` say what `recording` takes them to say.

    `interventions`  as `intervene`
    `options`        what is said of a model that is no pipeline, and `reference_image`, as `record` takes it

    Raises   as `intervene`
    """
    known = ("reference_image", *DECLARED)
    if unknown := next((name for name in options if name not in known), None):
        raise InvalidInput(f"intervening() does not take this: {unknown!r}; {guess(unknown, known)}it takes {', '.join(known)}")
    made = (interventions,) if isinstance(interventions, Intervention) else tuple(interventions)
    if stray := next((one for one in made if not isinstance(one, Intervention)), None):
        raise InvalidInput(f"{stray!r} is no intervention; write Intervention(kind, ...)")
    said = {name: value for name, value in options.items() if name in DECLARED}
    if said and "denoisers" not in said:
        raise InvalidInput(f"{', '.join(said)} is said of a model that is no pipeline; name its modules with denoisers=")
    return Intervening(model, made, options.get("reference_image"), said)


class Intervening:
    """Interventions for as long as a block lasts."""

    def __init__(self, model: Any, interventions: tuple[Intervention, ...], reference_image: Any, said: dict[str, Any]) -> None:
        self._model, self._interventions, self._said = model, interventions, said
        self._options = options_of(interventions, reference_image)
        self._declared: tuple[DeclaredLabels, Experiment] | None = None
        self._running = False
        self._restore = ExitStack()

    def step(self, timestep: float, sigma: float = math.nan) -> None:
        """Say that the sampler of a declared model is about to make a step, as `recording` does."""
        if self._declared is None:
            raise InvalidInput("step() is for models that denoisers= names; a diffusers pipeline shows its steps itself")
        labels, experiment = self._declared
        experiment.close_evaluation()
        labels.step(float(timestep), float(sigma))

    def __enter__(self) -> Intervening:
        refuse_hijack()
        if not self._said:
            refuse_other_models(self._model)
            self._restore.enter_context(replaced(type(self._model), "__call__", self._wrap_call, anywhere=True))
            return self
        labels = DeclaredLabels(declare(self._model, **self._said), self._options)
        self._declared = labels, Experiment(labels, self._options, self._interventions)
        self._restore.enter_context(self._listening(self._declared[1]))
        return self

    def __exit__(self, *error: Any) -> None:
        self._restore.__exit__(*error)

    @contextmanager
    def _listening(self, experiment: Experiment) -> Iterator[Capture]:
        labels, outside = experiment.labels, self._declared is not None
        joins = not outside and reads_features(self._model)
        if is_captured(labels.denoisers):
            model, order = (
                type(self._model).__name__,
                "inside the block of intervening" if outside else "outside, and intervene in its block",
            )
            raise InvalidInput(
                f"the run of {model} is recorded or changed already where this intervention begins; open a recording {order}, and make "
                "several interventions in one call: [first, second]"
            )
        with uncompiled(labels.given), Capture(labels.denoisers, labels.modules, experiment, outside=outside, joins=joins) as capture:
            yield capture
            experiment.close()

    def _wrap_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            if pipeline is not self._model or self._running:
                return original(pipeline, *args, **kwargs)
            refuse_pipeline(pipeline, "text")  # text can be left out where no reference is read
            labels = PipelineLabels(pipeline, self._options, bind_arguments(original, pipeline, args, kwargs))
            experiment = Experiment(labels, self._options, self._interventions)
            self._running = True
            try:
                with labels.watched(experiment), self._listening(experiment) as capture:
                    labels.probing.unheard = capture.unheard
                    return original(pipeline, *args, **kwargs)
            finally:
                self._running = False

        return call


@contextmanager
def _same_noise(call: Mapping[str, Any]) -> Iterator[None]:
    """Set the generators of a call back to where they were."""
    states = [(each, each.get_state()) for each in _generators(call)]
    try:
        yield
    finally:
        for each, state in states:
            each.set_state(state)


def _generators(call: Mapping[str, Any]) -> Iterator[torch.Generator]:
    for value in call.values():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, torch.Generator):
                yield each


def _arrays(output: Any) -> Iterator[NDArray[Any]]:
    """All pictures and numbers of an output."""
    if isinstance(output, torch.Tensor):
        yield output.detach().cpu().to(torch.float32 if output.is_floating_point() else output.dtype).numpy()
    elif isinstance(output, (np.ndarray, PIL.Image.Image)):
        yield np.asarray(output)
    elif isinstance(output, (Mapping, list, tuple)):
        for each in output.values() if isinstance(output, Mapping) else output:
            yield from _arrays(each)
