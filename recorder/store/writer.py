"""Writes a trace step by step while sampling goes on; knows neither torch nor dask.

    put   blocks of one call          -> queue, bounded in bytes -> worker: encode, hash, write, sync, rename
    commit  one step, asynchronous    -> once its blocks are on disk: sync folders, append one journal line, sync; each `PAUSE` at most
    finish                            -> coordinates, images, manifest, then the root, atomically and last (`completion`)

Whatever kills it, every step in the journal is readable and the root says that the trace is not complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final, NoReturn, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.array import ArrayPlan
from ...schema.arrays.layers import ONCE, data_plans, fixed_layout
from ...schema.errors import InvalidInput, NoSpace, TraceError
from ...schema.journal import FileSums, Step, encode_line
from ...schema.layout import JOURNAL, ROOT, documents, image_layout, layer_documents, root_document, step_layout
from ...schema.messages import option
from ...schema.text import Text
from ...schema.trace import Image, Layer, TraceRecord
from .completion import check_block, complete, require_readable
from .coordinates import Called, serving_steps
from .files import FULL, Storage, prepare
from .lock import TraceLock
from .workers import Job, Workers


class DeferredBlock(Protocol):
    """A block that is still on its way, such as from a GPU; called once, in a worker."""

    @property
    def nbytes(self) -> int:
        """Bytes of the array to come."""
        ...

    def __call__(self) -> NDArray[Any]:
        """Wait for it."""
        ...


Block: TypeAlias = NDArray[Any] | DeferredBlock

PAUSE: Final = 0.25
"""Seconds between two rounds of commits: the most that a cut costs of what was on disk already."""


@dataclass(slots=True)
class _Written:
    """What is on disk of a step that is not committed yet."""

    files: FileSums = field(default_factory=dict)
    called: Called = field(default_factory=dict)
    lost: dict[int, float] = field(default_factory=dict)
    calls: int = 0
    """Put, and not yet written."""


class Writer:
    """One trace being written. Use it from one thread.

    Raises   AlreadyExists, InvalidInput; later NoSpace or what a block raised, from the next put, commit or finish
    """

    def __init__(
        self, path: str | os.PathLike[str], trace: TraceRecord, *, queue_bytes: int = 512 * 2**20, workers: int = 2, overwrite: bool = False
    ) -> None:
        if trace.status != "recording" or trace.layers or trace.images:
            raise InvalidInput("a writer starts from a trace of status `recording` without layers and images; it adds both itself")
        self.path = Path(path)
        self._trace = trace
        self._plans: list[dict[str, ArrayPlan]] = []
        self._steps: defaultdict[int, _Written] = defaultdict(_Written)
        self._closed: list[Step] = []
        """Steps that nothing more is put for."""
        self._committed: list[Step] = []
        self._early: FileSums = {}
        """Pictures and keys of probes that no line of the journal lists yet."""
        self._last: dict[tuple[str, int, int, int], tuple[bytes, int]] = {}
        """Of what is stored once while it does not change: its hash, and the step at which it lies."""
        self._stale = False
        self._completing = False
        self._process = os.getpid()
        self._lock = Lock()
        try:
            prepare(self.path, overwrite)
            self._trace_lock = TraceLock(self.path)
            self._storage = Storage(self.path)
            self._write_root()
            self._write_documents(trace)
        except OSError as error:
            self._raise(error)
        self._workers = Workers(workers, queue_bytes)

    @property
    def trace(self) -> TraceRecord:
        """The record as it stands now."""
        return self._trace

    @property
    def committed(self) -> int:
        """Steps that are durable."""
        return len(self._committed)

    def add_layer(self, layer: Layer, probe_key: NDArray[Any] | None = None, output: NDArray[Any] | None = None) -> int:
        """Create a layer's arrays, with the keys of its probes and its output projection if it has any, and return its index.

        Dims     probe_key (head, probe token, channel), output (head, value channel, output channel)
        """
        index = len(self._trace.layers)
        trace = dataclasses.replace(self._trace, layers=(*self._trace.layers, layer))
        plans = fixed_layout(trace, index)
        given = {name: values for name, values in (("probe_key", probe_key), ("output", output)) if values is not None}
        if set(given) != set(plans):
            keys = f"layer {layer.name} has {layer.probe_tokens} tokens of probes; their keys come with it, and only then"
            raise InvalidInput(f"{keys}, as its output projection does with values in full (here {layer.values})")
        for name, values in given.items():
            check_block(plans[name], values, plans[name].shape)
        written: FileSums = {}
        try:
            for folder, document in layer_documents(trace, index).items():
                self._storage.write_document(folder, document)
            for name, values in given.items():
                written |= self._storage.write_block(plans[name], (), values, durable=False)
        except OSError as error:
            self._raise(error)
        with self._lock:  # only now may the root name it
            self._trace, self._stale = trace, True
            self._early |= written
            self._plans.append(data_plans(trace, index))
        return index

    def put(
        self, layer: int, sample: int, branch: str, step: int, blocks: Mapping[str, Block], *, lost: float | Callable[[], float] = 0.0
    ) -> None:
        """Queue the blocks of one call; they must not change any more. Waits only while the queue is full."""
        plans = self._plans[layer]
        if set(blocks) != set(plans):
            raise InvalidInput(f"layer {layer} takes the blocks {', '.join(plans)}, got {', '.join(blocks)}")
        if not len(self._closed) <= step < self._trace.steps or not 0 <= sample < self._trace.samples or branch not in self._trace.branches:
            raise InvalidInput(
                f"sample {sample}, branch {branch}, step {step} is not open: samples {self._trace.samples}, branches "
                f"{', '.join(self._trace.branches)}, steps {len(self._closed)} to {self._trace.steps - 1}"
            )
        at = (layer, sample, self._trace.branches.index(branch))
        nbytes = sum(block.nbytes for block in blocks.values())
        with self._lock:
            self._steps[step].calls += 1
        # Whether a key is new depends on the step before, so calls that have keys, or values, go in order.
        order = None if ONCE.keys().isdisjoint(blocks) else at
        self._submit(Job(partial(self._store, at, step, dict(blocks), lost), nbytes, step, order))

    def commit(self, step: int, *, evaluation: int, timestep: float, sigma: float, scheduler_step: int) -> None:
        """Journal a step as soon as all that was put for it is on disk; steps are committed in order, from 0, without a gap."""
        if step != len(self._closed) or step >= self._trace.steps:
            raise InvalidInput(f"step {step} cannot be committed: step {len(self._closed)} of {self._trace.steps} is next")
        time, noise = (float(value) if math.isfinite(value) else None for value in (timestep, sigma))
        self._closed.append(Step(step, int(evaluation), time, noise, int(scheduler_step), (), {}, {}))
        self._submit(Job(self._journal, 0, step, "journal", closing=True))

    def add_texts(self, texts: Sequence[Text]) -> None:
        """Say what tokens of text groups and probes mean; the next commit makes it durable."""
        with self._lock:
            self._trace, self._stale = dataclasses.replace(self._trace, texts=(*self._trace.texts, *texts)), True

    def set_latent_grid(self, grid: tuple[int, int]) -> None:
        """Say which rows and columns places are asked for in; the next commit makes it durable."""
        if grid != self._trace.latent_grid:
            with self._lock:
                self._trace, self._stale = dataclasses.replace(self._trace, latent_grid=grid), True

    def add_images(self, images: Sequence[tuple[Image, NDArray[Any]]]) -> None:
        """Keep pictures that are known from the start, so that a partial trace has them too."""
        trace = dataclasses.replace(self._trace, images=(*self._trace.images, *(image for image, _ in images)))
        written: FileSums = {}
        try:
            for image, pixels in images:
                plan = image_layout(image)
                check_block(plan, pixels, plan.shape)
                self._storage.write_document(plan.path, plan.to_json())
                written |= self._storage.write_block(plan, (), pixels)
        except OSError as error:
            self._raise(error)
        with self._lock:  # only now may the root name them
            self._trace, self._stale = trace, True
            self._early |= written

    def finish(self, *, images: Sequence[tuple[Image, NDArray[Any]]] = (), **updates: Any) -> TraceRecord:
        """Complete the trace and return its record; `updates` replace fields of it."""
        self._workers.drain()
        self._submit(None)
        self._workers.close()
        try:
            return self._complete(images, updates)
        except OSError as error:
            self._raise(error)

    def interrupt(self, reason: str, *, cut: bool = False) -> None:
        """Keep what can be kept and say in the trace why it ended; never raises.

        `cut` shortens the step axis to what is committed, where its length was no plan but a bound.
        """
        if self._trace.status != "recording" or os.getpid() != self._process:  # a child of fork leaves its parent's trace alone
            return
        try:
            self._workers.drain()
            self._workers.close()
            self._trace_lock.check()
            self._storage.trim(JOURNAL)
            self._remove_uncommitted()
            steps = self.committed if cut else self._trace.steps
            self._trace = dataclasses.replace(self._trace, status="interrupted", reason=reason, steps=steps)
            if cut or self._completing:  # `finish` had begun to shorten the arrays
                self._write_documents(self._trace)
            self._write_root()
            self._storage.settle()
        except Exception:  # the disk may be full or gone; the root then still says `recording`, which is as true
            return
        finally:
            self._trace_lock.release()

    def _submit(self, job: Job | None) -> None:
        if os.getpid() != self._process:
            raise InvalidInput(f"the trace {self.path} is recorded by process {self._process}; a child of fork cannot add to it")
        if self._trace.status != "recording":
            raise InvalidInput(f"the trace {self.path} is {self._trace.status}; nothing can be added to it")
        try:
            if job is None:
                self._workers.check()
            else:
                self._workers.submit(job)
        except OSError as error:
            self._raise(error)

    def _raise(self, error: OSError) -> NoReturn:
        if isinstance(error, TraceError) or error.errno not in FULL:
            raise error
        if self._plans:
            self._workers.drain()  # steps that are whole still count
        done = f"{self.committed} of {self._trace.steps} steps are recorded and readable with {option('partial', True)}"
        large = any(layer.encoding == "probabilities" for layer in self._trace.layers)
        smaller = "" if not large else f", or with {option('encoding', 'factors')}"
        hint = f"free space, or record fewer layers or steps{smaller}"
        raise NoSpace(f"no space left for {self.path}: {done}; {hint}") from error

    def _store(self, at: tuple[int, int, int], step: int, blocks: dict[str, Block], lost: float | Callable[[], float]) -> None:
        """In a worker: encode and write the blocks of one call."""
        files: FileSums = {}
        positions: dict[str, int] = {}
        for name in tuple(blocks):
            block = blocks.pop(name)
            data = block() if callable(block) else block
            plan = self._plans[at[0]][name]
            check_block(plan, data, plan.shape[3:])
            if name in ONCE:
                positions[ONCE[name]] = position = self._place((name, *at), step, data)
                if position != step:
                    continue
            files |= self._storage.write_block(plan, (*at[1:], step), data)
        share = float(lost() if callable(lost) else lost)
        share = share if math.isfinite(share) else 1.0  # attention that is no number lost all it had
        with self._lock:
            record = self._steps[step]
            record.calls -= 1
            record.files |= files
            record.called.setdefault(at[0], {})[at[1:]] = positions
            record.lost[at[0]] = max(share, record.lost.get(at[0], 0.0))

    def _place(self, what: tuple[str, int, int, int], step: int, data: NDArray[Any]) -> int:
        """The step at which this lies: an earlier one if it has not changed since."""
        digest = hashlib.sha256(np.ascontiguousarray(data).data).digest()
        last = self._last.get(what)
        if last is None or last[0] != digest:
            self._last[what] = last = (digest, step)
        return last[1]

    def _journal(self) -> None:
        """In a worker: journal all steps that are on disk by now; everything a line names is durable before the line is."""
        with self._lock:
            ready = [*itertools.takewhile(lambda step: not self._steps[step.step].calls, self._closed[self.committed :])]
            if not ready:  # an earlier job had them all
                return
            (stale, self._stale), (early, self._early) = (self._stale, False), (self._early, {})
        self._trace_lock.check()
        if stale:
            self._storage.settle()  # the root never names a layer that a power cut could still take
            self._write_root()
        self._storage.settle(name for entry in ready for name in self._steps[entry.step].files)
        for closed in ready:
            record = self._steps.pop(closed.step)
            present, lost = tuple(sorted(record.called)), {str(layer): share for layer, share in sorted(record.lost.items())}
            tables = serving_steps(self._trace, record.called)
            entry = dataclasses.replace(closed, present=present, lost=lost, files={**early, **record.files}, **tables)
            self._storage.append(JOURNAL, encode_line(entry))
            self._committed.append(entry)
            early = {}
        self._workers.rest(PAUSE)

    def _write_root(self) -> None:
        trace = self._trace
        require_readable(trace)
        if trace.status == "recording":  # `present` grows with the layers
            self._storage.write_document("present", step_layout(trace.steps, len(trace.layers))[-1].to_json())
        self._storage.write_document("", root_document(trace), durable=True)

    def _write_documents(self, trace: TraceRecord) -> None:
        for folder, document in documents(trace).items():
            self._storage.write_document(folder, document)

    def _remove_uncommitted(self) -> None:
        kept = {name for entry in self._committed for name in entry.files}
        folders = {plan.path for plans in self._plans for plan in plans.values()}
        blocks = {name for name in self._storage.files if name.rpartition("/")[0] in folders and not name.endswith(ROOT)}
        self._storage.remove(blocks - kept)

    def _complete(self, images: Sequence[tuple[Image, NDArray[Any]]], updates: dict[str, Any]) -> TraceRecord:
        pictures = (*(image for image, _ in images), *self._trace.images)
        trace = dataclasses.replace(self._trace, **updates, images=pictures)
        pixels = {f"images/{image.name}": values for image, values in images}
        self._trace_lock.check()
        self._completing = True
        self._remove_uncommitted()
        self._trace = complete(self._storage, trace, self._committed, pixels)
        self._trace_lock.release()
        return self._trace
