"""Passes through a denoiser: which guidance branch each is, and which rows of it a call holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ...schema.record import BRANCHES
from ..capture.call import Call
from ..capture.modules import denoisers
from ..capture.wrapping import replaced
from ..encoding.transfer import Block
from .rows import Row
from .tokens import Scene


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass through a denoiser: all of an evaluation, or one guidance branch of it."""

    rows: int
    """In the whole batch."""
    order: tuple[str | None, ...]
    """Parts of the batch."""
    kept: tuple[Row, ...]
    """Rows to record; none if it is not selected."""
    scene: Scene
    scenes: tuple[Scene, ...] = ()
    """Of each row, where rows have sequences of their own."""

    def scene_of(self, row: Row) -> Scene:
        """What a row is about."""
        return self.scenes[row.index] if self.scenes else self.scene


@dataclass(slots=True)
class Evaluation:
    """What the denoisers compute between two steps of the scheduler."""

    ordinal: int
    scheduler_step: int
    position: int
    """On the trace's step axis."""
    timestep: float | Block
    sigma: float
    chosen: bool
    """Whether this evaluation is selected."""
    passes: list[Pass]
    branches: set[str]
    """Those that a pass was made for."""
    done: bool = False

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
