"""Two recordings of one shape, such as guidance on and off or two checkpoints: how their maps and metrics differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Unpack

import numpy as np
import xarray as xr
from dask.base import compute
from PIL.Image import Image

from ...schema.errors import InvalidInput
from ...schema.messages import listed
from ...schema.trace import Layer
from ..aggregation.selection import MapOptions, Select, Selection, SelectOptions, choose, has_places
from ..facts import MapFacts
from ..maps.attribution import g2r, r2g
from ..methods.recipes import Recipe, Weight, get_recipe
from ..numerics.statistics import correlation
from ..output.files import Output, save
from ..output.illustration import picture, provenance
from ..output.sheets import compose, draw, limits_of, show, stack
from ..trace.reader import Trace
from .metric_table import METRICS, available, plan_metrics

WHICH: Final = ("first", "second", "difference")
MEANING: Final = {"r2g": "R2G: what came from the reference", "g2r": "G2R: what of it was used"}


@dataclass(frozen=True, slots=True)
class Difference:
    """What two recordings say, side by side."""

    first: Trace
    second: Trace
    maps: dict[str, xr.DataArray]
    """By direction: (which, row, column), which is first, second, and second less first."""
    facts: dict[str, Any]
    """The numbers, as plain JSON."""


def differ(
    first: Trace,
    second: Trace,
    metrics: Iterable[str] | None = None,
    recipe: str | Recipe = "i2am",
    *,
    weight: Weight | None = None,
    **options: Unpack[SelectOptions],
) -> Difference:
    """Ask both for the same maps and metrics, by default all that both can answer; options as of maps, `keep` excepted.

    Raises   InvalidInput naming the layers, heads, tokens or steps in which the recordings differ in shape; as the maps and metrics
    """
    row, select = get_recipe(recipe, weight=weight), Select.of(options)
    asked: MapOptions = {"recipe": row, "weight": None, "keep": (), "time_groups": None, **select.options()}
    chosen = [choose(trace, select, recipe=row) for trace in (first, second)]
    if found := differences(first, second, *chosen):
        raise InvalidInput(f"{first.path} and {second.path} are of different shapes and cannot be laid over each other: {'; '.join(found)}")
    if metrics is None:
        there = available(second, row, **select.options())
        metrics = [name for name in available(first, row, **select.options()) if name in there]
    both = list(metrics)
    maps_of: dict[str, Callable[..., xr.DataArray]] = {"r2g": r2g}
    if has_places(chosen[0]) and row.g2r != "none":
        maps_of["g2r"] = g2r
    plans = [plan_metrics(trace, both, **asked) for trace in (first, second)] if both else []
    lazy = [
        {name: {"whole": ask(trace, **asked), "layers": ask(trace, **{**asked, "keep": "layer"})} for name, ask in maps_of.items()}
        for trace in (first, second)
    ]
    maps, computed = compute(lazy, [plan.maps for plan in plans])  # type: ignore[no-untyped-call]
    scores = [plan.scores(found) for plan, found in zip(plans, computed, strict=True)]
    stacked = {name: _stack(*(each[name]["whole"] for each in maps)) for name in maps_of}
    facts = {
        "first": first.id,
        "second": second.id,
        "recipe": MapFacts.of(maps[0]["r2g"]["whole"]).recipe,
        "maps": {name: _change(*(each[name]["whole"].values for each in maps)) for name in maps_of},
        "layers": [
            {"name": first.layers[index].name, **{name: _change(*(each[name]["layers"].values[i] for each in maps)) for name in maps_of}}
            for i, index in enumerate(chosen[0].layers)
        ],
        "metrics": [
            {"name": name, "first": float(scores[0][name]), "second": float(scores[1][name]), "better": METRICS[name].better}
            for name in both
        ],
    }
    return Difference(first, second, stacked, facts)


def differences(first: Trace, second: Trace, mine: Selection, yours: Selection) -> list[str]:
    """In what the selected parts of two recordings differ in shape, in words; empty if in nothing."""
    layers = [[trace.layers[i] for i in chosen.layers] for trace, chosen in ((first, mine), (second, yours))]
    names = [[layer.name for layer in each] for each in layers]
    only = [[name for name in a if name not in b] for a, b in (names, names[::-1])]
    found = [f"only the {which} has {listed(gone)}" for which, gone in zip(WHICH, only, strict=False) if gone]
    known = {layer.name: layer for layer in layers[1]}
    found += [text for layer in layers[0] if layer.name in known if (text := _unlike(layer, known[layer.name]))]
    if not found and names[0] != names[1]:
        found.append("their layers come in another order")
    if mine.steps != yours.steps:
        found.append(f"{len(mine.steps)} steps and {len(yours.steps)}")
    if mine.pairs != yours.pairs and not found:
        found.append("other heads of a layer were recorded")
    if first.latent_places != second.latent_places:
        one, other = (" x ".join(map(str, each.latent_places)) for each in (first, second))
        found.append(f"latent grids of {one} and {other}")
    return found


def save_difference(found: Difference, path: Path, *, overwrite: bool = False) -> None:
    """Write a sheet of both directions, or the maps, as the suffix says; raises as `output.files.check_output`."""
    save(Output(found.maps, lambda: (draw_difference(found), provenance(found.maps["r2g"]))), path, overwrite=overwrite)


def draw_difference(found: Difference) -> Image:
    """The sheet: for each direction the first recording's map, the second's, and what the second has less (blue) and more (red)."""
    rows = []
    for name, maps in found.maps.items():
        if maps.dims[-1] == "token":
            continue
        pictures = [picture(trace, MapFacts.of(maps).image) for trace in (found.first, found.second)]
        low, high = both = limits_of(maps[:2])
        tiles = [draw(maps[i], pictures[i], limits=both) for i in range(2)] + [draw(maps[2], pictures[1], "difference")]
        most = float(np.abs(maps[2]).max())
        columns = 1 if "frame" in maps.dims else 3  # the frames of a video are a strip of their own
        captions = [f"first, {low:.2g} to {high:.2g}", "second, as the first", f"second - first, up to {most:.2g}"]
        rows.append((MEANING[name], compose(tiles, columns, captions)))
    generated = [picture(trace, f"generated_{MapFacts.of(found.maps['r2g']).sample}") for trace in (found.first, found.second)]
    shown = [show(pixels) for pixels in generated if pixels is not None and pixels.ndim == 3]
    top = [("Generated", compose(shown, 2, ["first", "second"]))] if len(shown) == 2 else []
    return stack([*top, *rows])


def _stack(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """Both maps and the second less the first, under the labels of the second."""
    values = np.stack([first.values, second.values, second.values - first.values])
    coords = {name: axis for name, axis in second.coords.items() if set(axis.dims) <= set(second.dims) and axis.dims}
    attrs = {**second.attrs, "trace": f"{first.attrs['trace']} {second.attrs['trace']}"}
    return xr.DataArray(values, dims=("which", *second.dims), coords={"which": list(WHICH), **coords}, attrs=attrs, name=second.name)


def _change(first: Any, second: Any) -> dict[str, float | None]:
    """How alike two maps are, and how much of the first has moved: mean |second - first| over mean first; None where one is absent."""
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return {"correlation": None, "change": None}
    like, level = correlation(first, second), float(np.abs(first).mean())
    return {"correlation": like if np.isfinite(like) else None, "change": float(np.abs(second - first).mean()) / level if level else None}


def _unlike(first: Layer, second: Layer) -> str:
    """What of one layer differs, or nothing."""
    found = [
        f"{one} and {other} {what}"
        for what, one, other in (
            ("positions", *(" x ".join(map(str, layer.places)) for layer in (first, second))),
            ("heads", first.heads, second.heads),
            ("keys", first.tokens, second.tokens),
        )
        if one != other
    ]
    if not found and first.groups != second.groups:
        found.append("other token groups")
    return f"{first.name} has {', '.join(found)}" if found else ""
