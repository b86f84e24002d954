"""One pass over the calls of a token group: how even their rows are, what each token gets, and who looks where in both directions.

looked     sum over steps and heads of P[x,r]     where position x looks
answered   sum over steps and heads of G[x,r]     which positions token r speaks to
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Final

import numpy as np
from dask.base import compute
from dask.delayed import delayed
from numpy.typing import NDArray

from ...schema.trace import TokenGroup
from ..aggregation.selection import Selection
from ..inspection.sums import blocks, shifts
from ..numerics.statistics import row_evenness
from ..trace.calls import Calls
from ..trace.reader import Trace

Values = NDArray[np.float64]

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
        at = (*where, step)
        query_lse, token_lse = (each[heads] for each in calls.normalizers(at))
        rows, columns = shifts(query_lse, token_lse[:, group.start : group.stop])
        for part, whole in blocks(calls, at):
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
