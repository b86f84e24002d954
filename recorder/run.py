"""One run of a pipeline, from what is captured to what is written: labels each call and hands its blocks on."""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from ..schema.errors import InvalidInput, UnsupportedModel
from ..schema.trace import JSON, Codec, Layer, Trace
from .blocks import Block, Outbox
from .capture import Call
from .images import input_pictures
from .labels import (
    Context,
    Row,
    Rows,
    adapter_images,
    conditioning_of,
    context_role,
    denoiser_argument,
    describe,
    evaluations_left,
    noise_level,
    row_order,
    token_groups,
    unknown_batch,
)
from .provenance import input_record, model_record, sampler_record
from .refusals import hidden_attention
from .scores import encode_scores, exact, mask_of, share_heads
from .selection import Options, select_steps
from .writer import Writer

LATENT_AXES: Final = 4


@dataclass(slots=True)
class Evaluation:
    """One pass through a denoiser."""

    ordinal: int
    scheduler_step: int
    position: int
    """On the trace's step axis."""
    timestep: float | Block
    sigma: float
    rows: int
    """In the whole batch."""
    order: tuple[str | None, ...]
    """Parts of the batch."""
    kept: tuple[Row, ...]
    """Rows to record; none if this evaluation is not selected."""
    images: tuple[int, ...]
    """References each IP-Adapter reads."""
    separate: bool
    """Whether they have calls of their own."""
    done: bool = False


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
        self._sites: dict[tuple[str, str, int], tuple[int, Layer] | None] = {}
        self._waiting: list[Evaluation] = []
        self._evaluation: Evaluation | None = None
        self._chosen: frozenset[int] = frozenset()
        self._steps = self._seen = self._kept = self._scheduler_steps = self._samples = 0
        self._latent_grid: tuple[int, int] | None = None
        self.writer: Writer | None = None
        self._roles: set[str] = set()
        self.progress: Callable[[int, int], None] = lambda kept, planned: None

    @property
    def kept(self) -> int:
        """Evaluations handed to the writer."""
        return self._kept

    def begin(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A denoiser is about to run; whether its attention is wanted."""
        if self._evaluation is not None and self._evaluation.kept:
            raise UnsupportedModel(
                f"{type(self._pipeline).__name__} ran its denoiser twice between two steps of its scheduler, so it is not known which "
                "guidance branch is which; record it with guidance_scale=1, or use a pipeline that batches its guidance"
            )
        sample = denoiser_argument(args, kwargs, 0, "sample", "hidden_states")
        order = row_order(self._pipeline, self._arguments)
        rows = self._rows.label(conditioning_of(args, kwargs), len(sample), order)
        time = self._timestep(denoiser_argument(args, kwargs, 1, "timestep"))
        if self._seen == 0:
            self._plan(float(time()) if isinstance(time, Block) else time, rows)
        kept = tuple(row for row in rows if row.branch in self._options.axis) if self._seen in self._chosen else ()
        if kept and (self._kept >= self._steps or max(row.sample for row in kept) >= self._samples):
            raise UnsupportedModel(
                f"denoiser evaluation {self._seen} was not planned: {self._steps} evaluations of {self._samples} samples were; "
                "a pipeline that guides in separate denoiser passes is not recorded yet; use guidance_scale=1"
            )
        separate = "ip_adapter_masks" in (kwargs.get("cross_attention_kwargs") or {})
        sigma = noise_level(self._pipeline.scheduler, time) if isinstance(time, float) else math.nan
        self._evaluation = Evaluation(
            self._seen, self._scheduler_steps, self._kept, time, sigma, len(sample), order, kept, adapter_images(kwargs), separate
        )
        self._seen += 1
        return bool(kept)

    def hear(self, call: Call) -> None:
        """Label one attention call and queue its blocks."""
        now = self._evaluation
        if now is None:
            return
        if call.query.shape[0] != now.rows:
            raise UnsupportedModel(
                f"{call.path} attends for {call.query.shape[0]} rows of the {now.rows} in the batch, so its branches are not known; "
                "leave it out through layers="
            )
        site = self._site(call, now)
        if site is None:
            return
        index, layer = site
        if (call.key.shape[2], call.grid, call.scale, call.query.shape[1]) != (layer.tokens, layer.grid, layer.scale, layer.heads):
            raise UnsupportedModel(
                f"{layer.name} changed during the run: {layer.tokens} keys on grid {layer.grid} before, {call.key.shape[2]} on "
                f"{call.grid} at evaluation {now.ordinal}; a trace has one shape for each layer, so keep guidance and size constant, "
                "or leave it out through layers="
            )
        writer = self._open()
        for row in now.kept:
            blocks, lost = self._blocks(call, layer, row.index)
            writer.put(index, row.sample, row.branch, now.position, blocks, lost=lost)

    def end(self, root: str) -> None:
        """The denoiser ran through."""
        if self._evaluation is not None:
            self._evaluation.done = True

    def silence(self, path: str, module: nn.Module) -> None:
        """Stop: a chosen module ran unseen."""
        raise hidden_attention(path, module)

    def step(self, sample: Tensor | None) -> None:
        """The scheduler is about to step: the evaluation that it follows is complete, and its batch is checked."""
        now = self._evaluation
        if now is not None and sample is not None and now.kept and now.rows != len(sample) * len(now.order):
            raise unknown_batch(now.rows, f"{len(sample) * len(now.order)} for {len(sample)} images", now.order)
        if sample is not None and sample.ndim == LATENT_AXES:
            self._latent_grid = (sample.shape[2], sample.shape[3])
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
        images = [*generated, *self.pictures]
        return writer.finish(images=images, sampler=sampler, latent_grid=self._latent_grid, provenance=self._provenance())

    def _nothing(self) -> UnsupportedModel:
        name, keys = type(self._pipeline).__name__, self._options.keys
        if self._seen == 0:
            return UnsupportedModel(f"{name} ran none of its denoisers, so there is nothing to record; call it for at least one step")
        if keys != "all" and self._roles:
            have, adapter = ", ".join(sorted(self._roles)), "load an IP-Adapter with a scale above 0, or " if keys == "reference" else ""
            return UnsupportedModel(f'keys="{keys}" recorded nothing: attention in {name} has {have} keys only; {adapter}use keys="all"')
        return UnsupportedModel(f"{name} made no attention call in the selected layers, steps and branches; select more of them")

    def _plan(self, timestep: float, rows: tuple[Row, ...]) -> None:
        evaluations = evaluations_left(self._pipeline.scheduler, timestep)
        self._chosen = frozenset(select_steps(self._options.steps, evaluations))
        self._steps, self._samples = len(self._chosen), 1 + max(row.sample for row in rows)
        if not {row.branch for row in rows} & set(self._options.axis):
            have = ", ".join(sorted({row.branch for row in rows}))
            raise InvalidInput(
                f"branches={self._options.branches!r} selects nothing: this run is not guided and has {have} only; "
                'use branches="cond", or a guidance_scale above 1'
            )

    def _timestep(self, value: Any) -> float | Block:
        """A timestep on a GPU is fetched beside the denoiser's work, not before it."""
        if isinstance(value, Tensor):
            value = value.reshape(-1)[0]
            return self._outbox.block(value) if value.device.type == "cuda" else float(value)
        return float(value)

    def _site(self, call: Call, now: Evaluation) -> tuple[int, Layer] | None:
        key = (call.path, call.projection, call.repeat)
        if key not in self._sites:
            groups = token_groups(call, self._context, now.images, now.separate)
            roles = {group.role for group in groups}
            self._roles |= roles
            self._sites[key] = None
            if self._options.keys == "all" or self._options.keys in roles:
                layer = describe(call, self._ordinal(call), groups, self._options.encoding)
                self._sites[key] = (self._open().add_layer(layer), layer)
        return self._sites[key]

    def _ordinal(self, call: Call) -> int:
        """0 for the module's own keys, 1 + i for adapter i: the same whichever adapters are silent at first."""
        adapter = call.projection.partition("to_v_ip")[2]
        ordinal = 0 if call.projection == "to_v" else 1 + int(adapter.lstrip(".") or 0)
        taken = {site[1].call for site in self._sites.values() if site is not None and site[1].path == call.path}
        while ordinal in taken:
            ordinal += 1
        return ordinal

    def _blocks(self, call: Call, layer: Layer, row: int) -> tuple[Mapping[str, Block], float | Callable[[], float]]:
        query, key = call.query[row], call.key[row]
        if layer.encoding == "factors":
            if call.mask is not None:
                raise UnsupportedModel(
                    f'{layer.name} is masked from here on, which factors cannot say; record it with encoding="probabilities"'
                )
            return {"query": self._block(query, layer), "key": self._outbox.block(exact(share_heads(key, layer.heads)))}, 0.0
        encoded = encode_scores(query, key, call.scale, mask_of(call.mask, row))
        lost = self._outbox.block(encoded.lost)
        blocks = {"probability": encoded.probability, "query_lse": encoded.query_lse}
        return (
            {**{name: self._block(t, layer) for name, t in blocks.items()}, "token_lse": self._outbox.block(encoded.token_lse)},
            lambda: float(lost()),
        )

    def _block(self, tensor: Tensor, layer: Layer) -> Block:
        numbers = exact(tensor)
        return self._outbox.block(numbers.reshape(numbers.shape[0], *layer.grid, *numbers.shape[2:]))  # (head, y, x, ...)

    def _open(self) -> Writer:
        """The writer, made when there is something to write."""
        if self.writer is None:
            self.writer = Writer(
                self._path, self._record(), queue_bytes=int(self._options.queue_mb * 2**20), overwrite=self._options.overwrite
            )
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
            codec=Codec(self._options.codec, self._options.level),  # type: ignore[arg-type]
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            model=self._model,
            sampler=sampler_record(self._pipeline.scheduler, self._arguments),
            inputs=self._inputs,
            provenance=self._provenance(),
        )

    def _close_evaluation(self) -> None:
        now, self._evaluation = self._evaluation, None
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
            time = float(time())
            sigma = noise_level(self._pipeline.scheduler, time)
        assert self.writer is not None
        self.writer.commit(
            evaluation.position, evaluation=evaluation.ordinal, timestep=time, sigma=sigma, scheduler_step=evaluation.scheduler_step
        )
