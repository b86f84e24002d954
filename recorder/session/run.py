"""One run, from what is captured to what is written: its evaluations, their passes and the blocks of each call."""

from __future__ import annotations

import datetime
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...schema.arrays.sums import spread_mask, stretches, token_segments
from ...schema.errors import UnsupportedModel
from ...schema.messages import option, parse_bytes
from ...schema.record import JSON
from ...schema.trace import Codec, Layer, TokenGroup, TraceRecord
from ..capture.call import Call
from ..encoding.scores import (
    Scratch,
    Summed,
    Summing,
    encode_scores,
    exact,
    heads_of,
    mask_of,
    share_heads,
    sum_rows,
    sum_scores,
    take_keys,
)
from ..encoding.transfer import Block, Outbox
from ..encoding.values import Output, value_norms
from ..images.pictures import Picture
from ..labels.frames import same_keys, uneven_keys
from ..labels.layers import Site, hides, part_of_mask
from ..labels.passes import Evaluation
from ..plan.budget import check_budget, choose_values, free_bytes
from ..plan.options import Options
from ..store.writer import Writer
from .course import Course, Labels


class Run(Course):
    """Listens to the capture of one run and writes its trace."""

    def __init__(self, labels: Labels, path: Path, options: Options, provenance: Callable[[], dict[str, JSON]]) -> None:
        super().__init__(labels, options)
        self._path, self._provenance = path, provenance
        self.writer: Writer | None = None
        """None until there is something to write."""
        self.over = False
        """Whether the run is known to have come to its end."""
        self.progress: Callable[[int, int], None] = lambda kept, planned: None
        self._pictures = list(labels.pictures)
        self._waiting: list[Evaluation] = []
        self._outbox, self._scratch = Outbox(), Scratch()
        self._layers = 0
        self._outputs: dict[int, Output] = {}
        """Projections of the layers that keep something of their values."""
        self._summing: dict[int, Summing] = {}
        """What is summed in layers that keep maps only."""
        self.without_values: list[str] = []
        """Layers of which nothing is known of where their values go."""
        self.without_residuals: list[str] = []
        """Layers that keep values in full and of which it is not known what their module's output is added to."""

    def hear(self, call: Call) -> None:
        """Label one attention call and queue its blocks."""
        if self.evaluation is None:
            return
        this = self.evaluation.passes[-1]
        for arranged, index, site, row in self.labels.place(call, this):
            if site.index == self._layers:
                self._add_layer(arranged, site, *self.labels.probe_keys(call, site.layer, this))
            summing = self._summing.get(site.index)
            blocks, lost = _encode_row(arranged, index, site, self._options.keep_bits, self._outbox, self._scratch, summing)
            if site.index in self._outputs:
                blocks |= _encode_values(arranged, index, site, self._outputs[site.index], self._outbox)
            if site.layer.concepts:
                blocks |= _encode_concepts(arranged, index, site, self._outbox)
            self._open().put(site.index, row.sample, row.branch, self.evaluation.position, blocks, lost=lost)

    def _add_layer(self, call: Call, site: Site, probes: tuple[TokenGroup, ...], keys: NDArray[Any] | None) -> None:
        """A layer is met for the first time."""
        writer, known = self._open(), call.output_of(site.generated)
        alone = replace(writer.trace, layers=(replace(site.layer, probes=probes),))
        layer = choose_values(alone, self._options.values_kept).layers[0]
        if known is not None and layer.values != "none":
            self._outputs[site.index] = known
        elif self._options.values_kept != "none" and site.layer.values == "none":
            self.without_values.append(layer.name)
        if layer.sums is not None:
            masks = [(image.name, pixels[..., 0] / 255) for image, pixels in self._pictures if image.role == "mask"]
            layer = replace(layer, sums=replace(layer.sums, masks=tuple(name for name, _ in masks)))
            self._summing[site.index] = _summing(layer, [mask for _, mask in masks], call.query.device)
        full = known is not None and layer.values == "full"
        if full and not layer.residual:
            self.without_residuals.append(layer.name)
        writer.add_layer(layer, keys, _output_heads(known, layer) if known is not None and full else None)
        self._layers += 1

    def complete(self, now: Evaluation) -> None:
        """Commit an evaluation that ran through, unless the layers are not known yet."""
        self.labels.close(now, self.writer)
        if self.writer is not None and self.labels.latent_grid is not None:
            self.writer.set_latent_grid(self.labels.latent_grid)
        if now.kept:
            self.kept += 1
            self._waiting.append(now)
            if self.writer is not None:
                self._commit(self.writer)
            self.progress(self.kept, len(self._chosen) if self.labels.planned else 0)

    def close(self) -> None:
        """The run has come to its end.

        Raises   InvalidInput, UnsupportedModel if nothing could be recorded
        """
        self.close_evaluation()
        self.over = True
        if self.writer is None:
            raise self.labels.nothing(self.seen)

    def abandon(self) -> None:
        """The run was stopped by an error: what is whole of its last evaluation counts, and all of it may be whole."""
        if self.labels.is_whole(self.evaluation):
            self.close_evaluation()
            self.over = self.labels.is_complete()

    def add_pictures(self, pictures: list[Picture]) -> None:
        """Keep pictures that come while the run goes on."""
        if self.writer is None:
            self._pictures += pictures
        else:
            self.writer.add_images(pictures)

    def finish(self, generated: list[Picture]) -> TraceRecord:
        grid, origin = self.labels.latent_grid, self._provenance()
        return self._open().finish(images=generated, latent_grid=grid, provenance=origin, **self.labels.record())

    def _open(self) -> Writer:
        """The writer, made when there is something to write."""
        if self.writer is None:
            options = self._options
            trace = TraceRecord(
                id=str(uuid.uuid4()),
                status="recording",
                samples=self.labels.samples,
                branches=options.axis,
                steps=len(self._chosen),
                latent_grid=self.labels.latent_grid,
                codec=Codec(options.codec, options.level, options.keep_bits),  # type: ignore[arg-type]
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                provenance=self._provenance(),
                **self.labels.record(),
            )
            self.writer = Writer(self._path, trace, queue_bytes=int(options.queue_mb * 2**20), overwrite=options.overwrite)
            self.writer.add_images(self._pictures)
            self._commit(self.writer)
        return self.writer

    def _commit(self, writer: Writer) -> None:
        for now in self._waiting:
            trace, planned, evaluations = writer.trace, self.labels.planned, self.labels.evaluations
            if not planned:  # such a run is held against the limits step by step
                trace, evaluations = replace(trace, steps=now.position + 1), now.position + 1
            if now.position == 0 or not planned:  # at the first step every layer is known
                # What is on disk already is no longer free, so only the limit counts for it.
                free = free_bytes(self._path) if now.position == 0 else sys.maxsize
                check_budget(trace, evaluations, self._path, parse_bytes("max_bytes", self._options.max_bytes), free)
            at = {"timestep": now.timestep, "sigma": now.sigma}
            writer.commit(now.position, evaluation=now.ordinal, scheduler_step=now.scheduler_step, **at)
        self._waiting.clear()


