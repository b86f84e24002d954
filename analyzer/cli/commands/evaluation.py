"""Subcommands that take one trace or a dataset of them: scores, tables, clusters."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ....schema.errors import CorruptTrace
from ....schema.messages import plain
from ...output.files import check_output, endings
from ..options import (
    completing,
    example,
    given,
    json_option,
    mask_options,
    metric_names,
    output_option,
    overwrite_option,
    scheduler_option,
    selection_options,
    traces_argument,
    truth_option,
    with_heads,
    words,
)
from ..text import align, answer, write_skipped

if TYPE_CHECKING:
    from ...datasets.dataset import DatasetScores
    from ...datasets.rows import DatasetRequest
    from ...metrics.overlap import ImacsOptions
    from ...numerics.statistics import Interval


jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Processes on this machine.  [default: one a core, from 4 traces on]"
)


def share(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """A share of a dataset, `3/16`: the third of sixteen."""
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise click.BadParameter(f"{text!r} is no share; write I/N with I from 1 to N, such as 3/16", context, option)
    return int(index), int(count)


@dataclass(frozen=True, slots=True)
class Keeping:
    """What becomes of rows as they are finished."""

    out: Path | None = None
    share: tuple[int, int] | None = None
    resume: bool = False
    overwrite: bool = False
    after: str | None = None


@click.command(
    "imacs",
    epilog=example(
        "i2am imacs run.zarr",
        "i2am imacs run.zarr --mask torso.png --reference-mask garment.png --json",
        "i2am imacs run.zarr --layers '*up_blocks*'",
        "i2am imacs traces/*.zarr",
    ),
)
@traces_argument
@mask_options
@click.option("--penalty", type=float, default=3.0, show_default=True, help="Weight of attention outside the mask.")
@click.option("--threshold", type=float, default=0.4, show_default=True, help="Normalised attention up to this counts as none.")
@click.option("--pre-mask", is_flag=True, help="Hide what lies outside the reference mask before normalising, as i2am-official does.")
@selection_options
@scheduler_option
@jobs_option
@json_option
def imacs_command(
    traces: tuple[Path, ...],
    partial: bool,
    penalty: float,
    threshold: float,
    pre_mask: bool,
    scheduler: str | None,
    jobs: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Score how well maps and masks agree: IMACS_g of R2G and IMACS_r of G2R, from -PENALTY to 1.

    IMACS_r is given twice: with generated positions weighed by the mask (v1 Eq. 17), and plain. What is scored is the picture that the
    recipe makes of its map. Of several traces, or a folder of them, each is a row, and their mean comes with its bootstrap interval.
    """
    from ...evaluation.metric_table import IMACS
    from ...methods.recipes import get_recipe
    from ...store.discovery import is_dataset

    settings: ImacsOptions = {"penalty": penalty, "threshold": threshold, "pre_mask": pre_mask}
    if scheduler is None and not is_dataset(traces):
        _score_one(traces[0], partial, as_json, options, settings)
        return 0
    evaluation, _ = _evaluate(traces, IMACS, partial, (scheduler, jobs), options, {"settings": settings, "optional": True})
    hidden = pre_mask or get_recipe(evaluation.request.recipe).pre_mask
    return _print(evaluation, as_json, {**settings, "pre_mask": hidden}, whole=True)


