"""The subcommands that pass judgement: `i2am diagnose` and `i2am diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from .options import document, example, json_option, trace_argument


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
    from .diagnosis import diagnose, write_diagnosis
    from .progress import shown
    from .reader import open_trace

    opened = open_trace(trace, partial=partial)
    with shown("diagnose"):
        facts = diagnose(opened, mask=mask, reference_mask=reference_mask, sample=sample, group=group)
    click.echo(document(facts) if as_json else write_diagnosis(facts))


JUDGING: Final = (diagnose_command,)