def _encode_row(
    call: Call, row: int, site: Site, keep_bits: int, outbox: Outbox, scratch: Scratch, summing: Summing | None
) -> tuple[dict[str, Block], Callable[[], float]]:
    """The blocks that a layer keeps of one row of a call, and what float16 loses of a token's column, once that is known."""
    layer, columns = site.layer, site.columns
    mask = part_of_mask(mask_of(call.mask, row), site.generated)
    # Keys of one row serve all where a pipeline leaves its embeddings unrepeated.
    own_key = call.key[row if call.key.shape[0] > 1 else 0]
    query, key, mask = heads_of(call.query[row][:, site.generated], own_key, mask, layer.head_numbers)
    if layer.encoding == "probabilities":
        encoded = encode_scores(query, key, call.scale, mask, keep_bits, columns, scratch)
        laid_out = {"probability": _lay_out(encoded.probability, layer), "query_lse": _lay_out(encoded.query_lse, layer)}
        blocks = {name: outbox.block(tensor, fresh=True) for name, tensor in {**laid_out, "token_lse": encoded.token_lse}.items()}
        return blocks, _losses(call, outbox, outbox.block(encoded.lost, fresh=True))
    if summing is not None:
        tensors = _sums(sum_scores(query, key, call.scale, mask, columns, summing, scratch), summing, layer)
        return {name: outbox.block(tensor, fresh=True) for name, tensor in tensors.items()}, _losses(call, outbox, None)
    if call.mask is not None and hides(mask_of(call.mask, row), site.generated, columns):
        raise UnsupportedModel(
            f"{layer.name} is masked from here on, which factors cannot say; record it with {option('encoding', 'probabilities')}"
        )
    kept = exact(share_heads(take_keys(key, columns), layer.heads))
    factors = {"query": outbox.block(_lay_out(query, layer)), "key": outbox.block(kept)}
    if layer.partial_keys:
        factors["query_lse"] = outbox.block(_lay_out(sum_rows(query, key, call.scale, mask, scratch), layer))
    return factors, _losses(call, outbox, None)


