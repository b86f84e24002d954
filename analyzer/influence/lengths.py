"""How much heads take of some tokens: the length of what they add to the layer's output."""

from __future__ import annotations

import math

import numpy as np

from ..numerics.products import product
from ..trace.calls import At, Calls
from ..trace.reader import Trace
from ..trace.softmax import Values
from .calls import whole


def mean_lengths(trace: Trace, index: int, at: At, tokens: slice) -> Values:
    """|sum over the tokens of P v W| of each head of a layer, mean over positions and steps; NaN where no call was recorded.

    The sum comes before the length, so tokens that cancel each other count as little as they give together.

    Dims     -> (head,), float64
    Raises   UnknownSelection for a layer whose values were not recorded in full; CorruptTrace
    """
    output = trace.layers[index].gain * trace.output_projection(index).astype(np.float64)
    calls, grams, total, steps = Calls.of(trace, index), output @ output.swapaxes(1, 2), np.zeros(len(output)), 0
    for group in calls.groups(at, range(len(trace.present))):
        value, steps = calls.arrays["value"].part(at, group), steps + len(group)
        for i, head, _, block in whole(calls.sweep(at, group)[2]):
            taken = product(block[:, tokens].astype(np.float64), value[i, head, tokens].astype(np.float64))
            total[head] += np.sqrt(np.maximum((product(taken, grams[head]) * taken).sum(1), 0)).sum()
    return total / (steps * math.prod(calls.layer.places)) if steps else np.full_like(total, np.nan)
