"""Which maps of the demo model say what mattered, by what happens when it is left out: every weight, method, layer and head.

    python benchmarks/faithfulness.py --cache out/faithfulness                    # 32 pairs, 5 steps, 8 x 8 cells
    python benchmarks/faithfulness.py --cache out/faithfulness -o docs/truth.md   # and the tables go into the page

Effects and scores are kept pair by pair, so that it goes on where it was ended. The control is the same network with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import xarray as xr
from curves import curves_of
from effects import effects_of
from faithfulness_tables import report
from measure import machine
from recordings import pipelines, record_pair
from truth import write_page

from i2am.analyzer import faithfulness, g2r, get_recipe, head_accuracy, open_trace
from i2am.analyzer.intervention.agreement import Drawing
from i2am.analyzer.intervention.cells import ROLLOUT
from i2am.analyzer.intervention.curves import measure_areas
from i2am.analyzer.intervention.table import row_of
from i2am.analyzer.methods.recipes import Recipe
from i2am.analyzer.trace.reader import Trace
from i2am.recorder.demo.pairs import HELD_OUT, draw_pair
from i2am.recorder.demo.pipeline import TryOnPipeline

MARKS: Final = ("<!-- printed by benchmarks/faithfulness.py: begin -->", "<!-- end of benchmarks/faithfulness.py -->")
PLAIN, MASKED = get_recipe("i2am"), get_recipe("i2am", query_mask=True)
"""SRAM, and G2R of all positions; G2R of those that are painted."""
FINE: Final = tuple(get_recipe(row, reference_layers="*up_blocks.1*") for row in (PLAIN, MASKED))
"""The same of the two layers that point."""
METHODS: Final = ("i2am-v1", "i2am-official", "i2am-official-pbe", "i2am-custom")
SINGLE: Final = 16
"""Rows, and columns, of cells that hold one key each."""
DRAWS = 2
"""Samples for the intervals of one pair, which are not used: pairs are drawn."""


def judged(pipeline: TryOnPipeline, folder: Path, index: int, steps: int, cells: int, other: bool, few: bool = False) -> dict[str, Any]:
    """Scores and facts of one pair, worked out where they are not there yet; `few` leaves out pixels."""
    kept = folder / f"{index:03d}-{steps}-{cells}.scores.json"
    if not kept.exists():
        effects = effects_of(pipeline, folder, index, steps, cells, few)
        trace = recorded(pipeline, folder, index, steps)
        effects.attrs.update(group="reference", sample=0, branches="cond")
        rows = [*score(trace, effects), *follow(recorded(pipeline, folder, index, steps, keys="all"), effects)]
        told = {"scores": rows, "parts": describe_parts(trace, effects)}
        if other:
            beside = recorded(pipeline, folder, index, steps, reference=index + 1)
            found = faithfulness(trace, effects, other=beside, recipes=[PLAIN, MASKED], weights="attention", bootstrap=DRAWS)
            told["other"] = [row_of(one) for one in found.scores]
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(told))
        part.rename(kept)
    return json.loads(kept.read_text())


def recorded(pipeline: TryOnPipeline, folder: Path, index: int, steps: int, reference: int | None = None, keys: str = "reference") -> Trace:
    """The trace of a pair, with values; with the reference of another pair if one is named."""
    path = folder / f"{index:03d}-{steps}-{keys}{'' if reference is None else f'-of-{reference:03d}'}.zarr"
    if not path.exists():
        pair = draw_pair(HELD_OUT + index, pipeline.size)
        if reference is not None:
            worn = draw_pair(HELD_OUT + reference, pipeline.size)
            pair = replace(pair, reference=worn.reference, reference_mask=worn.reference_mask)
        record_pair(pipeline, pair, steps, path, values="full", keys=keys)
    return open_trace(path)


def score(trace: Trace, effects: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Rows of scores, `what` and `masked` saying which of the benchmark's maps each is of."""
    cells = effects.drop_vars(("layers", "heads"))
    yield from _rows(trace, effects, "all layers", (PLAIN, MASKED), weights="attention", keep="layer")
    yield from _rows(trace, effects, "all layers", (PLAIN, MASKED), weights=("norm", "contribution", "knock-out"))
    yield from _rows(trace, cells, "up_blocks.1", FINE)
    for name in METHODS:
        yield from _rows(trace, cells, name, (get_recipe(name, sram_target="g2r"),), weights="attention")


