"""The call of a diffusers pipeline, labelled by what the pipeline, its scheduler and its arguments show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final

from numpy.typing import NDArray
from torch import Tensor, nn

from ...schema.errors import InvalidInput, UnsupportedModel
from ...schema.messages import option
from ...schema.record import BRANCHES
from ...schema.text import Text
from ...schema.trace import Layer, TokenGroup, TraceRecord
from ..capture.call import Call
from ..capture.modules import attention_modules, denoisers, reads_features
from ..capture.wrapping import replaced
from ..encoding.transfer import Outbox
from ..families import family_of
from ..images.pictures import input_pictures, leading_frames
from ..labels.frames import VIDEO_AXES, whole_video
from ..labels.grids import IMAGE_AXES, Canvases
from ..labels.guidance import Inputs, Outputs, settle
from ..labels.layers import Sites
from ..labels.passes import (
    Evaluation,
    Pass,
    evaluations_left,
    named_passes,
    noise_level,
    pass_branch,
    rows_of_call,
    scheduler_timestep,
)
from ..labels.refusals import hidden_attention
from ..labels.rows import DECLARE, Row, Rows, conditioning_of, denoiser_argument, number, row_order, unknown_batch
from ..labels.scenes import read_scene
from ..labels.tokens import Context, context_role, is_appended
from ..plan.options import Options, read_probes, select_layers
from ..probes.concepts import Concepts
from ..probes.encoding import Probing
from ..store.writer import Writer
from ..text.readings import Stretch, Texts
from .course import Course, Labels, Placed
from .provenance import input_record, model_record, sampler_record

PACKED_AXES: Final = 3
"""Of a latent whose places are tokens."""
TEXT: Final = "text"
"""The token group that a prompt's tokens are."""


