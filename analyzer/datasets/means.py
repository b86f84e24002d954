"""The mean map of a dataset and Student's interval around it, from traces that are opened one at a time.

    mean = 1/n sum_i m_i        low, high = mean -+ t(n-1) s / sqrt(n)        s the standard deviation over traces, cell by cell

What is held is two maps and the one that is added, however many traces there are. The interval is of each cell by itself, and takes
traces for independent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Unpack

import numpy as np
import xarray as xr
from PIL.Image import Image
from tqdm import tqdm

from ...schema.errors import InvalidInput
from ..aggregation.selection import MapOptions, Select, SelectOptions, pick_positions
from ..facts import MapFacts
from ..maps.attribution import r2g
from ..methods.recipes import get_recipe
from ..numerics.statistics import LEVEL, RunningMean
from ..output.colours import Scale
from ..output.files import Output, save
from ..output.illustration import provenance
from ..output.sheets import draw, explain
from ..progress import hidden
from ..store.discovery import Source, find_traces
from ..trace.reader import Trace, open_trace
from .dataset import skipped_facts
from .rows import DatasetRequest, failed, shape_of

WORST: Final = ("column_mass_lost", "unproven")
"""Attributes of which the mean map has the worst trace's."""
ENDS: Final = ("mean", "low", "high")
CAPTIONS: Final = ("mean", f"{LEVEL:.0%} from", f"{LEVEL:.0%} to")


def mean_map(
    paths: Source | Iterable[Source], ask: Callable[..., xr.DataArray] = r2g, *, partial: bool = False, **options: Unpack[MapOptions]
) -> xr.Dataset:
    """The mean of every trace's map over a dataset: paths, folders that hold traces, and patterns such as `runs/*.zarr`.

        mean_map("traces/", g2r, layers="*up_blocks*")["mean"]
        mean_map("traces/", functools.partial(sram, at=(6, 7)))

    `ask` makes the map of one trace, and takes the options. A trace that cannot be asked is skipped, as is one whose map does not fit the
    first one's: another grid, other layers or heads where these are chosen by position, other steps where the map is a sum over them.

    Dims     mean, low, high and count as the maps; attributes `traces`, how many, and `skipped`, JSON of which were not, and why
    Range    low <= mean <= high; NaN where fewer than two traces have a value
    Raises   NotATrace where there is no trace; if no trace can be asked, the first one's error
    """
    get_recipe(options.get("recipe", "i2am"))
    members, chosen = find_traces(paths), {name: list(value) if isinstance(value, Iterator) else value for name, value in options.items()}
    select = Select.of({name: value for name, value in chosen.items() if name in SelectOptions.__annotations__})
    request = DatasetRequest(metrics=(), select=select, partial=partial)
    usual: tuple[str, dict[str, Any]] | None = None
    skipped, problems = [], []
    for member in tqdm(members, desc="traces", unit="trace", leave=False, disable=hidden()):
        try:
            trace = open_trace(member.path, partial=partial)
            map = ask(trace, **chosen).compute()
            fit = fit_of(trace, map, request)
            if usual is None:
                usual, like, total = (member.name, fit), map.copy(), RunningMean(map.shape)
            elif found := unlike(fit, usual[1], usual[0]):
                raise InvalidInput(f"{member.place} does not fit the other traces: {found}")
            _keep_common(like, map)
            total.add(map.values)
        except Exception as error:  # one trace must not cost the others theirs
            problems.append(error)
            skipped.append(skipped_facts(member, failed(error)))
    if usual is None:
        raise problems[0]
    maps = {name: like.copy(data=values) for name, values in zip(ENDS, total.interval(), strict=True)}
    maps["count"] = like.copy(data=total.count).assign_attrs(long_name="traces that have a value here")
    facts = {"traces": len(members) - len(skipped), "level": LEVEL, "interval": "Student's t", "skipped": json.dumps(skipped)}
    return xr.Dataset(maps, attrs=facts)


def fit_of(trace: Trace, map: xr.DataArray, request: DatasetRequest) -> dict[str, Any]:
    """What has to be alike in two traces for their maps to be averaged, by what it is called."""
    facts, row = MapFacts.of(map), get_recipe(MapFacts.of(map).recipe)
    alike: dict[str, Any] = {"map": ", ".join(f"{dim} {n}" for dim, n in map.sizes.items()), "branch": facts.branch}
    if (row.time_groups if "time" in map.dims else row.time) == "sum":
        alike["number of steps"] = len(pick_positions(request.select.steps, len(trace.present), "step"))
    kept = {name: tuple(map.coords[name].values.tolist()) for name in ("layer_name", "head", "token") if name in map.coords}
    return {**alike, **kept, **{axis: names for axis, names in shape_of(trace, request).items() if axis != "steps"}}


def unlike(found: Mapping[str, Any], usual: Mapping[str, Any], name: str) -> str:
    """In what a trace does not fit the one of this name, in words; empty if in nothing."""
    for what, value in usual.items():
        if found[what] == value:
            continue
        if isinstance(value, tuple):
            return f"its {what.replace('layer_name', 'layers')} are not those of {name}"
        way = "; the recipe's fields target and reference_target bring maps to one grid" if what == "map" else ""
        return f"its {what} is {found[what]}, that of {name} {value}{way}"
    return ""


def save_mean(found: xr.Dataset, path: Path, style: str = "viridis", scale: Scale | None = None, *, overwrite: bool = False) -> None:
    """Write the mean and the ends of its interval, as a strip or as numbers; raises as `output.files.check_output`."""
    maps = {str(name): map for name, map in found.data_vars.items()}
    save(Output(maps, lambda: (draw_mean(found, style, scale), provenance(stack_ends(found)))), path, overwrite=overwrite)


def draw_mean(found: xr.Dataset, style: str = "viridis", scale: Scale | None = None) -> Image:
    """The mean beside the ends of its interval, without a picture below: each trace has another."""
    maps = stack_ends(found)
    return explain(draw(maps, None, style, scale=scale), maps, style, False, scale)


def stack_ends(found: xr.Dataset) -> xr.DataArray:
    """The mean and the ends of its interval as one array.

    Dims     (end, ...)
    """
    maps = xr.concat([found[name] for name in ENDS], "end")
    attrs = {**found["mean"].attrs, "traces": found.attrs["traces"]}
    return maps.assign_coords(end_name=("end", np.array(CAPTIONS, object))).assign_attrs(attrs)


def _keep_common(first: xr.DataArray, map: xr.DataArray) -> None:
    """Leave on the first map the attributes and labels that this one has too, and the worse of what tells how far both can be trusted."""
    worst = {name: max(found) for name in WORST if (found := [each.attrs[name] for each in (first, map) if name in each.attrs])}
    first.attrs = {name: value for name, value in first.attrs.items() if map.attrs.get(name) == value} | worst
    for name, label in list(first.coords.items()):
        if name not in map.coords or not label.variable.equals(map.coords[name].variable):
            del first[name]
