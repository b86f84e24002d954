"""Known truth: where each patch of the generated image really comes from, as a trace carries it or a user gives it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.truth.files import read_truth
from ...schema.truth.places import lay_truth
from ..metrics.pointing import Truth
from ..trace.reader import Trace


def find_truth(trace: Trace) -> Truth | None:
    """The truth that a trace carries, if its shape is what the latent grid needs; early recordings of the demo have it elsewhere."""
    provenance = trace.record.provenance
    facts = provenance.get("facts")
    early = facts.get("demo") if isinstance(facts, dict) else None
    position = early.get("position") if isinstance(early, dict) else None
    try:
        values = np.array(provenance.get("truth", position), dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return Truth(values) if values.shape == (*trace.latent_grid, 2) else None


def require_truth(trace: Trace, given: Any = None) -> Truth:
    """The truth that is given, as a file or an array, brought to the latent grid; or else the trace's own.

    Raises   InvalidInput if the trace has none, or no cell of it has a place; for what is given and is no truth
    """
    if given is not None:
        laid = Truth(lay_truth(read_truth(given), trace.latent_grid))
        if not laid.known.any():
            grid = " x ".join(map(str, trace.latent_grid))
            raise InvalidInput(f"the truth knows half of no patch of the latent grid of {grid}; give a flow with fewer gaps, or pairs")
        return laid
    truth = find_truth(trace)
    if truth is None or not truth.known.any():
        raise InvalidInput(
            f"{trace.path} does not say where its patches truly come from; record it with {option('truth')}, as `i2am demo` does, or give "
            f"{option('truth')} where it is asked for"
        )
    return truth
