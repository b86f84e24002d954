"""The subcommands that pass judgement: `i2am diagnose` and `i2am diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from ....schema.errors import InvalidInput
from .options import document, example, given, json_option, overwrite_option, selection_options, trace_argument, words

DIFF_OUTPUTS: Final = (".png", ".nc", ".zarr")


@click.command(
    "diagnose",
    short_help="Look for the ways in which attention fails.",
    epilog=example("i2am diagnose run.zarr", "i2am diagnose run.zarr --mask torso.png --json | jq .flagged"),
)
@trace_argument
@click.option("--mask", metavar="NAME|PNG", help="Where the reference should appear in the generated image.  [default: the trace's mask]")
@click.option(
    "--reference-mask", metavar="NAME|PNG", help="The part of the reference that should be used.  [default: the trace's reference mask]"
)
@click.option("--group", metavar="NAME", help="Token group; by default the reference's only one.")
@click.option("--sample", type=int, default=0, show_default=True, help="Generated image, from 0.")
@json_option
def diagnose_command(
    trace: Path, partial: bool, mask: str | None, reference_mask: str | None, group: str | None, sample: int, as_json: bool
) -> None:
    """Look for the ways in which attention fails: uniform, outside the masks, unsteady, one-sided, sinks, lost in encoding.

    Each is a number (more is worse), the range it has on healthy recordings of the demo model and on failing ones, and a sentence.
    """
    from ...diagnosis.diagnose import diagnose, write_diagnosis
    from ...progress import shown
    from ...trace.reader import open_trace

    opened = open_trace(trace, partial=partial)
    with shown("diagnose"):
        facts = diagnose(opened, mask=mask, reference_mask=reference_mask, sample=sample, group=group)
    click.echo(document(facts) if as_json else write_diagnosis(facts))


@click.command(
    "diff",
    short_help="Show how two recordings of one shape differ.",
    epilog=example(
        "i2am diff guided.zarr unguided.zarr",
        "i2am diff step-100.zarr step-1000.zarr -o diff.png",
        "i2am diff a.zarr b.zarr --metric imacs_g,pck -o diff.nc --json",
    ),
)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--partial", is_flag=True, help="Open recordings that did not finish; only committed steps count.")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="Output: .png for a sheet, .nc or .zarr for the maps.")
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
    from ...evaluation.difference import differ, save_difference, write_difference
    from ...output.files import refuse_existing
    from ...progress import shown
    from ...trace.reader import open_trace

    if out:
        if out.suffix not in DIFF_OUTPUTS:
            raise InvalidInput(f"cannot tell from {out.name!r} what to write; end it in {', '.join(DIFF_OUTPUTS)}")
        refuse_existing(out, overwrite=overwrite)
    one, other = (open_trace(path, partial=partial) for path in (first, second))
    with shown("diff"):
        found = differ(one, other, metrics, **given(one, **options))
    if out:
        save_difference(found, out, overwrite=overwrite)
    facts = {**found.facts, "out": str(out) if out else None}
    click.echo(document(facts) if as_json else write_difference(facts))


JUDGING: Final = (diagnose_command, diff_command)
