"""The commands `diagnose`, `judge` and `diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ....schema.errors import CorruptTrace
from ....schema.messages import listed
from ...output.files import check_output, endings
from ..options import (
    PLACE,
    cache_option,
    completing,
    example,
    given,
    group_option,
    json_option,
    mask_options,
    output_option,
    overwrite_option,
    partial_option,
    recipe_names,
    sample_option,
    scheduler_option,
    selection_options,
    trace_argument,
    with_heads,
    words,
)
from ..text import align, answer, write_skipped
from .evaluation import dataset_request, number

if TYPE_CHECKING:
    from ...intervention.judgement import Faithfulness
    from ...output.latex import Cell

METRICS: Final = "Metrics, separated by commas.  [default: all that both have; of folders imacs_g,imacs_r]"


@click.command(
    "diagnose",
    short_help="Look for the ways in which attention fails.",
    epilog=example("i2am diagnose run.zarr", "i2am diagnose run.zarr --mask torso.png --json | jq .flagged"),
)
@trace_argument
@mask_options
@group_option
@sample_option
@scheduler_option
@json_option
def diagnose_command(
    trace: Path,
    partial: bool,
    mask: str | None,
    reference_mask: str | None,
    group: str | None,
    sample: int,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Look for the ways in which attention fails: uniform, outside the masks, unsteady, one-sided, sinks, lost in encoding.

    Each is a number (more is worse), the range it has on healthy recordings of the demo model and on failing ones, and a sentence.
    """
    from ...datasets.cluster import computing
    from ...diagnosis.signatures import diagnose
    from ...progress import shown
    from ...trace.reader import open_trace

    opened = open_trace(trace, partial=partial)
    with computing(scheduler, trace), shown("diagnose"):
        facts = diagnose(opened, mask=mask, reference_mask=reference_mask, sample=sample, group=group)
    answer(facts, write_diagnosis(facts), as_json=as_json)


def write_diagnosis(facts: dict[str, Any]) -> str:
    """The diagnosis as text."""
    rows = [("", "signature", "number", "healthy", "failing", "")]
    for row in facts["signatures"]:
        verdict = "-" if row["value"] is None else "FLAG" if row["flagged"] else "ok"
        number = "-" if row["value"] is None else f"{row['value']:.3f}"
        healthy, failing = (f"{row[name][0]:.3f} to {row[name][2]:.3f}" for name in ("healthy", "control"))
        rows.append((verdict, row["name"], number, healthy, failing, row["sentence"]))
    pairs = facts["measured_on"]["pairs"]
    end = f"healthy and failing: 5 to 95 % of {pairs} recordings of the demo model; a flag is a reason to look, not a verdict"
    return f"{align(rows)}\n\n{end}"


@click.command(
    "judge",
    short_help="Which maps of a run say what mattered, by what `i2am faithfulness` measured.",
    epilog=example(
        "i2am judge run.zarr faith.zarr",
        "i2am judge run.zarr faith.zarr --other other-garment.zarr",
        "i2am judge run.zarr faith.zarr --weight attention,knock-out --keep layer,head -o scores.csv",
        "i2am judge run.zarr faith.zarr --recipe i2am --recipe i2am-official -o scores.tex",
    ),
)
@trace_argument
@click.argument("effects", type=PLACE)
@click.option("--other", type=PLACE, metavar="TRACE", help="The same run with another reference, whose maps should agree less.")
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    metavar="NAME",
    help="Method, or rollout; may be given several times.  [default: i2am, with and without the trace's mask, and rollout]",
    shell_complete=completing(recipe_names),
)
@click.option(
    "--weight", "weights", callback=words, metavar="NAMES", help="Weights, with commas between.  [default: all that the trace has]"
)
@click.option("--keep", callback=words, metavar="AXES", help="Score each layer, or each head, as well: layer, head or layer,head.")
@click.option("--bootstrap", type=int, default=1000, show_default=True, metavar="N", help="Samples drawn for intervals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn.")
@output_option(f"Table with a row a score: {endings('table')}.")
@overwrite_option
@json_option
def judge_command(
    trace: Path | str,
    partial: bool,
    effects: Path | str,
    other: Path | str | None,
    recipes: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    weights: Any,
    keep: tuple[str, ...] | None,
    bootstrap: int,
    seed: int,
) -> None:
    """Hold the maps of TRACE against what `i2am faithfulness` measured on its run, EFFECTS, and say which may be believed.

    Each score is a rank correlation over cells of the reference, with its 95% bootstrap interval, beside what shuffled cells reach
    (docs/faithfulness.md says more). SRAM is held patch by patch, G2R over the picture, its totals over layers and heads.
    """
    from ...intervention.judgement import faithfulness
    from ...intervention.table import facts_of, save_scores
    from ...progress import shown
    from ...trace.reader import open_trace

    if out:
        check_output(out, "table", overwrite=overwrite)
    opened, beside = open_trace(trace, partial=partial), None if other is None else open_trace(other)
    with shown("judge"):
        found = faithfulness(
            opened, effects, other=beside, recipes=recipes or None, weights=weights, keep=keep or (), bootstrap=bootstrap, seed=seed
        )
    if out:
        save_scores(found, out, overwrite=overwrite)
    facts = {"trace": opened.id, **facts_of(found), "out": str(out) if out else None}
    answer(facts, write_scores(found), "\n".join(found.notes), as_json=as_json)


