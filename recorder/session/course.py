"""One run as its denoisers make it: evaluations, the passes of each, and which of them are wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray
from torch import nn

from ...schema.errors import TraceError, UnsupportedModel
from ...schema.trace import Layer, TokenGroup
from ..capture.call import Call
from ..images.pictures import Picture
from ..labels.layers import Site
from ..labels.passes import Evaluation, Pass
from ..labels.rows import DECLARE, Row
from ..plan.options import Options, select_steps
from ..store.writer import Writer

Placed: TypeAlias = tuple[Call, int, Site, Row]
"""A row of a call, by its index, with its layer and what it is in the trace."""


class Labels(Protocol):
    """What is known of a model, which says what the passes and calls of one run are."""

    denoisers: Mapping[str, nn.Module]
    given: Sequence[nn.Module]
    """The denoisers in torch.compile's wrapper, if they are in one."""
    modules: Mapping[str, nn.Module]
    """Attention modules to record, by path."""
    pictures: list[Picture]
    """Kept from the start."""
    evaluations: int = 0
    """Of the whole run; 0 until that is known."""
    planned: bool = True
    """Whether it is their number; else it is the most there can be."""
    samples: int = 0
    latent_grid: tuple[int, int] | None = None
    notes: Sequence[str] = ()
    """What provenance says beside `record`."""
    left_out: Mapping[str, str]
    """Modules whose self-attention was wanted and is not kept, by path: why not."""

    def label(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any], now: Evaluation | None) -> Pass | None:
        """What a denoiser is about to compute, `now` being the evaluation that is going on; None if it is not wanted."""

    def start(self, this: Pass) -> None:
        """An evaluation begins with this pass."""

    def place(self, call: Call, this: Pass) -> Iterator[Placed]:
        """The rows of a call that are kept."""

    def probe_keys(self, call: Call, layer: Layer, this: Pass) -> tuple[tuple[TokenGroup, ...], NDArray[Any] | None]:
        """Keys of probes that the module of a new layer makes."""
        return (), None

    def close(self, now: Evaluation, writer: Writer | None) -> None:
        """An evaluation is complete: check it, and set its time."""

    def is_whole(self, now: Evaluation | None) -> bool:
        """Whether an evaluation is known to have been complete when an error stopped the run."""
        return False

    def is_complete(self) -> bool:
        """Whether all evaluations of the run are known to have been made."""
        return False

    def unseen(self, path: str, module: nn.Module) -> TraceError | None:
        """The error for a module that ran without one attention call that can be seen; None where the run goes on without it."""

    def nothing(self, seen: int) -> TraceError:
        """The error for a run of so many evaluations of which nothing was recorded."""

    def record(self) -> dict[str, Any]:
        """What the trace says of model, sampler and inputs."""


class Course(ABC):
    """Keeps count of a run's evaluations; what is done with their attention, a subclass says."""

    def __init__(self, labels: Labels, options: Options) -> None:
        self.labels, self._options = labels, options
        self.evaluation: Evaluation | None = None
        """The one that is going on."""
        self.seen = 0
        """Evaluations that were begun."""
        self.kept = 0
        """Evaluations of which something is wanted, and that are complete."""
        self._chosen = self._plan() if labels.evaluations else frozenset()

    def _plan(self) -> frozenset[int]:
        return frozenset(select_steps(self._options.steps, self.labels.evaluations, self.labels.planned))

    def begin(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A denoiser is about to run; whether its attention is wanted."""
        this = self.labels.label(root, args, kwargs, self.evaluation)
        if this is None:
            return False
        now = self._start(this) if this.first or self.evaluation is None else self.evaluation
        kept = tuple(row for row in this.labelled if row.branch in self._options.axis) if now.chosen else ()
        steps, samples = len(self._chosen), self.labels.samples
        if kept and (now.position >= steps or max(row.sample for row in kept) >= samples):
            raise UnsupportedModel(
                f"denoiser evaluation {now.ordinal} was not planned: {steps} evaluations of {samples} samples were; a pipeline that guides "
                "in separate denoiser passes in a way of its own is not recorded yet; " + DECLARE
            )
        now.passes.append(replace(this, kept=kept))
        now.done = False
        return bool(kept)

    def _start(self, this: Pass) -> Evaluation:
        self.close_evaluation()
        self.labels.start(this)
        self._chosen = self._chosen or self._plan()
        self.evaluation = Evaluation(ordinal=self.seen, position=self.kept, chosen=self.seen in self._chosen)
        self.seen += 1
        return self.evaluation

    def end(self, root: str) -> None:
        """The denoiser ran through."""
        if self.evaluation is not None:
            self.evaluation.done = True

    def unseen(self, path: str, module: nn.Module) -> None:
        """Stop, unless it can be left out: a chosen module ran, and no call was seen."""
        if (error := self.labels.unseen(path, module)) is not None:
            raise error

    def close_evaluation(self) -> None:
        """What the denoisers computed last is complete.

        Raises   InvalidInput, UnsupportedModel if it is not what was expected
        """
        now, self.evaluation = self.evaluation, None
        if now is not None and now.done:
            self.complete(now)

    @abstractmethod
    def complete(self, now: Evaluation) -> None:
        """Take an evaluation that ran through."""
