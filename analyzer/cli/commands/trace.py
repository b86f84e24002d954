"""The commands `info`, `verify` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ....schema.errors import CorruptTrace, InvalidInput
from .options import answer, document, example, json_option, overwrite_option, trace_argument

if TYPE_CHECKING:
    from ...inspection.verify import Report


@click.command("info", epilog=example("i2am info run.zarr", "i2am info run.zarr --json | jq .layers", "i2am info --partial run.zarr"))
@trace_argument
@json_option
def info_command(trace: Path, partial: bool, as_json: bool) -> None:
    """Say what a trace holds: status, layers, steps, token groups, images, sizes."""
    from ...inspection.info import describe, write_summary
    from ...trace.reader import open_trace

    facts = describe(open_trace(trace, partial=partial))
    answer(document(facts) if as_json else write_summary(facts), None if as_json else facts["note"])


@click.command(
    "verify",
    short_help="Check every file, table and number of a trace.",
    epilog=example("i2am verify run.zarr", "i2am verify run.zarr --json", "i2am verify --partial run.zarr"),
)
@trace_argument
@json_option
def verify_command(trace: Path, partial: bool, as_json: bool) -> int:
    """Check every file by its sha256, every table by the plan, and that rows of P and columns of G sum to 1."""
    from ....schema.messages import size_text
    from ...inspection.verify import verify

    report = verify(trace, partial=partial, progress=True)
    if as_json:
        click.echo(document(report.to_json()))
        return 0 if report.ok else CorruptTrace.exit_code
    if not report.ok:
        raise CorruptTrace(_blame(trace, report))
    ignored = f"; ignored {', '.join(report.ignored)}" if report.ignored else ""
    answer(
        f"{trace}: ok, {'complete' if report.complete else 'PARTIAL'}, {report.steps} steps, "
        f"{report.files} files ({size_text(report.nbytes)}) as recorded; "
        f"rows of P within {report.row_error:.1e} of 1, columns of G within {report.column_lost:.1e}{ignored}",
        report.note,
    )
    return 0


def _blame(trace: Path, report: Report) -> str:
    first, more = report.findings[0], len(report.findings) - 1
    others = f" ({more} more finding{'s' if more > 1 else ''}: `i2am verify {trace} --json`)" if more else ""
    return f"{trace} is corrupt: {first.where}: {first.problem}{others}"


@click.command("report", epilog=example("i2am report run.zarr -o report.png", "i2am report run.zarr -o report.png --json"))
@trace_argument
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FILE", default=Path("report.png"), show_default=True, help="The picture, .png."
)
@click.option("--group", metavar="NAME", help="Token group; by default the reference's only one.")
@click.option("--sample", type=int, default=0, show_default=True, help="Generated image, from 0.")
@overwrite_option
@json_option
def report_command(trace: Path, partial: bool, out: Path, group: str | None, sample: int, overwrite: bool, as_json: bool) -> None:
    """Verify a trace, summarise its maps and scores, and draw them on one sheet."""
    from .sheet import report, write_report

    if out.suffix != ".png":
        raise InvalidInput(f"the report is a picture; end {out.name!r} in .png")
    facts = report(trace, out, group=group, sample=sample, partial=partial, overwrite=overwrite, progress=True)
    answer(document(facts) if as_json else write_report(facts), None if as_json else facts["note"])
