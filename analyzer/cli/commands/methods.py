"""The subcommands about methods: `i2am recipes` and `i2am compare`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ...output.files import check_output, endings
from ..options import (
    changes_option,
    completing,
    example,
    given,
    json_option,
    numbers,
    output_option,
    overwrite_option,
    place,
    recipe_names,
    scheduler_option,
    selection_options,
    style_option,
    trace_argument,
    with_heads,
)
from ..text import align, answer, document, say

if TYPE_CHECKING:
    import xarray as xr
    from PIL.Image import Image

    from ...trace.reader import Trace

COLUMNS: Final = 5


def labels(context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """Recipes with commas between; those within brackets are of one recipe: `i2am,daam(resize=bilinear, clamp=no)`."""
    return None if text is None else tuple(part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip())


@click.command("recipes", epilog=example("i2am recipes", "i2am recipes daam --set resize=bilinear", "i2am recipes --markdown"))
@click.argument("names", nargs=-1, shell_complete=completing(recipe_names))
@changes_option
@click.option("--markdown", is_flag=True, help="Print the table of docs/methods.md.")
@json_option
def recipes_command(names: tuple[str, ...], changes: tuple[str, ...], markdown: bool, as_json: bool) -> None:
    """Show the methods that maps can follow, and what each chooses; of NAMES, every field."""
    from ...methods.description import write_fields, write_markdown, write_names
    from ...methods.recipes import RECIPES, get_recipe, read_changes

    rows = [get_recipe(name, **read_changes(changes)) for name in names or RECIPES]
    if as_json:
        say(document([{**dataclasses.asdict(row), "label": row.label} for row in rows]))
    elif markdown:
        say(write_markdown(rows))
    else:
        say(write_fields(rows) if names else write_names(rows))


@click.command(
    "compare",
    short_help="Show several methods' maps of one recording, and how alike they are.",
    epilog=example(
        "i2am compare run.zarr                              all methods that can be asked",
        "i2am compare run.zarr --recipes i2am,i2am-official,daam -o sheet.png",
        "i2am compare run.zarr --g2r --recipes 'i2am,i2am(clamp=no, resize=nearest)' -o maps.nc",
        "i2am compare run.zarr --tokens 4,5 --recipes daam,ovam,prompt-to-prompt --json",
    ),
)
@trace_argument
@click.option(
    "--recipes",
    callback=labels,
    metavar="NAMES",
    help="Methods, separated by commas.  [default: all that can be asked]",
    shell_complete=completing(recipe_names),
)
@click.option("--g2r", is_flag=True, help="Compare G2R, on the reference, instead of R2G.")
@click.option("--at", callback=place, metavar="[F,]Y,X", help="Compare SRAM of one patch of the latent grid.")
@click.option("--tokens", callback=numbers, metavar="N,N|A:B", help="Compare maps of some tokens, by default of the text.")
@output_option(f"Output: {endings('picture')} for a sheet, {endings('maps')} for the maps, {endings('table')} for their correlations.")
@selection_options
@style_option
@scheduler_option
@overwrite_option
@json_option
def compare_command(
    trace: Path,
    partial: bool,
    recipes: tuple[str, ...] | None,
    g2r: bool,
    at: tuple[int, ...] | None,
    tokens: list[int] | slice | None,
    out: Path | None,
    style: str,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Show several methods' maps of one recording side by side, and print every pair's correlation."""
    from ...datasets.cluster import computing
    from ...maps.comparison import compare
    from ...output.files import Output, Table, save
    from ...progress import shown
    from ...trace.reader import open_trace

    wanted = [name for name, asked in (("g2r", g2r), ("sram", at is not None), ("tokens", tokens is not None)) if asked] or ["r2g"]
    if len(wanted) > 1:
        raise click.UsageError("say which maps: one of --g2r, --at Y,X and --tokens N,N, or none of them for R2G")
    if options["recipe"] is not None or options["changes"]:
        raise click.UsageError("--recipes says which methods; write changes in brackets, such as --recipes 'i2am,i2am(resize=nearest)'")
    if out is not None:
        check_output(out, "picture", "maps", "table", overwrite=overwrite)
    opened, weight = open_trace(trace, partial=partial), options.pop("weight")
    chosen = with_heads(given(**options), opened)
    lazy = compare(opened, recipes, direction=wanted[0], at=at, tokens=tokens, weight=weight, **chosen)  # type: ignore[arg-type]
    with computing(scheduler, trace), shown("compare"):
        found = lazy.compute()
    if out is not None:
        maps = {str(name): values for name, values in found.data_vars.items()}
        names = found["recipe"].values.tolist()
        each = zip(names, found["pearson"].values.tolist(), strict=True)
        rows = [{"recipe": name, **dict(zip(names, row, strict=True))} for name, row in each]
        caption = f"Pearson correlation over cells of {wanted[0]} maps by several methods."
        table = Table({"recipe": str, **dict.fromkeys(names, float)}, rows, found.attrs, caption)
        save(Output(maps, lambda: draw_comparison(opened, found, style), table), out, overwrite=overwrite)
    tables = {name: found[name].values for name in ("pearson", "spearman")}
    left_out = "\n".join(f"left out: {each}" for each in found.attrs["left_out"])
    answer({**found.attrs, "out": out, "recipes": found["recipe"].values, **tables}, write_table(found), left_out, as_json=as_json)


def draw_comparison(trace: Trace, found: xr.Dataset, style: str) -> tuple[Image, dict[str, str]]:
    """The sheet of all recipes' maps, and where it comes from."""
    import xarray as xr

    from ...facts import MapFacts
    from ...output.illustration import picture, provenance
    from ...output.sheets import compose, draw, limits_of

    maps, names = found["map"], found["recipe"].values.tolist()
    below = picture(trace, MapFacts.of(maps).image)
    each = [maps.sel(recipe=name) for name in names]
    # What is left of a map that is constant by construction is the rounding of the encoding.
    each = [xr.full_like(map, float(map.mean())) if name in found.attrs["constant"] else map for name, map in zip(names, each, strict=True)]
    ranges = [f"{low:.2g} to {high:.2g}" if low < high else "constant" for low, high in map(limits_of, each)]
    captions = [f"{name}, {values}" for name, values in zip(names, ranges, strict=True)]
    sheet = compose([draw(map, below, style) for map in each], COLUMNS if maps.ndim == 3 else 1, captions)
    return sheet, provenance(maps.assign_attrs(recipes=names))


def write_table(compared: xr.Dataset) -> str:
    """The correlations as text: Pearson above the diagonal, Spearman below."""
    names = compared["recipe"].values.tolist()
    upper, lower = compared["pearson"].values, compared["spearman"].values
    rows = [["", *(f"{i:>6}" for i in range(len(names)))]]
    for i, name in enumerate(names):
        rows.append([name, *(f"{(upper if j > i else lower)[i, j]:6.3f}" if i != j else "." for j in range(len(names)))])
    meaning = "above the dots Pearson, below Spearman (of ranks); columns in the order of the rows; nan: one of the maps is constant"
    return f"{align(rows, right=True)}\n{meaning}"
