"""Many recordings with one model: the rows of a manifest that are not done yet, one after the other, shared by the processes that
torchrun, `accelerate launch` or srun started."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import PIL.Image
import torch

from ...schema.errors import AlreadyExists, InvalidInput, NoSpace
from ...schema.journal import disk_bytes
from ...schema.messages import option, parse_bytes, size_text
from ...schema.trace import TraceRecord
from ..dryrun.estimate import Estimate, estimate
from ..plan.budget import check_budget, encoded, free_bytes, weigh
from ..plan.options import Options
from ..session.recording import recording
from ..specs.arguments import arguments_of
from ..specs.loading import RECORDER_IMAGES, check_call, explained, find_class, load_pipeline, run_arguments
from ..specs.manifest import Manifest, Row, check_columns, row_spec
from ..specs.spec import Spec
from ..store.files import check_output, read_record
from ..store.lock import TraceLock

Result: TypeAlias = Literal["recorded", "skipped", "failed", "not tried"]
"""What became of a row."""
DECIDING: Final = (
    "layers", "steps", "branches", "encoding", "keys", "self_grid", "heads", "keep_bits", "values", "probes", "concepts",
    "keep", "token_maps",
)  # fmt: skip
"""Options that decide what a trace holds."""
PATIENCE: Final = timedelta(days=30)
"""Ranks wait for the slowest: a launcher would kill it as soon as another had ended with an error."""


@dataclass(frozen=True, slots=True)
class Place:
    """This process among those of one launch."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Rank on this machine, hence the number of its GPU."""
    said: str = ""
    """The environment variables that say so."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row with all that it takes to record it."""

    row: Row
    path: Path
    spec: Spec
    facts: dict[str, Any]
    error: str = ""
    """Why it cannot be recorded; empty if it can."""
    done: bool = False
    note: str = ""
    seen: tuple[Any, Any] | None = None
    """Id and status of what lay at its path when the batch was planned."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row."""

    name: str
    path: str
    result: Result
    error: str = ""
    note: str = ""
    id: str = ""
    steps: int = 0
    layers: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        made = f", {self.steps} steps of {self.layers} layers, {size_text(self.bytes)}" if self.result == "recorded" else ""
        return f"{self.name}: {self.result}{made}{': ' if self.error or self.note else ''}{self.error or self.note}"


def plan_jobs(spec: Spec, manifest: Manifest, output: Path, overwrite: bool) -> list[Job]:
    """A job for each row, checked as far as it can be without the model.

    Raises   InvalidInput for a column that is no argument, or for what is wrong with every row alike
    """
    cls = find_class(spec.pipeline, "pipeline")
    arguments = arguments_of(cls)
    check_columns(manifest, spec, arguments, RECORDER_IMAGES)
    text = spec.path.read_text(encoding="utf-8")
    jobs = []
    for row in manifest.rows:
        job = Job(row, output / row.folder, spec, {"spec": text, "manifest": manifest.path.name, "row": {"name": row.name, **row.cells}})
        try:
            job = dataclasses.replace(job, spec=row_spec(spec, manifest, row, arguments), seen=_lies_at(job.path))
            job = _looked_up(job, overwrite)
            check_call(job.spec, cls)
            check_output(job.path, job.done or overwrite or job.path.exists())
        except (InvalidInput, OSError) as error:
            job = dataclasses.replace(job, error=str(error), done=False)
        jobs.append(job)
    if len({job.error for job in jobs}) == 1 and jobs[0].error and len(jobs) > 1:
        raise InvalidInput(jobs[0].error)
    return jobs


