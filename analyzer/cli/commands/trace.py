"""The commands `info`, `verify` and `report`, of pictures, and those that write traces: `pack`, `unpack` and `copy`."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import click

from ....schema.errors import CorruptTrace
from ....schema.messages import listed, option, plain, size_text
from ...output.files import endings
from ..options import (
    PATH,
    example,
    given,
    group_option,
    json_option,
    layers_option,
    numbers,
    output_option,
    overwrite_option,
    sample_option,
    source_argument,
    steps_option,
    trace_argument,
    traces_argument,
)
from ..text import align, answer

MAPS_ONLY: Final = (
    "maps only: R2G, G2R, and maps of {} tokens, by every layer and head; SRAM, single probabilities and what is made of them are not to "
    "be had; record with {} for those"
)

if TYPE_CHECKING:
    from ...inspection.verify import Report
    from ...sharing.packing import Shared


@click.command("info", epilog=example("i2am info run.zarr", "i2am info run.zarr --json | jq .layers", "i2am info --partial run.zarr"))
@trace_argument
@json_option
def info_command(trace: Path, partial: bool, as_json: bool) -> None:
    """Say what a trace holds: status, layers, steps, token groups, images, sizes."""
    from ...inspection.info import describe
    from ...trace.reader import open_trace

    facts = describe(open_trace(trace, partial=partial))
    answer(facts, write_summary(facts), facts["note"], as_json=as_json)


def write_summary(facts: dict[str, Any]) -> str:
    """The facts as text."""
    done = f"{facts['steps']} steps" if facts["status"] == "complete" else f"{facts['steps']} of {facts['steps_planned']} planned steps"
    timesteps = " to ".join(f"{value:g}" for value in facts["timesteps"]) or "none"
    prompts = [(text["branch"] or "text", repr(text["text"])) for text in facts["texts"] if text["group"] not in facts["probes"]]
    probes = ", ".join(f"{name} ({row['tokens']} tokens)" for name, row in facts["probes"].items())
    concepts = dict.fromkeys(word for row in facts["layers"] for word in row["concepts"])
    ratio = facts["compression"]
    raw = "" if ratio is None else f", {ratio:.2f} times its attention as raw float16 ({size_text(facts['bytes_raw_float16'])})"
    head = [
        ("trace", facts["trace"]),
        ("status", facts["status"] + (f" ({facts['reason']})" if facts["reason"] else "")),
        ("model", str(facts["model"].get("pipeline", facts["model"].get("class", "unknown")))),
        ("recorded", f"{done}, {facts['samples']} sample(s), {' and '.join(facts['branches'])}, timesteps {timesteps}"),
        ("images", ", ".join(f"{i['name']} {by(i['frames'], i['height'], i['width'])}" for i in facts["images"]) or "none"),
        *dict.fromkeys(prompts),
        *([("probes", probes)] if probes else []),
        *([("keeps", MAPS_ONLY.format(facts["token_maps"], option("keep", "attention")))] if facts["keeps"] == "maps" else []),
        ("size", size_text(facts["bytes"]) + raw),
        *([("values", write_values(facts["layers"]))] if any(row["values"] != "none" for row in facts["layers"]) else []),
        *([("concepts", ", ".join(concepts))] if concepts else []),
        ("precision", f"at most {facts['column_mass_lost']:.2g} of one token's column lost by the encoding"),
    ]
    columns = ("layer", "grid", "heads", "keys", "calls", "encoding", "groups")
    return "\n".join([*(f"{name:<10}{plain(text)}" for name, text in head), "", align([columns, *map(layer_row, facts["layers"])])])


def write_values(rows: list[dict[str, Any]]) -> str:
    """How many layers keep what of their values."""
    kinds = [row["values"] for row in rows]
    return ", ".join(f"{kind} in {kinds.count(kind)} of {len(kinds)} layers" for kind in ("norms", "full") if kind in kinds)


def layer_row(row: dict[str, Any]) -> tuple[object, ...]:
    """A layer as a line of the summary's table."""
    heads = f"{row['heads']} of {row['call_heads']}" if row["call_heads"] > row["heads"] else row["heads"]
    groups = ", ".join(f"{each['name']} {by(0, *each['grid']) if each['grid'] else each['tokens']}" for each in row["groups"])
    return f"{row['index']}: {row['name']}", by(row["frames"], *row["grid"]), heads, row["tokens"], row["calls"], row["encoding"], groups