@click.command(
    "evaluate",
    short_help="Metrics of every trace of a dataset, as a table.",
    epilog=example(
        "i2am evaluate traces/",
        "i2am evaluate traces/ --metric imacs_g,imacs_r -o table.csv",
        "i2am evaluate tryon/ detection/ --by-folder -o tasks.tex",
        "i2am evaluate 'runs/*/pair-*.zarr' --recipe i2am-official -o table.parquet",
        "i2am evaluate run.zarr --metric pck,pointing_error --truth pairs.csv",
        "i2am evaluate traces/ -o table.csv --resume        go on after a kill, or with new traces",
        "i2am evaluate traces/ -o table.csv --rows $SLURM_ARRAY_TASK_ID/16    one share of a job array, from 1 to 16",
        "i2am evaluate traces/ -o table.csv --resume        afterwards: the table of all shares",
        "i2am evaluate traces/ -o table.csv --after 'rclone move {path} remote:traces/{trace}.zarr'",
        "i2am evaluate traces/ --scheduler tcp://10.0.0.1:8786 -o table.csv",
    ),
)
@traces_argument
@click.option(
    "--metric",
    callback=words,
    metavar="NAMES",
    help="Metrics, separated by commas; an unknown one lists all.  [default: imacs_g,imacs_r]",
    shell_complete=completing(metric_names),
)
@mask_options
@truth_option
@selection_options
@scheduler_option
@jobs_option
@output_option(f"Table with a row a trace: {endings('table')}. Rows are kept beside it as they come.")
@click.option("--by-folder", is_flag=True, help="Means of the traces of each folder: printed, and as the rows of a .tex table.")
@click.option("--resume", is_flag=True, help="Keep the rows that are finished: of a run that ended early, or of all shares.")
@click.option("--rows", "share", callback=share, metavar="I/N", help="Only the I-th of N shares of the traces, counted from 1.")
@click.option("--after", metavar="COMMAND", help="Run this after each finished row; {path} and {trace} stand for the trace's.")
@overwrite_option
@json_option
def evaluate_command(
    traces: tuple[Path, ...],
    partial: bool,
    metric: tuple[str, ...] | None,
    scheduler: str | None,
    jobs: int | None,
    out: Path | None,
    by_folder: bool,
    resume: bool,
    share: tuple[int, int] | None,
    after: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Ask every trace for its metrics: a row each, then the mean with its bootstrap interval.

    TRACE is a trace, a folder that holds traces, or a quoted pattern. Traces that cannot be asked are listed and skipped, and the exit
    code is then 4.

    With -o, each finished row is kept at once in OUT.rows.jsonl, which goes when the table is whole and no trace was skipped.
    --resume asks only for what is missing there. Shares (--rows) keep theirs side by side and write no table; --resume without --rows
    makes it of all of them. --after runs without a shell; if it fails, that is listed at the end, with exit code 1.
    """
    if resume and out is None:
        raise click.UsageError("--resume goes on with the rows kept beside a table; say which with -o FILE")
    if out is not None:
        check_output(out, "table", overwrite=overwrite or resume or share is not None)
    evaluation, failures = _evaluate(
        traces, metric, partial, (scheduler, jobs), options, keeping=Keeping(out, share, resume, overwrite, after)
    )
    if out is not None and share is None:
        from ...datasets.dataset import save_table
        from ...datasets.row_files import list_files

        save_table(evaluation, out, by_folder=by_folder, overwrite=overwrite or resume)
        for file in [] if evaluation.skipped or failures else list_files(out):
            file.unlink()
    facts = {"out": None if out is None else str(out), "failed_after": failures}
    code = _print(evaluation, as_json, facts, whole=out is None, by_folder=by_folder)
    return code or (1 if failures else 0)


def _score_one(path: Path, partial: bool, as_json: bool, options: dict[str, Any], settings: ImacsOptions) -> None:
    from dask.base import compute

    from ...evaluation.metric_table import IMACS, plan_metrics
    from ...maps.attribution import r2g
    from ...progress import shown
    from ...trace.reader import open_trace

    opened = open_trace(path, partial=partial)
    asked = with_heads(given(**options), opened)
    plan = plan_metrics(opened, IMACS, settings=settings, optional=True, **asked)
    with shown("imacs"):
        (computed,) = compute(plan.maps)  # type: ignore[no-untyped-call]
    scores = {name: float(score) for name, score in plan.scores(computed).items()}
    grounds = plan.grounds
    image = grounds.image("reference_mask") if grounds.places else None
    facts = {
        "mask": grounds.mask("mask"),
        "reference_mask": grounds.mask("reference_mask") if grounds.places else None,
        "pre_mask": settings["pre_mask"] or grounds.row.pre_mask,
        "recipe": grounds.row.label,
        "group": grounds.chosen.groups[0].name,
        "image": image.name if image else None,
        "calls": r2g(opened, **{name: value for name, value in asked.items() if name not in grounds.named}).attrs["calls"],
        "note": grounds.note,
    }
    facts = {"trace": opened.id, **{name: scores.get(name) for name in IMACS}, **settings, **facts}
    meaning = {row.name: row.meaning for row in plan.rows} | {"imacs_r_plain": "G2R of all positions"}
    text = "\n".join(f"{name:<14}{score:>8.4f}  {meaning[name]}" for name, score in scores.items())
    answer(facts, text, grounds.note if "imacs_g" in scores else None, as_json=as_json)


def _evaluate(
    traces: tuple[Path, ...],
    metrics: tuple[str, ...] | None,
    partial: bool,
    where: tuple[str | None, int | None],
    options: dict[str, Any],
    more: dict[str, Any] | None = None,
    keeping: Keeping | None = None,
) -> tuple[DatasetScores, dict[str, str]]:
    """The rows, and by trace the failures of the command after each; `where` is a scheduler or a number of processes."""
    from ...datasets.processes import Crew, choose_jobs
    from ...store.discovery import find_traces

    scheduler, jobs = where
    if scheduler is not None and jobs is not None:
        raise click.UsageError("--jobs is of this machine, and a cluster has workers of its own; give one of --scheduler and --jobs")
    keep, members = keeping or Keeping(), find_traces(traces)
    with ExitStack() as stack:
        crew = None
        if scheduler is None and (count := choose_jobs(jobs, len(members))) > 1:
            crew = stack.enter_context(Crew(count))  # before this process loads what they load too
        from ...datasets.cluster import connected
        from ...datasets.commands import AfterEach
        from ...datasets.dataset import USUAL, ask
        from ...datasets.row_files import open_rows, share_of

        request = dataset_request(USUAL if metrics is None else metrics, partial, options, more)
        kept = None if keep.out is None else open_rows(keep.out, request, keep.share, resume=keep.resume, overwrite=keep.overwrite)
        members += [] if kept is None else kept.gone(members)
        members = members if keep.share is None else share_of(members, keep.share)
        after = None if keep.after is None else stack.enter_context(AfterEach(keep.after, kept))
        client = None if scheduler is None else stack.enter_context(connected(scheduler))
        evaluation = ask(members, request, client, crew=crew, kept=kept, after=after)
        return evaluation, {} if after is None else after.failures


def dataset_request(metrics: tuple[str, ...], partial: bool, options: dict[str, Any], more: dict[str, Any] | None = None) -> DatasetRequest:
    """What typed options ask of every trace of a dataset."""
    from ...aggregation.selection import Select
    from ...datasets.rows import DatasetRequest

    ranked = None
    if (scores := options.get("heads_from")) is not None:
        from ...heads.files import load_heads

        ranked = load_heads(scores)
        ranked = ranked.isel(concept=0) if "concept" in ranked.dims else ranked  # what its heads are is what counts here
    chosen = with_heads(given(**options))
    plain = {name: chosen.pop(name) for name in ("mask", "reference_mask", "truth", "recipe") if name in chosen}
    request = DatasetRequest(metrics=metrics, select=Select.of(chosen), partial=partial, ranked=ranked, **plain, **(more or {}))
    request.check()
    return request


def _print(evaluation: DatasetScores, as_json: bool, more: dict[str, Any], *, whole: bool, by_folder: bool = False) -> int:
    from ...datasets.dataset import facts_of

    means = align([["", *evaluation.metrics], *mean_rows(evaluation)], right=True)
    table = write_table(evaluation) if whole else f"{more['out']}: {len(evaluation.good)} traces\n{means}"
    if by_folder:
        found = {name: each.means() for name, each in evaluation.folders().items()}
        more |= {"folders": {name: {metric: asdict(mean) for metric, mean in each.items()} for name, each in found.items()}}
        table += f"\n\n{write_folders(found, evaluation.metrics)}"
    failed = [plain(f"after {name}: {problem}") for name, problem in more.get("failed_after", {}).items()]
    notes = "\n".join(filter(None, [write_notes(evaluation), *failed]))
    answer({**facts_of(evaluation), **more}, table, notes, as_json=as_json)
    return CorruptTrace.exit_code if evaluation.skipped else 0


def write_folders(means: dict[str, dict[str, Interval]], metrics: tuple[str, ...]) -> str:
    """The means of each folder's traces, as text."""
    rows = [[name, *(number(each[metric].mean if metric in each else None) for metric in metrics)] for name, each in means.items()]
    return align([["folder", *metrics], *rows], right=True)


def write_table(evaluation: DatasetScores) -> str:
    """Every trace and the means, as text."""
    metrics = evaluation.metrics
    rows = [[member.name, *(number(row.values.get(name)) for name in metrics)] for member, row in evaluation.good]
    return align([["trace", *metrics], *rows, *mean_rows(evaluation)], right=True)


def write_notes(evaluation: DatasetScores) -> str:
    """What to bear in mind: traces left out, copies of one recording, what an encoding lost."""
    from ...datasets.dataset import remarks, skipped_facts

    skipped = write_skipped([skipped_facts(*each) for each in evaluation.skipped], len(evaluation.rows))
    return "\n".join([*skipped, *remarks(evaluation)])


def mean_rows(evaluation: DatasetScores) -> list[list[str]]:
    """Mean, interval and count of each metric."""
    from ...numerics.statistics import LEVEL

    found = evaluation.means()
    means = [found[name] for name in evaluation.metrics]
    return [
        ["mean", *(number(mean.mean) for mean in means)],
        [f"{LEVEL:.0%} from", *(number(mean.low) for mean in means)],
        [f"{LEVEL:.0%} to", *(number(mean.high) for mean in means)],
        ["traces", *(str(mean.count) for mean in means)],
    ]


def number(value: float | None) -> str:
    """A metric's value, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
