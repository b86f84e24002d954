"""Many traces, one table: every metric of every trace, their means, and how far these can be trusted.

Traces are opened and read one at a time, so memory does not grow with their number; what cannot be read is listed and left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import numpy as np
import xarray as xr
from dask.system import CPU_COUNT
from numpy.typing import NDArray
from tqdm import tqdm

from ...schema import errors
from ...schema.errors import CorruptTrace, InvalidInput, TraceError
from ...schema.messages import option
from ..aggregation.selection import Select, SelectOptions
from ..evaluation.metric_table import METRICS
from ..methods.recipes import Recipe, Weight, get_recipe
from ..numerics.statistics import LEVEL, RESAMPLES, Interval, bootstrap_mean
from ..output.files import Output, Table, save
from ..output.latex import ARROWS, Cell
from ..progress import hidden
from ..store.discovery import Member, Source, find_traces
from .commands import AfterEach
from .processes import Crew, choose_jobs
from .row_files import RowFile
from .rows import DatasetRequest, Shape, TraceScores, evaluate_trace

if TYPE_CHECKING:
    from distributed import Client

USUAL: Final = ("imacs_g", "imacs_r")
"""Metrics that are asked for where none is named."""


@dataclass(frozen=True, slots=True)
class DatasetScores:
    """The rows of a dataset, in the order of its traces."""

    request: DatasetRequest
    members: list[Member]
    rows: list[TraceScores]
    seed: int = 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns: what was asked for, without what no trace has."""
        return tuple(name for name in self.request.metrics if any(name in row.values for _, row in self.good))

    @property
    def good(self) -> list[tuple[Member, TraceScores]]:
        """Traces that answered."""
        return [(member, row) for member, row in zip(self.members, self.rows, strict=True) if not row.error]

    @property
    def skipped(self) -> list[tuple[Member, TraceScores]]:
        """Traces that did not, and why."""
        return [(member, row) for member, row in zip(self.members, self.rows, strict=True) if row.error]

    def values(self, metric: str) -> list[float]:
        """One column, NaN where a trace does not have it."""
        return [row.values.get(metric, np.nan) for _, row in self.good]

    def means(self) -> dict[str, Interval]:
        """Mean and interval of each column."""
        return {name: bootstrap_mean(self.values(name), seed=self.seed) for name in self.metrics}

    def folders(self) -> dict[str, DatasetScores]:
        """The traces of each folder by themselves, in the order in which folders come."""
        found: dict[str, list[tuple[Member, TraceScores]]] = {}
        for member, row in self.good:
            found.setdefault(member.place.rstrip("/").rpartition("/")[0] or ".", []).append((member, row))
        return {
            name: DatasetScores(self.request, [member for member, _ in each], [row for _, row in each], self.seed)
            for name, each in found.items()
        }


def evaluate(
    paths: Source | Iterable[Source],
    recipe: str | Recipe = "i2am",
    metrics: str | Sequence[str] = USUAL,
    client: Client | None = None,
    *,
    jobs: int = 1,
    mask: str | None = None,
    reference_mask: str | None = None,
    truth: str | None = None,
    partial: bool = False,
    seed: int = 0,
    weight: Weight | None = None,
    **options: Unpack[SelectOptions],
) -> xr.Dataset:
    """Metrics of every trace of a dataset: paths, folders that hold traces, and patterns such as `runs/*.zarr`.

    Work is done in this process, in as many others as `jobs` says, or with a `client` of dask.distributed by its workers, which read
    the traces themselves. `truth` is a file of known truth that holds for all of them; None is each trace's own. What else chooses calls
    (`layers`, `branch`, ...) is as for the map functions; `METRICS` has the names of metrics.

    Dims     (trace,): one variable a metric, with attributes mean, interval, level, count; attribute `skipped` of the dataset is
             JSON that lists traces that could not be asked, and why
    Raises   NotATrace where there is no trace, InvalidInput; if no trace can be asked, the first one's error
    """
    if kept := [name for name in ("keep", "time_groups") if options.get(name)]:
        raise InvalidInput(f"an evaluation has one number for each trace and metric, so it cannot take {option(kept[0])}")
    wanted = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    request = DatasetRequest(
        metrics=wanted,
        select=Select.of(options),
        recipe=get_recipe(recipe, weight=weight),
        mask=mask,
        reference_mask=reference_mask,
        truth=truth,
        partial=partial,
    )
    if client is not None and jobs != 1:
        raise InvalidInput(f"{option('jobs')} is of this machine, and a client has workers of its own; give one of them")
    members = find_traces(paths)
    count = choose_jobs(jobs, len(members))
    with Crew(count) if count > 1 else nullcontext() as crew:
        return tabulate(ask(members, request, client, seed, crew=crew))


