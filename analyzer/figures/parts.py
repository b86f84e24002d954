"""Figures of one run in many parts: over layers, heads and time, by several methods, for the words and tokens of its text."""

from __future__ import annotations

from typing import Final

import xarray as xr

from ...schema.errors import InvalidInput
from ...schema.messages import option, plain
from ..aggregation.selection import find_branch, pick_positions
from ..maps.attribution import g2r, r2g, sram, token_map
from ..maps.comparison import compare
from ..maps.words import list_words, word_map
from ..methods.recipes import Recipe, get_recipe
from .panels import Asked, Grid, Panel, below, flat, image, names_of, shown, spread, wrap

TIME_GROUPS: Final = 5
NAMES: Final = {"r2g": "R2G", "g2r": "G2R", "sram": "SRAM"}


def ask(asked: Asked, direction: str, *keep: str) -> xr.DataArray:
    """The lazy map of a direction, by default in a few time groups where time is kept."""
    steps = len(pick_positions(asked.options.get("steps"), len(asked.trace.present), "step"))
    groups = (asked.time_groups or min(TIME_GROUPS, steps)) if "time" in keep else asked.time_groups
    if direction == "sram":
        return flat(sram(asked.trace, only_patch(asked), keep=keep, time_groups=groups, **asked.options))
    return flat((r2g if direction == "r2g" else g2r)(asked.trace, keep=keep, time_groups=groups, **asked.options))


def only_patch(asked: Asked) -> tuple[int, ...]:
    """The patch of a figure that shows one.

    Raises   InvalidInput for several
    """
    if len(asked.at) != 1:
        raise InvalidInput(f"this kind of figure shows one patch, and {option('at')} names {len(asked.at)}; kind patches shows several")
    return asked.at[0]


def layers(asked: Asked) -> Grid:
    """Layers by time, or other axes that are kept: one in a row of panels, two as rows and columns."""
    kept = asked.keep or ("layer", "time")
    map = ask(asked, "sram" if asked.at else asked.direction, *kept)
    dims = sorted(map.dims[:-2], key=("layer", "time", "head").index)
    if len(dims) == 1:
        panels = spread(asked.trace, map, dims[0], titles=names_of(asked.trace, map, dims[0]), scale="all")
        return Grid(rows=wrap(panels, asked.columns))
    if len(dims) > 2:
        raise InvalidInput(
            f"a figure has rows and columns, so it keeps one axis or two, not {len(dims)}; leave one out of {option('keep')}"
        )
    row, column = dims
    names = names_of(asked.trace, map, row)
    if row == "layer":
        grids = [asked.trace.layers[at].grid for at in map.coords["layer"].values]
        names = [f"{name}\n{rows} × {columns}" for name, (rows, columns) in zip(names, grids, strict=True)]
    rows = [spread(asked.trace, map.isel({row: at}), column, scale="all") for at in range(map.sizes[row])]
    return Grid(rows=rows, row_names=names, column_names=names_of(asked.trace, map, column))


def time(asked: Asked) -> Grid:
    """Each direction over time: a row for R2G, for G2R where tokens have a place, for SRAM where a patch is named."""
    names = ["r2g", *(["g2r"] if asked.has_reference(asked.trace) else []), *(["sram"] if asked.at else [])]
    maps = {name: ask(asked, name, "time") for name in names}
    rows = [spread(asked.trace, map, "time", scale=name) for name, map in maps.items()]
    return Grid(rows=rows, row_names=[NAMES[name] for name in names], column_names=names_of(asked.trace, maps["r2g"], "time"), bars="right")


def methods(asked: Asked) -> Grid:
    """One map by several methods, each in units of its own mean, with its correlation with the first."""
    direction = "sram" if asked.at else asked.direction
    at = only_patch(asked) if asked.at else None
    found = compare(asked.trace, asked.recipes or None, direction=direction, at=at, **asked.select.options())
    maps, first = flat(found["map"]), found["recipe"].values[0]
    pixels = below(asked.trace, maps)
    panels = [] if pixels is None else [Panel(picture=pixels, title="reference" if asked.at or direction == "g2r" else "generated")]
    for name in found["recipe"].values:
        map = maps.sel(recipe=name)
        if name in found.attrs["constant"]:
            map = xr.full_like(map, 1.0)  # what is left of it is the rounding of the encoding
        number = None if name == first else ("r", found["pearson"].sel(recipe=first, other=name))
        scaled = (map / map.mean()).assign_attrs(maps.attrs, units="times an even share")
        panels.append(Panel(title=name, map=scaled, picture=pixels, scale="all", number=number))
    return Grid(rows=wrap(panels, asked.columns))


def words(asked: Asked) -> Grid:
    """The generated image, then where each word is attended to: those that are named, or all of the prompt."""
    trace, select = asked.trace, asked.select
    branch = trace.record.branches[find_branch(trace, select.branch, _recipe(asked).branch)]
    found = list_words(trace, group=select.group, sample=select.sample, branch=branch)
    named = asked.words or tuple(dict.fromkeys(row.word for row in found))
    panels = [shown(trace, word_map(trace, word, **asked.options), title=plain(word), scale="all") for word in named]
    return Grid(rows=wrap([*_generated(asked), *panels], asked.columns))


def tokens(asked: Asked) -> Grid:
    """The generated image, then where each token of the text is attended to, specials too."""
    trace, select, wanted = asked.trace, asked.select, None
    branch = trace.record.branches[find_branch(trace, select.branch, _recipe(asked).branch)]
    said = [text for text in trace.record.texts if text.branch in (None, branch) and text.sample in (None, select.sample)]
    groups = {group.name for layer in trace.layers for group in layer.groups if group.role == "text" and select.group in (None, group.name)}
    names = {text.start + i: plain(token) for text in said if text.group in groups for i, token in enumerate(text.tokens)}
    if ends := [text.start + text.words[-1].stop for text in said if text.group in groups and text.words]:
        wanted = list(range(min(max(ends), max(names)) + 1))  # what comes behind the end of the text is padding
    map = flat(token_map(trace, wanted, keep="token", **asked.options))
    titles = [names.get(number, f"token {number}") for number in map.coords["token"].values.tolist()]
    return Grid(rows=wrap([*_generated(asked), *spread(trace, map, "token", scale="all", titles=titles)], asked.columns))


def _recipe(asked: Asked) -> Recipe:
    return get_recipe(asked.options.get("recipe", "daam"))


def _generated(asked: Asked) -> list[Panel]:
    pixels = image(asked.trace, f"generated_{asked.select.sample}")
    return [] if pixels is None else [Panel(picture=pixels, title="generated")]
