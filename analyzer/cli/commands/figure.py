"""The command `figure`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from ...output.files import check_output, endings
from ..options import (
    PATH,
    completing,
    example,
    given,
    json_option,
    output_option,
    overwrite_option,
    place,
    recipe_names,
    scheduler_option,
    selection_options,
    traces_argument,
    with_heads,
    words,
)
from ..text import answer
from .methods import labels

KINDS: Final = ("runs", "patches", "flow", "layers", "time", "methods", "words", "tokens", "heads")
STYLES: Final = "mako, viridis, plain, i2am, daam, or a colour map of matplotlib."


def places(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> list[tuple[int, ...]] | None:
    """Patches, each as `place` reads it."""
    return [at for text in texts if (at := place(context, option, text)) is not None] or None


@click.command(
    "figure",
    short_help="Make a figure for a paper: PDF, SVG or PNG, with colour bars.",
    epilog=example(
        "i2am figure a.zarr b.zarr -o runs.pdf                     a row a run, as papers lay them out",
        "i2am figure run.zarr --kind patches --at 6,7 --at 10,6 -o patches.pdf",
        "i2am figure run.zarr --kind layers --time-groups 3 --width column -o layers.pdf",
        "i2am figure run.zarr --kind layers --keep layer,head --at 6,7 -o heads.svg",
        "i2am figure run.zarr --kind methods --recipes i2am,i2am-official -o methods.pdf",
        "i2am figure run.zarr --kind words --words dog,hat --style magma_r -o words.pdf",
        "i2am figure run.zarr --kind heads --scores hrv.nc --words Animals,Color -o heads.pdf",
    ),
)
@traces_argument
@output_option(f"Output: {endings('figure')}.  [default: KIND.pdf]")
@click.option("--kind", type=click.Choice(KINDS), default="runs", show_default=True, help="What is shown.")
@click.option("--direction", type=click.Choice(["r2g", "g2r"]), help="Of layers and methods.  [default: r2g]")
@click.option("--at", multiple=True, callback=places, metavar="[F,]Y,X", help="A patch of the latent grid; may be given several times.")
@click.option("--words", callback=words, metavar="WORDS", help="Words of the prompt, or concepts of heads.  [default: all]")
@click.option("--recipes", callback=labels, metavar="NAMES", help="Methods side by side.", shell_complete=completing(recipe_names))
@click.option("--scores", type=PATH, metavar="FILE", help="Scores that `i2am heads` made.  [default: made of the traces]")
@click.option("--keep", callback=words, metavar="AXES", help="Of layers: one or two of layer,time,head.  [default: layer,time]")
@click.option("--time-groups", type=click.IntRange(min=1), metavar="N", help="Groups of steps, the noisiest first.  [default: 5]")
@click.option("--columns", type=click.IntRange(min=1), metavar="N", help="Most panels in a row.")
@click.option("--scale", type=click.Choice(["shared", "own"]), default="shared", show_default=True, help="One with a bar, or each panel's.")
@click.option("--unit", type=click.Choice(["share", "sum"]), default="share", show_default=True, help="Even shares, or as maps are.")
@click.option("--width", default="page", show_default=True, metavar="WIDTH", help="column (3.25 inches), page (6.75), or inches.")
@click.option("--dpi", type=int, default=300, show_default=True, metavar="N", help="Pixels an inch of pictures in it, and of a PNG.")
@click.option("--style", default="mako", show_default=True, metavar="NAME", help=STYLES)
@click.option("--title", metavar="TEXT", help="Above the figure.")
@click.option("--font", metavar="NAME", help="A font that is installed.  [default: DejaVu Sans]")
@selection_options
@scheduler_option
@overwrite_option
@json_option
def figure_command(
    traces: tuple[Path, ...],
    partial: bool,
    out: Path | None,
    kind: str,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a figure for a paper, with matplotlib (pip install "i2am[plot]").

    \b
    runs      a row a run: input, reference, generated, R2G, G2R, SRAM of patches
    patches   the generated image with patches framed, and where each of them looked
    flow      the generated image, the reference warped to it by where patches looked, and the reference
    layers    layers by time, or the axes that --keep names
    time      R2G, G2R, and SRAM with --at, from noise to picture
    methods   one map by several methods
    words     a tile a word of the prompt
    tokens    a tile a token of the text
    heads     a bar a head: relevance to concepts, or accuracy

    Panels of one kind of map share a scale, which a bar explains: 1 is an even share. Text stays text, fonts are embedded, and the same
    figure is the same bytes.
    """
    from ....schema.messages import require_extra

    path = out or Path(f"{kind}.pdf")
    check_output(path, "figure", overwrite=overwrite)
    require_extra(("matplotlib",), "`i2am figure`")
    from ...datasets.cluster import computing
    from ...figures.figure import figure
    from ...output.files import Output, save
    from ...progress import shown
    from ...trace.reader import open_trace

    opened = [open_trace(trace, partial=partial) for trace in traces]
    if options["weight"] and kind == "methods":
        raise click.UsageError("--recipes says which methods, each with its weight in brackets behind its name; leave out --weight")
    if (options["changes"] or options["weight"]) and kind in ("words", "tokens"):
        options["recipe"] = options["recipe"] or "daam"
    asked = with_heads(given(**options), opened[0])
    with computing(scheduler, *traces), shown("figure"):
        made = figure(opened, kind, **asked)
    save(Output(figure=made), path, overwrite=overwrite)
    width, height = made.get_size_inches()
    answer(
        {"out": str(path), "kind": kind, "width": width, "height": height}, f"{path}: {width:.3g} x {height:.3g} inches", as_json=as_json
    )
