"""Maps of a run held against the effects of interventions on it: a table of rank correlations, and in words which maps may be believed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import option
from ..aggregation.selection import whole
from ..inspection.effects import open_effects
from ..methods.recipes import Recipe, Weight, get_recipe
from ..storage.location import Location
from ..trace.images import own_mask
from ..trace.reader import Trace
from .agreement import Drawing
from .cells import ROLLOUT, Asked
from .curves import Area, measure_areas
from .scores import CELLS, SILENCED, Against, Score, Truth, patches_inside, score_cells, score_parts
from .table import COLUMNS, row_of
from .verdict import write_verdict

DRAWS: Final = 1000
PLAIN: Final[Weight] = "attention"
MASKED: Final = "i2am(query_mask=yes)"


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """What `faithfulness` found. In a notebook it shows its table and verdict."""

    scores: tuple[Score, ...]
    areas: tuple[Area, ...]
    verdict: str
    """Which maps of all layers may be believed, in words."""
    notes: tuple[str, ...]
    """What was left out, and why."""

    def to_dataframe(self) -> Any:
        """One row a score, as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame([row_of(score) for score in self.scores], columns=list(COLUMNS))

    def _repr_html_(self) -> str:
        import html

        return f"{self.to_dataframe().to_html(float_format='{:.3f}'.format)}<p>{html.escape(self.verdict)}</p>"


