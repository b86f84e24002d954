"""The one call: run a pipeline and keep its attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Final

import torch

from ...schema.errors import InvalidInput, UnsupportedModel
from ...schema.messages import refuse_taken
from ...schema.record import JSON
from ...schema.selection import Layers, Positions
from ...schema.trace import TraceRecord
from ..capture.hooks import Capture
from ..capture.modules import attention_modules, denoisers
from ..capture.wrapping import replaced
from ..images.inputs import generated_pictures
from ..images.pixels import Picture
from ..labels.passes import named_passes
from ..labels.refusals import refuse_hijack, refuse_pipeline
from ..labels.rows import bind_arguments
from ..outside.declaration import declare
from ..plan.options import Options, select_layers
from .guard import interrupt, progress_bar, terminated, uncompiled, warn_of_losses
from .outside import OutsideRecording
from .provenance import versions
from .run import Run

DECLARED: Final = ("denoisers", "groups", "grid", "order", "sequential", "evaluations", "attention")
"""What is said of a model that is no pipeline."""


def record(
    pipeline: Any,
    path: str | PathLike[str],
    *,
    layers: Layers = None,
    steps: Positions = None,
    branches: str = "cond",
    encoding: str = "probabilities",
    keys: str = "auto",
    codec: str = "lz4",
    level: int = 5,
    queue_mb: float = 512,
    heads: Positions = None,
    keep_bits: int = 10,
    max_bytes: int | str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    reference_mask: Any = None,
    reference_image: Any = None,
    facts: dict[str, Any] | None = None,
    probes: Mapping[str, Any] | None = None,
    **call: Any,
) -> Any:
    """Run a pipeline once with the arguments `call`, write its attention to `path`, and return its output.

    Raises   InvalidInput, UnknownSelection, UnsupportedModel, AlreadyExists, NoSpace; what the pipeline itself raises
    """
    kept = Options(layers, steps, branches, encoding, keys, codec, level, queue_mb, heads, keep_bits, max_bytes)
    pictures = {"reference_mask": reference_mask, "reference_image": reference_image}
    options = replace(kept, overwrite=overwrite, progress=progress, facts=facts, probes=probes, **pictures)
    with Recording(pipeline, Path(path), options):
        return pipeline(**call)


def recording(model: Any, path: str | PathLike[str], **options: Any) -> Recording | OutsideRecording:
    """Write the attention of one run to `path`: of the one call that the block makes to a diffusers pipeline, with options as `record`.

    With `denoisers={"unet": model.diffusion_model}` it is that of any torch sampler that runs in the block. What cannot be told of
    such a model is said: `groups` of tokens, one list or one for each glob over layers; `order` of the branches in the batch, or,
    with `sequential`, of the passes; `grid` of the image being made; the number of `evaluations`; further modules of `attention`.

    Raises   as `record`
    """
    said = {name: options.pop(name) for name in DECLARED if name in options}
    try:
        chosen = Options(**options)
    except TypeError as error:
        raise InvalidInput(f"recording() does not take this: {error}; arguments of the pipeline go into its own call") from None
    if "denoisers" in said:
        return OutsideRecording(declare(model, **said), Path(path), chosen)
    if said:
        raise InvalidInput(f"recording() takes {', '.join(said)} with denoisers=, which names the modules of a model that is no pipeline")
    return Recording(model, Path(path), chosen)


class Recording:
    """A recording while it runs, and its trace once it is complete."""

    def __init__(self, pipeline: Any, path: Path, options: Options) -> None:
        self.path = path
        """Where the trace is written."""
        self.trace: TraceRecord | None = None
        """The trace's record, once the block has been left."""
        self.facts: dict[str, Any] = dict(options.facts or {})
        """Kept under provenance; may be added to inside the block."""
        self._pipeline, self._options = pipeline, options
        self._run: Run | None = None
        self._generated: list[Picture] | None = None
        self._notes: list[str] = []
        self._running = False
        self._restore = ExitStack()

    def __enter__(self) -> Recording:
        if not denoisers(self._pipeline) or not hasattr(self._pipeline, "scheduler"):
            raise UnsupportedModel(
                f"{type(self._pipeline).__name__} has no unet or transformer with a scheduler, as diffusers pipelines have; of "
                'another model name the modules that denoise: denoisers={"unet": model.diffusion_model}'
            )
        refuse_taken(self.path, self._options.overwrite)
        refuse_hijack()
        refuse_pipeline(self._pipeline, self._options.keys)
        with ExitStack() as stack:
            stack.enter_context(replaced(type(self._pipeline), "__call__", self._wrap_call))
            stack.enter_context(terminated())
            self._restore = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        self._restore.close()
        if self._generated is not None and self._run is not None:
            self.trace = self._finish(self._run, self._generated)
            warn_of_losses(self.trace, self.path, 3)
        elif error is None:
            raise InvalidInput("the pipeline was not called while recording, so nothing was recorded; call it once inside the block")

    def _wrap_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            if pipeline is not self._pipeline or self._running:
                return original(pipeline, *args, **kwargs)
            if self._run is not None:
                raise InvalidInput(
                    "the pipeline was called a second time while recording; a trace holds one run, so record each call to a path of its own"
                )
            return self._record(original, args, kwargs)

        return call

    def _record(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pipeline = self._pipeline
        arguments = bind_arguments(original, pipeline, args, kwargs)
        run = Run(pipeline, self.path, self._options, arguments, self._provenance)
        modules = attention_modules(pipeline)
        chosen = select_layers(self._options.layers, list(modules))
        if not chosen:
            raise UnsupportedModel(f"{type(pipeline).__name__} has no cross-attention in its denoiser, so there is nothing to record")
        self._run, self._running = run, True
        try:
            with Capture(denoisers(pipeline), {path: modules[path] for path in chosen}, run) as capture, self._watched(run):
                run.probing.unheard = capture.unheard
                output = original(pipeline, *args, **kwargs)
                run.close()
        except BaseException as error:
            interrupt(run.intake, self.path, error)
            raise
        finally:
            self._running = False
        self._generated = generated_pictures(output, arguments.get("output_type"))
        if not self._generated:
            self._notes.append(f"the pipeline returned no images that could be kept (output_type {arguments.get('output_type')})")
        return output

    @contextmanager
    def _watched(self, run: Run) -> Iterator[None]:
        """The scheduler's steps counted, compiled code bypassed, one progress bar shown."""
        scheduler = self._pipeline.scheduler

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def step(this: Any, *args: Any, **kwargs: Any) -> Any:
                if this is not self._pipeline.scheduler:
                    return original(this, *args, **kwargs)
                sample = kwargs.get("sample", args[2] if len(args) > 2 else None)
                run.step(sample if isinstance(sample, torch.Tensor) else None)
                result = original(this, *args, **kwargs)
                run.stepped()
                return result

            return step

        watched = replaced(type(scheduler), "step", wrap), named_passes(self._pipeline, run.name_pass)
        roots = [getattr(self._pipeline, name) for name in denoisers(self._pipeline)]  # in the wrapper of torch.compile, if there is one
        with watched[0], watched[1], run.texts.watched(), run.probing.watched(), uncompiled(roots), self._bar(run):
            yield

    @contextmanager
    def _bar(self, run: Run) -> Iterator[None]:
        """One bar on stderr if that is a terminal; the pipeline's own stays quiet meanwhile."""
        with progress_bar(self.path, self._options.progress) as show:
            if show is None:
                yield
                return
            run.intake.progress = show
            own = getattr(self._pipeline, "_progress_bar_config", None)
            self._pipeline._progress_bar_config = {**(own or {}), "disable": True}
            try:
                yield
            finally:
                if own is None:
                    del self._pipeline._progress_bar_config
                else:
                    self._pipeline._progress_bar_config = own

    def _provenance(self) -> dict[str, JSON]:
        notes = self._run.transcript.notes if self._run is not None else []
        return {"versions": versions(), "options": self._options.to_json(), "facts": self.facts, "notes": [*self._notes, *notes]}

    def _finish(self, run: Run, generated: list[Picture]) -> TraceRecord:
        try:
            return run.finish(generated)
        except BaseException as error:
            interrupt(run.intake, self.path, error)
            raise
