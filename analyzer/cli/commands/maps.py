"""The commands `map` and `words`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial as fix
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ....schema.errors import CorruptTrace, InvalidInput
from ....schema.messages import option
from ...output.files import check_output, endings, suffixes
from ..options import (
    branch_option,
    completing,
    example,
    given,
    json_option,
    numbers,
    output_option,
    overwrite_option,
    place,
    scheduler_option,
    selection_options,
    style_option,
    trace_argument,
    traces_argument,
    with_heads,
    words,
)
from ..text import align, answer, write_skipped

if TYPE_CHECKING:
    import xarray as xr

    from ...maps.words import WordSpan
    from ...output.colours import Scale
    from ...trace.reader import Trace

DIRECTIONS: Final = {"r2g": "r2g", "g2r": "g2r", "at": "sram", "word": "word", "tokens": "tokens", "concept_attention": "concept"}
"""Options of which one says which map, and what that map is called."""
ONLY_FOR: Final = {
    "text": (("word",), "--text says which text a --word is of; name the word"),
    "probe": (("word", "tokens"), "--probe says which text a --word is of; name the word"),
    "query_mask": (("g2r",), "--query-mask weighs generated positions, which only --g2r averages over"),
    "frames": (("r2g", "g2r"), "--frames selects frames of --r2g and --g2r; --at names its own, F,Y,X"),
}
"""Options that only some maps take, and what to say for the others."""
OF_CONCEPTS: Final = ("keep", "steps", "layers", "sample", "branch")
"""Options that a map of a concept takes."""
POSITIONAL: Final = ("layers", "steps", "heads")
"""Options that choose by position, which has to mean the same in all traces of a mean map."""
ONE: Final = "note: one trace says nothing about how much traces differ, so the mean has no interval"
APPROXIMATE: Final = "note: in one of the traces the encoding lost up to {:.0%} of one token's column, so R2G is approximate"


@click.command(
    "map",
    epilog=example(
        "i2am map run.zarr --r2g -o r2g.png              which parts came from the reference",
        "i2am map run.zarr --g2r --style i2am -o g2r.png  which parts of the reference were used",
        "i2am map run.zarr --at 12,20 -o patch.png       where one patch looked",
        "i2am map run.zarr --word dog -o dog.png         where a word is attended to",
        "i2am map run.zarr --word zebra --probe concepts -o zebra.png",
        "i2am map run.zarr --concept-attention cat -o cat.png       where a recorded concept lies (ConceptAttention)",
        "i2am map run.zarr --r2g --keep time,head --time-groups 5 -o grid.png",
        "i2am map run.zarr --g2r --keep layer -o g2r.nc",
        "i2am map run.zarr --tokens 4,5 --recipe daam -o word.png   where two text tokens are attended to",
        "i2am map run.zarr --g2r --weight knock-out -o used.png   what losing a token would change, where values were recorded",
        "i2am map run.zarr --r2g --recipe i2am-official --set resize=bilinear -o r2g.png",
        "i2am map run.zarr --g2r --recipe i2am-official --as-published --style plain -o figure.png",
        "i2am map run.zarr --r2g --heads-from hrv.nc --concept Animals --top 30",
        "i2am map traces/ --mean --r2g -o mean.png       the mean of many traces, and where it lies",
    ),
)
@traces_argument
@click.option("--mean", is_flag=True, help="The mean over traces, cell by cell, with its 95% interval (Student's t).")
@click.option("--r2g", is_flag=True, help="Reference to generated: lies on the generated image.")
@click.option("--g2r", is_flag=True, help="Generated to reference: lies on the reference.")
@click.option("--at", callback=place, metavar="[F,]Y,X", help="SRAM of one patch of the latent grid: lies on the reference.")
@click.option("--word", metavar="WORD", help="A word or phrase of the prompt, or dog#2 for the second dog: lies on the generated image.")
@click.option("--tokens", callback=numbers, metavar="N,N|A:B", help="Some tokens, by default of the text: lies on the generated image.")
@click.option("--concept-attention", metavar="NAME", help="A concept that was recorded beside the run: lies on the generated image.")
@click.option("--probe", metavar="NAME", help="The probe that --word or --tokens are of.")
@click.option("--text", metavar="TEXT", help="The text of the probe that --word is of, where it has several.")
@output_option(f"Output: {endings('picture', 'map')}.  [default: DIRECTION.png]")
@click.option(
    "--keep",
    callback=words,
    metavar="AXES",
    help="Axes to keep, of time,head,layer, and token with --tokens.",
    shell_complete=completing(lambda: ("time", "layer", "head", "token")),
)
@click.option("--time-groups", type=click.IntRange(min=1), metavar="N", help="Split the steps into N groups, the noisiest first.")
@selection_options
@click.option("--frames", callback=numbers, metavar="N,N|A:B", help="Frames of a video's map: shown (R2G), averaged (G2R).")
@click.option("--query-mask", metavar="NAME|PNG", help="Weigh generated positions by a mask (G2R; v1 Eq. 17).")
@click.option("--patches", is_flag=True, help="Carry an adapter's tokens back to the patches its resampler made them of (G2R, --at).")
@click.option("--as-published", is_flag=True, help="Scale, invert and cut the map as its recipe does, at its image's size.")
@style_option
@click.option("--scale", type=click.Choice(["shared", "own"]), help="One scale of colours for all tiles, with a bar, or each tile's own.")
@scheduler_option
@overwrite_option
@json_option
def map_command(
    traces: tuple[Path, ...],
    partial: bool,
    mean: bool,
    out: Path | None,
    patches: bool,
    as_published: bool,
    style: str,
    scale: Scale | None,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Draw or save an attribution map.

    Exactly one of --r2g, --g2r, --at, --word, --tokens and --concept-attention says which. A picture has one scale of colours, shown by
    a bar below it; in the styles i2am and daam each tile has its own. Numbers are in .npy, .nc and .zarr. With --mean,
    TRACE is a folder that holds traces, a quoted pattern, or several; those that cannot be asked, or do not fit the first, are listed and
    skipped, and the exit code is then 4.
    """
    from ...datasets.cluster import computing
    from ...output.colours import find_style
    from ...store.discovery import is_dataset
    from ...trace.reader import open_trace

    direction, what = pick_direction(options)
    path = out or Path(f"{direction}.png")
    find_style(style)
    check_output(path, "picture", "maps" if mean else "map", overwrite=overwrite)
    if (options["changes"] or options["weight"]) and direction in ("word", "tokens"):
        options["recipe"] = options["recipe"] or ("ovam" if options["probe"] else "daam")

    drawn = path.suffix in suffixes("picture") and not patches
    make = fix(make_map, direction=direction, what=what, options=options, drawn=drawn, patches=patches, as_published=as_published)
    if mean:
        from ...datasets.means import mean_map, save_mean

        positional = {name: options[name] for name in POSITIONAL if options[name] is not None}
        with computing(scheduler, *traces):
            found = mean_map(traces, make, partial=partial, **positional)
        save_mean(found, path, style, scale, overwrite=overwrite)
        return answer_mean(found, path, direction, as_json=as_json)
    if is_dataset(traces):
        raise click.UsageError("a map is of one trace; --mean makes the mean map of several")
    from ...progress import shown

    opened = open_trace(traces[0], partial=partial)
    with computing(scheduler, *traces), shown("map"):
        map = make(opened)
    save_map(opened, map, path, what if direction == "sram" else None, style, scale, overwrite=overwrite)
    facts = facts_of(map, path, as_published=as_published)
    facts["note"] = note_of(opened, map, with_heads(given(**options), opened))
    answer(facts, summary(facts, direction, map), facts["note"], as_json=as_json)
    return 0


