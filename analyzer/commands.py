"""What each subcommand of the analyzer does: open, ask, print. What it needs beyond click is loaded when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..schema.errors import CorruptTrace, InvalidInput
from .dataset_commands import evaluate_command, imacs_command
from .options import (
    answer,
    document,
    example,
    given,
    json_option,
    numbers,
    overwrite_option,
    place,
    selection_options,
    trace_argument,
    words,
)

if TYPE_CHECKING:
    import xarray as xr

    from .reader import Trace
    from .verification import Report


@click.command("info", epilog=example("i2am info run.zarr", "i2am info run.zarr --json | jq .layers", "i2am info --partial run.zarr"))
@trace_argument
@json_option
def info_command(trace: Path, partial: bool, as_json: bool) -> None:
    """Say what a trace holds: status, layers, steps, token groups, images, sizes."""
    from .reader import open_trace
    from .summary import describe, write_summary

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
    from .summary import size_text
    from .verification import verify

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


@click.command(
    "map",
    epilog=example(
        "i2am map run.zarr --r2g -o r2g.png              which parts came from the reference",
        "i2am map run.zarr --g2r --style i2am -o g2r.png  which parts of the reference were used",
        "i2am map run.zarr --at 12,20 -o patch.png       where one patch looked",
        "i2am map run.zarr --word dog -o dog.png         where a word is attended to",
        "i2am map run.zarr --word zebra --probe concepts -o zebra.png",
        "i2am map run.zarr --r2g --keep time,head --time-groups 5 -o grid.png",
        "i2am map run.zarr --g2r --keep layer -o g2r.nc",
        "i2am map run.zarr --tokens 4,5 --recipe daam -o word.png   where two text tokens are attended to",
        "i2am map run.zarr --r2g --recipe i2am-official --set resize=bilinear -o r2g.png",
        "i2am map run.zarr --g2r --recipe i2am-official --as-published --style plain -o figure.png",
        "i2am map run.zarr --r2g --heads-from hrv.nc --concept Animals --top 30",
    ),
)
@trace_argument
@click.option("--r2g", is_flag=True, help="Reference to generated: lies on the generated image.")
@click.option("--g2r", is_flag=True, help="Generated to reference: lies on the reference.")
@click.option("--at", callback=place, metavar="[F,]Y,X", help="SRAM of one patch of the latent grid: lies on the reference.")
@click.option("--word", metavar="WORD", help="A word or phrase of the prompt, or dog#2 for the second dog: lies on the generated image.")
@click.option("--tokens", callback=numbers, metavar="N,N|A:B", help="Some tokens, by default of the text: lies on the generated image.")
@click.option("--probe", metavar="NAME", help="The probe that --word or --tokens are of.")
@click.option("--text", metavar="TEXT", help="The text of the probe that --word is of, where it has several.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="Output: .png, .npy, .nc or .zarr.  [default: DIRECTION.png]"
)
@click.option("--keep", callback=words, metavar="AXES", help="Axes to keep, of time,head,layer, and token with --tokens.")
@click.option("--time-groups", type=click.IntRange(min=1), metavar="N", help="Split the steps into N groups, the noisiest first.")
@selection_options
@click.option("--frames", callback=numbers, metavar="N,N|A:B", help="Frames of a video's map: shown (R2G), averaged (G2R).")
@click.option("--query-mask", metavar="NAME|PNG", help="Weigh generated positions by a mask (G2R; v1 Eq. 17).")
@click.option("--patches", is_flag=True, help="Carry an adapter's tokens back to the patches its resampler made them of (G2R, --at).")
@click.option("--as-published", is_flag=True, help="Scale, invert and cut the map as its recipe does, at its image's size.")
@click.option("--style", default="viridis", show_default=True, metavar="NAME", help="Look of the picture: viridis, i2am, daam, plain.")
@overwrite_option
@json_option
def map_command(
    trace: Path,
    partial: bool,
    r2g: bool,
    g2r: bool,
    at: tuple[int, ...] | None,
    word: str | None,
    tokens: list[int] | slice | None,
    out: Path | None,
    patches: bool,
    as_published: bool,
    style: str,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw or save an attribution map.

    Exactly one of --r2g, --g2r, --at, --word and --tokens says which. A picture shows each map scaled to its own range; numbers are in
    .npy, .nc and .zarr.
    """
    from .export import refuse_existing, save_map
    from .illustration import save_picture
    from .progress import shown
    from .reader import open_trace

    given_as = {"r2g": r2g or None, "g2r": g2r or None, "sram": at, "word": word, "tokens": tokens}
    asked_for = [name for name, what in given_as.items() if what is not None]
    if len(asked_for) != 1:
        raise click.UsageError("say which map: one of --r2g, --g2r, --at Y,X, --word WORD and --tokens N,N")
    direction = asked_for[0]
    path = out or Path(f"{direction}.png")
    refuse_existing(path, overwrite=overwrite)
    opened = open_trace(trace, partial=partial)
    if options["changes"] and direction in ("word", "tokens"):
        options["recipe"] = options["recipe"] or ("ovam" if options["probe"] else "daam")
    options = given(opened, **options)
    asked = ask(opened, direction, given_as[direction], options)
    with shown("map"):
        map = refine(opened, asked.compute(), patches, as_published)
    if path.suffix == ".png":
        save_picture(opened, map, path, style=style, at=at, overwrite=overwrite)
    else:
        save_map(map, path, overwrite=overwrite)
    facts: dict[str, Any] = {**map.attrs, "out": str(path), "dims": list(map.dims), "shape": list(map.shape)}
    facts |= {"least": float(map.min()), "greatest": float(map.max())}
    facts["note"] = note_of(opened, map, options)
    if as_json:
        click.echo(document(facts))
        return
    answer(f"{path}: {direction} {dict(map.sizes)}, {facts['least']:.3g} to {facts['greatest']:.3g}", facts["note"])


