"""One run of a pipeline, from what is captured to what is written: labels each call and hands its blocks on."""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from ..schema.errors import InvalidInput, UnsupportedModel
from ..schema.record import JSON
from ..schema.trace import Codec, Layer, Trace
from .blocks import Block, Outbox
from .budget import check_budget
from .capture import Call, denoisers
from .frames import VIDEO_AXES, frames_in_rows, same_keys, uneven_keys, whole_video
from .grids import Canvases
from .images import input_pictures
from .labels import (
    Row,
    Rows,
    conditioning_of,
    denoiser_argument,
    evaluations_left,
    noise_level,
    number,
    row_order,
    scheduler_timestep,
    unknown_batch,
)
from .passes import Evaluation, Pass, is_sequential, pass_branch, rows_of_call
from .provenance import input_record, model_record, sampler_record
from .refusals import hidden_attention
from .scores import encode_scores, exact, heads_of, mask_of, share_heads, sum_rows, take_keys
from .selection import Options, select_steps
from .sites import Site, Sites, hides, part_of_mask
from .sizes import free_bytes, parse_bytes
from .tokens import Context, Scene, adapter_images, context_role
from .writer import Writer

LATENT_AXES: Final = 4


class Run:
    """Listens to the capture of one pipeline call and writes its trace."""

    def __init__(
        self, pipeline: Any, path: Path, options: Options, arguments: dict[str, Any], provenance: Callable[[], dict[str, JSON]]
    ) -> None:
        self._pipeline, self._path, self._options, self._arguments = pipeline, path, options, arguments
        self._provenance = provenance
        self.pictures = input_pictures(pipeline, arguments, context_role(pipeline), options.reference_mask)
        self._context = Context.of(pipeline, [image.name for image, _ in self.pictures if image.role == "reference"])
        self._model, self._inputs = model_record(pipeline), input_record(arguments)
        self._rows, self._outbox = Rows(), Outbox()
        self._sites = Sites(self._context, options, lambda layer: self._open().add_layer(layer))
        self._canvases = Canvases()
        self._pass_name: str | None = None
        self._waiting: list[Evaluation] = []
        self._evaluation: Evaluation | None = None
        self._chosen: frozenset[int] = frozenset()
        self._steps = self._seen = self._kept = self._scheduler_steps = self._samples = self._evaluations = 0
        self._latent_grid: tuple[int, int] | None = None
        self.writer: Writer | None = None
        self.progress: Callable[[int, int], None] = lambda kept, planned: None

    @property
    def kept(self) -> int:
        """Evaluations handed to the writer."""
        return self._kept

    def name_pass(self, name: str | None) -> None:
        """What the pipeline calls the pass that it is about to make; None if nothing."""
        self._pass_name = name

    def begin(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A denoiser is about to run; whether its attention is wanted."""
        if kwargs.get("skip_layers") is not None:
            return False  # a pass that leaves layers out, to guide away from: it is neither branch
        denoiser = denoisers(self._pipeline)[root]
        sample = denoiser_argument(args, kwargs, 0, "sample", "hidden_states")
        canvas = self._canvases.read(denoiser, sample, kwargs)
        sequential = is_sequential(denoiser)
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
        if kept and (self._kept >= self._steps or max(row.sample for row in kept) >= self._samples):
            raise UnsupportedModel(
                f"denoiser evaluation {before.ordinal} was not planned: {self._steps} evaluations of {self._samples} samples were; "
                "a pipeline that guides in separate denoiser passes in a way of its own is not recorded yet; use guidance_scale=1"
            )
        context = denoiser_argument(args, kwargs, 2, "encoder_hidden_states")
        text = context.shape[1] if isinstance(context, Tensor) and context.ndim > 2 and canvas else 0
        separate = "ip_adapter_masks" in (kwargs.get("cross_attention_kwargs") or {})
        keeps, frames = kwargs.get("kv_cache_mode") is not None, frames_in_rows(denoiser, sample)
        scene = Scene(adapter_images(kwargs), separate, canvas, text, keeps, frames)
        before.passes.append(Pass(len(sample), order, kept, scene))
        before.branches |= branches
        before.done = False
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
        return Evaluation(self._seen - 1, self._scheduler_steps, self._kept, time, sigma, chosen, [], set())

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
        call = whole_video(call, this.scene.frames) if this.scene.frames else call
        rows = rows_of_call(call, this)
        site = self._sites.find(call, this.scene) if rows else None
        if site is None:
            return
        writer = self._open()
        for row in rows:
            blocks, lost = self._blocks(call, site, row.index)
            writer.put(site.index, row.sample, row.branch, now.position, blocks, lost=lost)

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

    def stepped(self) -> None:
        """The scheduler has stepped."""
        self._scheduler_steps += 1

    def close(self) -> None:
        """The pipeline is through.

        Raises   UnsupportedModel if nothing could be recorded
        """
        self._close_evaluation()
        if self.writer is None:
            raise self._nothing()

    def finish(self, generated: list[Any]) -> Trace:
        """Complete the trace."""
        writer = self._open()
        sampler = sampler_record(self._pipeline.scheduler, self._arguments)
        return writer.finish(images=generated, sampler=sampler, latent_grid=self._latent_grid, provenance=self._provenance())

    def _nothing(self) -> UnsupportedModel:
        name, keys = type(self._pipeline).__name__, self._options.keys
        if self._seen == 0:
            return UnsupportedModel(f"{name} ran none of its denoisers, so there is nothing to record; call it for at least one step")
        if keys in ("reference", "text") and self._sites.roles:
            have, adapter = (
                ", ".join(sorted(self._sites.roles)),
                "load an IP-Adapter with a scale above 0, or " if keys == "reference" else "",
            )
            return UnsupportedModel(f'keys="{keys}" recorded nothing: attention in {name} has {have} keys only; {adapter}use keys="all"')
        return UnsupportedModel(f"{name} made no attention call in the selected layers, steps and branches; select more of them")

    def _plan(self, timestep: float, rows: tuple[Row, ...], sequential: bool) -> None:
        self._evaluations = evaluations = evaluations_left(self._pipeline.scheduler, timestep)
        self._chosen = frozenset(select_steps(self._options.steps, evaluations))
        self._steps, self._samples = len(self._chosen), 1 + max(row.sample for row in rows)
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
                return self._outbox.block(value)
        return scheduler_timestep(self._pipeline.scheduler, float(value))

    def _blocks(self, call: Call, site: Site, row: int) -> tuple[Mapping[str, Block], float | Callable[[], float]]:
        layer, columns = site.layer, site.columns
        mask = part_of_mask(mask_of(call.mask, row), site.generated)
        # Keys of one row serve all where a pipeline leaves its embeddings unrepeated.
        own_key = call.key[row if call.key.shape[0] > 1 else 0]
        query, key, mask = heads_of(call.query[row][:, site.generated], own_key, mask, layer.head_numbers)
        if layer.encoding == "factors":
            if call.mask is not None and hides(call.mask, site.generated, columns):
                raise UnsupportedModel(
                    f'{layer.name} is masked from here on, which factors cannot say; record it with encoding="probabilities"'
                )
            kept = exact(share_heads(take_keys(key, columns), layer.heads))
            factors = {"query": self._block(query, layer), "key": self._outbox.block(kept)}
            if layer.partial_keys:
                factors["query_lse"] = self._block(sum_rows(query, key, call.scale, mask), layer)
            return factors, self._even(call, 0.0)
        encoded = encode_scores(query, key, call.scale, mask, self._options.keep_bits, columns)
        lost = self._outbox.block(encoded.lost)
        blocks = {"probability": encoded.probability, "query_lse": encoded.query_lse}
        return (
            {**{name: self._block(t, layer) for name, t in blocks.items()}, "token_lse": self._outbox.block(encoded.token_lse)},
            self._even(call, lost),
        )

    def _even(self, call: Call, lost: float | Block) -> Callable[[], float]:
        """What was lost, once it is known that one row's keys were those of all frames."""
        unevenness = None if call.uneven is None else self._outbox.block(call.uneven)

        def look() -> float:
            if unevenness is not None and not same_keys(call, float(unevenness()), exactly=False):
                raise uneven_keys(call)
            return float(lost() if isinstance(lost, Block) else lost)

        return look

    def _block(self, tensor: Tensor, layer: Layer) -> Block:
        numbers = exact(tensor)
        return self._outbox.block(numbers.reshape(numbers.shape[0], *layer.places, *numbers.shape[2:]))  # (head, [frame,] y, x, ...)

    def _open(self) -> Writer:
        """The writer, made when there is something to write."""
        if self.writer is None:
            self.writer = Writer(
                self._path, self._record(), queue_bytes=int(self._options.queue_mb * 2**20), overwrite=self._options.overwrite
            )
            self.writer.add_images(self.pictures)
            for evaluation in self._waiting:
                self._commit(evaluation)
        return self.writer

    def _record(self) -> Trace:
        return Trace(
            id=str(uuid.uuid4()),
            status="recording",
            samples=self._samples,
            branches=self._options.axis,
            steps=self._steps,
            codec=Codec(self._options.codec, self._options.level, self._options.keep_bits),  # type: ignore[arg-type]
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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
        self._kept += 1
        if self.writer is None:
            self._waiting.append(now)
        else:
            self._commit(now)
        self.progress(self._kept, self._steps)

    def _commit(self, evaluation: Evaluation) -> None:
        time, sigma = evaluation.timestep, evaluation.sigma
        if isinstance(time, Block):
            time = scheduler_timestep(self._pipeline.scheduler, float(time()))
            sigma = noise_level(self._pipeline.scheduler, time)
        assert self.writer is not None
        if evaluation.position == 0:  # every layer is known; where no estimate was to be had, this is the first that can be said
            check_budget(self.writer.trace, self._evaluations, self._path, parse_bytes(self._options.max_bytes), free_bytes(self._path))
        self.writer.commit(
            evaluation.position, evaluation=evaluation.ordinal, timestep=time, sigma=sigma, scheduler_step=evaluation.scheduler_step
        )