def make_map(
    trace: Trace, *, direction: str, what: Any, options: dict[str, Any], drawn: bool, patches: bool, as_published: bool, **_: Any
) -> xr.DataArray:
    """The map that typed options ask of a trace; one that is to be drawn needs places."""
    asked = ask(trace, direction, what, with_heads(given(**options), trace))
    if drawn:
        require_places(trace, asked)
    return refine(trace, asked.compute(), patches, as_published)


def save_map(trace: Trace, map: xr.DataArray, path: Path, at: Any, style: str, scale: Scale | None, *, overwrite: bool) -> None:
    """Write a map as the file's ending says; in a picture of SRAM the patch `at` is marked."""
    from ...output.files import Output, save
    from ...output.illustration import illustrate, provenance

    def draw() -> Any:
        return illustrate(trace, map, style, at=at, scale=scale), provenance(map)

    save(Output({str(map.name or "map"): map}, draw), path, overwrite=overwrite)


def facts_of(map: xr.DataArray, path: Path, *, as_published: bool = False) -> dict[str, Any]:
    """What a map says of itself, and its range, as plain JSON."""
    from ...facts import PLACE

    facts = {**dict.fromkeys((*PLACE, "pre_mask") if as_published else PLACE), **map.attrs, "out": str(path)}
    return {**facts, "dims": list(map.dims), "shape": list(map.shape), "least": float(map.min()), "greatest": float(map.max())}


