"""One run with interventions: which of them a call is changed by, and whether each found what it is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import listed, option
from ...schema.selection import extent, pick_positions, read_positions
from ..capture.call import Call, Change
from ..labels.layers import Site
from ..labels.passes import Evaluation
from ..labels.rows import Row
from ..plan.options import Options, select_branches, select_heads, select_layers, select_steps
from ..session.course import Course, Labels
from .change import Edit, change
from .request import Intervention


@dataclass(slots=True)
class Aim:
    """One intervention in one run, and what it met there."""

    what: Intervention
    paths: frozenset[str]
    """Modules that it is about."""
    steps: frozenset[int] = frozenset()
    samples: frozenset[int] = frozenset()
    groups: set[str] = field(default_factory=set)
    """Token groups of the calls that it could have changed."""
    met: bool = False
    """Whether it changed any."""

    def concerns(self, path: str, evaluation: Evaluation) -> bool:
        """Whether calls of this module may be changed in this evaluation."""
        return path in self.paths and evaluation.ordinal in self.steps

    def takes(self, row: Row) -> bool:
        """Whether this row of a batch may be changed."""
        return row.branch in select_branches(self.what.branches) and row.sample in self.samples

    def edit(self, call: Call, arranged: Call, index: int, site: Site) -> Edit | None:
        """What it leaves out of one row of a call; None for keys of other groups.

        Raises   UnknownSelection, InvalidInput for heads, tokens or cells that there are not
        """
        layer, what = site.layer, self.what
        self.groups |= {group.name for group in layer.groups}
        group = next((group for group in layer.groups if group.name == what.group), None)
        if what.group and group is None:
            return None
        self.met = True
        kept = [key for column in site.columns for key in range(column.start, column.stop)] or range(arranged.key.shape[2])
        keys = [] if group is None or what.kind == "off" else [kept[group.start + token] for token in what.positions(group, layer.name)]
        positions = arranged.query.shape[2]
        queries: Sequence[int] = range(positions)[site.generated]
        if site.order:
            keys = [site.order[key] for key in keys]
            queries = [site.order[query] for query in queries] if positions == arranged.key.shape[2] else queries
        each = call.query.shape[0] // arranged.query.shape[0]
        if each > 1:  # rows of a video's frames, or of its places, which are generated throughout
            queries = range(call.query.shape[2])
        heads = select_heads(what.heads, layer.heads, layer.name)
        return Edit(what.kind, slice(index * each, (index + 1) * each), tuple(queries), tuple(heads), tuple(keys))


def options_of(interventions: Sequence[Intervention], reference_image: Any = None) -> Options:
    """What has to be listened to so that these can be made."""
    named = [one.layers for one in interventions if isinstance(one.layers, list)]
    layers = [selector for each in named for selector in each] if 0 < len(named) == len(interventions) else None
    branches = {one.branches for one in interventions} or {"cond"}
    wanted = branches.pop() if len(branches) == 1 else "both"
    return Options(layers=layers, keys="all", self_grid=0, branches=wanted, reference_image=reference_image)


class Experiment(Course):
    """Listens to the capture of one run and changes what interventions are about."""

    def __init__(self, labels: Labels, options: Options, interventions: Sequence[Intervention]) -> None:
        super().__init__(labels, options)
        paths = list(labels.modules)
        self._aims = [Aim(one, frozenset(select_layers(one.layers, paths))) for one in interventions]

    def begin(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A denoiser is about to run; whether its attention is wanted."""
        wanted = super().begin(root, args, kwargs)
        for aim in self._aims if self.evaluation is not None else ():
            aim.steps = aim.steps or frozenset(select_steps(aim.what.steps, self.labels.evaluations, self.labels.planned))
            aim.samples = aim.samples or frozenset(pick_positions(aim.what.samples, self.labels.samples, "sample", "this run"))
        return wanted

    def hear(self, call: Call) -> Change | None:
        """What is to be made of one attention call; None to leave it as it is."""
        edits = list(self._edits(call))
        return partial(change, call, edits) if edits else None

    def _edits(self, call: Call) -> Iterator[Edit]:
        now = self.evaluation
        aims = [aim for aim in self._aims if now is not None and aim.concerns(call.path, now)]
        if now is None or not aims:
            return
        for arranged, index, site, row in self.labels.place(call, now.passes[-1]):
            edits = (aim.edit(call, arranged, index, site) for aim in aims if aim.takes(row))
            yield from (edit for edit in edits if edit is not None)

    def complete(self, now: Evaluation) -> None:
        """Count an evaluation that ran through; a group that its layers do not have is noticed here, not at the end of the run."""
        self.labels.close(now, None)
        self.kept += now.kept
        for aim in self._aims:
            if now.ordinal in aim.steps and aim.groups and not aim.met:
                raise _absent(aim)

    def close(self) -> None:
        """The run has come to its end.

        Raises   UnknownSelection, InvalidInput for an intervention that was about nothing that ran
        """
        self.close_evaluation()
        for aim in self._aims:
            asked = read_positions(aim.what.steps, "step")
            if late := [step for step in asked if step >= self.seen] if isinstance(asked, list) else []:
                raise UnknownSelection(f"the run has no step {late[0]}; it has {extent(self.seen)}")
            if not aim.met and aim.groups:
                raise _absent(aim)
            if not aim.met:
                raise InvalidInput(
                    f"the intervention {aim.what.kind} changed nothing: {listed(sorted(aim.paths))} made no attention call in the branch "
                    f"{aim.what.branches} and the steps that were asked for; choose others, or leave out {option('steps')}"
                )


def _absent(aim: Aim) -> UnknownSelection:
    return UnknownSelection(
        f"no chosen layer has keys of the token group {aim.what.group!r}; there are {listed(sorted(aim.groups))}: choose one of them with "
        f"{option('group')}, or other modules with {option('layers')}"
    )
