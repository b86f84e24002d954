"""A sampling run of a model that diffusers does not know, labelled by what its caller declared and by what was called when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from ...schema.errors import InvalidInput, UnsupportedModel
from ...schema.messages import listed, option
from ...schema.record import NAME
from ...schema.selection import read_positions
from ...schema.trace import IMAGE_ROLES, ImageRole
from ..capture.call import Call
from ..encoding.transfer import Block, Outbox
from ..images.pictures import Picture, Window, named_pictures
from ..labels.grids import IMAGE_AXES
from ..labels.passes import Evaluation, Pass, rows_of_call
from ..labels.rows import Row, number
from ..outside.declaration import Declaration
from ..outside.placement import DeclaredSites, arrange
from ..plan.options import Options, select_layers
from ..store.writer import Writer
from .course import Labels, Placed
from .provenance import model_record

MOST: Final = 1000
"""Evaluations of a run of which the caller does not say how many it makes."""
TIMES: Final = ("timesteps", "timestep", "t", "time", "sigma", "sigmas", "noise_level")
"""Names under which denoisers take their time."""
ONE_RUN: Final = "a trace holds one run, so leave the block and record the next to a path of its own"


class DeclaredLabels(Labels):
    """Labels one run of a sampler."""

    def __init__(self, declaration: Declaration, options: Options) -> None:
        if asked := next((name for name in ("probes", "concepts") if getattr(options, name)), None):
            raise InvalidInput(
                f"{asked} are encoded as a diffusers pipeline encodes its own inputs, which a model named by denoisers= does not show; "
                "leave them out, or put their tokens among the keys of a run"
            )
        self._declaration, self._options = declaration, options
        self.denoisers, self.given = declaration.denoisers, declaration.given
        self.modules = {name: declaration.modules[name] for name in select_layers(options.layers, list(declaration.modules))}
        self.pictures: list[Picture] = []
        self._names: set[str] = set()
        self._sites = DeclaredSites(declaration, options, self._names)
        self.left_out = self._sites.layers.left_out
        self.planned = declaration.evaluations is not None
        self.evaluations = declaration.evaluations or MOST
        self._begun = self._steps = 0
        self._latent: tuple[int, int] | None = None
        self._outbox = Outbox()
        self._roots: list[str] = []
        self._times: list[float] = []
        self._said: tuple[float, float] | None = None
        self._heard: set[int] = set()
        self._ran: set[str] = set()
        self._again = self._exceeded = False
        self._model: dict[str, Any] = {}

    def name_pictures(self, windows: Mapping[str, Window] | None, pictures: Mapping[str, Any]) -> list[Picture]:
        """Pictures that the caller hands over by name; references come before the first evaluation, so that token groups can name them.

        Raises   InvalidInput
        """
        shown, found = dict(windows or {}), []
        if stray := sorted(set(shown) - set(pictures)):
            raise InvalidInput(f"images: the window {stray[0]!r} is of no picture that is given with it")
        for name, value in pictures.items():
            if not NAME.fullmatch(name):
                raise InvalidInput(f"images: the name {name!r} is not made of letters, digits, _ . -")
            found += named_pictures(name, value, self._role(name), _window(name, shown.get(name)))
        for image, _ in found:
            if image.name in self._names:
                raise InvalidInput(f"images: a picture named {image.name} was given already; give it another name")
            self._names.add(image.name)
        return found

    def _role(self, name: str) -> ImageRole:
        role = next((role for role in IMAGE_ROLES if role == name), None)
        if role is None and (name in self._declaration.images or name.startswith("reference_")):
            return "reference"
        return role or "input"

    def step(self, timestep: float, sigma: float) -> None:
        """The sampler is about to make a step: what the denoisers compute until the next belongs to it."""
        self._said = (timestep, sigma)
        self._steps += 1

    def label(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any], now: Evaluation | None) -> Pass:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1]
        if not given:
            raise UnsupportedModel(f"the denoiser {root} was given no tensor with a batch of rows, so its samples cannot be told")
        told, count = self._declaration, self._roots.count(root)
        # Whether a pass belongs to the evaluation that is going on.
        joins = told.sequential and count < len(told.order) if count else self._said is not None
        first = now is None or not joins
        if first:
            self._roots.clear()
        order, rows = self._label_rows(given[0].shape[0], self._roots.count(root))
        self._latent = next(((value.shape[2], value.shape[3]) for value in given if value.ndim == IMAGE_AXES), None)
        self._ran.add(root)
        self._roots.append(root)
        self._heard.clear()
        return Pass(rows=given[0].shape[0], order=order, labelled=rows, first=first, time=self._time(args, kwargs))

    def _label_rows(self, rows: int, ordinal: int) -> tuple[tuple[str | None, ...], tuple[Row, ...]]:
        said, sequential = self._declaration.order, self._declaration.sequential
        order: tuple[str | None, ...] = (said[ordinal],) if sequential else said or ("cond",)
        if not said and rows > 1 and not self.samples:
            raise InvalidInput(
                f'the denoiser was given {rows} rows, and nothing says what they are; pass order=("uncond", "cond") or ("cond", "uncond") '
                f'as the guidance stacks them, or order=("cond",) for {rows} images'
            )
        if self.samples and rows == self.samples and not sequential:
            order = ("cond",)  # guidance is off in this evaluation
        if rows % len(order) or (self.samples and rows != self.samples * len(order)):
            expected = f"{self.samples * len(order)}, as before" if self.samples else f"a multiple of {len(order)}"
            raise InvalidInput(
                f"the denoiser was given {rows} rows, expected {expected} for order={said or order}; say how its guidance stacks them"
            )
        self.samples = rows // len(order)
        return order, number([name for name in order for _ in range(self.samples)])

    def _time(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | Block:
        named = [kwargs[name] for name in TIMES if kwargs.get(name) is not None]
        placed = [value for value in args if type(value) in (int, float) or (isinstance(value, Tensor) and value.ndim < 2)]
        value = next(iter((*named, *placed)), None)
        if value is None and self._said is None:
            raise UnsupportedModel(
                "the denoiser is given no timestep that could be told from its arguments; call running.step(timestep) before each step"
            )
        if isinstance(value, Tensor):
            return self._outbox.number(value.detach().reshape(-1)[0])
        return math.nan if value is None else float(value)

    def start(self, this: Pass) -> None:
        if self._begun < self.evaluations:
            self._begun += 1
            return
        self._again = self.planned and self._times[:1] == [this.read_time()]
        self._exceeded = not self._again
        planned = f"{self.evaluations} evaluations{' were planned' if self.planned else ' are the most unless said'}"
        if self._again:
            raise InvalidInput(f"the sampler ran a second time while recording: {planned} and made; {ONE_RUN}")
        raise InvalidInput(f"the sampler makes more evaluations than the trace has room for: {planned}; say how many: evaluations=")

    def place(self, call: Call, this: Pass) -> Iterator[Placed]:
        site = self._sites.find(call)
        if site is None or not (rows := rows_of_call(call, this)):
            return
        if site.index in self._heard:
            raise UnsupportedModel(
                f"{site.layer.name} ran twice in one pass of its denoiser, and a trace has one attention of a layer in each; "
                f"leave it out through {option('layers')}"
            )
        self._heard.add(site.index)
        call = arrange(call, site.order)
        for row in rows:
            yield call, row.index, site, row

    def close(self, now: Evaluation, writer: Writer | None) -> None:
        if self._latent is not None:
            self.latent_grid = round(self._latent[0] * self._sites.panel[0]), round(self._latent[1] * self._sites.panel[1])
        order = self._declaration.order
        if self._declaration.sequential and len(now.passes) < len(order) and order[0] != "cond":
            # A single pass where two were declared is the guided one only if that comes first.
            raise InvalidInput(
                f"evaluation {now.ordinal} made {len(now.passes)} of the passes {', '.join(map(str, order))}, so it is not known which; "
                "record the part of the run that is guided throughout"
            )
        times = [one.read_time() for one in now.passes]
        now.timestep, now.sigma = self._said or (times[0], math.nan)
        now.scheduler_step = self._steps - 1 if self._said else now.ordinal
        self._check_times(now, times)

    def _check_times(self, now: Evaluation, times: list[float]) -> None:
        """Notice what was not said, or is not so: other guidance than declared, or a second run."""
        time, before, order = now.timestep, list(self._times), self._declaration.order
        self._times.append(time)
        if self._declaration.sequential and self._said is None and len(set(times)) > 1:
            raise InvalidInput(
                f"the passes of evaluation {now.ordinal} are at timesteps {' and '.join(f'{t:g}' for t in times)}, so they are not "
                f"the branches {', '.join(map(str, order))} of one; leave out sequential=True if they share a batch"
            )
        if now.ordinal == 1 and before == [time] and not order and self._said is None:
            raise InvalidInput(
                f"the denoiser ran twice at timestep {time:g}, and nothing says why; for guidance in two passes say which is first: "
                f'order=("cond", "uncond"), sequential=True; else order=("cond",)'
            )
        if not self.planned and before and time == before[0] and any(past != time for past in before):
            self._again = True
            raise InvalidInput(
                f"the sampler ran a second time while recording: evaluation {now.ordinal} is at timestep {time:g}, where the run began; "
                f"{ONE_RUN}; for a sampler that goes back to its beginning, say how many evaluations= it makes"
            )

    def is_whole(self, now: Evaluation | None) -> bool:
        passes = len(self._declaration.order) if self._declaration.sequential else 1
        return now is None or (now.done and len(now.passes) >= passes)

    def is_complete(self) -> bool:
        return self._again or (not self._exceeded and self._begun == self._declaration.evaluations)

    def unseen(self, path: str, module: nn.Module) -> UnsupportedModel:
        return UnsupportedModel(
            f"{path} ({type(module).__name__}) ran, but neither scaled_dot_product_attention nor its own to_q and to_k showed its "
            f"attention; let it call torch.nn.functional.scaled_dot_product_attention, or leave it out through {option('layers')}"
        )

    def nothing(self, seen: int) -> InvalidInput | UnsupportedModel:
        names, roles = ", ".join(self.denoisers), self._sites.layers.roles
        if not seen:
            return InvalidInput(
                f"none of the denoisers ran while recording ({names}), so nothing was recorded; sample inside the block, "
                "and name the modules that the sampler calls"
            )
        have = f": attention in {names} has {', '.join(sorted(roles))} keys" if roles else ""
        return UnsupportedModel(
            f"nothing was recorded of {seen} evaluations in the selected layers, steps, branches and keys{have}; select more, or, "
            'if a part of what it attends to in itself is a reference, say so: groups=["self", {"name": "reference", "rows": 1}]'
        )

    def missing(self, path: Path) -> Iterator[str]:
        """What was asked for and is not in the trace."""
        asked = read_positions(self._options.steps, "step")
        if gone := [step for step in asked if step >= self._begun] if isinstance(asked, list) else []:
            made = f"the run made {self._begun} evaluations"
            yield f"{option('steps')}{listed(map(str, gone))} were asked for, but {made}, so {path} has none of them"
        if silent := sorted(set(self.denoisers) - self._ran):
            yield f"the denoiser {', '.join(silent)} never ran, so {path} has nothing of it"

    def record(self) -> dict[str, Any]:
        said = self._declaration
        self._model = self._model or model_record(said.model, said.denoisers, said.denoisers)
        return {"model": self._model, "sampler": {"order": list(said.order), "sequential": said.sequential, "evaluations": self._begun}}


def _window(name: str, window: Any) -> Window | None:
    if window is None:
        return None
    edges = tuple(float(edge) for edge in window)
    if len(edges) != 4 or not (0 <= edges[0] < edges[2] and 0 <= edges[1] < edges[3]):
        raise InvalidInput(f"images: the window {window!r} of {name} is not (top, left, bottom, right) in its pixels")
    return edges
