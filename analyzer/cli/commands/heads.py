"""Subcommands about heads: what each looks for, which find the truth, and maps of the best of them. Loaded parts come when they run."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ....schema.errors import InvalidInput
from ...output.files import endings
from ..options import (
    PATH,
    PLACE,
    branch_option,
    example,
    given,
    group_option,
    json_option,
    layers_option,
    numbers,
    output_option,
    overwrite_option,
    scheduler_option,
    steps_option,
    traces_argument,
    truth_option,
    words,
)
from ..text import align, answer, document, say

if TYPE_CHECKING:
    import xarray as xr

    from ...heads.ranking import By
    from ...heads.scores import Sources
    from ...output.files import Table
    from ...trace.reader import Trace

BY: Final = click.Choice(["relevance", "truth", "contribution"])
MEANING: Final = {
    "relevance": "head relevance, which sums to {}",
    "truth": "share of patches sent to their true place",
    "contribution": "mean length of what the head takes of the group",
}
"""What scores of each kind are."""
CONCEPTS_HELP: Final = "TOML file with own concepts and their words.  [default: the published 34 x 10]"
COUNT: Final = "Heads of the best and of the worst; several make a curve, 1: all of it.  [default: 30 of every 128]"
PROBE_HELP: Final = "Probe that holds the concepts' words."
ONLY_BY: Final = {
    **dict.fromkeys(("concepts", "probe", "seed", "draws", "keep"), ("relevance",)),
    "group": ("truth", "contribution"),
    "truth": ("truth",),
}
"""Options that only some ways to score heads take."""


def levels(context: click.Context, option: click.Parameter, text: str | None) -> list[float] | None:
    """Numbers with commas between."""
    try:
        return None if text is None else [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise click.UsageError(f"--thresholds are numbers with commas between, such as 0.3,0.4,0.5 ({error})", context) from error


@click.command("concepts", epilog=example("i2am concepts > concepts.toml", "i2am concepts --words", "i2am concepts --from own.toml --json"))
@click.option("--from", "source", type=PATH, metavar="FILE", help=CONCEPTS_HELP)
@click.option("--words", "only_words", is_flag=True, help="Print the words alone, one a line: what to record as a probe.")
@json_option
def concepts_command(source: Path | None, only_words: bool, as_json: bool) -> None:
    """Print the visual concepts that heads are counted for, as TOML to start from."""
    import json

    from ...heads.concepts import concept_words, load_concepts

    if only_words:
        listing = concept_words(source)
        say(document(listing) if as_json else "\n".join(listing))
        return
    found = load_concepts(source)
    rows = [f"{json.dumps(name)} = {json.dumps(list(each), ensure_ascii=False)}" for name, each in found.items()]
    say(document(found) if as_json else "\n".join(["[concepts]", *rows]))


@click.command(
    "heads",
    short_help="Which heads look for which concept, find the truth, or take most, over many traces.",
    epilog=example(
        "i2am heads traces/*.zarr -o hrv.nc",
        "i2am heads traces/ --concepts own.toml --probe own -o own.zarr",
        "i2am heads demos/ --by truth -o truth.nc",
        "i2am heads traces/ --by contribution -o taken.nc   traces with values in full",
    ),
)
@traces_argument
@output_option(f"Keep the scores: {endings('maps')}.")
@click.option(
    "--by",
    type=BY,
    default="relevance",
    show_default=True,
    help="Concepts (HRV), patches sent to their true place, or length of what is taken.",
)
@click.option("--concepts", type=PATH, metavar="FILE", help=CONCEPTS_HELP)
@click.option("--probe", metavar="NAME", help=f"{PROBE_HELP}  [default: concepts]")
@layers_option
@branch_option
@click.option("--group", help="Token group whose SRAM is held against the truth, or that is taken of; by default the reference's only one.")
@truth_option
@click.option("--seed", type=int, help="Which words are drawn.  [default: 0]")
@click.option("--draws", type=click.IntRange(min=1), metavar="N", help="Words of each concept for each call.  [default: 1]")
@click.option("--keep", callback=words, metavar="time", help="Count each step apart.")
@click.option("--show", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Heads to print for each concept.")
@scheduler_option
@overwrite_option
@json_option
def heads_command(
    traces: tuple[Path, ...],
    partial: bool,
    out: Path | None,
    by: By,
    show: int,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Score every head of a model over any number of traces.

    By relevance, one word of each concept is drawn for each call, and the concept that the head attends to most is counted; traces need
    the words as a probe, and factors. By truth, it is the share of patches that the head sends to where they truly come from. By
    contribution, it is the length of what the head adds to its layer's output on account of the reference; traces need values in full.
    """
    from ...datasets.cluster import computing
    from ...heads.files import check_heads_path, save_heads

    if out is not None:
        check_heads_path(out, overwrite=overwrite)
    # Paths are opened a few at a time as they are counted; only the library's own default can be so frugal.
    with computing(scheduler, *traces):
        scores = score(open_paths(traces, partial) if partial else traces, by, **given(**options))
    if out is not None:
        save_heads(scores, out, overwrite=overwrite)
    facts = {"out": None if out is None else str(out), **scores.attrs, "first": first_heads(scores, show)}
    note = None if out is not None else "the scores were not kept; keep them with -o FILE.nc"
    answer(facts, write_scores(scores, show), note, as_json=as_json)