class PipelineLabels(Labels):
    """Labels the one call of a pipeline."""

    def __init__(self, pipeline: Any, options: Options, arguments: dict[str, Any]) -> None:
        self._pipeline, self._options, self._arguments, self._name = pipeline, options, arguments, type(pipeline).__name__
        modules = attention_modules(pipeline, options.wants_self)
        alone = modules.keys() - attention_modules(pipeline).keys()
        self.modules = {path: modules[path] for path in select_layers(options.layers, list(modules))}
        if not self.modules:
            raise UnsupportedModel(
                f"{self._name} has no cross-attention in its denoiser that is known here; where it joins text or a picture with its own "
                "tokens in one sequence, say what the keys are: recording(..., denoisers={NAME: MODULE}, groups=...)"
            )
        self.denoisers = denoisers(pipeline)
        self.given = [getattr(pipeline, name) for name in self.denoisers]
        given = input_pictures(pipeline, arguments, context_role(pipeline), options.reference_mask, options.reference_image)
        appended = is_appended(family_of(pipeline), arguments, options.reference_image is not None)
        self._sites = Sites(Context.of(pipeline, [image.name for image, _ in given if image.role == "reference"], appended), options, alone)
        self.left_out = self._sites.layers.left_out
        self._model, self._inputs = model_record(pipeline, self.denoisers, getattr(pipeline, "components", {})), input_record(arguments)
        self._texts = Texts(pipeline)
        self._transcript = Transcript(self._texts)
        self.notes = self._transcript.notes
        self.probing = Probing(pipeline, read_probes(options.probes), self._texts)
        self.concepts = Concepts(pipeline, tuple(options.concepts), tuple(self.modules), self._texts)
        self.pictures = [*given, *self.probing.pictures]
        self._steps = self._begun = 0
        inputs = Inputs(
            arguments, lambda vectors: [stretch.reading.text for stretch in self._texts.find(vectors)] if self._texts.read else []
        )
        self._rows, self._outbox, self._outputs = Rows(inputs.branch), Outbox(), Outputs()
        self._canvases = Canvases(leading_frames(pipeline, arguments))
        self._fed: tuple[int, ...] = ()
        """(rows, columns) of the latent that a denoiser was given last; empty where its places are tokens."""
        self._pass_name: str | None = None
        self._reads_features, self._written = reads_features(pipeline), False
        self._probed = False

    def label(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any], now: Evaluation | None) -> Pass | None:
        if kwargs.get("skip_layers") is not None:
            return None  # a pass that leaves layers out, to guide away from: it is neither branch
        if self._reads_features and not self._written:
            self._written = True
            return None  # the reference's own pass, whose features the next one reads
        denoiser = self.denoisers[root]
        sample = denoiser_argument(args, kwargs, 0, "sample", "hidden_states")
        time = denoiser_argument(args, kwargs, 1, "timestep", "timesteps")
        if not isinstance(sample, (Tensor, list, tuple)) or time is None:
            missing = "no timestep" if isinstance(sample, Tensor) else "no latent"
            raise UnsupportedModel(
                f"{root} ({type(denoiser).__name__}) was given {missing} that could be told from its arguments "
                f"({', '.join(kwargs) or f'{len(args)} without names'}), so its batch and steps are not known; " + DECLARE
            )
        self._fed = tuple(sample.shape[-2:]) if isinstance(sample, Tensor) and sample.ndim in (IMAGE_AXES, VIDEO_AXES) else ()
        said = self._rows.say(conditioning_of(args, kwargs), len(sample))
        told = self._pass_name or (said[0] if said and len(set(said)) == 1 else None)
        alone = self._is_alone(denoiser, told, now)
        if now is not None and not alone:
            if now.kept:
                raise self._repeated()
            now = None
        scene, scenes = read_scene(denoiser, self._canvases, args, kwargs)
        order, rows = self._label_rows(args, kwargs, len(sample), now, told, alone)
        branches = {row.branch for row in rows}
        if now is not None and (branches & now.branches or not branches):
            raise self._repeated()
        context = denoiser_argument(args, kwargs, 2, "encoder_hidden_states")
        self.probing.begin(denoiser, context)
        # The latest of its frames: one that is given has no noise, and an earlier time.
        time = self._outbox.number(time.amax()) if isinstance(time, Tensor) else float(time)
        return Pass(rows=len(sample), order=order, labelled=rows, first=now is None, time=time, scene=scene, scenes=scenes, context=context)

    def _is_alone(self, denoiser: nn.Module, told: str | None, now: Evaluation | None) -> bool:
        """Whether each branch has a pass of its own, as is known of the family or shown by what this pass is `told` to be."""
        another = now is not None and told in BRANCHES and told not in now.branches
        return family_of(denoiser).sequential or self._pass_name in BRANCHES or told == "uncond" or another

    def _label_rows(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, now: Evaluation | None, told: str | None, alone: bool
    ) -> tuple[tuple[str | None, ...], tuple[Row, ...]]:
        conditioning = conditioning_of(args, kwargs)
        if not alone:
            said = self._rows.say(conditioning, rows) or [None] * rows
            order = settle(row_order(self._pipeline, self._arguments, kwargs.get("guidance") is not None), said)
            return order, self._rows.label(conditioning, rows, order)
        branch = pass_branch(told, 0 if now is None else len(now.passes))
        if self._pass_name is None and branch is not None:
            known = self._rows.label(conditioning, rows, (branch,))
            # Two branches with one prompt look alike; then only their order tells them apart.
            if known and not {row.branch for row in known} & (set() if now is None else now.branches):
                return (branch,), known
        return (branch,), number([branch] * rows)

    def _repeated(self) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self._name} ran its denoiser twice between two steps of its scheduler, so it is not known which guidance branch is "
            f"which; {DECLARE}"
        )

    def start(self, this: Pass) -> None:
        self._begun += 1
        if self.evaluations and self._begun > self.evaluations:
            raise UnsupportedModel(
                f"{self._name} began a denoiser evaluation after the {self.evaluations} that its schedule has: it samples more than once "
                "in a call (FreeInit, or a small picture before a large one), and a trace holds one run; turn that off, or record the "
                "sampling that is wanted as a run of its own: recording(..., denoisers={NAME: MODULE}, groups=...)"
            )
        if not self.evaluations:
            scheduler = self._pipeline.scheduler
            self.evaluations = evaluations_left(scheduler, scheduler_timestep(scheduler, this.read_time()))
            self.samples = 1 + max(row.sample for row in this.labelled)
            # Another pass may follow one that was told apart, and in a modular pipeline any.
            apart = self._pass_name is not None or this.order == ("uncond",) or hasattr(self._pipeline, "blocks")
            if not apart and not any(family_of(denoiser).sequential for denoiser in self.denoisers.values()):
                self._check_branches({row.branch for row in this.labelled})

    def _check_branches(self, have: set[str]) -> None:
        if not have & set(self._options.axis):
            raise InvalidInput(
                f"{option('branches', self._options.branches)} selects nothing: this run is not guided and has {', '.join(sorted(have))} "
                f"only; use {option('branches', 'cond')}, or a guidance_scale above 1"
            )

    def place(self, call: Call, this: Pass) -> Iterator[Placed]:
        if call.resampler is not None:
            yield from self._place_resampler(call, this)
            return
        try:
            yield from self._place(call, this)
        except UnsupportedModel as why:
            if not self._sites.leave_out(call.path, why):
                raise

    def _place(self, call: Call, this: Pass) -> Iterator[Placed]:
        call = whole_video(call, this.scene.frames) if this.scene.frames else replace(call, concepts=self.concepts.scores(call))
        for row in rows_of_call(call, this):
            if (site := self._sites.find(call, this.scene_of(row), row.index if this.scenes else None)) is not None:
                yield call, row.index, site, row

    def _place_resampler(self, call: Call, this: Pass) -> Iterator[Placed]:
        sites = self._sites.find_resampler(call, this.scene) if this.kept else ()
        if sites and call.query.shape[0] != this.rows * len(sites):
            raise UnsupportedModel(
                f"{call.path} makes tokens of {call.query.shape[0]} references for a batch of {this.rows} rows with {len(sites)} each, so "
                f"it is not known which is whose; leave it out through {option('layers')}"
            )
        for row in this.kept:
            for image, site in enumerate(sites):
                yield call, row.index * len(sites) + image, site, row

    def probe_keys(self, call: Call, layer: Layer, this: Pass) -> tuple[tuple[TokenGroup, ...], NDArray[Any] | None]:
        row = next((row.index for row in this.labelled if row.branch == "cond"), 0)
        return ((), None) if layer.is_resampler else self.probing.keys(call, layer, row)

    def close(self, now: Evaluation, writer: Writer | None) -> None:
        if now.ordinal == 0:
            self._check_branches(now.branches)
        if not now.kept:
            return
        now.scheduler_step, now.timestep = self._steps, scheduler_timestep(self._pipeline.scheduler, now.passes[0].read_time())
        now.sigma = noise_level(self._pipeline.scheduler, now.timestep)
        for one in now.passes:
            self._transcript.hear(one.context, one.kept)
        if writer is None:
            return
        if not self._probed:
            self._probed = True
            self.probing.check(writer.trace)
            self.concepts.check(writer.trace)
            writer.add_texts(self.probing.tell())
        if said := self._transcript.tell(writer.trace):
            writer.add_texts(said)

    def unseen(self, path: str, module: nn.Module) -> UnsupportedModel | None:
        why = hidden_attention(path, module)
        return None if self._sites.leave_out(path, why) else why

    def nothing(self, seen: int) -> UnsupportedModel:
        keys, roles = self._options.keys, self._sites.layers.roles
        if seen == 0:
            return UnsupportedModel(f"{self._name} ran none of its denoisers, so there is nothing to record; call it for at least one step")
        if keys == "self" and self.left_out:
            path, why = next(iter(self.left_out.items()))
            return UnsupportedModel(f"{option('keys', keys)} recorded nothing: {path} {why}")
        if keys in ("reference", "text") and roles:
            bring = "pass reference_attn=True" if self._reads_features else "load an IP-Adapter with a scale above 0"
            out = f"{bring}, or use {option('keys', 'all')}" if keys == "reference" else f"use {option('keys', 'all')}"
            have = f"attention in {self._name} has {', '.join(sorted(roles))} keys only"
            return UnsupportedModel(f"{option('keys', keys)} recorded nothing: {have}; {out}")
        return UnsupportedModel(f"{self._name} made no attention call in the selected layers, steps and branches; select more of them")

    def record(self) -> dict[str, Any]:
        return {"model": self._model, "sampler": sampler_record(self._pipeline.scheduler, self._arguments), "inputs": self._inputs}

    @contextmanager
    def watched(self, run: Course) -> Iterator[None]:
        """The scheduler's steps told to the run, and what the pipeline encodes and calls its passes read."""
        scheduler = self._pipeline.scheduler

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def step(this: Any, *args: Any, **kwargs: Any) -> Any:
                if this is not self._pipeline.scheduler:
                    return original(this, *args, **kwargs)
                self._check_step(run.evaluation, kwargs.get("sample", args[2] if len(args) > 2 else None))
                self._outputs.check(run.evaluation, args[0] if args else kwargs.get("model_output"))
                run.close_evaluation()
                self._written = False
                result = original(this, *args, **kwargs)
                self._steps += 1
                return result

            return step

        passes = named_passes(self._pipeline, self._name_pass)
        outputs = self._outputs.watched(self.denoisers)
        encoding = self._texts.watched(), self.probing.watched(), self.concepts.watched()
        with ExitStack() as stack:
            for watched in (replaced(type(scheduler), "step", wrap), passes, outputs, *encoding):
                stack.enter_context(watched)
            yield

    def _name_pass(self, name: str | None) -> None:
        self._pass_name = None if name is None else name.removeprefix("pred_")  # as modular pipelines call it

    def _check_step(self, now: Evaluation | None, sample: Any) -> None:
        """Hold the batch of the evaluation that a scheduler's step follows against the latent that it steps."""
        if not isinstance(sample, Tensor):
            return
        for one in now.passes if now is not None else ():
            expected = len(sample) * len(one.order)
            if one.kept and one.rows != expected:
                raise unknown_batch(one.rows, f"{expected} for {expected // len(one.order)} images", one.order)
            made = [part.tokens for part in one.scene.canvas if part.role == "self"]
            if sample.ndim == PACKED_AXES and len(made) == 1 and made[0] != sample.shape[1]:
                raise UnsupportedModel(
                    f"{self._name} steps {sample.shape[1]} tokens, and {made[0]} of its denoiser's sequence were taken for the image being "
                    f"made, so it is not known which they are; {DECLARE}"
                )
        if sample.ndim in (IMAGE_AXES, VIDEO_AXES):
            self.latent_grid = (sample.shape[-2], sample.shape[-1])
            if self._fed not in ((), self.latent_grid) and now is not None and any(one.kept for one in now.passes):
                raise UnsupportedModel(
                    f"{self._name} steps a latent of {self.latent_grid} and gives its denoiser one of {self._fed}, in which other pictures "
                    f"stand beside the image being made, so it is not known which of its places are the image's; {DECLARE}"
                )