def _encode_values(call: Call, row: int, site: Site, output: Output, outbox: Outbox) -> dict[str, Block]:
    """What a layer keeps of the values of one row of a call."""
    layer = site.layer
    if call.value is None:
        raise UnsupportedModel(f"{layer.name} shows no values from here on; record it with {option('values', 'none')}")
    value = share_heads(call.value[row if call.value.shape[0] > 1 else 0], layer.model_heads)
    gram = output.gram(layer.model_heads)
    if layer.head_numbers:
        value, gram = (torch.stack([each[number] for number in layer.head_numbers]) for each in (value, gram))
    value = take_keys(value, site.columns)
    if layer.values == "norms":
        return {"value_norm": outbox.block(value_norms(value, gram, call.gain), fresh=True)}
    if call.gain != layer.gain:
        raise UnsupportedModel(
            f"the scale of the adapter in {layer.name} was {layer.gain:g} and is {call.gain:g} now, which values kept in full cannot say; "
            f"keep it constant, or use {option('values', 'norms')}"
        )
    blocks = {"value": outbox.block(exact(value).to(getattr(torch, layer.factor_dtype)))}
    if not layer.residual:
        return blocks
    if call.residual is None:
        raise UnsupportedModel(f"{layer.name} does not show what its output is added to from here on; use {option('values', 'norms')}")
    return blocks | {"residual_norm": outbox.block(call.residual[row, site.generated].reshape(layer.places))}


def _sums(summed: Summed, summing: Summing, layer: Layer) -> dict[str, Tensor]:
    """The arrays of one row of a call of which maps alone are kept."""
    tensors = {"position_sum": _lay_out(summed.position_sum, layer), "token_sum": summed.token_sum}
    if summing.own:
        tensors |= {name: _lay_out(getattr(summed, name), layer) for name in ("token_probability", "query_lse")}
        tensors["token_lse"] = take_keys(summed.token_lse[..., None], summing.own)[..., 0]
    return tensors


def _summing(layer: Layer, masks: list[NDArray[Any]], device: torch.device) -> Summing:
    """What is summed of a layer that keeps maps only."""
    own = layer.sums.tokens if layer.sums is not None else ()
    weights = np.stack([np.ones(layer.places), *(spread_mask(mask, layer.places) for mask in masks)])
    given = torch.from_numpy(weights.reshape(len(weights), -1).astype(np.float32)).to(device)
    return Summing(token_segments(layer.groups), given, stretches(own))


def _encode_concepts(call: Call, row: int, site: Site, outbox: Outbox) -> dict[str, Block]:
    """How well the positions of one row of a call agree with the layer's concepts."""
    if call.concepts is None:
        raise UnsupportedModel(f"{site.layer.name} gives its concepts nothing from here on; record without {option('concepts')}")
    scores = call.concepts[row][:, site.generated]
    return {"concept_score": outbox.block(scores.reshape(-1, *site.layer.places), fresh=True)}


def _output_heads(output: Output, layer: Layer) -> NDArray[Any]:
    """The output projection of the heads that a layer keeps, as it is stored.

    Dims     (head, value channel, output channel)
    """
    weight = output.weight().reshape(layer.model_heads, layer.value_dim, layer.output_dim)
    found: NDArray[Any] = weight[list(layer.heads_kept)].to(getattr(torch, layer.factor_dtype)).cpu().numpy()
    return found


def _losses(call: Call, outbox: Outbox, lost: Block | None) -> Callable[[], float]:
    """What was lost, once it is known that one row's keys were those of all frames."""
    unevenness = None if call.uneven is None else outbox.block(call.uneven)
    dtype, refusal = call.key.dtype, uneven_keys(call.path)  # not the call: its tensors would live until the block is written

    def look() -> float:
        if unevenness is not None and not same_keys(dtype, float(unevenness())):
            raise refusal
        return 0.0 if lost is None else float(lost())

    return look


def _lay_out(tensor: Tensor, layer: Layer) -> Tensor:
    """Dims     (head, x, ...) -> (head, [frame,] y, x, ...)"""
    numbers = exact(tensor)
    return numbers.reshape(numbers.shape[0], *layer.places, *numbers.shape[2:])
