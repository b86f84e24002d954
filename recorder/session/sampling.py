"""One sampling run of a model that diffusers does not know: what is captured, labelled by its caller's word and by what was called when."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from ...schema.errors import InvalidInput, UnsupportedModel
from ...schema.record import JSON
from ...schema.trace import TraceRecord
from ..capture.call import Call
from ..encoding.transfer import Block
from ..images.pixels import Picture
from ..labels.passes import Evaluation, Pass, rows_of_call
from ..labels.rows import Row, number
from ..labels.tokens import Scene
from ..outside.declaration import Declaration
from ..outside.placement import Places
from ..plan.options import Options, select_steps
from .intake import Intake
from .provenance import outside_record

MOST: Final = 1000
"""Evaluations of a run of which the caller does not say how many it makes."""
TIMES: Final = ("timesteps", "timestep", "t", "time", "sigma", "sigmas", "noise_level")
"""Names under which denoisers take their time."""
LATENT_AXES: Final = 4
ONE_RUN: Final = "a trace holds one run, so leave the block and record the next to a path of its own"


class Sampling:
    """Listens to the capture of one sampling run and hands on what is kept."""

    def __init__(
        self, declaration: Declaration, path: Path, options: Options, provenance: Callable[[], dict[str, JSON]], pictures: list[Picture]
    ) -> None:
        self._declaration, self._options, self._provenance = declaration, options, provenance
        self._pictures = pictures
        self.intake = Intake(path, options, self._record, pictures, lambda evaluation: (self._time_of(evaluation), evaluation.sigma))
        self.intake.planned = declaration.evaluations is not None
        self.intake.evaluations = declaration.evaluations or MOST
        self._chosen = frozenset(select_steps(options.steps, self.intake.evaluations, self.intake.planned))
        self.intake.steps = len(self._chosen)
        self._names: set[str] = set()
        self._places = Places(declaration, options, self._names, lambda layer: self.intake.open().add_layer(layer))
        self._evaluation: Evaluation | None = None
        self._roots: list[str] = []
        self._pass_times: list[float | Block] = []
        self._times: list[float] = []
        self._said: tuple[float, float] | None = None
        self._heard: set[int] = set()
        self._seen = self._samples = self._steps = 0
        self._latent: tuple[int, int] | None = None
        self.ran: set[str] = set()
        """Denoisers that ran."""
        self._exceeded = False
        self.over = False
        """Whether the run is known to have come to its end."""

    @property
    def evaluations(self) -> int:
        """Evaluations that were begun."""
        return self._seen

    def add_pictures(self, pictures: list[Picture]) -> None:
        """Keep pictures; references before the first evaluation, so that token groups can name them."""
        for image, _ in pictures:
            if image.name in self._names:
                raise InvalidInput(f"images: a picture named {image.name} was given already; give it another name")
            self._names.add(image.name)
        if self.intake.writer is None:
            self._pictures.extend(pictures)
        else:
            self.intake.writer.add_images(pictures)

    def step(self, timestep: float, sigma: float) -> None:
        """The sampler is about to make a step: what the denoisers compute until the next belongs to it."""
        self.close_evaluation()
        self._said = (timestep, sigma)
        self._steps += 1

    def begin(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A denoiser is about to run; whether its attention is wanted."""
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1]
        if not given:
            raise UnsupportedModel(f"the denoiser {root} was given no tensor with a batch of rows, so its samples cannot be told")
        if not self._joins(root):
            self._start(root, args, kwargs)
        now = self._evaluation
        assert now is not None
        rows, ordinal = given[0].shape[0], self._roots.count(root)
        order, labels = self._label(rows, ordinal)
        kept = tuple(row for row in labels if row.branch in self._options.axis) if now.chosen else ()
        self._latent = next(((value.shape[2], value.shape[3]) for value in given if value.ndim == LATENT_AXES), None)
        self.ran.add(root)
        self._roots.append(root)
        self._pass_times.append(self._time(args, kwargs))
        self._heard.clear()
        now.passes.append(Pass(rows, order, kept, Scene()))
        now.branches |= {row.branch for row in labels}
        now.done = False
        return bool(kept)

    def hear(self, call: Call) -> None:
        """Label one attention call and queue its blocks."""
        assert self._evaluation is not None
        this = self._evaluation.passes[-1]
        place = self._places.find(call)
        if place is None or place.site is None or not (rows := rows_of_call(call, this)):
            return
        if place.site.index in self._heard:
            raise UnsupportedModel(
                f"{place.site.layer.name} ran twice in one pass of its denoiser, and a trace has one attention of a layer in each; "
                "leave it out through layers="
            )
        self._heard.add(place.site.index)
        arranged = place.arrange(call)
        for row in rows:
            self.intake.put(arranged, row.index, place.site, row, self._evaluation.position)

    def end(self, root: str) -> None:
        """The denoiser ran through."""
        if self._evaluation is not None:
            self._evaluation.done = True

    def silence(self, path: str, module: nn.Module) -> None:
        """Stop: a chosen module ran unseen."""
        raise UnsupportedModel(
            f"{path} ({type(module).__name__}) ran, but neither scaled_dot_product_attention nor its own to_q and to_k showed its "
            "attention; let it call torch.nn.functional.scaled_dot_product_attention, or leave it out through layers="
        )

    def close_evaluation(self) -> None:
        """What the denoisers computed last is whole.

        Raises   InvalidInput if it belongs to another run
        """
        now, self._evaluation = self._evaluation, None
        if now is None or not now.done:
            return
        self._check_passes(now)
        times = [float(time()) if isinstance(time, Block) else time for time in self._pass_times]
        now.timestep = self._said[0] if self._said else times[0]
        self._check_times(now, times)
        if now.kept:
            self.intake.close(now)

    def close(self) -> None:
        """The sampler is through.

        Raises   InvalidInput, UnsupportedModel if nothing could be recorded
        """
        self.close_evaluation()
        self.over = True
        if self.intake.writer is not None:
            return
        names = ", ".join(self._declaration.denoisers)
        if not self.ran:
            raise InvalidInput(
                f"none of the denoisers ran while recording ({names}), so nothing was recorded; sample inside the block, "
                "and name the modules that the sampler calls"
            )
        have = f": attention in {names} has {', '.join(sorted(self._places.roles))} keys" if self._places.roles else ""
        raise UnsupportedModel(
            f"nothing was recorded of {self._seen} evaluations in the selected layers, steps, branches and keys{have}; select more, or, "
            'if a part of what it attends to in itself is a reference, say so: groups=["self", {"name": "reference", "rows": 1}]'
        )

    def abandon(self) -> None:
        """The sampler was stopped by an error: what is whole of its last evaluation counts, and all of it may be whole."""
        now, passes = self._evaluation, len(self._declaration.order) if self._declaration.sequential else 1
        whole = now is None or (now.done and len(now.passes) >= passes)
        if whole:
            self.close_evaluation()
        self.over = self.over or (whole and not self._exceeded and self._seen == self._declaration.evaluations)

    def finish(self) -> TraceRecord:
        """Complete the trace."""
        latent = self._latent
        if latent is not None:
            rows, columns = self._places.panel
            latent = (round(latent[0] * rows), round(latent[1] * columns))
        return self.intake.open().finish(latent_grid=latent, sampler=self._sampler(), provenance=self._provenance())

    def _joins(self, root: str) -> bool:
        """Whether a pass belongs to the evaluation that is going on."""
        if self._evaluation is None:
            return False
        if root in self._roots:
            return self._declaration.sequential and self._roots.count(root) < len(self._declaration.order)
        return self._said is not None

    def _start(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.close_evaluation()
        if self._seen >= self.intake.evaluations:
            raise self._too_many(self._time(args, kwargs))
        step, sigma = (self._steps - 1, self._said[1]) if self._said else (self._seen, math.nan)
        chosen = self._seen in self._chosen
        self._evaluation = Evaluation(self._seen, step, self.intake.kept, math.nan, sigma, chosen, [], set())
        self._seen += 1
        self._roots, self._pass_times = [], []

    def _label(self, rows: int, ordinal: int) -> tuple[tuple[str | None, ...], tuple[Row, ...]]:
        """The parts of a pass's batch by branch, and its rows."""
        said = self._declaration.order
        if self._declaration.sequential:
            order: tuple[str | None, ...] = (said[ordinal],)
        else:
            order = said or ("cond",)
        if not said and rows > 1 and not self._samples:
            raise InvalidInput(
                f'the denoiser was given {rows} rows, and nothing says what they are; pass order=("uncond", "cond") or ("cond", "uncond") '
                f'as the guidance stacks them, or order=("cond",) for {rows} images'
            )
        if self._samples and rows == self._samples and not self._declaration.sequential:
            order = ("cond",)  # guidance is off in this evaluation
        if rows % len(order) or (self._samples and rows != self._samples * len(order)):
            expected = f"{self._samples * len(order)}, as before" if self._samples else f"a multiple of {len(order)}"
            raise InvalidInput(
                f"the denoiser was given {rows} rows, expected {expected} for order={said or order}; say how its guidance stacks them"
            )
        self._samples = rows // len(order)
        return order, number([name for name in order for _ in range(self._samples)])

    def _time(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | Block:
        """What a denoiser is told of its time; one on a GPU is fetched beside its work, not before it."""
        named = [kwargs[name] for name in TIMES if kwargs.get(name) is not None]
        placed = [value for value in args if type(value) in (int, float) or (isinstance(value, Tensor) and value.ndim < 2)]
        value = next(iter((*named, *placed)), None)
        if value is None and self._said is None:
            raise UnsupportedModel(
                "the denoiser is given no timestep that could be told from its arguments; call running.step(timestep) before each step"
            )
        if isinstance(value, Tensor):
            value = value.detach().reshape(-1)[0]
            if value.device.type == "cuda":
                return self.intake.outbox.block(value)
        return math.nan if value is None else float(value)

    def _time_of(self, evaluation: Evaluation) -> float:
        return evaluation.timestep if isinstance(evaluation.timestep, float) else float(evaluation.timestep())

    def _check_passes(self, now: Evaluation) -> None:
        """A single pass where two were declared is the guided one only if that comes first."""
        order = self._declaration.order
        if self._declaration.sequential and len(now.passes) < len(order) and order[0] != "cond":
            raise InvalidInput(
                f"evaluation {now.ordinal} made {len(now.passes)} of the passes {', '.join(map(str, order))}, so it is not known which; "
                "record the part of the run that is guided throughout"
            )

    def _check_times(self, now: Evaluation, times: list[float]) -> None:
        """Notice what was not said, or is not so: other guidance than declared, or a second run."""
        time = self._time_of(now)
        before, self._times = self._times, [*self._times, time]
        if self._declaration.sequential and self._said is None and len(set(times)) > 1:
            raise InvalidInput(
                f"the passes of evaluation {now.ordinal} are at timesteps {' and '.join(f'{t:g}' for t in times)}, so they are not "
                f"the branches {', '.join(map(str, self._declaration.order))} of one; leave out sequential=True if they share a batch"
            )
        if now.ordinal == 1 and before == [time] and not self._declaration.order and self._said is None:
            raise InvalidInput(
                f"the denoiser ran twice at timestep {time:g}, and nothing says why; for guidance in two passes say which is first: "
                f'order=("cond", "uncond"), sequential=True; else order=("cond",)'
            )
        if self._declaration.evaluations is None and before and time == before[0] and any(past != time for past in before):
            self.over = True
            raise InvalidInput(
                f"the sampler ran a second time while recording: evaluation {now.ordinal} is at timestep {time:g}, where the run began; "
                f"{ONE_RUN}; for a sampler that goes back to its beginning, say how many evaluations= it makes"
            )

    def _too_many(self, time: float | Block) -> InvalidInput:
        again = self._times[:1] == [float(time()) if isinstance(time, Block) else time]
        self.over = again and self._declaration.evaluations is not None
        self._exceeded = not self.over
        why = " were planned" if self._declaration.evaluations else " are the most unless said"
        planned = f"{self.intake.evaluations} evaluations{why}"
        if self.over:
            return InvalidInput(f"the sampler ran a second time while recording: {planned} and made; {ONE_RUN}")
        return InvalidInput(f"the sampler makes more evaluations than the trace has room for: {planned}; say how many: evaluations=")

    def _sampler(self) -> dict[str, JSON]:
        said = self._declaration
        return {"order": list(said.order), "sequential": said.sequential, "evaluations": self._seen}

    def _record(self) -> TraceRecord:
        return self.intake.begin(
            self._samples,
            model=outside_record(self._declaration.model, self._declaration.denoisers),
            sampler=self._sampler(),
            provenance=self._provenance(),
        )