class Transcript:
    """Reads each row of text that a denoiser is given, once."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._found: dict[str, dict[int, tuple[Stretch, ...]]] = {}
        self._seen: set[tuple[str, int]] = set()
        self._told = False
        self.notes: list[str] = []
        """Why some text is left out."""

    def hear(self, context: Any, rows: Iterable[Row]) -> None:
        """A denoiser is given `context`, of which these rows are kept."""
        if not isinstance(context, Tensor) or context.ndim != 3 or context.device.type == "meta":
            return
        for row in rows:
            if (row.branch, row.sample) in self._seen:
                continue
            self._seen.add((row.branch, row.sample))
            if self._texts.read and bool(context[row.index].any()):  # some models are guided away from zeros, which say nothing
                self._found.setdefault(row.branch, {})[row.sample] = self._texts.find(context[row.index])

    def tell(self, trace: TraceRecord) -> tuple[Text, ...]:
        """The texts of a trace that has layers by now; none where they have been told already."""
        sizes = {group.tokens for layer in trace.layers for group in layer.groups if group.name == TEXT and not layer.is_resampler}
        if self._told or not sizes:
            return ()
        self._told = True
        texts: list[Text] = []
        for branch in trace.branches:
            samples = {sample: _cut(stretches, min(sizes)) for sample, stretches in self._found.get(branch, {}).items()}
            why = "" if all(samples.values()) else "no text encoder made them as they are, or fewer of them"
            if len(sizes) > 1:
                why, samples = f"layers have {' and '.join(map(str, sorted(sizes)))} of them", {}
            if why:
                self.notes.append(f"what the {branch} text's tokens say is not known: {why}")
            same = len(samples) == trace.samples and len(set(samples.values())) == 1
            for sample, said in sorted(samples.items())[: 1 if same else None]:
                texts += [replace(text, branch=branch, sample=None if same else sample) for text in said]
        return tuple(texts)


def _cut(stretches: tuple[Stretch, ...], tokens: int) -> tuple[Text, ...]:
    """The first `tokens` tokens, which in some models a reference's come after; none if there are fewer."""
    if sum(stretch.count for stretch in stretches) < tokens:
        return ()
    return tuple(s.text(TEXT, count=min(s.count, tokens - s.start)) for s in stretches if s.start < tokens)
