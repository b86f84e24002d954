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
from ..inspection.sums import shifts
from ..maps.attribution import g2r, r2g
from ..metrics.masks import fit_mask
from ..numerics.products import weighted_sum
from ..numerics.statistics import row_evenness
from ..trace.calls import Calls, require_attention
from ..trace.images import load_mask, own_mask, own_reference_mask
from ..trace.reader import Trace
from ..trace.scan import SPREAD

Values = NDArray[Any]
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
    require_attention((trace.layers[index] for index in chosen.layers), "a diagnosis")
    which: MapOptions = {"sample": sample, "group": chosen.groups[0].name}
    by_time: MapOptions = {**which, "keep": "time", "time_groups": min(TIMES, len(trace.present))}
    where = mask or own_mask(trace, sample)
    positions = load_mask(trace, where) if where else None
    lazy = {"r2g": r2g(trace, **which), "r2g_time": r2g(trace, **by_time)}
    inside, used = None if positions is None else fit_mask(lazy["r2g"], positions), None
    if has_places(chosen):
        lazy |= {"g2r": g2r(trace, query_mask=positions, **which), "g2r_time": g2r(trace, query_mask=positions, **by_time)}
        own = where if chosen.groups[0].role == "self" else own_reference_mask(trace, MapFacts.of(lazy["g2r"]).image)
        name = reference_mask or own
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
    places = slice(group.start + group.specials, group.stop)
    shape = (math.prod(calls.layer.places), places.stop - places.start)
    even, mass = np.zeros(len(heads)), np.zeros((len(heads), group.tokens))
    looked, answered = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for together in calls.groups(where, steps):
        query_lse, token_lse, blocks = calls.sweep(where, together)
        shifted = [factors(a, b[:, places]) for a, b in zip(query_lse, token_lse, strict=True)]
        for step, head, positions, block, factor in blocks:
            if head not in heads:
                continue
            i, (rows, columns) = heads.index(head), shifted[step]
            mass[i] += weighted_sum(np.full(len(block), factor, block.dtype), block[:, group.start : group.stop])
            values = block[:, places] * block.dtype.type(factor)
            looked[positions] += values
            even[i] += row_evenness(values).sum()
            values = values.astype(rows.dtype, copy=False)
            values *= rows[head, positions, None]
            values *= columns[head]
            answered[positions] += values
    return LayerStatistics(len(steps), even / shape[0], mass / shape[0], looked, answered)


def factors(query_lse: NDArray[np.float64], token_lse: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """As `shifts`, in float32 where that holds their products with P; 0 for tokens that the model hid from every position.

    Dims     (head, position), (head, token) -> the same
    """
    rows, columns = shifts(query_lse, token_lse)
    columns[np.isneginf(token_lse)] = 0
    exponents = np.log(np.concatenate([each[each != 0] for each in (rows, columns)]))
    narrow = bool((np.abs(exponents) < SPREAD).all())
    return (rows.astype(np.float32), columns.astype(np.float32)) if narrow else (rows, columns)


def _total(parts: list[Any]) -> Any:
    """Their sum, two by two as they come, so that few are held at once."""
    while len(parts) > 1:
        parts = [delayed(reduce, pure=False)(add, parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return parts[0]
