"""What is kept of a run: labelled attention calls come in, evaluation by evaluation, and go to a writer as blocks."""

from __future__ import annotations

import dataclasses
import datetime
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...schema.errors import UnsupportedModel
from ...schema.trace import Codec, Layer, TraceRecord
from ..capture.call import Call
from ..encoding.scores import encode_scores, exact, heads_of, mask_of, share_heads, sum_rows, take_keys
from ..encoding.transfer import Block, Outbox
from ..images.pixels import Picture
from ..labels.frames import same_keys, uneven_keys
from ..labels.layers import Site, hides, part_of_mask
from ..labels.passes import Evaluation
from ..labels.rows import Row
from ..plan.budget import check_budget
from ..plan.options import Options
from ..plan.sizes import free_bytes, parse_bytes
from ..store.writer import Writer


class Intake:
    """Opens a writer once there is something to write, and hands it all that is kept."""

    def __init__(
        self,
        path: Path,
        options: Options,
        record: Callable[[], TraceRecord],
        pictures: Sequence[Picture],
        clock: Callable[[Evaluation], tuple[float, float]],
    ) -> None:
        self._path, self._options, self._record, self._pictures, self._clock = path, options, record, pictures, clock
        self._waiting: list[Evaluation] = []
        self.outbox = Outbox()
        """Takes numbers off the model's device."""
        self.writer: Writer | None = None
        """None until there is something to write."""
        self.evaluations = 0
        """Of the whole run, as planned."""
        self.steps = 0
        """Those of them that are selected."""
        self.planned = True
        """Whether it is known how many there will be; else `evaluations` and `steps` are the most there can be."""
        self.kept = 0
        """Evaluations handed to the writer."""
        self.progress: Callable[[int, int], None] = lambda kept, planned: None

    def begin(self, samples: int, **facts: Any) -> TraceRecord:
        """The record that a trace starts from; `facts` are what it says of model, sampler, inputs and provenance."""
        options = self._options
        return TraceRecord(
            id=str(uuid.uuid4()),
            status="recording",
            samples=samples,
            branches=options.axis,
            steps=self.steps,
            codec=Codec(options.codec, options.level, options.keep_bits),  # type: ignore[arg-type]
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **facts,
        )

    def open(self) -> Writer:
        """The writer, made when there is something to write."""
        if self.writer is None:
            queue = int(self._options.queue_mb * 2**20)
            self.writer = Writer(self._path, self._record(), queue_bytes=queue, overwrite=self._options.overwrite)
            self.writer.add_images(self._pictures)
            for evaluation in self._waiting:
                self._commit(evaluation)
        return self.writer

    def put(self, call: Call, index: int, site: Site, row: Row, position: int) -> None:
        """Keep row `index` of a call, as what `row` says, at a place of the step axis."""
        blocks, lost = self._blocks(call, site, index)
        self.open().put(site.index, row.sample, row.branch, position, blocks, lost=lost)

    def close(self, evaluation: Evaluation) -> None:
        """An evaluation of which something is kept is over."""
        self.kept += 1
        if self.writer is None:
            self._waiting.append(evaluation)
        else:
            self._commit(evaluation)
        self.progress(self.kept, self.steps if self.planned else 0)

    def _commit(self, evaluation: Evaluation) -> None:
        time, sigma = self._clock(evaluation)
        assert self.writer is not None
        self._check_budget(evaluation.position)
        self.writer.commit(
            evaluation.position, evaluation=evaluation.ordinal, timestep=time, sigma=sigma, scheduler_step=evaluation.scheduler_step
        )

    def _check_budget(self, position: int) -> None:
        """At the first step every layer is known; a run of unknown length is held against the limits step by step."""
        assert self.writer is not None
        trace, evaluations = self.writer.trace, self.evaluations
        if not self.planned:
            trace, evaluations = dataclasses.replace(trace, steps=position + 1), position + 1
        if position == 0 or not self.planned:
            # What is on disk already is no longer free, so only the limit counts for it.
            free = free_bytes(self._path) if position == 0 else sys.maxsize
            check_budget(trace, evaluations, self._path, parse_bytes(self._options.max_bytes), free)

    def _blocks(self, call: Call, site: Site, row: int) -> tuple[Mapping[str, Block], Callable[[], float]]:
        layer, columns = site.layer, site.columns
        mask = part_of_mask(mask_of(call.mask, row), site.generated)
        # Keys of one row serve all where a pipeline leaves its embeddings unrepeated.
        own_key = call.key[row if call.key.shape[0] > 1 else 0]
        query, key, mask = heads_of(call.query[row][:, site.generated], own_key, mask, layer.head_numbers)
        if layer.encoding == "factors":
            if call.mask is not None and hides(mask_of(call.mask, row), site.generated, columns):
                raise UnsupportedModel(
                    f'{layer.name} is masked from here on, which factors cannot say; record it with encoding="probabilities"'
                )
            kept = exact(share_heads(take_keys(key, columns), layer.heads))
            factors = {"query": self._block(query, layer), "key": self.outbox.block(kept)}
            if layer.partial_keys:
                factors["query_lse"] = self._block(sum_rows(query, key, call.scale, mask), layer)
            return factors, self._even(call, 0.0)
        encoded = encode_scores(query, key, call.scale, mask, self._options.keep_bits, columns)
        lost = self.outbox.block(encoded.lost)
        blocks = {"probability": encoded.probability, "query_lse": encoded.query_lse}
        return (
            {**{name: self._block(t, layer) for name, t in blocks.items()}, "token_lse": self.outbox.block(encoded.token_lse)},
            self._even(call, lost),
        )

    def _even(self, call: Call, lost: float | Block) -> Callable[[], float]:
        """What was lost, once it is known that one row's keys were those of all frames."""
        unevenness = None if call.uneven is None else self.outbox.block(call.uneven)
        path, dtype = call.path, call.key.dtype  # not the call: its tensors would live until the block is written

        def look() -> float:
            if unevenness is not None and not same_keys(dtype, float(unevenness())):
                raise uneven_keys(path)
            return float(lost() if isinstance(lost, Block) else lost)

        return look

    def _block(self, tensor: Tensor, layer: Layer) -> Block:
        numbers = exact(tensor)
        return self.outbox.block(numbers.reshape(numbers.shape[0], *layer.places, *numbers.shape[2:]))  # (head, [frame,] y, x, ...)
