"""What each subcommand of the analyzer does: open, ask, print. What it needs beyond click is loaded when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .evaluation import evaluate_command, imacs_command
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
from .trace import info_command, report_command, verify_command

if TYPE_CHECKING:
    import xarray as xr

    from ...trace.reader import Trace


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
    from ...output.files import refuse_existing, save_map
    from ...output.illustration import save_picture
    from ...progress import shown
    from ...trace.reader import open_trace

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
    from ...maps.heatmap import published
    from ...maps.rollout import carry

    map = carry(trace, map) if patches else map
    return published(trace, map) if as_published else map


def note_of(trace: Trace, map: xr.DataArray, options: Mapping[str, Any]) -> str | None:
    """What the encoding did to a map, if it did anything."""
    from ...aggregation.select import Select
    from ...aggregation.selection import choose
    from ...facts import MapFacts
    from ...inspection.precision import precision_note

    if not MapFacts.of(map).column_mass_lost:
        return None
    probe = options.get("probe")
    select = Select(layers=options.get("layers"), heads=options.get("heads"), group=None if probe else MapFacts.of(map).group)
    chosen = choose(trace, select, recipe=options.get("recipe"), probe=probe)
    return precision_note(trace, chosen.layers)


def ask(trace: Trace, direction: str, what: Any, options: Mapping[str, Any]) -> xr.DataArray:
    """The lazy map that typed options ask for."""
    from ...maps.attribution import g2r, r2g, sram
    from ...maps.tokens import token_map

    chosen = dict(options)
    foreign = [name for name, of in (("text", ("word",)), ("probe", ("word", "tokens"))) if name in chosen and direction not in of]
    if foreign:
        raise click.UsageError(f"--{foreign[0]} says which text a --word is of; name the word")
    mask = chosen.pop("query_mask", None)
    if mask is not None:
        from ...trace.images import load_mask

        if direction != "g2r":
            raise click.UsageError("--query-mask weighs generated positions, which only --g2r averages over")
        chosen["query_mask"] = load_mask(trace, mask)
    if "frames" in chosen and direction not in ("r2g", "g2r"):
        raise click.UsageError("--frames selects frames of --r2g and --g2r; --at names its own, F,Y,X")
    if direction == "word":
        from ...maps.words import word_map

        found: xr.DataArray = word_map(trace, what, **chosen)
        return found
    if direction == "tokens":
        return token_map(trace, what, **chosen)
    if direction == "sram":
        return sram(trace, at=what, **chosen)
    return r2g(trace, **chosen) if direction == "r2g" else g2r(trace, **chosen)


COMMANDS: Final = (info_command, verify_command, map_command, imacs_command, evaluate_command, report_command)