def ask(
    members: Sequence[Member],
    request: DatasetRequest,
    client: Client | None = None,
    seed: int = 0,
    *,
    crew: Crew | None = None,
    kept: RowFile | None = None,
    after: AfterEach | None = None,
) -> DatasetScores:
    """Ask every trace, as `evaluate` does, but for those that have `kept` rows; a progress bar on a terminal counts them."""
    request.check()
    rows: dict[int, TraceScores] = {}
    try:
        with tqdm(total=len(members), desc="traces", unit="trace", leave=False, disable=hidden()) as bar:
            for index, member in enumerate(members):
                if kept is not None and (known := kept.known(member)) is not None:
                    rows[index] = known
                    bar.update()
                    if after is not None:
                        after.run(member)
            left = [index for index in range(len(members)) if index not in rows]
            for place, row in _answers([members[index] for index in left], request, client, crew):
                rows[left[place]] = row
                bar.update()
                if not row.error and kept is not None:
                    kept.add(members[left[place]], row)
                if not row.error and after is not None:
                    after.run(members[left[place]])
    except BaseException as error:
        if kept is not None and kept.rows:
            error.add_note(f"{len(kept.rows)} rows are kept in {kept.path}; {option('resume', True)} goes on from there")
        raise
    answered = agree(members, [rows[index] for index in range(len(members))], request)
    evaluation = DatasetScores(request, list(members), answered, seed)
    if members and not evaluation.good:
        raise _nothing(evaluation)
    return evaluation


def _answers(
    members: Sequence[Member], request: DatasetRequest, client: Client | None, crew: Crew | None
) -> Iterator[tuple[int, TraceScores]]:
    """Rows and their positions, as they come, from where the work is done."""
    if client is not None:
        from .cluster import evaluate_there

        return evaluate_there(client, members, request)
    if crew is not None:
        return crew.evaluate(members, request, CPU_COUNT)
    return ((index, evaluate_trace(member.path, request)) for index, member in enumerate(members))


def agree(members: Sequence[Member], rows: Sequence[TraceScores], request: DatasetRequest) -> list[TraceScores]:
    """The rows, with an error for traces in which what was chosen by position is something else than in most."""
    answered = list(rows)
    for axis in request.positional:
        there = [(i, row.shape) for i, row in enumerate(answered) if not row.error]
        if not there:
            break
        usual = Counter(shape[axis] for _, shape in there).most_common(1)[0][0]
        model = next(i for i, shape in there if shape[axis] == usual)
        for i, shape in there:
            if shape[axis] != usual:
                answered[i] = _odd(members[i], shape, members[model], answered[model].shape, axis)
    return answered


def tabulate(evaluation: DatasetScores) -> xr.Dataset:
    """The evaluation as a Dataset; see `evaluate`."""
    good, request = evaluation.good, evaluation.request
    coords = {
        "trace": _texts(member.name for member, _ in good),
        "id": ("trace", _texts(row.id for _, row in good)),
        "path": ("trace", _texts(member.place for member, _ in good)),
    }
    variables = {}
    for name, found in evaluation.means().items():
        facts = {"mean": found.mean, "interval": [found.low, found.high], "level": LEVEL, "count": found.count}
        variables[name] = ("trace", evaluation.values(name), facts)
    attrs = {
        "recipe": get_recipe(request.recipe).label,
        "resamples": RESAMPLES,
        "seed": evaluation.seed,
        "skipped": json.dumps([skipped_facts(member, row) for member, row in evaluation.skipped]),
    }
    return xr.Dataset(variables, coords, attrs)


def skipped_facts(member: Member, row: TraceScores) -> dict[str, Any]:
    """A trace that was left out, as plain values."""
    return {"trace": member.name, "path": member.place, "type": row.kind, "message": row.error, "exit_code": row.code}