def check_jobs(jobs: Iterable[Job], at_once: int = sys.maxsize) -> None:
    """Hold what is still to be recorded against the limit for each trace and the free disk for as many as lie there at once.

    Raises   NoSpace naming the first trace that is too much; a pipeline whose shapes cannot be foretold is held to its limit later
    """
    found: dict[str, Estimate | None] = {}
    planned = []
    for job in jobs:
        if not (job.done or job.error):
            key = _shape_key(job.spec)
            if key not in found:
                found[key] = foretell(job.spec)
            if (made := found[key]) is not None:
                planned.append((job, made, weigh(wanted_trace(made, job.spec)).nbytes))
    total, largest = sum(size for _, _, size in planned), max([0, *(size for _, _, size in planned)])
    for job, made, size in planned:
        check_estimate(made, job.spec, job.path, min(total - size, (at_once - 1) * largest))


def check_estimate(found: Estimate, spec: Spec, output: Path | None, others: int = 0) -> None:
    """Hold an estimate against the limit, and, if it is known which, against the disk, onto which `others` in bytes go as well.

    Raises   NoSpace
    """
    place, limit = output or spec.path.name, parse_bytes("max_bytes", spec.options.get("max_bytes"))
    free = sys.maxsize if output is None else free_bytes(output)
    check_budget(wanted_trace(found, spec), found.evaluations, place, limit, free, others)


def wanted_trace(found: Estimate, spec: Spec) -> TraceRecord:
    """The trace that a spec asks for."""
    return encoded(found.trace, spec.encoding, Options(**spec.options).token_maps)


def foretell(spec: Spec) -> Estimate | None:
    """The estimate of a spec; None if there is no knowing from shapes alone."""
    try:
        return estimate(spec)
    except Exception:  # whatever is wrong, loading the model says it better; a forecast must not stop what could be recorded
        return None


def run_jobs(
    jobs: Sequence[Job], place: Place, say: Callable[[Outcome], None], look: Callable[[Job], Job] = lambda job: job
) -> list[Outcome]:
    """Record this process's share of the jobs; one that fails does not stop the rest, but a full disk does.

    `look` sees a job once more before it is recorded, and may find it done. The share is a fixed one, of done rows too: processes that
    look at different moments must not divide differently.
    """
    pipeline: Any = None
    full, outcomes = "", []
    for planned in jobs[place.rank :: place.world]:
        job = planned if planned.error or planned.done or full else look(planned)
        if job.error:
            outcome = _outcome(job, "failed", error=job.error)
        elif job.done:
            outcome = _outcome(job, "skipped", note=job.note)
        elif full:
            outcome = _outcome(job, "not tried", error=full)
        elif taken := _taken(job):
            outcome = _outcome(job, "skipped", note=taken)
        else:
            if pipeline is None:
                pipeline = load_pipeline(_placed(job.spec, place))
            outcome = _attempt(pipeline, job)
            full = "the disk is full" if outcome.error.startswith("no space left") else ""
        outcomes.append(outcome)
        say(outcome)
    return outcomes


def record_spec(pipeline: Any, spec: Spec, path: Path, *, overwrite: bool, facts: Mapping[str, Any]) -> TraceRecord:
    """Record one call to a loaded pipeline."""
    arguments, options = run_arguments(spec)
    refused = explained(f"{spec.pipeline} refuses its arguments", (ValueError, TypeError))
    with recording(pipeline, path, overwrite=overwrite, facts=facts, **options) as made, refused:
        pipeline(**arguments)
    assert made.trace is not None
    return made.trace


def _looked_up(job: Job, overwrite: bool) -> Job:
    """The job, done if its trace is complete."""
    record = read_record(job.path)
    return job if overwrite or record is None else compare(job, record)


def compare(job: Job, record: Mapping[str, Any]) -> Job:
    """The job, done if this is the record of a complete trace, with a note if that was made of something else."""
    if record.get("status") != "complete":
        return job
    provenance = record.get("provenance") or {}
    wanted, given = Options(**job.spec.options).to_json(), {**Options().to_json(), **(provenance.get("options") or {})}
    same = all(given[name] == wanted[name] for name in DECIDING)
    if same and provenance.get("facts") == job.facts:
        return dataclasses.replace(job, done=True)
    anew = f"it was recorded from another spec, row or options; {option('overwrite', True)} records it anew"
    return dataclasses.replace(job, done=True, note=anew)


