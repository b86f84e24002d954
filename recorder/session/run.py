"""One run of a pipeline, from what is captured to what is written: labels each call and hands its blocks on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from ...schema.errors import InvalidInput, UnsupportedModel
from ...schema.record import JSON
from ...schema.trace import Layer, TokenGroup, TraceRecord
from ..capture.call import Call
from ..capture.modules import denoisers, reads_features
from ..encoding.transfer import Block
from ..families import family_of
from ..images.inputs import input_pictures
from ..labels.frames import VIDEO_AXES, whole_video
from ..labels.grids import Canvases
from ..labels.layers import Sites
from ..labels.passes import Evaluation, Pass, pass_branch, rows_of_call
from ..labels.refusals import hidden_attention
from ..labels.rows import Row, Rows, conditioning_of, denoiser_argument, number, row_order, unknown_batch
from ..labels.scenes import read_scene
from ..labels.schedule import evaluations_left, noise_level, scheduler_timestep
from ..labels.tokens import Context, context_role
from ..plan.options import Options, select_steps
from ..plan.probes import read_probes
from ..probes.encoding import Probing
from ..store.writer import Writer
from ..text.readings import Texts
from .intake import Intake
from .provenance import input_record, model_record, sampler_record
from .transcript import Transcript

LATENT_AXES: Final = 4


class Run:
    """Listens to the capture of one pipeline call and writes its trace."""

    def __init__(
        self, pipeline: Any, path: Path, options: Options, arguments: dict[str, Any], provenance: Callable[[], dict[str, JSON]]
    ) -> None:
        self._pipeline, self._path, self._options, self._arguments = pipeline, path, options, arguments
        self._provenance = provenance
        self.pictures = input_pictures(pipeline, arguments, context_role(pipeline), options.reference_mask, options.reference_image)
        self._context = Context.of(pipeline, [image.name for image, _ in self.pictures if image.role == "reference"])
        self._model, self._inputs = model_record(pipeline), input_record(arguments)
        self._rows, self.texts = Rows(), Texts(pipeline)
        self.transcript = Transcript(self.texts)
        self.probing = Probing(pipeline, read_probes(options.probes), self.texts)
        self.pictures += self.probing.pictures
        self._heard: Call | None = None
        self._probed = False
        self.intake = Intake(path, options, self._record, self.pictures, self._clock)
        self._sites = Sites(self._context, options, self._add_layer)
        self._canvases = Canvases()
        self._pass_name: str | None = None
        self._evaluation: Evaluation | None = None
        self._chosen: frozenset[int] = frozenset()
        self._seen = self._scheduler_steps = self._samples = 0
        self._latent_grid: tuple[int, int] | None = None
        self._reads_features, self._written = reads_features(pipeline), False

    def name_pass(self, name: str | None) -> None:
        """What the pipeline calls the pass that it is about to make; None if nothing."""
        self._pass_name = name

    def begin(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A denoiser is about to run; whether its attention is wanted."""
        if kwargs.get("skip_layers") is not None:
            return False  # a pass that leaves layers out, to guide away from: it is neither branch
        if self._reads_features and not self._written:
            self._written = True
            return False  # the reference's own pass, whose features the next one reads
        denoiser = denoisers(self._pipeline)[root]
        sample = denoiser_argument(args, kwargs, 0, "sample", "hidden_states")
        scene, scenes = read_scene(denoiser, self._canvases, args, kwargs)
        sequential = family_of(denoiser).sequential
        before = self._evaluation
        if before is not None and before.kept and not sequential:
            raise self._repeated()
        order, rows = self._label(args, kwargs, len(sample), sequential)
        branches = {row.branch for row in rows}
        if before is None or (not sequential and not before.kept):
            before = self._evaluation = self._evaluate(denoiser_argument(args, kwargs, 1, "timestep"), rows, sequential)
        elif branches & before.branches or not branches:
            raise self._repeated()
        kept = tuple(row for row in rows if row.branch in self._options.axis) if before.chosen else ()
        if kept and (self.intake.kept >= self.intake.steps or max(row.sample for row in kept) >= self._samples):
            raise UnsupportedModel(
                f"denoiser evaluation {before.ordinal} was not planned: {self.intake.steps} evaluations of {self._samples} samples were; "
                "a pipeline that guides in separate denoiser passes in a way of its own is not recorded yet; use guidance_scale=1"
            )
        before.passes.append(Pass(len(sample), order, kept, scene, scenes))
        before.branches |= branches
        before.done = False
        context = denoiser_argument(args, kwargs, 2, "encoder_hidden_states")
        self.transcript.hear(context, kept)
        self.probing.begin(denoiser, context)
        return bool(kept)

    def _label(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, sequential: bool
    ) -> tuple[tuple[str | None, ...], tuple[Row, ...]]:
        """The parts of a pass's batch, and its rows."""
        if not sequential:
            order = row_order(self._pipeline, self._arguments)
            return order, self._rows.label(conditioning_of(args, kwargs), rows, order)
        now = self._evaluation
        taken = set() if now is None else now.branches
        branch = pass_branch(self._pass_name, 0 if now is None else len(now.passes))
        if self._pass_name is None and branch is not None:
            known = self._rows.label(conditioning_of(args, kwargs), rows, (branch,))
            # Two branches with one prompt look alike; then only their order tells them apart.
            if known and not {row.branch for row in known} & taken:
                return (branch,), known
        return (branch,), number([branch] * rows)

    def _evaluate(self, timestep: Any, rows: tuple[Row, ...], sequential: bool) -> Evaluation:
        time = self._timestep(timestep)
        if self._seen == 0:
            self._plan(float(time()) if isinstance(time, Block) else time, rows, sequential)
        sigma = noise_level(self._pipeline.scheduler, time) if isinstance(time, float) else math.nan
        chosen = self._seen in self._chosen
        self._seen += 1
        return Evaluation(self._seen - 1, self._scheduler_steps, self.intake.kept, time, sigma, chosen, [], set())

    def _repeated(self) -> UnsupportedModel:
        return UnsupportedModel(
            f"{type(self._pipeline).__name__} ran its denoiser twice between two steps of its scheduler, so it is not known which "
            "guidance branch is which; record it with guidance_scale=1, or use a pipeline that batches its guidance"
        )

    def hear(self, call: Call) -> None:
        """Label one attention call and queue its blocks."""
        now = self._evaluation
        if now is None:
            return
        this = now.passes[-1]
        if call.resampler is not None:
            self._hear_resampler(call, this, now.position)
            return
        self._heard = call
        call = whole_video(call, this.scene.frames) if this.scene.frames else call
        for row in rows_of_call(call, this):
            site = self._sites.find(call, this.scene_of(row), row.index if this.scenes else None)
            if site is not None:
                self.intake.put(call, row.index, site, row, now.position)

    def _add_layer(self, layer: Layer) -> int:
        """Give the trace a layer that was met, with the keys that its module makes of the probes."""
        probes: tuple[TokenGroup, ...] = ()
        keys = None
        if self._heard is not None and self._evaluation is not None and not layer.is_resampler:
            this = self._evaluation.passes[-1]
            part = this.order.index("cond") if "cond" in this.order else 0
            probes, keys = self.probing.keys(self._heard, layer, part * (this.rows // len(this.order)))
        return self.intake.open().add_layer(replace(layer, probes=probes), keys)

    def _hear_resampler(self, call: Call, this: Pass, position: int) -> None:
        sites = self._sites.find_resampler(call, this.scene) if this.kept else ()
        if sites and call.query.shape[0] != this.rows * len(sites):
            raise UnsupportedModel(
                f"{call.path} makes tokens of {call.query.shape[0]} references for a batch of {this.rows} rows with {len(sites)} each, so "
                "it is not known which is whose; leave it out through layers="
            )
        for row in this.kept:
            for image, site in enumerate(sites):
                self.intake.put(call, row.index * len(sites) + image, site, row, position)

    def end(self, root: str) -> None:
        """The denoiser ran through."""
        if self._evaluation is not None:
            self._evaluation.done = True

    def silence(self, path: str, module: nn.Module) -> None:
        """Stop: a chosen module ran unseen."""
        raise hidden_attention(path, module)

    def step(self, sample: Tensor | None) -> None:
        """The scheduler is about to step: the evaluation that it follows is complete, and its batch is checked."""
        passes = [] if self._evaluation is None or sample is None else self._evaluation.passes
        for one in passes:
            expected = len(sample) * len(one.order)  # type: ignore[arg-type]
            if one.kept and one.rows != expected:
                raise unknown_batch(one.rows, f"{expected} for {expected // len(one.order)} images", one.order)
        if sample is not None and sample.ndim in (LATENT_AXES, VIDEO_AXES):
            self._latent_grid = (sample.shape[-2], sample.shape[-1])
        self._close_evaluation()
        self._written = False

    def stepped(self) -> None:
        """The scheduler has stepped."""
        self._scheduler_steps += 1

    def close(self) -> None:
        """The pipeline is through.

        Raises   UnsupportedModel if nothing could be recorded
        """
        self._close_evaluation()
        if self.intake.writer is None:
            raise self._nothing()

    def finish(self, generated: list[Any]) -> TraceRecord:
        """Complete the trace."""
        sampler = sampler_record(self._pipeline.scheduler, self._arguments)
        return self.intake.open().finish(images=generated, sampler=sampler, latent_grid=self._latent_grid, provenance=self._provenance())

    def _nothing(self) -> UnsupportedModel:
        name, keys = type(self._pipeline).__name__, self._options.keys
        if self._seen == 0:
            return UnsupportedModel(f"{name} ran none of its denoisers, so there is nothing to record; call it for at least one step")
        if keys in ("reference", "text") and self._sites.roles:
            have = ", ".join(sorted(self._sites.roles))
            bring = "pass reference_attn=True" if self._reads_features else "load an IP-Adapter with a scale above 0"
            first = f"{bring}, or " if keys == "reference" else ""
            return UnsupportedModel(f'keys="{keys}" recorded nothing: attention in {name} has {have} keys only; {first}use keys="all"')
        return UnsupportedModel(f"{name} made no attention call in the selected layers, steps and branches; select more of them")

    def _plan(self, timestep: float, rows: tuple[Row, ...], sequential: bool) -> None:
        self.intake.evaluations = evaluations = evaluations_left(self._pipeline.scheduler, timestep)
        self._chosen = frozenset(select_steps(self._options.steps, evaluations))
        self.intake.steps, self._samples = len(self._chosen), 1 + max(row.sample for row in rows)
        if not sequential:
            self._check_branches({row.branch for row in rows})

    def _check_branches(self, have: set[str]) -> None:
        if not have & set(self._options.axis):
            raise InvalidInput(
                f"branches={self._options.branches!r} selects nothing: this run is not guided and has {', '.join(sorted(have))} only; "
                'use branches="cond", or a guidance_scale above 1'
            )

    def _timestep(self, value: Any) -> float | Block:
        """A timestep on a GPU is fetched beside the denoiser's work, not before it."""
        if isinstance(value, Tensor):
            value = value.amax()  # a frame that is given has a noise of its own, which is none
            if value.device.type == "cuda":
                return self.intake.outbox.block(value)
        return scheduler_timestep(self._pipeline.scheduler, float(value))

    def _record(self) -> TraceRecord:
        return self.intake.begin(
            self._samples,
            model=self._model,
            sampler=sampler_record(self._pipeline.scheduler, self._arguments),
            inputs=self._inputs,
            provenance=self._provenance(),
        )

    def _close_evaluation(self) -> None:
        now, self._evaluation = self._evaluation, None
        if now is not None and now.ordinal == 0 and now.done:
            self._check_branches(now.branches)
        if now is None or not now.done or not now.kept:
            return
        if self.intake.writer is not None:
            self._tell(self.intake.writer)
        self.intake.close(now)

    def _clock(self, evaluation: Evaluation) -> tuple[float, float]:
        """The timestep and sigma of an evaluation, once a device has told them."""
        time, sigma = evaluation.timestep, evaluation.sigma
        if isinstance(time, Block):
            time = scheduler_timestep(self._pipeline.scheduler, float(time()))
            sigma = noise_level(self._pipeline.scheduler, time)
        return time, sigma

    def _tell(self, writer: Writer) -> None:
        """Say in the trace, once it has layers, what text tokens and probes are."""
        if not self._probed:
            self._probed = True
            self.probing.check(writer.trace)
            writer.add_texts(self.probing.tell())
        if said := self.transcript.tell(writer.trace):
            writer.add_texts(said)