def faithfulness(
    trace: Trace,
    effects: xr.Dataset | Location,
    *,
    other: Trace | None = None,
    recipes: str | Recipe | Iterable[str | Recipe] | None = None,
    weights: Weight | Iterable[Weight] | None = None,
    keep: Iterable[str] | str = (),
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> Faithfulness:
    """How well maps of a run agree with what interventions on that run changed.

        found = faithfulness(open_trace("run.zarr"), "faith.zarr", keep="layer")
        print(found.verdict)

    SRAM of each patch is correlated, over cells, with what leaving each cell out changed in that patch; the mean over patches counts, and
    patches are drawn again for its interval. G2R is correlated with the mean change of the picture, and cells are drawn again. Totals of
    G2R of each layer or head are correlated with what switching it off changed. Each score stands beside what shuffled cells reach.

    `effects`    what `open_effects` gives, or the path of what `i2am faithfulness` wrote
    `other`      a trace of the same run with another reference: its maps should agree less
    `recipes`    methods with maps on the reference, and rollout; None is i2am, where the trace has a mask i2am(query_mask=yes) too, and
                 rollout where it has what that needs
    `weights`    what softmax values are multiplied by; None is all that the trace has what is needed for
    `keep`       layer and head score each layer, and each head of each layer, too
    `bootstrap`  samples that are drawn for intervals
    `seed`       of what is drawn

    Raises   InvalidInput for effects of another run, too few trials; UnknownSelection for a weight that the trace cannot have; as `g2r`
    """
    measured = effects if isinstance(effects, xr.Dataset) else open_effects(effects, trace)
    grid = _check(trace, other, measured)
    asked, drawing = Asked.of(measured), Drawing(_positive(bootstrap, "bootstrap"), whole(seed, "a seed"))
    inside = patches_inside(trace, asked.options["sample"], grid)
    truths = {what: Truth.of(measured[name], inside, name) for what, name in CELLS.items() if name in measured}
    levels = _levels(keep)
    names = _named(trace, asked, recipes)
    rows = _recipes(names)
    traces = [one for one in (trace, other) if one is not None]
    known, notes = _weights(traces, asked, next(iter(rows)), weights) if rows else ([], [])
    scores: list[Score] = []
    for row, patches in rows.items():
        for weight in known:
            for level in levels:
                maps = [{} if one is None else asked.maps(one, row, weight, level, patches) for one in (trace, other)]
                mine, beside = compute(*maps)  # type: ignore[no-untyped-call]
                scores += score_cells(mine, beside, truths, drawing, (row.label, weight))
            scores += _parts(trace, measured, asked, row, weight, drawing)
    try:
        if ROLLOUT in names:
            scores += _rolled((trace, other), asked, inside, truths, drawing)
    except InvalidInput as error:
        if recipes is not None:
            raise
        notes.append(f"no rollout: {error}")
    untried = {what: truth.tried for what, truth in truths.items() if not truth.tried.all()}
    notes += [f"{tried.sum()} of {tried.size} cells were tried for {what}" for what, tried in untried.items()]
    return Faithfulness(tuple(scores), measure_areas(measured, inside, drawing), write_verdict(scores), tuple(notes))


def _check(trace: Trace, other: Trace | None, effects: xr.Dataset) -> tuple[int, int]:
    """The grid of patches.

    Raises   InvalidInput for effects or traces that are not of one run, or effects of no cells
    """
    if (said := effects.attrs.get("trace", trace.id)) != trace.record.id:
        raise InvalidInput(f"the effects are of the run {said}, and the trace is the run {trace.record.id}; open its own")
    if "effect" not in effects and "pixels" not in effects:
        raise InvalidInput(f"the effects hold {', '.join(map(str, effects)) or 'nothing'}, and no single cells; measure those first")
    if trace.latent_frames:
        raise InvalidInput(f"{trace.path} is of a video, and effects are of the patches of one picture")
    grid = (effects.sizes["y"], effects.sizes["x"])
    for one in filter(None, (trace, other)):
        if tuple(one.latent_grid) != grid:
            raise InvalidInput(
                f"{one.path} has {one.latent_grid[0]} x {one.latent_grid[1]} patches, and the effects have {grid[0]} x {grid[1]}; "
                "give a trace of the same size"
            )
    if other is not None and other.record.id == trace.record.id:
        raise InvalidInput(f"{other.path} is the trace itself; {option('other')} is of the same run with another reference")
    return grid


def _named(trace: Trace, asked: Asked, recipes: str | Recipe | Iterable[str | Recipe] | None) -> list[str | Recipe]:
    """The recipes that are asked for."""
    if recipes is None:
        return ["i2am", *([MASKED] if own_mask(trace, asked.options["sample"]) else []), ROLLOUT]
    if not (names := [recipes] if isinstance(recipes, (str, Recipe)) else list(recipes)):
        raise InvalidInput(f"no recipe was asked for; {option('recipes', 'i2am')} is one")
    return names


def _recipes(names: Iterable[str | Recipe]) -> dict[Recipe, bool]:
    """Their rows, and of each whether its SRAM is new: a mask of positions changes G2R alone."""
    rows = [get_recipe(row, weight=PLAIN) for row in names if row != ROLLOUT]
    plain = [get_recipe(row, query_mask=False) for row in rows]
    return {row: plain[i] not in plain[:i] for i, row in enumerate(rows)}


def _weights(traces: list[Trace], asked: Asked, row: Recipe, weights: Weight | Iterable[Weight] | None) -> tuple[list[Weight], list[str]]:
    """The weights that all traces can have, and what is said of the others.

    Raises   UnknownSelection for one that was asked for by name
    """
    if weights is not None:
        return [weights] if isinstance(weights, str) else list(weights), []
    known, notes = list[Weight](), list[str]()
    for weight in get_args(Weight):
        try:
            for trace in traces:
                asked.g2r(trace, row, weight)
        except UnknownSelection as error:
            if weight == PLAIN:
                raise
            notes.append(f"{trace.path}: {error}")
        else:
            known.append(weight)
    return known, notes


def _parts(trace: Trace, effects: xr.Dataset, asked: Asked, row: Recipe, weight: Weight, drawing: Drawing) -> Iterator[Score]:
    """Scores of layers and heads as wholes."""
    for against, level in SILENCED.items():
        if against in effects:
            yield from score_parts(asked.g2r(trace, row, weight, level).compute(), against, effects[against], drawing, (row.label, weight))


def _rolled(
    traces: tuple[Trace, Trace | None], asked: Asked, inside: NDArray[np.bool_], truths: Mapping[Against, Truth], drawing: Drawing
) -> list[Score]:
    """Scores of the rollout of a trace, beside those of the other's.

    Raises   as `rollout`
    """
    mine, beside = ({} if one is None else asked.rollouts(one, inside) for one in traces)
    scores: list[Score] = []
    for name, found in mine.items():
        maps, others = compute(found, beside.get(name, {}))  # type: ignore[no-untyped-call]
        scores += score_cells(maps, others, truths, drawing, (name, PLAIN))
    return scores


def _levels(keep: Iterable[str] | str) -> tuple[str, ...]:
    asked = {keep} if isinstance(keep, str) else set(keep)
    if unknown := sorted(asked - {"layer", "head"}):
        raise InvalidInput(f"{option('keep', unknown[0])}; scores are kept for each layer and head")
    return ("", *(level for level in ("layer", "head") if level in asked))


def _positive(value: int, name: str) -> int:
    if (count := whole(value, "a number of samples")) < 2:
        raise InvalidInput(f"{option(name, count)}; an interval needs 2 samples or more, such as {DRAWS}")
    return count