def write_scores(found: Faithfulness) -> str:
    """Scores, areas of curves, and the verdict, as text."""
    from ...intervention.table import print_scores

    rows = print_scores(found.scores)
    tables = [align([list(rows[0]), *([write_value(value) for value in row.values()] for row in rows)])]
    if found.areas:
        areas = ([area.order, write_value(area.deletion), write_value(area.insertion)] for area in found.areas)
        tables.append(align([["order of cells", "deletion area (higher is better)", "insertion area (lower is better)"], *areas]))
    return "\n\n".join([*tables, found.verdict])


def write_value(value: Cell) -> str:
    """A cell of a table for a terminal."""
    from ...numerics.statistics import Interval

    if isinstance(value, Interval):
        return f"{number(value.mean)} [{number(value.low)}, {number(value.high)}]"
    return number(value) if isinstance(value, float) else "-" if value is None else str(value)


@click.command(
    "diff",
    short_help="Show how two recordings of one shape differ.",
    epilog=example(
        "i2am diff guided.zarr unguided.zarr",
        "i2am diff step-100.zarr step-1000.zarr -o diff.png",
        "i2am diff a.zarr b.zarr --metric imacs_g,pck -o diff.nc --json",
        "i2am diff step-100/ step-1000/ -o pairs.csv        traces of one name, pair by pair",
    ),
)
@click.argument("first", type=PLACE)
@click.argument("second", type=PLACE)
@partial_option
@cache_option
@output_option(f"Output: {endings('picture')} for a sheet, {endings('maps')} for the maps; of folders {endings('table')}, a row a pair.")
@click.option("--metric", "metrics", callback=words, metavar="NAMES", help=METRICS)
@selection_options
@overwrite_option
@json_option
def diff_command(
    first: Path,
    second: Path,
    partial: bool,
    out: Path | None,
    metrics: tuple[str, ...] | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Show how two recordings of one shape differ: guidance on and off, two checkpoints, two seeds.

    For R2G and G2R, of all layers and of each: correlation, and mean change as a share of the first map's mean. Then every metric.

    Of two folders, traces of one name are a pair: each metric's mean difference over pairs, second less first, with its 95% bootstrap
    interval, and how many pairs went up and down. Traces that cannot be asked are listed and skipped, and the exit code is then 4.
    """
    from ...evaluation.difference import differ, save_difference
    from ...progress import shown
    from ...store.discovery import is_dataset
    from ...trace.reader import open_trace

    folders = [is_dataset([path]) for path in (first, second)]
    if all(folders):
        return differ_folders(first, second, partial, out, metrics, overwrite, as_json, options)
    if any(folders):
        raise click.UsageError(f"{(first, second)[folders.index(False)]} is one trace and the other a folder; give two of one kind")
    if out:
        check_output(out, "picture", "maps", overwrite=overwrite)
    one, other = (open_trace(path, partial=partial) for path in (first, second))
    with shown("diff"):
        found = differ(one, other, metrics, **with_heads(given(**options), one))
    if out:
        save_difference(found, out, overwrite=overwrite)
    facts = {**found.facts, "out": str(out) if out else None}
    answer(facts, write_difference(facts), as_json=as_json)
    return 0


def differ_folders(
    first: Path,
    second: Path,
    partial: bool,
    out: Path | None,
    metrics: tuple[str, ...] | None,
    overwrite: bool,
    as_json: bool,
    options: dict[str, Any],
) -> int:
    """Compare two folders pair by pair, print it, and return the exit code."""
    from ...datasets.dataset import USUAL
    from ...datasets.pairs import ask_pairs, facts_of, save_pairs
    from ...store.discovery import find_traces

    if out:
        check_output(out, "table", overwrite=overwrite)
    found = ask_pairs(find_traces(first), find_traces(second), dataset_request(USUAL if metrics is None else metrics, partial, options))
    if out:
        save_pairs(found, out, overwrite=overwrite)
    facts = {**facts_of(found), "out": str(out) if out else None}
    unpaired = [f"only the {side} has {listed(names)}" for side, names in found.unpaired.items() if names]
    notes = [*write_skipped(found.skipped, 2 * len(found.pairs)), *unpaired, *filter(None, [found.note])]
    answer(facts, write_pairs(facts), "\n".join(notes), as_json=as_json)
    return CorruptTrace.exit_code if found.skipped else 0


def write_pairs(facts: dict[str, Any]) -> str:
    """The differences as text."""
    rows = [["metric", "first", "second", "difference", f"{facts['level']:.0%} from", "to", "up", "down", "pairs", "better"]]
    for each in facts["metrics"]:
        values = [number(each[name]) for name in ("first", "second", "difference", "low", "high")]
        rows.append([each["name"], *values, *(str(each[name]) for name in ("up", "down", "count")), each["better"]])
    return align(rows, right=True)


def write_difference(facts: dict[str, Any]) -> str:
    """The numbers as text."""
    head = ["map", *(f"{name} {what}" for name in facts["maps"] for what in ("correlation", "change"))]
    rows = [head, difference_row("all layers", facts["maps"]), *(difference_row(each["name"], each) for each in facts["layers"])]
    scores = [["metric", "first", "second", "difference", "better"]]
    for each in facts["metrics"]:
        values = (each["first"], each["second"], each["second"] - each["first"])
        scores.append([each["name"], *(f"{value:.4f}" for value in values), each["better"]])
    return align(rows) + (f"\n\n{align(scores)}" if facts["metrics"] else "")


def difference_row(name: str, maps: dict[str, Any]) -> list[str]:
    """Correlation and change of each direction there is."""
    found = [each[what] for direction in ("r2g", "g2r") if (each := maps.get(direction)) for what in ("correlation", "change")]
    return [name, *("-" if number is None else f"{number:.3f}" for number in found)]
