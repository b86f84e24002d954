"""Options that several subcommands share, and how their text becomes values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ...schema.record import BRANCHES

if TYPE_CHECKING:
    from ..trace.reader import Trace

RANKING: Final = ("concept", "top", "bottom", "weigh")
"""What picks heads of a file that ranks them."""

PATH: Final = click.Path(path_type=Path)


class Place(click.Path):
    """A path, or an address as it was typed: a `Path` would make one slash of two."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, str) and "://" in value else super().convert(value, param, ctx)


PLACE: Final = Place(path_type=Path)

F = TypeVar("F", bound=Callable[..., Any])


def numbers(context: click.Context, option: click.Parameter, text: str | None) -> list[int] | slice | None:
    """Positions: `3`, `0,2,5`, or half-open ranges `0:10`, `::5`."""
    from ...schema.selection import read_positions

    return None if text is None else read_positions(text, str(option.name).removesuffix("s"))


def place(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """A patch, `Y,X`: row from the top, column from the left, from 0; in a video `F,Y,X`, the frame first."""
    if text is None:
        return None
    try:
        at = tuple(int(part) for part in text.split(","))
        if len(at) not in (2, 3):
            raise ValueError
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a patch; write Y,X with two whole numbers, such as 12,20, or F,Y,X for a video", context, option
        ) from None
    return at