@click.command(
    "select",
    short_help="Print the heads that rank first, or last, by layer.",
    epilog=example(
        "i2am select hrv.nc --concept Animals --top 30",
        "i2am select truth.nc --bottom 7 --json",
        "i2am select hrv.nc --concept Color --top 9 --of run.zarr",
    ),
)
@click.argument("scores", type=PATH, metavar="FILE")
@click.option("--concept", metavar="NAME", help="Concept to rank by.")
@click.option("--top", type=int, metavar="N", help="The N best heads.")
@click.option("--bottom", type=int, metavar="N", help="The N worst heads.")
@click.option("--of", "trace", type=PLACE, metavar="TRACE", help="Make sure that the scores are of this trace's model.")
@json_option
def select_command(scores: Path, concept: str | None, top: int | None, bottom: int | None, trace: Path | None, as_json: bool) -> None:
    """Print which heads `--heads-from FILE` takes, by layer, layers in published order: down, mid, up."""
    from ...heads.files import load_heads
    from ...heads.ranking import select_heads
    from ...trace.reader import open_trace

    opened = None if trace is None else open_trace(trace)
    found = select_heads(load_heads(scores), concept, top=top, bottom=bottom, trace=opened)
    say(document(found) if as_json else "\n".join(f"{layer}  {','.join(map(str, heads))}" for layer, heads in found.items()))


