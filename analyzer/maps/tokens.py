"""Maps of single tokens on the generated image: the words of a prompt, tokens of a reference, and probes that the run never saw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import xarray as xr

from ...schema.errors import InvalidInput
from ...schema.selection import Selector
from ...schema.trace import TokenGroup
from ..aggregation.build import build_map
from ..aggregation.request import request_map
from ..aggregation.selection import Heads, Positions, Select, pick_positions
from ..methods.recipes import Recipe, get_recipe
from ..trace.reader import Trace
from ..trace.softmax import Columns
from .attribution import lost_columns


def token_map(
    trace: Trace,
    tokens: Positions = None,
    *,
    group: str | None = None,
    probe: str | None = None,
    among: Positions = None,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    steps: Positions = None,
    layers: Selector | Iterable[Selector] | None = None,
    heads: Heads = None,
    sample: int = 0,
    branch: str | None = None,
    recipe: str | Recipe | None = None,
) -> xr.DataArray:
    """Where on the generated image some tokens are attended to.

    `tokens` are positions in the group, or in the probe, from 0, specials included: all of them if None. They are reduced as the
    recipe says (daam: mean, as over the pieces of a word) or, with "token" in `keep`, each has a map. `group` is the trace's only text
    if None. With `probe`, the keys are the probe's, which the run never saw, and the softmax over keys runs over its tokens `among`,
    all if None; this needs the queries, hence encoding factors. Without, `among` makes the softmax run over some tokens of the group.
    The recipe is `daam`, or `ovam` for a probe, where none is named.

    Dims     kept axes in the order time, layer, head, token, then ([frame,] y, x) on the recipe's grid; lazy, float64
    Range    >= 0; NaN where no call is left to average
    Raises   UnknownSelection, InvalidInput
    Source   Tang et al., DAAM, ACL 2023; probes: Marcos-Manchon et al., OVAM, CVPR 2024
    """
    axes = (keep,) if isinstance(keep, str) else keep
    each = isinstance(axes, Iterable) and "token" in (axes := tuple(axes))
    kept = tuple(axis for axis in axes if axis != "token") if each else axes
    select = Select(layers=layers, steps=steps, heads=heads, sample=sample, branch=branch, group=group)
    row = get_recipe(recipe or ("ovam" if probe else "daam"))
    request = request_map(trace, "tokens", select, recipe=row, keep=kept, time_groups=time_groups, specials=True, role="text", probe=probe)
    groups = request.chosen.groups
    numbers = _numbers(groups, tokens, "token")
    alone = numbers if row.renormalize and among is None and row.r2g == "keys" else None
    over = alone if among is None else _numbers(groups, among, "token")
    if over is not None and (missing := sorted(set(numbers) - set(over))):
        raise InvalidInput(f"token {missing[0]} has a map only if it is one of those that the softmax runs over; add it to among")
    columns = []
    for there in groups:
        beside = tuple(there.start + n for n in (range(there.tokens) if over is None else over))
        own = tuple(there.start + n for n in numbers)
        columns.append(Columns(row.r2g, own, beside if over is not None or probe else None, probe is not None))
    request = replace(request, columns=tuple(columns), each=each)
    facts = {"probe": probe} if probe else {}
    found = build_map(request, column_mass_lost=lost_columns(request), tokens=list(numbers), **facts)
    return found.assign_coords(token=list(numbers)) if each else found


def _numbers(groups: tuple[TokenGroup, ...], wanted: Positions, what: str) -> tuple[int, ...]:
    """Positions in a token group that every layer has."""
    return pick_positions(wanted, min(group.tokens for group in groups), what)