def summary(facts: Mapping[str, Any], direction: str, map: xr.DataArray) -> str:
    """The line that says what was written."""
    return f"{facts['out']}: {direction} {dict(map.sizes)}, {facts['least']:.3g} to {facts['greatest']:.3g}"


def answer_mean(found: xr.Dataset, path: Path, direction: str, *, as_json: bool) -> int:
    """Print what a mean map is of and which traces were skipped, and return the exit code."""
    from ....schema.trace import LOSSY

    skipped, count = json.loads(found.attrs["skipped"]), found.attrs["traces"]
    half, lost = float((found["high"] - found["low"]).mean()) / 2, found["mean"].attrs.get("column_mass_lost") or 0.0
    facts = {**facts_of(found["mean"], path), **found.attrs, "skipped": skipped, "half_width": half}
    notes = [text for text, holds in ((ONE, count == 1), (APPROXIMATE.format(lost), lost > LOSSY)) if holds]
    facts["note"] = "; ".join(notes) or None
    of = f"mean of {count} traces, {found.attrs['level']:.0%} interval +- {half:.3g} on average" if count > 1 else "of 1 trace"
    lines = [*write_skipped(skipped, count + len(skipped)), *notes]
    answer(facts, f"{summary(facts, direction, found['mean'])}; {of}", "\n".join(lines), as_json=as_json)
    return CorruptTrace.exit_code if skipped else 0


def pick_direction(options: dict[str, Any]) -> tuple[str, Any]:
    """Take out of the options which map was typed, and the patch, word or tokens that it is of.

    Raises   UsageError unless it is one map
    """
    given_as = {name: options.pop(option) for option, name in DIRECTIONS.items()}
    asked_for = [(name, what) for name, what in given_as.items() if what is not None and what is not False]
    if len(asked_for) != 1:
        raise click.UsageError("say which map: one of --r2g, --g2r, --at Y,X, --word WORD, --tokens N,N and --concept-attention NAME")
    return asked_for[0]


def require_places(trace: Trace, map: xr.DataArray) -> None:
    """Say before the scan that a map cannot be drawn, and what can.

    Raises   InvalidInput for a map over tokens that have no place
    """
    from ...facts import MapFacts

    if map.dims[-1] != "token":
        return
    group = MapFacts.of(map).group
    way = "--r2g draws where they came in"
    if any(layer.queries == group for layer in trace.layers):
        way = "--patches carries them back to the patches they were made of"
    raise InvalidInput(
        f"the {map.sizes['token']} {group} tokens have no place on a picture, so this map has no rows and columns to draw; {way}, and "
        f"{endings('map')} hold its numbers"
    )


