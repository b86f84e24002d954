"""Known truth: where each patch of the generated image really comes from, as a recording of the demo carries it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..schema.errors import InvalidInput
from .reader import Trace


@dataclass(frozen=True, slots=True)
class Truth:
    """Where each cell of the latent grid truly comes from."""

    position: NDArray[np.float64]
    """(y, x, yx): shares of the reference's height and width from its top left; NaN where nothing comes from it."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """(y, x): cells with a true place."""
        return np.asarray(np.isfinite(self.position).all(-1), bool)


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
