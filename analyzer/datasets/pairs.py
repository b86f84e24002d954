"""Two datasets compared pair by pair: traces of one name, such as one prompt under two checkpoints, and how their metrics differ.

difference_i = metric(second_i) - metric(first_i)        mean over pairs, with its percentile bootstrap interval over pairs
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema import errors
from ...schema.errors import InvalidInput, TraceError
from ...schema.messages import listed
from ..aggregation.selection import Select, SelectOptions
from ..evaluation.metric_table import METRICS
from ..methods.recipes import Recipe, Weight, get_recipe
from ..numerics.statistics import LEVEL, RESAMPLES, Interval, bootstrap_mean
from ..output.files import Output, Table, save
from ..output.latex import ARROWS, Cell
from ..store.discovery import Member, Source, find_traces
from .dataset import USUAL, ask, remarks, skipped_facts
from .rows import DatasetRequest, TraceScores

if TYPE_CHECKING:
    from distributed import Client

SIDES: Final = ("first", "second")


@dataclass(frozen=True, slots=True)
class PairScores:
    """Two datasets, pair by pair."""

    request: DatasetRequest
    pairs: list[tuple[Member, Member]]
    rows: list[tuple[TraceScores, TraceScores]]
    """Of each pair; a side that could not be asked has an error."""
    unpaired: dict[str, list[str]]
    """By side, the names that the other does not have."""
    note: str | None = None
    seed: int = 0

    @property
    def good(self) -> list[tuple[Member, Member, TraceScores, TraceScores]]:
        """Pairs of which both answered."""
        found = zip(self.pairs, self.rows, strict=True)
        return [(*pair, *rows) for pair, rows in found if not any(row.error for row in rows)]

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """Traces that did not, and why."""
        found = zip(self.pairs, self.rows, strict=True)
        return [skipped_facts(*each) for pair, rows in found for each in zip(pair, rows, strict=True) if each[1].error]

    def values(self, metric: str) -> NDArray[np.float64]:
        """One metric of both sides; NaN where a trace does not have it.

        Dims     (side, pair)
        """
        answers = ((first, second) for *_, first, second in self.good)
        return np.array([[row.values.get(metric, np.nan) for row in side] for side in zip(*answers, strict=True)])

    def change(self, metric: str) -> tuple[Interval, int, int]:
        """The mean difference with its interval, and how many pairs rose and fell."""
        first, second = self.values(metric)
        found = second - first
        return bootstrap_mean(found, seed=self.seed), int((found > 0).sum()), int((found < 0).sum())


def differ_pairs(
    first: Source | Iterable[Source],
    second: Source | Iterable[Source],
    recipe: str | Recipe = "i2am",
    metrics: str | Sequence[str] = USUAL,
    client: Client | None = None,
    *,
    partial: bool = False,
    seed: int = 0,
    weight: Weight | None = None,
    **options: Unpack[SelectOptions],
) -> xr.Dataset:
    """Metrics of two datasets whose traces are paired by name, as `evaluate` calls them, and their differences, second less first.

        differ_pairs("step-100/", "step-1000/")["mean"].sel(metric="imacs_g")

    Options are those of `evaluate`. Masks are each trace's own. A pair of which one cannot be asked is left out.

    Dims     first, second, difference (metric, pair); mean, low, high, count, up and down (metric,), of the difference; attributes
             `unpaired` and `skipped` are JSON
    Raises   NotATrace where there is no trace, InvalidInput if no two have one name; if no pair can be asked, the first trace's error
    """
    wanted = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    request = DatasetRequest(metrics=wanted, select=Select.of(options), recipe=get_recipe(recipe, weight=weight), partial=partial)
    return tabulate(ask_pairs(find_traces(first), find_traces(second), request, client, seed))


def ask_pairs(
    first: Sequence[Member], second: Sequence[Member], request: DatasetRequest, client: Client | None = None, seed: int = 0
) -> PairScores:
    """Ask both traces of every pair, as `differ_pairs` does; those without a namesake are not opened."""
    sides = [{member.name: member for member in members} for members in (first, second)]
    names = [name for name in sides[0] if name in sides[1]]
    shared = set(names)
    unpaired = {side: [name for name in here if name not in shared] for side, here in zip(SIDES, sides, strict=True)}
    if not names:
        here, there = (listed(found) for found in unpaired.values())
        raise InvalidInput(f"traces are paired by name, and no two have the same: the first are {here}, the second {there}")
    pairs = [(sides[0][name], sides[1][name]) for name in names]
    answered = ask([member for pair in pairs for member in pair], request, client, seed)
    rows = list(zip(answered.rows[::2], answered.rows[1::2], strict=True))
    found = PairScores(request, pairs, rows, unpaired, "; ".join(remarks(answered)) or None, seed)
    if not found.good:
        one = found.skipped[0]
        text = f"of none of the {len(pairs)} pairs can both be asked; the first, {one['path']}: {one['message']}"
        raise getattr(errors, one["type"], TraceError)(text)
    return found


def tabulate(found: PairScores) -> xr.Dataset:
    """The comparison as a Dataset; see `differ_pairs`."""
    metrics = list(found.request.metrics)
    values = np.stack([found.values(name) for name in metrics], axis=1)
    changes = [found.change(name) for name in metrics]
    ends = {end: ("metric", [getattr(each, end) for each, *_ in changes]) for end in ("mean", "low", "high", "count")}
    sides = {name: (("metric", "pair"), each) for name, each in zip((*SIDES, "difference"), (*values, values[1] - values[0]), strict=True)}
    counts = {"up": ("metric", [up for _, up, _ in changes]), "down": ("metric", [down for *_, down in changes])}
    coords = {"metric": np.array(metrics, object), "pair": np.array([member.name for member, *_ in found.good], object)}
    facts = {name: json.dumps(value) if isinstance(value, (dict, list)) else value for name, value in run_facts(found).items()}
    return xr.Dataset({**sides, **ends, **counts}, coords, facts)


def run_facts(found: PairScores) -> dict[str, Any]:
    """How the comparison was made, and what was left out, as plain JSON."""
    facts = {"recipe": get_recipe(found.request.recipe).label, "level": LEVEL, "resamples": RESAMPLES, "seed": found.seed}
    return {**facts, "unpaired": found.unpaired, "skipped": found.skipped}


def facts_of(found: PairScores) -> dict[str, Any]:
    """The comparison as one JSON document."""
    metrics = []
    for name in found.request.metrics:
        change, up, down = found.change(name)
        first, second = found.values(name)
        both = ~np.isnan(second - first)
        means = {"first": float(first[both].mean()), "second": float(second[both].mean())} if both.any() else dict.fromkeys(SIDES)
        facts = {"difference": change.mean, "low": change.low, "high": change.high, "count": change.count, "up": up, "down": down}
        metrics.append({"name": name, **means, **facts, "better": METRICS[name].better})
    return {"metrics": metrics, "pairs": records(found), **run_facts(found), "note": found.note}


def records(found: PairScores) -> list[dict[str, Any]]:
    """One row a pair."""
    rows: list[dict[str, Any]] = [{"pair": first.name} for first, *_ in found.good]
    for name in found.request.metrics:
        for row, one, other in zip(rows, *found.values(name).tolist(), strict=True):
            row |= {f"{name}_first": one, f"{name}_second": other, f"{name}_difference": other - one}
    paths = ({"path_first": str(first.path), "path_second": str(second.path)} for first, second, *_ in found.good)
    return [{**row, **ends} for row, ends in zip(rows, paths, strict=True)]


def save_pairs(found: PairScores, path: Path, *, overwrite: bool = False) -> None:
    """Write one row a pair, whole or not at all; raises as `output.files.check_output`."""
    numbers = [f"{name}_{what}" for name in found.request.metrics for what in (*SIDES, "difference")]
    columns: dict[str, type[str] | type[float]] = {"pair": str, **dict.fromkeys(numbers, float), "path_first": str, "path_second": str}
    facts = {name: value for name, value in facts_of(found).items() if name != "pairs"}
    paper: list[dict[str, Cell]] = [{"": side} for side in (*SIDES, "difference")]
    for each in facts["metrics"]:
        heading = each["name"] + ARROWS[each["better"]]
        change = Interval(each["difference"], each["low"], each["high"], each["count"])
        for row, cell in zip(paper, (each["first"], each["second"], change), strict=True):
            row[heading] = cell
    caption = f"Means over {len(found.good)} pairs, and the mean difference with its {LEVEL:.0%} bootstrap interval."
    save(Output(table=Table(columns, records(found), facts, caption, paper)), path, overwrite=overwrite)
