"""One trace of a dataset: opened, asked for its metrics, closed; whatever is wrong with it becomes part of the answer.

A job and its row are plain values, so that either side of a cluster can make the other's. Attention is read where the job runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from dask.base import compute

from ..schema.errors import InvalidInput, TraceError
from .masks import SCORES, plan_scores
from .metrics import PENALTY, THRESHOLD
from .reader import Trace, open_trace
from .recipes import recipe as named
from .wording import is_typed, option, typed

Shape: TypeAlias = dict[str, tuple[Any, ...]]
"""What positions on an axis stand for: by axis, the names or numbers there."""

AXES: Final = ("layers", "heads", "steps")


@dataclass(frozen=True, slots=True)
class Question:
    """What every trace of a dataset is asked."""

    metrics: tuple[str, ...] = SCORES
    mask: str | None = None
    reference_mask: str | None = None
    penalty: float = PENALTY
    threshold: float = THRESHOLD
    partial: bool = False
    selection: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the map functions."""
    lenient: bool = False
    """Whether a trace may lack some of the metrics, though not all."""
    typed: bool = field(default_factory=is_typed)

    def check(self) -> None:
        """Refuse what is wrong whatever the trace.

        Raises   InvalidInput
        """
        unknown = [name for name in self.metrics if name not in SCORES]
        if unknown or not self.metrics:
            raise InvalidInput(
                f"there is no metric {unknown[0]!r}; there are {', '.join(SCORES)}" if unknown else "no metric was asked for"
            )
        if kept := [name for name in ("keep", "time_groups") if self.selection.get(name)]:
            raise InvalidInput(f"an evaluation has one number for each trace and metric, so it cannot take {option(kept[0])}")
        if "recipe" in self.selection:
            named(self.selection["recipe"])

    @property
    def positional(self) -> tuple[str, ...]:
        """Axes on which something is chosen by its position, which means the same only in traces that agree there."""
        layers = self.selection.get("layers")
        chosen = [layers] if isinstance(layers, str) or not isinstance(layers, Iterable) else list(layers)
        by_number = any(layer is not None and (not isinstance(layer, str) or layer.isdecimal()) for layer in chosen)
        asked = {"layers": by_number, **{axis: self.selection.get(axis) is not None for axis in ("heads", "steps")}}
        return tuple(axis for axis in AXES if asked[axis])


@dataclass(frozen=True, slots=True)
class Row:
    """What one trace answered, or why it did not."""

    id: str = ""
    values: dict[str, float] = field(default_factory=dict)
    """By metric; those that the trace cannot give are left out."""
    shape: Shape = field(default_factory=dict)
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
        with typed() if question.typed else nullcontext():
            return _answer(open_trace(path, partial=question.partial), question, scheduler)
    except TraceError as error:
        return Row(kind=type(error).__name__, error=str(error), code=error.exit_code)
    except Exception as error:
        return Row(kind=type(error).__name__, error=f"{type(error).__name__}: {error}", code=1)


def _answer(trace: Trace, question: Question, scheduler: str | None) -> Row:
    scoring = plan_scores(trace, question.mask, question.reference_mask, **question.selection)
    missing = [name for name in question.metrics if name not in scoring.targets]
    if missing and (not question.lenient or len(missing) == len(question.metrics)):
        which = option("mask") if missing[0] == "imacs_g" or scoring.facts["mask"] is None else option("reference_mask")
        raise InvalidInput(f"{trace.path} has no mask that {missing[0]} can be scored against; give {which}, or ask for other metrics")
    wanted = {name: map for name, map in scoring.maps.items() if name in question.metrics}
    (computed,) = compute(wanted, scheduler=scheduler)  # type: ignore[no-untyped-call]
    # Scores of maps that were not asked for would need them computed.
    part = type(scoring)(wanted, {name: target for name, target in scoring.targets.items() if name in wanted}, scoring.facts)
    found = part.scores(computed, question.penalty, question.threshold)
    values = {name: value for name in question.metrics if (value := found[name]) is not None}
    return Row(trace.id, values, shape_of(trace), scoring.facts["note"] if "imacs_g" in values else None)


def shape_of(trace: Trace) -> Shape:
    """What the axes of a trace are, for comparison with another's."""
    names = tuple(layer.name for layer in trace.layers)
    heads = tuple((layer.name, layer.call_heads or layer.heads) for layer in trace.layers)
    return dict(zip(AXES, (names, heads, (len(trace.present),)), strict=True))
