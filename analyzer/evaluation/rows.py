"""One trace of a dataset: opened, asked for its metrics, closed; whatever is wrong with it becomes part of the answer.

A job and its row are plain values, so that either side of a cluster can make the other's. Attention is read where the job runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import xarray as xr
from dask.base import compute

from ...schema.errors import InvalidInput, TraceError
from ...schema.messages import for_shell, is_for_shell, option
from ...schema.selection import is_numbered
from ..aggregation.select import Select
from ..aggregation.selection import choose
from ..facts import MapFacts
from ..inspection.precision import precision_note
from ..methods.recipes import Recipe, get_recipe
from ..trace.heads import require_same_heads
from ..trace.reader import Trace, open_trace
from .imacs import plan_scores
from .metric_table import METRICS, metric, plan_metrics

Shape: TypeAlias = dict[str, tuple[Any, ...]]
"""What positions on an axis stand for: by axis, the names or numbers there."""

AXES: Final = ("layers", "heads", "steps")


@dataclass(frozen=True, slots=True)
class Question:
    """What every trace of a dataset is asked."""

    metrics: tuple[str, ...]
    mask: str | None = None
    reference_mask: str | None = None
    partial: bool = False
    selection: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the map functions."""
    imacs: Mapping[str, Any] | None = None
    """Settings of IMACS, where that alone is asked for, and as `i2am imacs` asks: what a trace has no mask for is left out."""
    ranked: xr.DataArray | None = None
    """Scores that heads were selected by: a trace of another model than theirs is refused."""
    for_shell: bool = field(default_factory=is_for_shell)

    def check(self) -> None:
        """Refuse what is wrong whatever the trace.

        Raises   InvalidInput
        """
        if not self.metrics:
            raise InvalidInput(f"no metric was asked for; there are {', '.join(METRICS)}")
        for name in self.metrics:
            metric(name)
        if kept := [name for name in ("keep", "time_groups") if self.selection.get(name)]:
            raise InvalidInput(f"an evaluation has one number for each trace and metric, so it cannot take {option(kept[0])}")
        for name, value in (("mask", self.mask), ("reference_mask", self.reference_mask)):
            if not isinstance(value, (str, type(None))):
                raise InvalidInput(f"{option(name)} of a dataset is the name of an image that all traces have, or a file, got {value!r}")
        get_recipe(self.recipe)

    @property
    def recipe(self) -> str | Recipe:
        """The method."""
        asked: str | Recipe = self.selection.get("recipe", "i2am")
        return asked

    @property
    def positional(self) -> tuple[str, ...]:
        """Axes on which something is chosen by its position, which means the same only in traces that agree there."""
        asked = {axis: self.selection.get(axis) is not None for axis in ("heads", "steps")}
        asked["layers"] = is_numbered(self.selection.get("layers"))
        return tuple(axis for axis in AXES if asked[axis])


@dataclass(frozen=True, slots=True)
class Row:
    """What one trace answered, or why it did not."""

    id: str = ""
    values: dict[str, float] = field(default_factory=dict)
    """By metric; those that the trace cannot give are left out."""
    shape: Shape = field(default_factory=dict)
    """Of the axes that the question chooses on by position."""
    note: str | None = None
    kind: str = ""
    """Class of the error; empty if there was none."""
    error: str = ""
    code: int = 0


def evaluate_trace(path: Path, question: Question, scheduler: str | None = None) -> Row:
    """Answer for one trace; `scheduler` is dask's, by default threads.

    An error is an answer too: one trace must not cost those before and after it theirs.
    """
    try:
        with for_shell() if question.for_shell else nullcontext():
            trace = open_trace(path, partial=question.partial)
            if question.ranked is not None:
                require_same_heads(question.ranked, trace)
            return _judged(trace, question, scheduler) if question.imacs is None else _scored(trace, question, scheduler)
    except TraceError as error:
        return Row(kind=type(error).__name__, error=str(error), code=error.exit_code)
    except Exception as error:
        return Row(kind=type(error).__name__, error=f"{type(error).__name__}: {error}", code=1)


def _judged(trace: Trace, question: Question, scheduler: str | None) -> Row:
    plan = plan_metrics(trace, question.metrics, mask=question.mask, reference_mask=question.reference_mask, **question.selection)
    (computed,) = compute(plan.maps, scheduler=scheduler)  # type: ignore[no-untyped-call]
    values = {name: float(value) for name, value in plan.scores(computed).items()}
    exact = "r2g" not in plan.maps or not MapFacts.of(plan.maps["r2g"]).column_mass_lost
    return Row(trace.id, values, shape_of(trace, question), None if exact else precision_note(trace, _layers(trace, question)))


def _scored(trace: Trace, question: Question, scheduler: str | None) -> Row:
    scoring = plan_scores(trace, question.mask, question.reference_mask, **question.selection)
    if not scoring.maps:
        which = f"{option('mask')} and {option('reference_mask')}"
        raise InvalidInput(f"{trace.path} holds no masks that can be used; give {which}, pictures of the sizes that `i2am info` shows")
    (computed,) = compute(scoring.maps, scheduler=scheduler)  # type: ignore[no-untyped-call]
    found = scoring.scores(computed, **(question.imacs or {}))
    values = {name: value for name, value in found.items() if value is not None}
    return Row(trace.id, values, shape_of(trace, question), scoring.facts["note"] if "imacs_g" in values else None)


def _layers(trace: Trace, question: Question) -> tuple[int, ...]:
    return choose(trace, Select.of(question.selection), recipe=question.recipe).layers


def shape_of(trace: Trace, question: Question) -> Shape:
    """What the axes of a trace are on which the question chooses by position, for comparison with another's.

    Of heads that are chosen by layer, it is those of these layers.
    """
    chosen = question.selection.get("heads")
    heads = tuple((layer.name, layer.model_heads) for layer in trace.layers)
    if isinstance(chosen, Mapping) and set(chosen) <= {name for name, _ in heads}:
        heads = tuple(layer for layer in heads if layer[0] in chosen)
    axes: Shape = {"layers": tuple(layer.name for layer in trace.layers), "heads": heads, "steps": (len(trace.present),)}
    return {axis: axes[axis] for axis in question.positional}
