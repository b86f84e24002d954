"""Recording any torch sampler: the block around it, and what can be told from inside."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from ...schema.errors import InvalidInput
from ...schema.messages import listed, refuse_taken
from ...schema.record import JSON, NAME
from ...schema.trace import IMAGE_ROLES, ImageRole, TraceRecord
from ..capture.hooks import Capture
from ..images.inputs import named_pictures
from ..images.windows import Window
from ..labels.refusals import refuse_hijack
from ..outside.declaration import Declaration
from ..plan.options import Options, select_layers
from .guard import interrupt, progress_bar, terminated, uncompiled, warn_of_losses
from .provenance import versions
from .sampling import Sampling

OWN_KERNEL: Final = "computes attention in a kernel of its own; its queries and keys are those that its projections made, on trust"


class OutsideRecording:
    """The recording of one sampling run while it goes on, and its trace once it is complete."""

    def __init__(self, declaration: Declaration, path: Path, options: Options) -> None:
        self.path = path
        """Where the trace is written."""
        self.trace: TraceRecord | None = None
        """The trace's record, once the block has been left."""
        self.facts: dict[str, Any] = dict(options.facts or {})
        """Kept under provenance; may be added to inside the block."""
        self._declaration, self._options = declaration, options
        if options.probes:
            raise InvalidInput(
                "probes are encoded as a diffusers pipeline encodes its own inputs, which a model named by denoisers= does not show; leave "
                "them out, or put their tokens among the keys of a run"
            )
        self._run = Sampling(declaration, path, options, self._provenance, [])
        self._modules = {name: declaration.modules[name] for name in select_layers(options.layers, list(declaration.modules))}
        self._capture = Capture(declaration.denoisers, self._modules, self._run, outside=True)
        self._restore = ExitStack()

    def step(self, timestep: float, sigma: float = math.nan) -> None:
        """Say that the sampler is about to make a step; what its denoisers compute until the next is of this timestep and sigma.

        Without it each evaluation of a denoiser is a step, at the timestep that the denoiser is given.
        """
        self._run.step(float(timestep), float(sigma))

    def images(self, windows: Mapping[str, Window] | None = None, **pictures: Any) -> None:
        """Keep pictures: `generated`, `reference`, `mask`, `reference_mask`, or any other name for an input; several as a list.

        `windows` say which part (top, left, bottom, right) of a picture, in its pixels, its token grid covers, where it was cropped.

        Raises   InvalidInput
        """
        shown = dict(windows or {})
        if stray := sorted(set(shown) - set(pictures)):
            raise InvalidInput(f"images: the window {stray[0]!r} is of no picture that is given with it")
        for name, value in pictures.items():
            if not NAME.fullmatch(name):
                raise InvalidInput(f"images: the name {name!r} is not made of letters, digits, _ . -")
            found = named_pictures(name, value, self._role(name), _window(name, shown.get(name)))
            self._run.add_pictures(found)

    def __enter__(self) -> OutsideRecording:
        refuse_taken(self.path, self._options.overwrite)
        refuse_hijack()
        given = {"reference": self._options.reference_image, "reference_mask": self._options.reference_mask}
        if shown := {name: value for name, value in given.items() if value is not None}:
            self.images(**shown)
        with ExitStack() as stack:
            stack.enter_context(terminated())
            stack.enter_context(uncompiled(self._declaration.given))
            show = stack.enter_context(progress_bar(self.path, self._options.progress))
            if show is not None:
                self._run.intake.progress = show
            stack.enter_context(self._capture)
            self._restore = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        self._restore.close()
        late: BaseException | None = None
        try:
            self._run.close() if error is None else self._run.abandon()
        except BaseException as found:
            late = found
        reason = error or late
        if (reason is not None and not self._run.over) or self._run.intake.writer is None:
            if reason is not None:
                interrupt(self._run.intake, self.path, reason)
        else:
            self.trace = self._finish()
            self._warn(self.trace)
        if late is not None and error is None:
            raise late

    def _finish(self) -> TraceRecord:
        try:
            return self._run.finish()
        except BaseException as error:
            interrupt(self._run.intake, self.path, error)
            raise

    def _warn(self, trace: TraceRecord) -> None:
        warn_of_losses(trace, self.path, 3)
        asked = self._options.steps if isinstance(self._options.steps, Sequence) and not isinstance(self._options.steps, str) else ()
        if gone := [step for step in asked if step >= self._run.evaluations]:
            made = f"the run made {self._run.evaluations} evaluations"
            warnings.warn(f"steps={listed(map(str, gone))} were asked for, but {made}, so {self.path} has none of them", stacklevel=3)
        silent = sorted(set(self._declaration.denoisers) - self._run.ran)
        if silent:
            warnings.warn(f"the denoiser {', '.join(silent)} never ran, so {self.path} has nothing of it", stacklevel=3)

    def _role(self, name: str) -> ImageRole:
        role = next((role for role in IMAGE_ROLES if role == name), None)
        if role is None and (name in self._declaration.images or name.startswith("reference_")):
            return "reference"
        return role or "input"

    def _provenance(self) -> dict[str, JSON]:
        trusted = sorted(self._capture.factors.unproven)
        notes: list[JSON] = [f"{path} {OWN_KERNEL}" for path in trusted]
        return {"versions": versions(), "options": self._options.to_json(), "facts": self.facts, "notes": notes}


def _window(name: str, window: Any) -> Window | None:
    if window is None:
        return None
    edges = tuple(float(edge) for edge in window)
    if len(edges) != 4 or not (0 <= edges[0] < edges[2] and 0 <= edges[1] < edges[3]):
        raise InvalidInput(f"images: the window {window!r} of {name} is not (top, left, bottom, right) in its pixels")
    return edges