def refine(trace: Trace, map: xr.DataArray, patches: bool, as_published: bool) -> xr.DataArray:
    """A computed map, carried to patches and made the picture of its recipe, if that was typed."""
    from ...maps.heatmap import published
    from ...maps.resampler import carry

    map = carry(trace, map) if patches else map
    return published(trace, map) if as_published else map


def note_of(trace: Trace, map: xr.DataArray, options: Mapping[str, Any]) -> str | None:
    """What to read before trusting a map, if anything."""
    from ...aggregation.selection import Select, choose
    from ...facts import MapFacts
    from ...inspection.info import caution

    columns = bool(MapFacts.of(map).column_mass_lost)
    if not columns and not MapFacts.of(map).unproven:
        return None
    probe = options.get("probe")
    select = Select(layers=options.get("layers"), heads=options.get("heads"), group=None if probe else MapFacts.of(map).group)
    chosen = choose(trace, select, recipe=options.get("recipe"), probe=probe)
    return caution(trace, chosen.layers, columns=columns)


def ask(trace: Trace, direction: str, what: Any, options: Mapping[str, Any]) -> xr.DataArray:
    """The lazy map that typed options ask for.

    Raises   UsageError for an option that such a map does not take; as the map functions
    """
    from ...maps.attribution import g2r, r2g, sram, token_map
    from ...maps.words import concept_map, word_map
    from ...trace.images import load_mask

    for name, (directions, problem) in ONLY_FOR.items():
        if name in options and direction not in directions:
            raise click.UsageError(problem)
    if direction == "concept" and (other := next((name for name in options if name not in OF_CONCEPTS), None)):
        raise click.UsageError(f"--concept-attention takes no {option(other)}; its maps have all heads, and no recipe")
    chosen = dict(options)
    if "query_mask" in chosen:
        chosen["query_mask"] = load_mask(trace, chosen["query_mask"])
    maps: dict[str, Callable[..., xr.DataArray]] = {
        "r2g": r2g,
        "g2r": g2r,
        "sram": fix(sram, at=what),
        "word": fix(word_map, word=what),
        "tokens": fix(token_map, tokens=what),
        "concept": fix(concept_map, concept=what),
    }
    return maps[direction](trace, **chosen)


@click.command(
    "words",
    short_help="List the words of the run, or of a probe, and their tokens.",
    epilog=example(
        "i2am words run.zarr",
        "i2am words run.zarr --probe concepts",
        "i2am words run.zarr --branch uncond --json",
        "i2am map run.zarr --word dog#2 -o dog.png",
    ),
)
@trace_argument
@click.option("--probe", metavar="NAME", help="Words of a probe, by default those of the prompts.")
@branch_option
@click.option("--sample", type=int, help="Generated image, from 0.")
@json_option
def words_command(trace: Path, partial: bool, probe: str | None, branch: str | None, sample: int | None, as_json: bool) -> None:
    """List the words that the run was given, or those of a probe, and the tokens each is made of; `i2am map --word` draws one."""
    from ...maps.words import list_words
    from ...trace.reader import open_trace

    rows = list_words(open_trace(trace, partial=partial), probe=probe, branch=branch, sample=sample)
    answer([row.to_json() for row in rows], write_words(rows), as_json=as_json)


def write_words(rows: Sequence[WordSpan]) -> str:
    """The words as a table; one that comes several times is numbered as --word takes it."""
    again = {(row.word.casefold(), row.group, row.branch, row.sample) for row in rows if row.occurrence > 1}
    table = [("word", "tokens", "pieces", "in", "branch", "sample")]
    for row in rows:
        several = (row.word.casefold(), row.group, row.branch, row.sample) in again
        word = f"{row.word}#{row.occurrence}" if several else row.word
        sample = "all" if row.sample is None else str(row.sample)
        table.append((word, ",".join(map(str, row.tokens)), " ".join(row.pieces), row.group, row.branch or "all", sample))
    return align(table)