def by(frames: int, rows: int, columns: int) -> str:
    """Rows x columns, frames before them in a video."""
    return f"{frames}x{rows}x{columns}" if frames else f"{rows}x{columns}"


@click.command(
    "verify",
    short_help="Check every file, table and number of a trace.",
    epilog=example("i2am verify run.zarr", "i2am verify run.zarr --json", "i2am verify --partial run.zarr"),
)
@trace_argument
@json_option
def verify_command(trace: Path, partial: bool, as_json: bool) -> int:
    """Check every file by its sha256, every table by the plan, and that rows of P and columns of G sum to 1."""
    from ...inspection.verify import verify

    report = verify(trace, partial=partial, progress=True)
    if not report.ok and not as_json:
        first, more = report.findings[0], len(report.findings) - 1
        others = f" ({more} more finding{'s' if more > 1 else ''}: `i2am verify {trace} --json`)" if more else ""
        raise CorruptTrace(f"{trace} is corrupt: {first.where}: {first.problem}{others}")
    answer(report.to_json(), write_verification(trace, report), report.note, as_json=as_json)
    return 0 if report.ok else CorruptTrace.exit_code


def write_verification(trace: Path, report: Report) -> str:
    """What was found sound, then a line each on files that are no part of it."""
    columns = f"columns of G within {report.column_lost:.1e}" if report.steps else "no step to sum"
    lines = [
        f"{trace}: ok, {'complete' if report.complete else 'PARTIAL'}, {report.steps} steps, "
        f"{report.files} files ({size_text(report.nbytes)}) as recorded; {report.rows}, {columns}"
    ]
    if report.leftovers:
        lines.append(f"unfinished: {plain(listed(report.leftovers))} belong to no committed step; `i2am seal {trace}` removes them")
    if report.ignored:
        lines.append(f"ignored: {plain(listed(report.ignored))}, which a desktop or a repository keeps here")
    return "\n".join(lines)


