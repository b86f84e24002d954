"""Passes through a denoiser: which guidance branch each is, which rows of it a call holds, and what the scheduler says of its time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ...schema.record import BRANCHES
from ..capture.call import Call
from ..capture.modules import denoisers
from ..capture.wrapping import replaced
from ..encoding.transfer import Block
from .rows import Row
from .tokens import Scene

HALF_STEP: Final = 2**-8
"""Relative error of a bfloat16 timestep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass through a denoiser: all of an evaluation, or one guidance branch of it."""

    rows: int
    """In the whole batch."""
    order: tuple[str | None, ...]
    """Parts of the batch."""
    labelled: tuple[Row, ...]
    """Rows that belong to a branch."""
    kept: tuple[Row, ...] = ()
    """Rows to record; none if it is not selected."""
    first: bool
    """Whether an evaluation begins with it."""
    time: float | Block
    """What the denoiser is told of its time."""
    scene: Scene = field(default_factory=Scene)
    scenes: tuple[Scene, ...] = ()
    """Of each row, where rows have sequences of their own."""
    context: Any = None
    """What the denoiser of a pipeline is conditioned on."""

    def scene_of(self, row: Row) -> Scene:
        """What a row is about."""
        return self.scenes[row.index] if self.scenes else self.scene

    def read_time(self) -> float:
        """The time, once the device has told it."""
        return float(self.time()) if isinstance(self.time, Block) else self.time


@dataclass(slots=True, kw_only=True)
class Evaluation:
    """What the denoisers compute between two steps of the scheduler."""

    ordinal: int
    position: int
    """On the trace's step axis."""
    chosen: bool
    """Whether this evaluation is selected."""
    passes: list[Pass] = field(default_factory=list)
    done: bool = False
    """Whether its last pass ran through."""
    scheduler_step: int = 0
    timestep: float = math.nan
    sigma: float = math.nan

    @property
    def branches(self) -> set[str]:
        """Those that a pass was made for."""
        return {row.branch for one in self.passes for row in one.labelled}

    @property
    def kept(self) -> bool:
        """Whether any row of it is recorded."""
        return any(one.kept for one in self.passes)


def pass_branch(named: str | None, taken: int) -> str | None:
    """The branch of a pass: what the pipeline calls it, else by how many passes came before it since the last step."""
    if named in BRANCHES:
        return named
    return BRANCHES[taken] if taken < len(BRANCHES) else None


@contextmanager
def named_passes(pipeline: Any, tell: Callable[[str | None], None]) -> Iterator[None]:
    """Report the name that the pipeline gives each pass (its cache context), and None once the pass is over."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def cache_context(module: Any, name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with original(module, name, *args, **kwargs) as value:
                if module in roots:
                    tell(name)
                try:
                    yield value
                finally:
                    tell(None)

        return cache_context

    roots = list(denoisers(pipeline).values())
    with ExitStack() as stack:
        for cls in {type(root) for root in roots if hasattr(type(root), "cache_context")}:
            stack.enter_context(replaced(cls, "cache_context", wrap))
        yield


def rows_of_call(call: Call, this: Pass) -> tuple[Row, ...]:
    """The rows of a pass that a call holds; a module that treats perturbed rows apart attends for the others first.

    Raises   UnsupportedModel if it cannot be known which they are
    """
    rows = call.query.shape[0]
    if rows == this.rows:
        return this.kept
    part = this.rows // len(this.order)
    if this.order[-1] is None and call.repeat == 0 and rows == this.rows - part:
        return tuple(row for row in this.kept if row.index < rows)
    if this.order[-1] is None and call.repeat == 1 and rows == part:
        return ()
    raise UnsupportedModel(
        f"{call.path} attends for {rows} rows of the {this.rows} in the batch, so its branches are not known; "
        f"leave it out through {option('layers')}"
    )


def noise_level(scheduler: Any, timestep: float) -> float:
    """The scheduler's sigma at its present place; NaN if it has none."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or not hasattr(scheduler, "step_index"):
        return math.nan
    index = scheduler.step_index
    if index is None:
        index = _place(scheduler, timestep)
    return float(sigmas[min(index, len(sigmas) - 1)])


def scheduler_timestep(scheduler: Any, value: float) -> float:
    """The scheduler's own timestep for what a denoiser is given, which in flow models is that timestep over 1000."""
    times = getattr(scheduler, "timesteps", ())
    times = times.tolist() if hasattr(times, "tolist") else list(times)
    if not times or value in times:
        return value
    scale = float(getattr(getattr(scheduler, "config", None), "num_train_timesteps", 1000))
    nearest = min(times, key=lambda time: abs(time - value * scale))
    return nearest if math.isclose(nearest, value * scale, rel_tol=HALF_STEP) else value


def evaluations_left(scheduler: Any, timestep: float) -> int:
    """Most denoiser evaluations from this one to the end: image-to-image starts in the middle of the schedule."""
    begin = getattr(scheduler, "begin_index", None)
    return max(1, len(scheduler.timesteps) - (_place(scheduler, timestep) if begin is None else begin))


def _place(scheduler: Any, timestep: float) -> int:
    times = scheduler.timesteps
    times = times.tolist() if hasattr(times, "tolist") else list(times)
    return times.index(timestep) if timestep in times else 0
