"""Figures of heads: how much each of them looks for a concept, finds the truth, or takes of the reference."""

from __future__ import annotations

from typing import Final

import xarray as xr

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import guess, listed, option
from ..heads.averages import head_accuracy
from ..heads.probes import PROBE
from ..heads.scores import head_relevance
from ..inspection.truth import find_truth
from ..output.sheets import short_names
from .panels import Asked, Chart, Charts

LABELS: Final = {
    "relevance": "head relevance",
    "truth": "patches sent to their true place",
    "contribution": "length of what the head takes of the reference",
}


def heads(asked: Asked) -> Charts:
    """Scores of a file of `i2am heads`, or of the trace itself: by its known truth, or else for the concepts of its probe."""
    scores = _scores(asked)
    if "time" in scores.dims:
        raise InvalidInput(f"the scores count each step apart, which bars cannot show; make them without {option('keep', 'time')}")
    there = scores.coords["concept"].values.tolist() if "concept" in scores.dims else []
    if unknown := [name for name in asked.words if name not in there]:
        raise UnknownSelection(f"the scores have no concept {unknown[0]!r}; {guess(unknown[0], there)}there are {listed(there)}")
    charts = [Chart(name, scores.sel(concept=name)) for name in asked.words or there] or [Chart("", scores)]
    names = short_names(scores.coords["layer"].values.tolist())
    return Charts(charts=charts, label=LABELS[scores.attrs["kind"]], layers=names, even=1.0 if there else None)


def _scores(asked: Asked) -> xr.DataArray:
    if asked.scores is not None:
        return asked.scores
    probes = {probe.name for trace in asked.traces for layer in trace.layers for probe in layer.probes}
    select = asked.select
    if all(find_truth(trace) is not None for trace in asked.traces):
        return head_accuracy(asked.traces, layers=select.layers, sample=select.sample, branch=select.branch, group=select.group)
    if PROBE in probes:
        return head_relevance(asked.traces, layers=select.layers, branch=select.branch)
    raise InvalidInput(
        f"{asked.trace.path} has neither a known truth nor a probe {PROBE!r} to score its heads by; give scores of `i2am heads` with "
        f"{option('scores')}"
    )