def follow(trace: Trace, effects: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Rows of the rollout, of a trace with self-attention."""
    return _rows(trace, effects.drop_vars(("layers", "heads")), ROLLOUT, (ROLLOUT,))


def _rows(trace: Trace, effects: xr.Dataset, what: str, recipes: tuple[str | Recipe, ...], **options: Any) -> Iterator[dict[str, Any]]:
    for found in faithfulness(trace, effects, recipes=recipes, bootstrap=DRAWS, **options).scores:
        masked = "query_mask=yes" in found.recipe
        yield {**row_of(found), "what": what, "masked": masked}


def describe_parts(trace: Trace, effects: xr.Dataset) -> dict[str, Any]:
    """What is known of each layer and head beside its scores, and of CLS.

    Dims     lists (layer,), (layer, head)
    """
    totals = {
        w: g2r(trace, keep=("layer", "head"), recipe=MASKED, weight=w).sum(("ref_y", "ref_x")).values
        for w in ("attention", "norm", "contribution")
    }
    accuracy = head_accuracy([trace])
    order = [accuracy["layer"].values.tolist().index(layer.name) for layer in trace.layers]
    scale = float(effects["without"].mean())
    shares = [float(trace.probabilities(layer.name).isel(branch=-1, token=0).mean()) for layer in trace.layers]
    return {
        "names": [layer.name for layer in trace.layers],
        "silenced": (effects["layers"].sel(layer=[layer.name for layer in trace.layers]).mean(("y", "x")).values / scale).tolist(),
        "heads": (effects["heads"].sel(layer=[layer.name for layer in trace.layers]).mean(("y", "x")).values / scale).tolist(),
        "pck": accuracy.values[order].tolist(),
        "cls": {"effect": float(effects["cls"].mean()) / scale, "attention": shares},
        "without": scale,
        **{name: values.tolist() for name, values in totals.items()},
    }


@click.command()
@click.option("--pairs", default=32, show_default=True)
@click.option("--steps", default=5, show_default=True)
@click.option("--cells", default=8, show_default=True, help="Rows, and columns, of cells.")
@click.option("--few", default=4, show_default=True, help="Pairs of the control with random weights.")
@click.option("--single", default=2, show_default=True, help="Pairs whose keys are dropped one by one.")
@click.option("--some", default=8, show_default=True, help="Pairs of curves, and of the control with another reference.")
@click.option(
    "--cache", type=click.Path(path_type=Path), default=Path("out/faithfulness"), show_default=True, help="Folder of what is kept."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Page to write the tables into; printed without it.")
def main(pairs: int, steps: int, cells: int, few: int, single: int, some: int, cache: Path, out: Path | None) -> None:
    """Print which maps follow what is measured by leaving things out."""
    printed = f"{conditions(pairs, steps, cells, few, single, some)}\n\n{report(**collect(cache, pairs, steps, cells, few, single, some))}"
    if out:
        write_page(out, printed, MARKS)
    else:
        click.echo(printed)


def collect(cache: Path, pairs: int, steps: int, cells: int, few: int, single: int, some: int) -> dict[str, Any]:
    """All that the tables need."""
    models = pipelines()
    trained = [judged(models["trained"], cache / "trained", index, steps, cells, index < some) for index in range(pairs)]
    random = [judged(models["random"], cache / "random", index, steps, cells, False) for index in range(few)]
    alone = [judged(models["trained"], cache / "trained", index, steps, SINGLE, False, few=True) for index in range(single)]
    curves = [areas(models["trained"], cache / "trained", index, steps, cells) for index in range(some)]
    return {"trained": trained, "random": random, "single": alone, "curves": curves}


def areas(pipeline: TryOnPipeline, folder: Path, index: int, steps: int, cells: int) -> dict[str, tuple[float, float]]:
    """Deletion and insertion areas of each order of cells."""
    trace, effects = recorded(pipeline, folder, index, steps), effects_of(pipeline, folder, index, steps, cells)
    curves = curves_of(pipeline, folder, index, steps, trace, effects)
    inside = effects["without"].values > 0
    found = measure_areas(xr.merge([curves, effects[["without"]]]), inside, Drawing(DRAWS, 0))
    return {area.order: (area.deletion.mean, area.insertion.mean) for area in found}


def conditions(pairs: int, steps: int, cells: int, few: int, single: int, some: int) -> str:
    """One line: what was measured, and on what."""
    text = f"{machine()}; {pairs} held-out pairs, {steps} DDIM steps, {cells} x {cells} cells of the reference"
    return f"{text}; random weights: {few} pairs; single keys: {single}; curves and another reference: {some}"


if __name__ == "__main__":
    main()
