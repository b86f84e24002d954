"""The one call: run a pipeline and keep its attention."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ...schema.errors import InvalidInput
from ...schema.messages import guess
from ...schema.record import JSON
from ...schema.selection import Layers, Positions
from ...schema.trace import TraceRecord
from ...schema.truth.places import lay_truth, write_places
from ..capture.hooks import Capture
from ..capture.modules import reads_features
from ..capture.wrapping import replaced
from ..families import family_of
from ..images.pictures import Picture, Window, generated_pictures
from ..labels.refusals import refuse_hijack, refuse_other_models, refuse_pipeline
from ..labels.rows import bind_arguments
from ..labels.tokens import is_appended
from ..outside.declaration import Declaration, declare
from ..plan.options import Options
from ..specs.arguments import check_arguments
from ..store.files import check_output
from .declared import DeclaredLabels
from .guard import interrupt, progress_bar, terminated, uncompiled, warn_of_losses
from .pipeline import PipelineLabels
from .provenance import versions
from .run import Run

DECLARED: Final = ("denoisers", "groups", "grid", "order", "sequential", "evaluations", "attention")
"""What is said of a model that is no pipeline."""
OPTIONS: Final = {field.name: field.default for field in fields(Options)}
"""What is asked of any model, and what is taken where it is not said."""
OWN_KERNEL: Final = "computes attention in a kernel of its own; its queries and keys are those that its projections made, "
TRUSTED: Final = "on trust"
LEFT_OUT: Final = "attention of {count} other modules reads more than the image itself and is left out, such as {example}"
ALONE: Final = "self-attention of {count} modules is left out: {example} {why}"
NO_OUTPUT: Final = "no linear layer of the module, or of the block around it, is given what attention took of the values"
NO_SUM: Final = "no module of the block is given the sum of the module's output, not gated, and what another one was given before"
SAMPLED: Final = "as its output at one query of each row in every call shows"


def record(
    pipeline: Any,
    path: str | PathLike[str],
    *,
    layers: Layers = None,
    steps: Positions = None,
    branches: str = "cond",
    encoding: str = "probabilities",
    keys: str = "auto",
    self_grid: int = 32,
    codec: str = "lz4",
    level: int = 5,
    queue_mb: float = 512,
    heads: Positions = None,
    keep_bits: int = 10,
    values: str = "auto",
    keep: str = "attention",
    token_maps: int = 16,
    max_bytes: int | str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    reference_mask: Any = None,
    reference_image: Any = None,
    facts: dict[str, Any] | None = None,
    truth: Any = None,
    probes: Mapping[str, Any] | None = None,
    concepts: Sequence[str] = (),
    **call: Any,
) -> Any:
    """Run a pipeline once with the arguments `call`, write its attention to `path`, and return its output.

        output = record(pipeline, "run.zarr", layers="*up_blocks*", encoding="factors", prompt="a shirt", image=person, mask_image=mask)

    `layers`           modules by name, glob or "re:" and a regular expression, one or several; None is all
    `steps`            evaluations of the denoiser, from 0: 3, [0, 2], slice(0, 10), "::5"; None is all
    `branches`         guidance branches: cond, uncond or both
    `encoding`         probabilities (float16), factors (q and k as the model had them), or auto
    `keys`             reference, text, self (the image's own tokens), all of these, or auto: reference and text, but of a softmax that
                       they share with the image's own tokens the reference alone
    `self_grid`        self-attention is kept of layers with at most this many times this many positions; 0 keeps none
    `codec`, `level`   packing: lz4 or zstd, and how hard, from 0 to 9
    `queue_mb`         most that waits to be written, in MiB
    `heads`            heads, as `steps`; None is all
    `keep_bits`        bits of a stored probability's mantissa, from 1 to 10 (all): fewer pack smaller
    `values`           kept of the values: none, norms (of what each gives through a head), full, or auto: norms where they are cheap
    `keep`             attention, or maps: sums of it alone, for R2G, G2R and maps of tokens, where the attention itself is too much to keep
    `token_maps`       with maps, how many tokens of each text have maps of their own, from the first
    `max_bytes`        most that the trace may hold before compression, such as "5GB"; None sets no limit
    `overwrite`        replace a trace that is at `path`
    `progress`         whether to show how far the run has come
    `reference_mask`   where the reference shows what matters; kept with the images, and scores are held against it
    `reference_image`  pictures of references that the pipeline is given as embeddings, as Flux Redux is; kept with the images
    `facts`            anything JSON can say, kept under provenance
    `truth`            where places of the image really come from, in shares from 0 to 1: a CSV file or an array of y, x, ref_y, ref_x, or a
                       flow (y, x, 2) with NaN where there is none, also as a .npy or .npz file
    `probes`           words or pictures to ask for that the run is not given: {"animals": ["dog", "zebra"]}
    `concepts`         words that attend to the image beside the run, as ConceptAttention has it: ["cat", "sky"] (Flux)

    Raises   InvalidInput, UnknownSelection, UnsupportedModel, AlreadyExists, NoSpace; what the pipeline itself raises
    """
    options = Options(layers=layers, steps=steps, branches=branches, encoding=encoding, heads=heads, keep_bits=keep_bits)
    options = replace(options, codec=codec, level=level, queue_mb=queue_mb, max_bytes=max_bytes, overwrite=overwrite, progress=progress)
    options = replace(options, reference_mask=reference_mask, reference_image=reference_image, facts=facts, truth=truth)
    options = replace(options, values=values, probes=probes, keys=keys, self_grid=self_grid, concepts=concepts)
    options = replace(options, keep=keep, token_maps=token_maps)
    check_arguments(pipeline, call, OPTIONS, [name for name, default in OPTIONS.items() if getattr(options, name) is not default])
    with Recording(pipeline, Path(path), options):
        return pipeline(**call)


def recording(model: Any, path: str | PathLike[str], **options: Any) -> Recording:
    """Write the attention of one run to `path`: of the one call that the block makes to a diffusers pipeline, with options as `record`.

    With `denoisers={"unet": model.diffusion_model}` it is that of any torch sampler that runs in the block. What cannot be told of
    such a model is said: `groups` of tokens, one list or one for each glob over layers; `order` of the branches in the batch, or,
    with `sequential`, of the passes; `grid` of the image being made; the number of `evaluations`; further modules of `attention`.

    Raises   as `record`
    """
    said = {name: options.pop(name) for name in DECLARED if name in options}
    known = (*OPTIONS, *DECLARED)
    if unknown := next((name for name in options if name not in known), None):
        near = guess(unknown, known)
        raise InvalidInput(f"recording() does not take this: {unknown!r}; {near}arguments of the pipeline go into its own call")
    if said and "denoisers" not in said:
        raise InvalidInput(f"recording() takes {', '.join(said)} with denoisers=, which names the modules of a model that is no pipeline")
    return Recording(model, Path(path), Options(**options), declare(model, **said) if said else None)


class Recording:
    """A recording while it runs, and its trace once it is complete."""

    def __init__(self, model: Any, path: Path, options: Options, declaration: Declaration | None = None) -> None:
        self.path = path
        """Where the trace is written."""
        self.trace: TraceRecord | None = None
        """The trace's record, once the block has been left."""
        self.facts: dict[str, Any] = dict(options.facts or {})
        """Kept under provenance; may be added to inside the block."""
        self._model, self._options = model, options
        self._declared = None if declaration is None else DeclaredLabels(declaration, options)
        self._run = None if self._declared is None else Run(self._declared, path, options, self._provenance)
        self._generated: list[Picture] = []
        self._notes: list[str] = []
        self._capture: Capture | None = None
        self._running = False
        self._restore = ExitStack()

    def step(self, timestep: float, sigma: float = math.nan) -> None:
        """Say that the sampler of a declared model is about to make a step; what its denoisers compute until the next belongs to it.

        Without it each evaluation of a denoiser is a step, at the timestep that the denoiser is given.
        """
        labels, run = self._require_declared("step")
        run.close_evaluation()
        labels.step(float(timestep), float(sigma))

    def images(self, windows: Mapping[str, Window] | None = None, **pictures: Any) -> None:
        """Keep pictures: `generated`, `reference`, `mask`, `reference_mask`, or any other name for an input; several as a list.

        `windows` say which part (top, left, bottom, right) of a picture, in its pixels, its token grid covers, where it was cropped.

        Raises   InvalidInput
        """
        labels, run = self._require_declared("images")
        run.add_pictures(labels.name_pictures(windows, pictures))

    def _require_declared(self, name: str) -> tuple[DeclaredLabels, Run]:
        if self._declared is None or self._run is None:
            raise InvalidInput(f"{name}() is for models that denoisers= names; a diffusers pipeline shows its steps and pictures itself")
        return self._declared, self._run

    def __enter__(self) -> Recording:
        check_output(self.path, self._options.overwrite)
        refuse_hijack()
        if self._declared is None:
            refuse_other_models(self._model)
            if family_of(self._model).longest_text is None:
                refuse_pipeline(self._model, self._options.keys)
        with ExitStack() as stack:
            stack.enter_context(terminated())
            stack.callback(self._finish)
            if self._run is None:
                stack.enter_context(replaced(type(self._model), "__call__", self._wrap_call, anywhere=True))
            else:
                given = {"reference": self._options.reference_image, "reference_mask": self._options.reference_mask}
                self.images(**{name: value for name, value in given.items() if value is not None})
                stack.enter_context(self._listening(self._run))
            self._restore = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self._restore.__exit__(kind, error, traceback)
        finally:
            if self.trace is not None:
                warn_of_losses(self.trace, self.path, 3 if self._declared is None else 2)
                for missing in self._declared.missing(self.path) if self._declared is not None else ():
                    warnings.warn(missing, stacklevel=2)
        if self.trace is None and error is None:
            raise InvalidInput("the pipeline was not called while recording, so nothing was recorded; call it once inside the block")

    def _finish(self) -> None:
        """Complete the trace of a run that came to its end."""
        if self._run is None or not self._run.over or self._run.writer is None:
            return
        try:
            self.trace = self._run.finish(self._generated)
        except BaseException as failure:
            interrupt(self._run, self.path, failure)
            raise

    def _provenance(self) -> dict[str, JSON]:
        factors = self._capture.factors if self._capture is not None else None
        own = [(factors.unproven, TRUSTED), (factors.sampled, SAMPLED)] if factors is not None else []
        trusted = [f"{path} {OWN_KERNEL}{why}" for paths, why in own for path in sorted(paths)]
        gone = self._capture.left_out if self._capture is not None else []
        trusted += [LEFT_OUT.format(count=len(gone), example=gone[0])] if gone else []
        notes: list[JSON] = [*self._notes, *(self._run.labels.notes if self._run is not None else []), *trusted]
        unproven: JSON = {why: sorted(paths) for paths, why in own if paths}
        said: dict[str, JSON] = {"notes": notes, "unproven": unproven}
        left_out = {} if self._run is None else self._run.labels.left_out
        whys = {why: [path for path, reason in left_out.items() if reason == why] for why in left_out.values()}
        notes += [ALONE.format(count=len(paths), example=paths[0], why=why) for why, paths in whys.items()]
        said["self_left_out"] = {why: list(paths) for why, paths in whys.items()}
        if self._options.truth is not None and self._run is not None and self._run.writer is not None:
            said["truth"] = write_places(lay_truth(self._options.truth, self._run.writer.trace.map_grid))
        if self._run is not None and self._run.without_values:
            said["without_values"] = {NO_OUTPUT: list(self._run.without_values)}
        if self._run is not None and self._run.without_residuals:
            said["without_residuals"] = {NO_SUM: list(self._run.without_residuals)}
        return {"versions": dict(versions()), "options": self._options.to_json(), "facts": self.facts, **said}

    @contextmanager
    def _listening(self, run: Run) -> Iterator[Capture]:
        """All that the denoisers attend to is heard by `run`; what stops it leaves what is whole."""
        labels = run.labels
        joins, kept = self._declared is None and reads_features(self._model), self._options.values_kept
        seen = {"values": kept != "none", "residuals": kept == "full"}
        capture = Capture(labels.denoisers, labels.modules, run, outside=self._declared is not None, joins=joins, **seen)
        self._capture = capture
        bar = progress_bar(self.path, self._options.progress, self._model)
        try:
            with uncompiled(labels.given), bar as run.progress, capture:
                try:
                    yield capture
                except BaseException:
                    with suppress(Exception):
                        run.abandon()
                    raise
                run.close()
        except BaseException as error:
            if not run.over:
                interrupt(run, self.path, error)
            raise

    def _wrap_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            if pipeline is not self._model or self._running:
                return original(pipeline, *args, **kwargs)
            if self._run is not None:
                raise InvalidInput(
                    "the pipeline was called a second time while recording; a trace holds one run, so record each call to a path of its own"
                )
            return self._record(original, args, kwargs)

        return call

    def _record(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = bind_arguments(original, self._model, args, kwargs)
        # A reference behind the text is among what the call is given.
        appended = is_appended(family_of(self._model), arguments, self._options.reference_image is not None)
        refuse_pipeline(self._model, self._options.keys, appended)
        labels = PipelineLabels(self._model, self._options, arguments)
        run = self._run = Run(labels, self.path, self._options, self._provenance)
        self._running = True
        try:
            with labels.watched(run), self._listening(run) as capture:
                labels.probing.unheard = capture.unheard
                with labels.concepts.following(capture):
                    output = original(self._model, *args, **kwargs)
        finally:
            self._running = False
        self._generated = generated_pictures(output, arguments.get("output_type"))
        if not self._generated:
            self._notes.append(f"the pipeline returned no images that could be kept (output_type {arguments.get('output_type')})")
        return output
