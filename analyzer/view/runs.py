"""A run as it is looked at: its trace, and the overview that its page shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np

from ...schema.messages import parse_bytes
from ...schema.selection import pick_positions
from ..overview.cache import load_overview
from ..overview.group import Overview
from ..trace.reader import Trace


class ViewOptions(TypedDict, total=False):
    """What is shown of a trace, and in how many bytes."""

    budget: int | str
    time_groups: int | None
    group: str | None
    sample: int | None
    branch: str | None


@dataclass(frozen=True, slots=True)
class Run:
    """A trace and its overview."""

    trace: Trace
    overview: Overview

    @classmethod
    def of(cls, trace: Trace, **options: Unpack[ViewOptions]) -> Run:
        """The trace with its overview, from the cache if it is there.

        Raises   InvalidInput, UnknownSelection, CorruptTrace
        """
        chosen: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if "budget" in chosen:
            chosen["budget"] = parse_bytes("budget", chosen["budget"])
        return cls(trace, load_overview(trace, **chosen))

    def steps_of(self, *times: int) -> list[int]:
        """The steps of time groups of the overview.

        Raises   UnknownSelection for one that it does not have
        """
        groups = self.overview.reader().read("time_of_step")
        wanted = pick_positions(times, int(groups.max()) + 1, "time group")
        return [int(step) for step in np.flatnonzero(np.isin(groups, wanted))]

    def to_json(self) -> dict[str, Any]:
        """What is shown, as plain JSON: the trace, the plan of the overview with what was left out, and its size."""
        facts = self.overview.facts
        return {
            "trace": self.trace.id,
            "path": str(self.trace.path),
            **facts["plan"],
            "bytes": self.overview.nbytes,
            "notes": [*facts["notes"], *filter(None, [self.overview.note])],
        }


def differing(first: Run, second: Run) -> str | None:
    """In what two runs differ so that they cannot be subtracted; None where in nothing."""
    for what, a, b in zip(("latent grids", "views", "layers"), _shape(first), _shape(second), strict=True):
        if a != b:
            found = next((pair for pair in zip(a, b, strict=False) if pair[0] != pair[1]), (len(a), len(b)))
            here, there = (" ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in found)
            return f"{first.trace.path} and {second.trace.path} differ in their {what} ({here} against {there}); each is shown by itself"
    return None


def _shape(run: Run) -> tuple[list[Any], list[Any], list[Any]]:
    facts = run.overview.facts
    views = [(view["sample"], view["branch"], view["group"], view["ref_grid"]) for view in facts["views"]]
    return [tuple(facts["latent_grid"])], views, [(layer["name"], layer["grid"]) for view in facts["views"] for layer in view["layers"]]
