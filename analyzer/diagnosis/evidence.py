"""What a diagnosis looks at: maps, masks, and one pass over the calls of a token group.

looked     sum over steps and heads of P[x,r]     where position x looks
answered   sum over steps and heads of G[x,r]     which positions token r speaks to
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Final

import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ...schema.trace import TokenGroup
from ..aggregation.selection import MapOptions, Select, Selection, choose, has_places
from ..facts import MapFacts
from ..inspection.sums import blocks, shifts
from ..maps.attribution import g2r, r2g
from ..metrics.masks import fit_mask
from ..numerics.statistics import row_evenness
from ..trace.calls import Calls
from ..trace.images import load_mask, own_mask, own_reference_mask
from ..trace.reader import Trace

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]

TIMES: Final = 5
"""Groups of steps that are compared with the next one."""
STEPS: Final = 8
"""Calls that one task goes through; it hands on sums of them."""


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """What the calls of one layer say of a token group."""

    calls: int
    even: Values
    """(head,): evenness of rows over the tokens that have a place, summed over calls, mean over positions."""
    mass: Values
    """(head, token): P of each token, specials first, summed over calls, mean over positions."""
    looked: Values
    """(position, token): P summed over calls and heads; tokens that have a place."""
    answered: Values
    """(position, token): the same of G."""

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        return LayerStatistics(*(getattr(self, field) + getattr(other, field) for field in self.__slots__))


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the signatures look at."""

    trace: Trace
    chosen: Selection
    statistics: list[LayerStatistics | None]
    maps: dict[str, xr.DataArray]
    """r2g and g2r, the latter of masked positions if there is a mask; r2g_time and g2r_time, the same by groups of steps."""
    mask: Mask | None
    reference_mask: Mask | None

    def by_head(self, ask: Callable[[LayerStatistics], Values]) -> list[tuple[float, str]]:
        """A number of every head, with the head's name."""
        found = []
        for index, numbers, each in zip(self.chosen.layers, self.chosen.pairs, self.statistics, strict=True):
            if each is not None:
                name = self.trace.layers[index].name
                found += [(float(v), f"head {h} of {name}") for v, h in zip(ask(each) / each.calls, numbers, strict=True)]
        return found


def gather(
    trace: Trace, *, mask: str | None = None, reference_mask: str | None = None, sample: int = 0, group: str | None = None
) -> Evidence:
    """Read everything once: the calls for the statistics of layers, and for the maps; raises as `diagnose`."""
    if trace.latent_frames:
        raise InvalidInput(f"{trace.path} is of a video, and the ranges of a diagnosis were measured on images; ask for maps and metrics")
    chosen = choose(trace, Select(sample=sample, group=group))
    which: MapOptions = {"sample": sample, "group": chosen.groups[0].name}
    by_time: MapOptions = {**which, "keep": "time", "time_groups": min(TIMES, len(trace.present))}
    where = mask or own_mask(trace, sample)
    positions = load_mask(trace, where) if where else None
    lazy = {"r2g": r2g(trace, **which), "r2g_time": r2g(trace, **by_time)}
    inside, used = None if positions is None else fit_mask(lazy["r2g"], positions), None
    if has_places(chosen):
        lazy |= {"g2r": g2r(trace, query_mask=positions, **which), "g2r_time": g2r(trace, query_mask=positions, **by_time)}
        name = reference_mask or own_reference_mask(trace, MapFacts.of(lazy["g2r"]).image)
        used = fit_mask(lazy["g2r"], load_mask(trace, name)) if name else None
    maps: dict[str, xr.DataArray] = compute(lazy)[0]  # type: ignore[no-untyped-call]
    return Evidence(trace, chosen, survey_layers(trace, chosen), maps, inside, used)


def survey_layers(trace: Trace, chosen: Selection) -> list[LayerStatistics | None]:
    """Statistics of each selected layer; None for a layer without a call. Memory does not grow with the steps."""
    tasks: list[Any] = []
    for index, group, numbers in zip(chosen.layers, chosen.groups, chosen.pairs, strict=True):
        calls = Calls.of(trace, index)
        heads = [place for place, number in enumerate(trace.layers[index].heads_kept) if number in numbers]
        there = [step for step in chosen.steps if calls.where[chosen.sample, chosen.branch, step] >= 0 and heads]
        parts = [there[i : i + STEPS] for i in range(0, len(there), STEPS)]
        found = [
            delayed(survey_calls, pure=False, traverse=False)(calls, (chosen.sample, chosen.branch), part, group, heads) for part in parts
        ]
        tasks.append(_total(found) if found else None)
    results: list[LayerStatistics | None] = list(compute(*tasks))  # type: ignore[no-untyped-call]
    return results


def survey_calls(calls: Calls, where: tuple[int, int], steps: list[int], group: TokenGroup, heads: list[int]) -> LayerStatistics:
    """Task: some steps of one layer.

    Raises   CorruptTrace if a file was changed
    """
    positions = math.prod(calls.layer.places)
    spatial = group.stop - group.start - group.specials
    even, mass = np.zeros(len(heads)), np.zeros((len(heads), group.tokens))
    looked, answered = np.zeros((positions, spatial)), np.zeros((positions, spatial))
    for step in steps:
        query_lse, token_lse = (each[0][heads] for each in calls.normalizers(where, (step,)))
        rows, columns = shifts(query_lse, token_lse[:, group.start : group.stop])
        for part, whole in blocks(calls, (*where, step)):
            block = whole[heads, :, group.start : group.stop].astype(np.float64)
            mass += block.sum(1) / positions
            looked[part] += block[..., group.specials :].sum(0)
            if spatial > 1:
                even += row_evenness(block[..., group.specials :]).sum(1) / positions
            block *= rows[:, part, None]
            block *= columns[:, None]
            answered[part] += block[..., group.specials :].sum(0)
    return LayerStatistics(len(steps), even, mass, looked, answered)


def _total(parts: list[Any]) -> Any:
    while len(parts) > 1:
        parts = [delayed(reduce, pure=False)(add, parts[i : i + STEPS]) for i in range(0, len(parts), STEPS)]
    return parts[0]