def words(context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """Words with commas between."""
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def completing(values: Callable[[], Iterable[str]]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """What a shell completes an option to; of several with commas between, the last. The values are loaded when a shell asks."""

    def complete(context: click.Context, option: click.Parameter, typed: str) -> list[str]:
        before, comma, start = typed.rpartition(",")
        return [f"{before}{comma}{value}" for value in values() if value.startswith(start)]

    return complete


def recipe_names() -> Iterable[str]:
    """Names of all methods."""
    from ..methods.recipes import RECIPES

    return RECIPES


def weight_names() -> Iterable[str]:
    """Names of what softmax values may be multiplied by."""
    from ..methods.recipes import CHOICES

    return CHOICES["weight"]


def style_names() -> Iterable[str]:
    """Names of the looks of a picture of one map."""
    from ..output.colours import STYLES

    return (name for name, style in STYLES.items() if not style.signed)


def metric_names() -> Iterable[str]:
    """Names of all metrics."""
    from ..evaluation.metric_table import METRICS

    return METRICS


def _keep_in(context: click.Context, option: click.Parameter, folder: str | None) -> None:
    """Tell this process, and those that it starts, where to keep bytes."""
    if folder is not None:
        from ..storage.cache import VARIABLE, require_folder

        require_folder(folder)
        before = os.environ.get(VARIABLE, "")
        context.call_on_close(lambda: os.environ.update({VARIABLE: before}))
        os.environ[VARIABLE] = folder


def output_option(text: str, **more: Any) -> Callable[[F], F]:
    """-o, with what it says of its file."""
    return click.option("-o", "--out", type=PATH, metavar="FILE", help=text, **more)


SCHEDULER: Final = "Work on a dask cluster, such as tcp://10.0.0.1:8786."
scheduler_option = click.option("--scheduler", metavar="ADDRESS", help=f"{SCHEDULER}  [default: here]")
partial_option = click.option("--partial", is_flag=True, help="Open recordings that did not finish; only committed steps count.")
cache_option = click.option(
    "--cache",
    metavar="DIR|none",
    expose_value=False,
    callback=_keep_in,
    help="Where bytes of traces at addresses are kept.  [default: I2AM_CACHE, or the user's cache folder]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
style_option = click.option(
    "--style",
    default="viridis",
    show_default=True,
    metavar="NAME",
    help="Look of the picture: viridis, mako, i2am, daam, plain.",
    shell_complete=completing(style_names),
)
TRUTH: Final = "Known truth: CSV of y,x,ref_y,ref_x from 0 to 1, or a flow (.npy, .npz).  [default: the trace's own]"
truth_option = click.option("--truth", metavar="FILE", help=TRUTH)
CHANGE: Final = "Change a field of the recipe, such as resize=bilinear; may be given several times."
changes_option = click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help=CHANGE)
LAYERS: Final = "Layers: positions, names, globs, or re: and a regular expression; commas between, or given several times."
layers_option = click.option("--layers", multiple=True, callback=lambda _, __, texts: texts or None, metavar="NAMES", help=LAYERS)
steps_option = click.option("--steps", callback=numbers, metavar="N,N|A:B", help="Steps in order of execution, from 0.")
sample_option = click.option("--sample", type=int, default=0, show_default=True, help="Generated image, from 0.")
branch_option = click.option("--branch", help="Guidance branch: cond or uncond.", shell_complete=completing(lambda: BRANCHES))
group_option = click.option("--group", metavar="NAME", help="Token group; by default the reference's only one.")
SELECTION: Final = (
    layers_option,
    steps_option,
    click.option("--heads", callback=numbers, metavar="N,N|A:B", help="Heads, from 0: the same in every layer."),
    click.option("--heads-from", type=PATH, metavar="FILE", help="Take the best or worst heads of a file of `i2am heads`."),
    click.option("--concept", metavar="NAME", help="Concept to rank the file's heads by."),
    click.option("--top", type=int, metavar="N", help="The file's N best heads."),
    click.option("--bottom", type=int, metavar="N", help="The file's N worst heads."),
    click.option(
        "--weigh", is_flag=True, callback=lambda _, __, set: set or None, help="Weigh its heads by their scores, all or the best."
    ),
    sample_option,
    branch_option,
    group_option,
    click.option(
        "--recipe",
        metavar="NAME",
        help="Method, such as i2am or daam; `i2am recipes` lists them.  [default: i2am]",
        shell_complete=completing(recipe_names),
    ),
    changes_option,
    click.option(
        "--weight",
        metavar="NAME",
        help="Multiply attention: norm, contribution, knock-out (values needed).  [default: attention]",
        shell_complete=completing(weight_names),
    ),
)


def trace_argument(command: F) -> F:
    """The trace, and whether an unfinished one will do."""
    return click.argument("trace", type=PLACE, metavar="TRACE")(partial_option(cache_option(command)))


def source_argument(command: F) -> F:
    """The complete trace that another is made of."""
    return click.argument("trace", type=PLACE, metavar="TRACE")(cache_option(command))


def traces_argument(command: F) -> F:
    """One trace or many, and whether unfinished ones will do."""
    return click.argument("traces", type=PLACE, metavar="TRACE...", nargs=-1, required=True)(partial_option(cache_option(command)))


def mask_options(command: F) -> F:
    """Against what maps are scored."""
    text = "Where the reference should appear in the generated image.  [default: the trace's mask]"
    used = "The part of the reference that should be used.  [default: the trace's reference mask]"
    command = click.option("--reference-mask", metavar="NAME|PNG", help=used)(command)
    return click.option("--mask", metavar="NAME|PNG", help=text)(command)


def selection_options(command: F) -> F:
    """Which calls a map is made of; the function gets them as keyword arguments of the same names."""
    for option in reversed(SELECTION):
        command = option(command)
    return command


def given(**options: Any) -> dict[str, Any]:
    """The options that were typed, changes made to the recipe: the library's own defaults stand for the others."""
    typed = {name: value for name, value in options.items() if value is not None}
    changes, weight = typed.pop("changes", ()), typed.pop("weight", None)
    if changes or weight:
        from ..methods.recipes import get_recipe, read_changes

        typed["recipe"] = get_recipe(typed.get("recipe", "i2am"), **({"weight": weight} | read_changes(changes))).label
    return typed


def with_heads(typed: dict[str, Any], trace: Trace | None = None) -> dict[str, Any]:
    """Typed options with the heads that --heads-from and its ranking name; a trace must be of the model they were scored on."""
    others = {name: value for name, value in typed.items() if name not in ("heads_from", *RANKING)}
    ranking = {name: typed[name] for name in RANKING if name in typed}
    if "heads_from" not in typed:
        if ranking:
            raise click.UsageError(f"--{next(iter(ranking))} is of a file that ranks heads; say which with --heads-from FILE")
        return others
    if "heads" in typed:
        raise click.UsageError("--heads and --heads-from each say which heads; give one of them")
    from ..heads.files import load_heads
    from ..heads.ranking import select_heads, weigh_heads

    scores = load_heads(typed["heads_from"])
    if not ranking.pop("weigh", False):
        return {**others, "heads": select_heads(scores, **ranking, trace=trace)}
    if "bottom" in ranking:
        raise click.UsageError("--weigh weighs all heads of the file, or its best with --top N; leave out --bottom")
    return {**others, "heads": weigh_heads(scores, **ranking, trace=trace)}


def example(*lines: str) -> str:
    """The end of a help text."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