def refine(trace: Trace, map: xr.DataArray, patches: bool, as_published: bool) -> xr.DataArray:
    """A computed map, carried to patches and made the picture of its recipe, if that was typed."""
    from .pictures import published
    from .resampler import carry

    map = carry(trace, map) if patches else map
    return published(trace, map) if as_published else map


def note_of(trace: Trace, map: xr.DataArray, options: Mapping[str, Any]) -> str | None:
    """What the encoding did to a map, if it did anything."""
    from .precision import precision_note
    from .selection import choose

    if not map.attrs.get("column_mass_lost"):
        return None
    typed = {name: options[name] for name in ("layers", "heads", "recipe", "probe") if name in options}
    chosen = choose(trace, group=None if "probe" in typed else map.attrs["group"], **typed)
    return precision_note(trace, chosen.layers)


def ask(trace: Trace, direction: str, what: Any, options: Mapping[str, Any]) -> xr.DataArray:
    """The lazy map that typed options ask for."""
    from .attribution import g2r, r2g, sram
    from .tokens import token_map

    chosen = dict(options)
    foreign = [name for name, of in (("text", ("word",)), ("probe", ("word", "tokens"))) if name in chosen and direction not in of]
    if foreign:
        raise click.UsageError(f"--{foreign[0]} says which text a --word is of; name the word")
    mask = chosen.pop("query_mask", None)
    if mask is not None:
        from .masks import load_mask

        if direction != "g2r":
            raise click.UsageError("--query-mask weighs generated positions, which only --g2r averages over")
        chosen["query_mask"] = load_mask(trace, mask)
    if "frames" in chosen and direction not in ("r2g", "g2r"):
        raise click.UsageError("--frames selects frames of --r2g and --g2r; --at names its own, F,Y,X")
    if direction == "word":
        from .spoken import words as word_map

        found: xr.DataArray = word_map(trace, what, **chosen)
        return found
    if direction == "tokens":
        return token_map(trace, what, **chosen)
    if direction == "sram":
        return sram(trace, at=what, **chosen)
    return r2g(trace, **chosen) if direction == "r2g" else g2r(trace, **chosen)


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
    from .report import report, write_report

    if out.suffix != ".png":
        raise InvalidInput(f"the report is a picture; end {out.name!r} in .png")
    facts = report(trace, out, group=group, sample=sample, partial=partial, overwrite=overwrite, progress=True)
    answer(document(facts) if as_json else write_report(facts), None if as_json else facts["note"])


COMMANDS: Final = (info_command, verify_command, map_command, imacs_command, evaluate_command, report_command)
