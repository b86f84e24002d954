"""The commands `diagnose` and `diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ...output.files import check_output
from .options import (
    PATH,
    example,
    given,
    group_option,
    json_option,
    maps_output_option,
    mask_options,
    overwrite_option,
    partial_option,
    sample_option,
    scheduler_option,
    selection_options,
    trace_argument,
    with_heads,
    words,
)
from .text import align, answer


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
    from ...diagnosis.signatures import diagnose
    from ...evaluation.cluster import computing
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
    "diff",
    short_help="Show how two recordings of one shape differ.",
    epilog=example(
        "i2am diff guided.zarr unguided.zarr",
        "i2am diff step-100.zarr step-1000.zarr -o diff.png",
        "i2am diff a.zarr b.zarr --metric imacs_g,pck -o diff.nc --json",
    ),
)
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@partial_option
@maps_output_option
@click.option("--metric", "metrics", callback=words, metavar="NAMES", help="Metrics, separated by commas.  [default: all that both have]")
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
) -> None:
    """Show how two recordings of one shape differ: guidance on and off, two checkpoints, two seeds.

    For R2G and G2R, of all layers and of each: correlation, and mean change as a share of the first map's mean. Then every metric.
    """
    from ...evaluation.difference import differ, save_difference
    from ...progress import shown
    from ...trace.reader import open_trace

    if out:
        check_output(out, "picture", "maps", overwrite=overwrite)
    one, other = (open_trace(path, partial=partial) for path in (first, second))
    with shown("diff"):
        found = differ(one, other, metrics, **with_heads(given(**options), one))
    if out:
        save_difference(found, out, overwrite=overwrite)
    facts = {**found.facts, "out": str(out) if out else None}
    answer(facts, write_difference(facts), as_json=as_json)


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
