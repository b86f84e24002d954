"""Subcommands that take one trace or a dataset of them: scores, tables, clusters."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ....schema.errors import CorruptTrace
from ...output.files import check_output, endings
from .options import (
    completing,
    example,
    given,
    json_option,
    mask_options,
    metric_names,
    output_option,
    overwrite_option,
    selection_options,
    traces_argument,
    with_heads,
    words,
)
from .text import align, answer, write_skipped

if TYPE_CHECKING:
    from ...evaluation.dataset import DatasetScores
    from ...evaluation.rows import DatasetRequest
    from ...metrics.overlap import ImacsOptions


SCHEDULER: Final = "Work on a dask cluster, such as tcp://10.0.0.1:8786.  [default: threads]"
scheduler_option = click.option("--scheduler", metavar="ADDRESS", help=SCHEDULER)


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
@json_option
def imacs_command(
    traces: tuple[Path, ...],
    partial: bool,
    penalty: float,
    threshold: float,
    pre_mask: bool,
    scheduler: str | None,
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
    evaluation = _evaluate(traces, IMACS, partial, scheduler, options, {"settings": settings, "optional": True})
    hidden = pre_mask or get_recipe(evaluation.request.recipe).pre_mask
    return _print(evaluation, as_json, {**settings, "pre_mask": hidden}, whole=True)


@click.command(
    "evaluate",
    short_help="Metrics of every trace of a dataset, as a table.",
    epilog=example(
        "i2am evaluate traces/",
        "i2am evaluate traces/ --metric imacs_g,imacs_r -o table.csv",
        "i2am evaluate 'runs/*/pair-*.zarr' --recipe i2am-official -o table.parquet",
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
@selection_options
@scheduler_option
@output_option(f"Table with a row a trace: {endings('table')}.")
@overwrite_option
@json_option
def evaluate_command(
    traces: tuple[Path, ...],
    partial: bool,
    metric: tuple[str, ...] | None,
    scheduler: str | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Ask every trace for its metrics: a row each, then the mean with its bootstrap interval.

    TRACE is a trace, a folder that holds traces, or a quoted pattern. Traces that cannot be asked are listed and skipped, and the exit
    code is then 4.
    """
    from ...evaluation.dataset import USUAL, save_table

    if out is not None:
        check_output(out, "table", overwrite=overwrite)
    evaluation = _evaluate(traces, USUAL if metric is None else metric, partial, scheduler, options)
    if out is not None:
        save_table(evaluation, out, overwrite=overwrite)
    return _print(evaluation, as_json, {"out": None if out is None else str(out)}, whole=out is None)


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
    metrics: tuple[str, ...],
    partial: bool,
    scheduler: str | None,
    options: dict[str, Any],
    more: dict[str, Any] | None = None,
) -> DatasetScores:
    from ...evaluation.cluster import connected
    from ...evaluation.dataset import ask
    from ...store.discovery import find_traces

    request = dataset_request(metrics, partial, options, more)
    members = find_traces(traces)
    with nullcontext() if scheduler is None else connected(scheduler) as client:
        return ask(members, request, client)


def dataset_request(metrics: tuple[str, ...], partial: bool, options: dict[str, Any], more: dict[str, Any] | None = None) -> DatasetRequest:
    """What typed options ask of every trace of a dataset."""
    from ...aggregation.selection import Select
    from ...evaluation.rows import DatasetRequest

    ranked = None
    if (scores := options.get("heads_from")) is not None:
        from ...heads.files import load_heads

        ranked = load_heads(scores)
        ranked = ranked.isel(concept=0) if "concept" in ranked.dims else ranked  # what its heads are is what counts here
    chosen = with_heads(given(**options))
    plain = {name: chosen.pop(name) for name in ("mask", "reference_mask", "recipe") if name in chosen}
    request = DatasetRequest(metrics=metrics, select=Select.of(chosen), partial=partial, ranked=ranked, **plain, **(more or {}))
    request.check()
    return request


def _print(evaluation: DatasetScores, as_json: bool, more: dict[str, Any], *, whole: bool) -> int:
    from ...evaluation.dataset import facts_of

    means = align([["", *evaluation.metrics], *mean_rows(evaluation)], right=True)
    text = write_table(evaluation) if whole else f"{more['out']}: {len(evaluation.good)} traces\n{means}"
    answer({**facts_of(evaluation), **more}, text, write_notes(evaluation), as_json=as_json)
    return CorruptTrace.exit_code if evaluation.skipped else 0


def write_table(evaluation: DatasetScores) -> str:
    """Every trace and the means, as text."""
    metrics = evaluation.metrics
    rows = [[member.name, *(number(row.values.get(name)) for name in metrics)] for member, row in evaluation.good]
    return align([["trace", *metrics], *rows, *mean_rows(evaluation)], right=True)


def write_notes(evaluation: DatasetScores) -> str:
    """What to bear in mind: traces left out, copies of one recording, what an encoding lost."""
    from ...evaluation.dataset import remarks, skipped_facts

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