@click.command(
    "selective",
    short_help="IoU with masks of maps of all heads, of the best, of the worst.",
    epilog=example(
        "i2am selective demos/*.zarr",
        "i2am selective demos/*.zarr --count 7 --thresholds 0.3,0.4,0.5 --json",
        "i2am selective others/*.zarr --heads-from hrv.nc --concept Animals --count 30",
        "i2am selective others/*.zarr --heads-from hrv.nc --concept Animals --counts 1: -o curve.csv",
        "i2am selective dogs/*.zarr --word dog --mask mask_0 --heads-from hrv.nc --concept Animals",
    ),
)
@traces_argument
@click.option("--heads-from", type=PATH, metavar="FILE", help="Scores that `i2am heads` made of other traces.")
@click.option("--by", type=BY, help="Without a file: score heads on half of the traces, judge on the other half.  [default: truth]")
@click.option("--concept", metavar="NAME", help="Concept to rank heads by.")
@click.option("--concepts", type=PATH, metavar="FILE", help=CONCEPTS_HELP)
@click.option("--probe", metavar="NAME", help=f"{PROBE_HELP}  [default: concepts]")
@output_option(f"Keep the IoU of each trace: {endings('maps')}, or of their mean {endings('table')}.")
@click.option("--count", "--counts", "count", callback=numbers, metavar="N,N|A:B", help=COUNT)
@click.option("--thresholds", callback=levels, metavar="T,T", help="Of normalised R2G.  [default: 0.3,0.4,0.5]")
@click.option("--mask", metavar="NAME|PNG", help="Where the reference should appear.  [default: the trace's mask]")
@click.option("--word", metavar="WORD", help="Map of a word of the prompt instead of R2G.")
@layers_option
@steps_option
@click.option("--sample", type=int, help="Generated image, from 0.  [default: 0]")
@branch_option
@group_option
@click.option("--recipe", help="Method, such as i2am.  [default: i2am]")
@overwrite_option
@json_option
def selective_command(
    traces: tuple[Path, ...],
    partial: bool,
    heads_from: Path | None,
    by: str | None,
    count: list[int] | slice | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Hold R2G, or a word's map, above each threshold against the mask: maps of all heads, of the best, of the worst, mean over traces.

    No trace is judged with heads that were chosen on it: without --heads-from the traces are dealt into two halves. Several counts make
    a curve: a row for each.
    """
    from ...heads.files import load_heads
    from ...heads.selective import flat_note, selective_iou
    from ...output.files import Output, check_output, save

    if heads_from is not None and by is not None:
        raise click.UsageError("--by scores heads anew, --heads-from takes scores there are; give one of them")
    if out is not None:
        check_output(out, "map", "table", overwrite=overwrite)
    scores = None if heads_from is None else load_heads(heads_from)
    alone = count[0] if isinstance(count, list) and len(count) == 1 else count
    table = selective_iou(open_paths(traces, partial), scores, **given(by=by, count=alone, **options))
    if out is not None:
        save(Output({"iou": table}, table=tabulate(table)), out, overwrite=overwrite)
    rows = dict(zip(table["heads"].values.tolist(), table.values, strict=True))
    facts = {
        "out": out,
        **({"counts": table["count"].values} if "count" in table.dims else {}),
        **table.attrs,
        "thresholds": table["threshold"].values,
        "iou": {kind: values.mean(-1) for kind, values in rows.items()},
        "traces": table["trace"].values,
        "iou_by_trace": rows,
    }
    note = flat_note(table)
    answer({**facts, "note": note}, write_table(table), note, as_json=as_json)


def open_paths(paths: Iterable[Path], partial: bool) -> list[Trace]:
    """The traces that paths, folders and patterns name."""
    from ...store.discovery import find_traces
    from ...trace.reader import open_trace

    return [open_trace(member.path, partial=partial) for member in find_traces(list(paths))]


def score(traces: Sources, by: By, **options: Any) -> xr.DataArray:
    """Scores of heads, from the options that were typed."""
    from ...heads.ranking import SCORES

    for name in options:
        if by not in (others := ONLY_BY.get(name, (by,))):
            what = " or ".join(others)
            raise InvalidInput(f"--{name} is of heads scored by {what}, not by {by}; leave it out, or add --by {others[0]}")
    return SCORES[by](traces, **options)


def first_heads(scores: xr.DataArray, count: int) -> Any:
    """The best heads of each concept, or of all: layer, head and score. None where each step was counted apart."""
    from ...heads.ranking import rank_heads

    if "time" in scores.dims:
        return None

    def best(concept: str | None) -> list[dict[str, Any]]:
        row = scores if concept is None else scores.sel(concept=concept)
        ranked = rank_heads(scores, concept)[:count]
        return [{"layer": layer, "head": head, "score": float(row.sel(layer=layer, head=head))} for layer, head in ranked]

    return {name: best(name) for name in scores["concept"].values.tolist()} if "concept" in scores.dims else best(None)


def write_scores(scores: xr.DataArray, count: int) -> str:
    """The best heads as text: `layer.head (score)`, layers by their number in the list below."""
    names, made_of = scores["layer"].values.tolist(), len(scores.attrs["traces"])
    total = int((scores["position"] >= 0).sum())
    what = MEANING[scores.attrs["kind"]].format(total)
    lines = [f"{total} heads in {made_of} trace{'s' if made_of > 1 else ''}; layer.head ({what})"]
    found = first_heads(scores, count)
    if found is None:
        lines.append("each step was counted apart; without --keep time the heads are ranked")
    for concept, best in (found if isinstance(found, dict) else {"best": found or []}).items():
        lines.append(f"{concept:<24}" + "  ".join(f"{names.index(head['layer'])}.{head['head']} ({head['score']:.2f})" for head in best))
    return "\n".join([*lines, *(f"{i:>3}: {name}" for i, name in enumerate(names))])


def tabulate(table: xr.DataArray) -> Table:
    """Means over traces as rows of a file, one for each count and threshold; `_error` is the standard error."""
    from ...output.files import Table

    curve = table if "count" in table.dims else table.expand_dims(count=[table.attrs["count"]])
    kinds = curve["heads"].values.tolist()
    rows = []
    for count, level in product(curve["count"].values.tolist(), curve["threshold"].values.tolist()):
        found = curve.sel(count=count, threshold=level)
        mean, error = found.mean("trace").values.tolist(), standard_error(found).values.tolist()
        each = dict(zip(kinds, mean, strict=True)) | dict(zip((f"{kind}_error" for kind in kinds), error, strict=True))
        rows.append({"count": count, "threshold": level, **each})
    caption = f"IoU of maps of all {table.attrs['of']} heads, of the best and of the worst; mean over {table.sizes['trace']} traces."
    return Table(dict.fromkeys(rows[0], float), rows, table.attrs, caption)


def standard_error(table: xr.DataArray) -> xr.DataArray:
    """Of the mean over traces; NaN for one."""
    found: xr.DataArray = table.std("trace", ddof=1) / table.sizes["trace"] ** 0.5
    return found


def write_table(table: xr.DataArray) -> str:
    """IoU as text: a row a threshold, and a count where there are several; mean over traces with its standard error."""
    curve = "count" in table.dims
    kinds, traces = table["heads"].values.tolist(), table.sizes["trace"]
    names = [f"all {table.attrs['of']}", *(kind if curve else f"{kind} {table.attrs['count']}" for kind in kinds[1:])]
    rows = [[*(["heads"] if curve else []), "threshold", *(f"{name:>16}" for name in names)]]
    counts = table["count"].values.tolist() if curve else [None]
    for level, count in product(table["threshold"].values.tolist(), counts):
        found = table.sel(threshold=level) if count is None else table.sel(threshold=level, count=count)
        pairs = zip(found.mean("trace").values.tolist(), standard_error(found).values.tolist(), strict=True)
        texts = (f"{mean:.4f}" + (f" +-{error:.4f}" if traces > 1 else "") for mean, error in pairs)
        rows.append([*([str(count)] if curve else []), f"{level:g}", *texts])
    over = [axis for axis in table.dims if axis not in ("heads", "trace")]
    mean = table.mean(over)
    better = int((mean.sel(heads="top") > mean.sel(heads="all")).sum())
    end = f"top better than all in {better} of {traces} traces; heads chosen by {table.attrs['by']} on {table.attrs['chosen_on']}"
    return f"{align(rows, right=True)}\n{end}"
