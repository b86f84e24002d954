"""The kinds of figures, what each takes, and the function that makes one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, Unpack

import xarray as xr

from ...schema.errors import InvalidInput
from ...schema.messages import guess, option, require_extra
from ..aggregation.request import kept_axes
from ..heads.files import load_heads
from ..trace.reader import Trace, open_trace
from .heads import heads
from .panels import Asked, CallOptions, Charts, Grid
from .parts import layers, methods, time, tokens, words
from .runs import patches, runs, warped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Source: TypeAlias = Trace | str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of figure."""

    what: str
    make: Callable[[Asked], Grid | Charts]
    takes: tuple[str, ...]
    """Options beside those that choose calls and looks."""
    several: bool = False
    """Whether it shows several runs."""


KINDS: Final = {
    "runs": Kind("a row a run: input, reference, generated, R2G, G2R, SRAM of patches", runs, ("at", "recipe"), True),
    "patches": Kind("the generated image with patches framed, and where each looked", patches, ("at", "recipe", "columns")),
    "flow": Kind("the generated image, the reference warped to it by where patches looked, and the reference", warped, ("recipe",)),
    "layers": Kind("layers by time, or other axes that are kept", layers, ("direction", "at", "keep", "time_groups", "recipe", "columns")),
    "time": Kind("R2G, G2R and SRAM of a patch from noise to picture", time, ("at", "time_groups", "recipe")),
    "methods": Kind("one map by several methods", methods, ("direction", "at", "recipes", "columns")),
    "words": Kind("a tile a word of the prompt", words, ("words", "recipe", "columns")),
    "tokens": Kind("a tile a token of the text", tokens, ("recipe", "columns")),
    "heads": Kind("a bar a head: relevance to concepts, or accuracy", heads, ("words", "scores", "columns"), True),
}
"""By name. A new kind is a row here."""


def figure(
    traces: Source | Iterable[Source],
    kind: str = "runs",
    *,
    direction: Literal["r2g", "g2r"] | None = None,
    at: Sequence[tuple[int, ...]] | tuple[int, ...] | None = None,
    words: Iterable[str] | None = None,
    recipes: Iterable[str] | None = None,
    scores: xr.DataArray | str | os.PathLike[str] | None = None,
    keep: Iterable[str] | str | None = None,
    time_groups: int | None = None,
    columns: int | None = None,
    scale: str = "shared",
    unit: str = "share",
    width: str | float = "page",
    dpi: int = 300,
    style: str = "mako",
    title: str | None = None,
    font: str | None = None,
    **options: Unpack[CallOptions],
) -> Figure:
    """A figure for a paper: a matplotlib `Figure` whose `savefig` embeds fonts and writes the same bytes each time.

        figure("run.zarr", "layers", at=(6, 7), time_groups=3, layers="*up*").savefig("layers.pdf")

    `kind`       runs, patches, flow, layers, time, methods, words, tokens or heads
    `direction`  r2g or g2r, of layers and methods
    `at`         one patch, or several, of the latent grid
    `words`      words of the prompt, or of heads their concepts; None is all
    `recipes`    methods side by side; None is all that can be asked
    `scores`     of heads, or a file of `i2am heads`; None scores those of the traces
    `keep`       one axis or two of layer, time and head, of layers; None is layer and time
    `time_groups`  groups of steps, the noisiest first; None is 5
    `columns`    most panels in one row, where they are no table
    `scale`      shared: one colour is one value in all panels of a kind of map; own: each panel has its range
    `unit`       share: times an even share, which is the mean of the panels; sum: as the map is
    `width`      column, page, or inches
    `dpi`        pixels an inch of pictures in it, and of a PNG
    `style`      mako, viridis, plain, i2am, daam, or a colour map of matplotlib
    `title`      above the figure
    `font`       name of a font that matplotlib finds

    The other options choose calls as in `r2g`. Of a video the middle frame is shown.

    Raises   MissingExtra without matplotlib; InvalidInput, UnknownSelection before anything is computed
    """
    require_extra(("matplotlib",), f"figures ({option('kind', kind)})", ", or draw PNG sheets with i2am map, compare and report")
    from .canvas import draw
    from .charts import draw_charts
    from .layout import measure
    from .paper import make_look, own_settings

    found = find_kind(kind)
    own = {"direction": direction, "at": at, "words": words, "recipes": recipes, "scores": scores, "keep": keep, "time_groups": time_groups}
    own |= {"columns": columns}
    given = {name: value for name, value in {**own, **options}.items() if value is not None}
    _refuse(kind, given)
    look = make_look(style, scale, unit, width, dpi, title, font)
    opened = _open(traces, kind)
    made = found.make(_asked(opened, own, options))
    with own_settings(look.font):
        if isinstance(made, Charts):
            drawn = draw_charts(made, look, columns)
        else:
            layout = measure(made, look)
            drawn = draw(made.compute(), layout, look)
    ids = {"traces": [trace.id for trace in opened], "kind": kind}
    drawn.origin = ids | {name: value for name, value in given.items() if not isinstance(value, xr.DataArray)}
    return drawn


def find_kind(name: str) -> Kind:
    """The kind of a name, or InvalidInput."""
    if name not in KINDS:
        raise InvalidInput(f"no figure is called {name!r}; {guess(name, KINDS)}kinds are {', '.join(KINDS)}")
    return KINDS[name]


def _refuse(kind: str, given: dict[str, Any]) -> None:
    """Refuse an option that a kind does not take."""
    for name in given:
        others = [other for other, row in KINDS.items() if name in row.takes]
        if others and kind not in others:
            raise InvalidInput(f"{option(name)} is of {option('kind')} {', '.join(others)}, not of {kind}; leave it out")


def _open(traces: Source | Iterable[Source], kind: str) -> tuple[Trace, ...]:
    given = [traces] if isinstance(traces, (Trace, str, os.PathLike)) else list(traces)
    if not given or (len(given) > 1 and not KINDS[kind].several):
        several = ", ".join(name for name, row in KINDS.items() if row.several)
        raise InvalidInput(f"a figure of kind {kind} shows one run, got {len(given)}; {several} show several")
    return tuple(each if isinstance(each, Trace) else open_trace(each) for each in given)


def _asked(traces: tuple[Trace, ...], own: dict[str, Any], options: CallOptions) -> Asked:
    """What is asked, with one patch, word or axis as a list of one, and scores read."""
    at, scores = own["at"], own["scores"]
    cells = [at] if at and not isinstance(at[0], Sequence) else at or []
    keep = kept_axes(own["keep"] or ("time", "layer"), own["time_groups"]) if own["keep"] or own["time_groups"] else ()
    listed = {name: (value,) if isinstance(value := own[name], str) else tuple(value or ()) for name in ("words", "recipes")}
    return Asked(
        traces=traces,
        direction=own["direction"] or "r2g",
        at=tuple(tuple(cell) for cell in cells),
        scores=load_heads(Path(scores)) if isinstance(scores, (str, os.PathLike)) else scores,
        keep=keep if own["keep"] else (),
        time_groups=own["time_groups"],
        columns=own["columns"],
        options=options,
        **listed,
    )
