"""`i2am seal`: a complete trace of what an unfinished recording committed."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ...schema.messages import plain
from ..store.recovery import seal


@click.command("seal", short_help="Make a complete, smaller trace of what an unfinished recording committed.")
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--drop-damaged", is_flag=True, help="Leave out the first step with a missing or changed file, and all later ones.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def seal_command(trace: Path, drop_damaged: bool, as_json: bool) -> None:
    """Make a complete, smaller trace of the steps that an unfinished recording committed.

    TRACE is what a killed or interrupted recording left. The attention of its committed steps is not touched; tables, manifest
    and root are written, and files of steps that were not committed are removed.

    \b
    Examples:
      i2am verify run.zarr --partial
      i2am seal run.zarr
      i2am seal run.zarr --drop-damaged
    """
    done = seal(trace, drop_damaged=drop_damaged)
    if as_json:
        facts = {"trace": done.trace.id, "steps": done.trace.steps, "planned": done.planned, "damaged": done.damaged}
        click.echo(json.dumps({**facts, "removed": list(done.removed)}, indent=1))
        return
    why = f", the steps before {plain(done.damaged)} was damaged" if done.damaged else ""
    click.echo(f"{trace} is complete now: {done.trace.steps} of {done.planned} planned steps{why}; {len(done.removed)} leftovers removed")