def facts_of(evaluation: DatasetScores) -> dict[str, Any]:
    """The evaluation as one JSON document."""
    return {
        "recipe": get_recipe(evaluation.request.recipe).label,
        "traces": records(evaluation),
        "mean": {name: dataclasses.asdict(found) for name, found in evaluation.means().items()},
        "level": LEVEL,
        "resamples": RESAMPLES,
        "seed": evaluation.seed,
        "skipped": [skipped_facts(member, row) for member, row in evaluation.skipped],
        "note": "; ".join(remarks(evaluation)) or None,
    }


def save_table(evaluation: DatasetScores, path: Path, *, by_folder: bool = False, overwrite: bool = False) -> None:
    """Write one row a trace, or in LaTeX a row of means, of each folder if asked; raises as `output.files.check_output`."""
    columns: dict[str, type[str] | type[float]] = {"trace": str, "id": str, **dict.fromkeys(evaluation.metrics, float), "path": str}
    facts = {name: value for name, value in facts_of(evaluation).items() if name != "traces"}
    count = len(evaluation.good)
    caption = f"Mean over {count} trace{'s' if count > 1 else ''}, with its {LEVEL:.0%} bootstrap interval."
    paper = [{"method": facts["recipe"], **_row_of_means(evaluation)}]
    if by_folder:
        paper = [{"data": name, "method": facts["recipe"], **_row_of_means(each)} for name, each in evaluation.folders().items()]
    save(Output(table=Table(columns, records(evaluation), facts, caption, paper)), path, overwrite=overwrite)


def _row_of_means(evaluation: DatasetScores) -> dict[str, Cell]:
    means: dict[str, Cell] = {f"{name}{ARROWS[METRICS[name].better]}": mean for name, mean in evaluation.means().items()}
    return {**means, "traces": len(evaluation.good)}


def records(evaluation: DatasetScores) -> list[dict[str, Any]]:
    """One row a trace."""
    return [
        {"trace": member.name, "id": row.id, **{name: row.values.get(name) for name in evaluation.metrics}, "path": member.place}
        for member, row in evaluation.good
    ]


def remarks(evaluation: DatasetScores) -> list[str]:
    """What to bear in mind: copies of one recording, what an encoding lost."""
    noted = [row.note for _, row in evaluation.good if row.note]
    lines = []
    if noted:
        lines.append(noted[0] if len(evaluation.good) == 1 else f"{noted[0]} (the first of {len(noted)} such traces)")
    ids = [row.id for _, row in evaluation.good]
    if len(set(ids)) < len(ids):
        copies = len(ids) - len(set(ids))
        lines.append(f"note: {copies} of the {len(ids)} traces are copies of others; the interval takes them for recordings of their own")
    return lines


def _texts(values: Iterable[str]) -> NDArray[np.object_]:
    # Fixed-length unicode has no settled form in Zarr v3; strings of any length do.
    return np.array(list(values), dtype=object)


def _odd(member: Member, shape: Mapping[str, Any], model: Member, usual: Shape, axis: str) -> TraceScores:
    here, there = shape[axis], usual[axis]
    if axis == "layers":
        how = f"its {len(here)} layers are not the {len(there)} of {model.name}; choose layers by name"
    elif axis == "heads":
        how = f"its layers and heads are not those of {model.name}; evaluate the two kinds apart"
    else:
        how = f"it has {here[0]} steps, {model.name} has {there[0]}; evaluate the two kinds apart"
    text = f"{member.place} does not fit the other traces: {option(axis)} chooses by position, and {how}"
    return TraceScores(kind="InvalidInput", error=text, code=InvalidInput.exit_code)


def _nothing(evaluation: DatasetScores) -> TraceError:
    """The error where no trace is left: the first one's, if all are of its kind."""
    first, count = evaluation.rows[0], len(evaluation.rows)
    same = len({row.code for row in evaluation.rows}) == 1
    found = getattr(errors, first.kind, TraceError) if same else CorruptTrace
    if count == 1:
        return found(first.error)
    return found(f"none of the {count} traces can be evaluated; the first, {evaluation.members[0].name}: {first.error}")