def _lies_at(path: Path) -> tuple[Any, Any] | None:
    record = read_record(path)
    return None if record is None else (record.get("id"), record.get("status"))


def _taken(job: Job) -> str:
    """Why a job is another process's by now; empty if it is not."""
    now = _lies_at(job.path)
    if now != job.seen and now is not None and now[1] == "complete":
        return "another process has recorded it since this one began"
    try:
        if job.path.is_dir():
            TraceLock(job.path).release()
    except AlreadyExists:
        return "another process is recording it"
    return ""


def _attempt(pipeline: Any, job: Job) -> Outcome:
    try:
        trace = record_spec(pipeline, job.spec, job.path, overwrite=job.path.exists(), facts=job.facts)
    except Exception as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        lines = str(error).strip().splitlines() or [""]
        kind = "" if isinstance(error, (InvalidInput, NoSpace)) else f"{type(error).__name__}: "
        return _outcome(job, "failed", error=kind + lines[0])
    return _outcome(job, "recorded", id=trace.id, steps=trace.steps, layers=len(trace.layers), bytes=disk_bytes(job.path))


def _outcome(job: Job, result: Result, **values: Any) -> Outcome:
    return Outcome(job.row.name, str(job.path), result, **values)


def _placed(spec: Spec, place: Place) -> Spec:
    """A rank's own GPU, where the spec names none."""
    if place.world > 1 and spec.device in (None, "cuda") and torch.cuda.is_available():
        return dataclasses.replace(spec, device=f"cuda:{place.local % torch.cuda.device_count()}")
    return spec


def _shape_key(spec: Spec) -> str:
    """What the shapes of a recording can depend on: numbers, not texts; sizes of images, not their contents."""

    def shape(value: Any) -> Any:
        if isinstance(value, list):
            return [shape(item) for item in value]
        if isinstance(value, Path):
            try:
                with PIL.Image.open(value) as picture:
                    return picture.size
            except OSError:  # its row will say so
                return None
        return "" if isinstance(value, str) else value

    return json.dumps({name: shape(value) for name, value in {**spec.call, **spec.images}.items()}, sort_keys=True, default=repr)


def find_place() -> Place:
    """The place that the launcher gave this process: torchrun and accelerate in RANK, WORLD_SIZE and LOCAL_RANK, else srun in SLURM's.

    Raises   InvalidInput if they contradict each other
    """
    torchrun = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    # Not SLURM_NTASKS: a batch script has it too, and there one process alone would record the share of one task.
    slurm = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    names = slurm if {*slurm[:2]} <= {*os.environ} and not {*torchrun[:2]} & {*os.environ} else torchrun
    given = {name: os.environ.get(name, default) for name, default in zip(names, "010", strict=True)}
    numbers = [int(value) if value.isdigit() else -1 for value in given.values()]
    said = ", ".join(f"{name}={value}" for name, value in given.items())
    if min(numbers) < 0 or numbers[0] >= numbers[1]:
        raise InvalidInput(f"the environment says {said}; {names[0]} should count from 0 and stay below {names[1]}, or both be unset")
    return Place(rank=numbers[0], world=numbers[1], local=numbers[2], said=said)


def gather(place: Place, rows: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The rows of all ranks, by rank, once all are in; None where the launcher gave no place to meet."""
    if place.world == 1:
        return rows
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        return None
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", place.rank, place.world, timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    store = PrefixStore(f"i2am/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    store.set(f"report/{place.rank}", json.dumps(rows))
    everyone = [row for rank in range(place.world) for row in json.loads(store.get(f"report/{rank}"))]
    store.set(f"read/{place.rank}", "1")
    if place.rank == 0:  # the store may live in this process
        store.wait([f"read/{rank}" for rank in range(place.world)])
    return everyone
