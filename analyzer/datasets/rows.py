"""One trace of a dataset: opened, asked for its metrics, closed; whatever is wrong with it becomes part of the answer.

A job and its row are plain values, so that either side of a cluster can make the other's. Attention is read where the job runs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import xarray as xr
from dask.base import compute

from ...schema.errors import InvalidInput, NoAnswer, NoCluster, TraceError
from ...schema.journal import MOST_LEDGER_BYTES
from ...schema.layout import JOURNAL, MANIFEST, ROOT
from ...schema.messages import for_shell, is_for_shell, option
from ...schema.selection import is_numbered
from ...schema.truth.files import read_truth
from ..aggregation.selection import Select
from ..evaluation.metric_table import find_metrics, plan_metrics
from ..methods.recipes import Recipe, get_recipe
from ..metrics.overlap import ImacsOptions
from ..storage.location import Location, locate
from ..storage.storage import Storage
from ..store.files import read_file
from ..trace.heads import require_same_heads
from ..trace.reader import Trace, open_trace

LARGE: Final = 2**28
"""Bytes of attention, as float16, from which a trace's layers and steps are worked on side by side; less is not worth the threads."""

Shape: TypeAlias = dict[str, tuple[Any, ...]]
"""What positions on an axis stand for: by axis, the names or numbers there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRequest:
    """What every trace of a dataset is asked."""

    metrics: tuple[str, ...]
    select: Select = field(default_factory=Select)
    recipe: str | Recipe = "i2am"
    mask: str | None = None
    reference_mask: str | None = None
    truth: str | None = None
    """A file of known truth; None is each trace's own."""
    partial: bool = False
    settings: ImacsOptions = field(default_factory=ImacsOptions)
    optional: bool = False
    """Whether metrics whose masks a trace does not have are left out of its row; otherwise the trace is."""
    ranked: xr.DataArray | None = None
    """Scores that heads were selected by: a trace of another model than theirs is refused."""
    for_shell: bool = field(default_factory=is_for_shell)

    def check(self) -> None:
        """Refuse what is wrong whatever the trace."""
        find_metrics(self.metrics)
        for name, value in (("mask", self.mask), ("reference_mask", self.reference_mask)):
            if not isinstance(value, (str, type(None))):
                raise InvalidInput(f"{option(name)} of a dataset is the name of an image that all traces have, or a file, got {value!r}")
        if self.truth is not None:
            read_truth(self.truth)
        get_recipe(self.recipe)

    @property
    def positional(self) -> tuple[str, ...]:
        """Axes on which something is chosen by its position, which means the same only in traces that agree there."""
        asked = {"layers": is_numbered(self.select.layers)}
        asked |= {"heads": self.select.heads is not None, "steps": self.select.steps is not None}
        return tuple(axis for axis, positional in asked.items() if positional)


@dataclass(frozen=True, slots=True)
class TraceScores:
    """What one trace answered, or why it did not."""

    id: str = ""
    values: dict[str, float] = field(default_factory=dict)
    """By metric; those that the trace cannot give are left out."""
    shape: Shape = field(default_factory=dict)
    """Of the axes that the request chooses on by position."""
    note: str | None = None
    kind: str = ""
    """Class of the error; empty if there was none."""
    error: str = ""
    code: int = 0
    identity: str = ""
    """What tells the trace as it was read from what may lie at its path later."""


DEFERRED: Final = TraceScores(kind="Deferred")
"""The answer for a trace that is larger than the task may take on."""


def evaluate_trace(
    path: Location, request: DatasetRequest, scheduler: str | Callable[..., Any] | None = None, most: float = math.inf
) -> TraceScores:
    """Answer for one trace; `DEFERRED`, unread, if it holds more than `most` bytes of attention.

    `scheduler` is dask's, by default threads within a large trace, and none within a small one.
    An error is an answer too: one trace must not cost those before and after it theirs.
    """
    try:
        with for_shell() if request.for_shell else nullcontext():
            storage = locate(path)  # at an address, what identifies the trace is read once
            identity = identify(storage)
            trace = open_trace(storage, partial=request.partial)
            if (size := attention_bytes(trace)) > most:
                return DEFERRED
            if request.ranked is not None:
                require_same_heads(request.ranked, trace)
            plan = plan_metrics(
                trace,
                request.metrics,
                mask=request.mask,
                reference_mask=request.reference_mask,
                truth=request.truth,
                settings=request.settings,
                optional=request.optional,
                recipe=request.recipe,
                **request.select.options(),
            )
            where = scheduler or ("threads" if size > LARGE else "synchronous")
            (computed,) = compute(plan.maps, scheduler=where)  # type: ignore[no-untyped-call]
            values = {name: float(value) for name, value in plan.scores(computed).items()}
            note = plan.grounds.note if "r2g" in plan.maps else None
            return TraceScores(trace.id, values, shape_of(trace, request), note, identity=identity)
    except NoCluster:  # is no fault of the trace
        raise
    except Exception as error:
        return failed(error)


def failed(error: Exception) -> TraceScores:
    """The row of a trace that could not be asked."""
    if isinstance(error, TraceError):
        return TraceScores(kind=type(error).__name__, error=str(error), code=error.exit_code)
    return TraceScores(kind=type(error).__name__, error=f"{type(error).__name__}: {error}", code=1)


def identify(path: Location | Storage) -> str:
    """What tells the trace at a path from another that may lie there later: the sum of its root and its ledger; empty if it has none."""
    storage, digest = locate(path), hashlib.sha256()
    for name in (ROOT, MANIFEST, JOURNAL):
        try:
            digest.update(read_file(storage, name, MOST_LEDGER_BYTES))
        except NoAnswer:
            raise
        except TraceError:
            continue
        if name == MANIFEST:  # lists the journal too
            break
    return digest.hexdigest()


def attention_bytes(trace: Trace) -> int:
    """Size of the attention of all recorded calls, as float16."""
    calls = [int((steps >= 0).sum()) for steps in trace.call_steps]
    return sum(2 * n * layer.heads * math.prod(layer.places) * layer.tokens for n, layer in zip(calls, trace.layers, strict=True))


def shape_of(trace: Trace, request: DatasetRequest) -> Shape:
    """What the axes of a trace are on which the request chooses by position, for comparison with another's.

    Of heads that are chosen by layer, it is those of these layers.
    """
    chosen = request.select.heads
    heads = tuple((layer.name, layer.model_heads) for layer in trace.layers)
    if isinstance(chosen, Mapping) and set(chosen) <= {name for name, _ in heads}:
        heads = tuple(layer for layer in heads if layer[0] in chosen)
    axes: Shape = {"layers": tuple(layer.name for layer in trace.layers), "heads": heads, "steps": (len(trace.present),)}
    return {axis: axes[axis] for axis in request.positional}
