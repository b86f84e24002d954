"""Known truth: where each patch of the generated image really comes from, as a recording of the demo carries it."""

from __future__ import annotations

import numpy as np

from ...schema.errors import InvalidInput
from ..metrics.pointing import Truth
from ..trace.reader import Trace


def find_truth(trace: Trace) -> Truth | None:
    """The truth in a trace's provenance, if its shape is what the latent grid needs."""
    facts = trace.record.provenance.get("facts")
    demo = facts.get("demo") if isinstance(facts, dict) else None
    position = demo.get("position") if isinstance(demo, dict) else None
    try:
        values = np.array(position, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return Truth(values) if values.shape == (*trace.latent_grid, 2) else None


def require_truth(trace: Trace) -> Truth:
    """As `find_truth`.

    Raises   InvalidInput if the trace has none, or no cell of it has a place
    """
    truth = find_truth(trace)
    if truth is None or not truth.known.any():
        raise InvalidInput(
            f"{trace.path} does not say where its patches truly come from; recordings of `i2am demo` do, in provenance.facts.demo.position"
        )
    return truth