@click.command(
    "pictures",
    short_help="Write a picture of every trace to a folder, and say how alike it is to another.",
    epilog=example(
        "i2am pictures traces/ -o generated",
        "i2am pictures traces/ --image input -o real",
        "i2am pictures traces/ -o generated --against input --json",
    ),
)
@traces_argument
@click.option("-o", "--out", required=True, type=PATH, metavar="FOLDER", help="Folder of the pictures, each called as its trace.")
@click.option("--image", metavar="NAME", help="Which picture; `i2am info` lists them.  [default: generated_0]")
@click.option("--against", metavar="NAME", help="Picture that it is compared with.  [default: input, where it is of the same size]")
@overwrite_option
@json_option
def pictures_command(traces: tuple[Path, ...], partial: bool, out: Path, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Write a picture of every trace to a folder, as tools for FID, KID, LPIPS and segmentation take them.

    Where a trace holds both, PSNR and SSIM tell how alike the picture is to what the pipeline was given, or to --against.
    """
    from dataclasses import asdict

    from ...datasets.pictures import save_pictures

    rows = save_pictures(traces, out, partial=partial, overwrite=overwrite, **given(**options))
    means = {name: fmean(values) for name in ("psnr", "ssim") if (values := [v for row in rows if (v := getattr(row, name)) is not None])}
    facts = {"out": str(out), "mean": means, "pictures": [asdict(row) for row in rows]}
    numbers = f"; mean of {sum(row.psnr is not None for row in rows)}: PSNR {means['psnr']:.2f}, SSIM {means['ssim']:.4f}" if means else ""
    answer(facts, f"{out}: {len(rows)} picture{'s' if len(rows) > 1 else ''}{numbers}", as_json=as_json)


@click.command("report", epilog=example("i2am report run.zarr -o report.png", "i2am report run.zarr -o report.png --json"))
@trace_argument
@output_option(f"The picture, {endings('picture')}.", default=Path("report.png"), show_default=True)
@group_option
@sample_option
@overwrite_option
@json_option
def report_command(trace: Path, partial: bool, out: Path, group: str | None, sample: int, overwrite: bool, as_json: bool) -> None:
    """Verify a trace, summarise its maps and scores, and draw them on one sheet."""
    from .sheet import report, write_report

    facts = report(trace, out, group=group, sample=sample, partial=partial, overwrite=overwrite, progress=True)
    answer(facts, write_report(facts), facts["note"], as_json=as_json)


@click.command(
    "pack",
    short_help="Write a trace anew for sharing: smaller, in one file.",
    epilog=example(
        "i2am pack run.zarr -o run.zarr.zip",
        "i2am pack run.zarr -o small.zarr.zip --steps ::5 --layers '*up_blocks*'",
        "i2am pack run.zarr -o rows.zarr --encoding probabilities --keep-bits 5",
    ),
)
@source_argument
@click.option("-o", "--out", required=True, metavar="FILE", help="Output: .zip for one file, .zarr for a folder.")
@click.option("--chunk-steps", type=click.IntRange(min=1), default=8, show_default=True, help="Steps that a file holds.")
@click.option("--level", type=click.IntRange(0, 9), default=5, show_default=True, help="Of zstd.")
@layers_option
@steps_option
@click.option("--heads", callback=numbers, metavar="N,N|A:B", help="Heads, from 0: the same in every layer.")
@click.option("--keep-bits", type=click.IntRange(1, 10), help="Round probabilities to so many of float16's 10 mantissa bits.")
@click.option("--encoding", type=click.Choice(["probabilities"]), help="Compute probabilities from factors.")
@click.option("--factor-dtype", type=click.Choice(["float16"]), help="Round q and k of a run in float32: half the size.")
@overwrite_option
@json_option
def pack_command(trace: Path, out: str, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Write a trace anew for sharing: several steps a file, packed together, in one zip file or a folder.

    Every number stays as it is, and so does the trace's id. With --layers, --steps, --heads, --keep-bits, --encoding or --factor-dtype
    the new trace is a smaller one of its own, which says in its provenance what it was derived from.
    """
    from ...sharing.packing import pack

    _answer_shared(pack(trace, out, overwrite=overwrite, progress=True, **given(**options)), as_json)


@click.command("unpack", short_help="Write a packed trace as it was recorded.", epilog=example("i2am unpack run.zarr.zip -o run.zarr"))
@source_argument
@click.option("-o", "--out", required=True, metavar="FILE", help="Output: .zarr for a folder, .zip for one file.")
@overwrite_option
@json_option
def unpack_command(trace: Path, out: str, overwrite: bool, as_json: bool) -> None:
    """Write a packed trace as it was recorded: one step a file, every number as it is."""
    from ...sharing.packing import unpack

    _answer_shared(unpack(trace, out, overwrite=overwrite, progress=True), as_json)


@click.command(
    "copy",
    short_help="Copy a trace between folders, zip files and addresses, checked on the way.",
    epilog=example(
        "i2am copy run.zarr run.zarr.zip",
        "i2am copy run.zarr.zip s3://bucket/runs/run.zarr.zip",
        "i2am copy https://host/run.zarr.zip run.zarr",
    ),
)
@source_argument
@click.argument("out", metavar="DST")
@overwrite_option
@json_option
def copy_command(trace: Path, out: str, overwrite: bool, as_json: bool) -> None:
    """Copy a trace as it is; every file is compared with the manifest on its way.

    TRACE and DST are folders (.zarr), zip files (.zip) or addresses. DST has its name once it is whole; a copy that ended early is
    taken up again by the same command, and keeps the files that agree with the manifest.
    """
    from ...sharing.copying import copy

    done = copy(trace, out, overwrite=overwrite, progress=True)
    facts = {"path": str(done.place), "trace": done.record.id, "bytes": done.nbytes, "files": done.files, "kept": done.kept}
    kept = f", {done.kept} of them from an earlier copy" if done.kept else ""
    answer(facts, f"{done.place}: {done.files} files ({size_text(done.nbytes)}) as recorded{kept}", as_json=as_json)


def _answer_shared(made: Shared, as_json: bool) -> None:
    record = made.record
    facts = {"path": str(made.path), "trace": record.id, "steps": record.steps, "bytes": made.nbytes, "files": made.files}
    where = "in one file" if made.path.is_file() else f"in {made.files} files"
    answer(facts, f"{made.path}: {record.steps} steps of {len(record.layers)} layers, {size_text(made.nbytes)} {where}", as_json=as_json)
