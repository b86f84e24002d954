"""`i2am faithfulness`: the run of a trace repeated with each cell of its reference left out, to hold maps against what really matters."""

from __future__ import annotations

import datetime
import json
import re
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...schema.errors import InvalidInput
from ...schema.messages import option
from .record import require_recorder

if TYPE_CHECKING:
    from ..store.effects import EffectStore


@click.command("faithfulness", short_help="Repeat a recorded run with each cell of the reference left out, and keep what that changes.")
@click.argument("spec", type=click.Path(path_type=Path))
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the effects, such as faith.zarr.")
@click.option("--cells", default="8x8", show_default=True, metavar="ROWSxCOLUMNS", help="How the reference is cut into cells.")
@click.option("--group", help="Token group whose keys are left out.  [default: the only reference with places]")
@click.option(
    "--kind",
    type=click.Choice(["drop", "zero"]),
    default="drop",
    show_default=True,
    help="drop: other keys take the cell's share of the softmax; zero: nothing does.",
)
@click.option("--layers", multiple=True, help="Modules: names, globs or re: and a regular expression.  [default: all]")
@click.option("--branches", default="cond", show_default=True, help="cond, uncond or both.")
@click.option("--sample", type=click.IntRange(min=0), default=0, show_default=True, help="Which generated image.")
@click.option("--budget", type=click.FloatRange(min=0), metavar="MINUTES", help="Refuse if it would take longer than this.")
@click.option("--yes", is_flag=True, help="Go on though it takes longer than the budget.")
@click.option(
    "--overwrite", is_flag=True, help="Replace effects at the output path; else what is finished there is kept, and the rest is added."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def faithfulness_command(
    spec: Path, trace: Path, output: Path, cells: str, group: str | None, budget: float | None, yes: bool, overwrite: bool, as_json: bool,
    **asked: Any,
) -> None:  # fmt: skip
    """Run SPEC again for each cell of the reference, with the attention to that cell left out, and keep what changes in each patch.

    SPEC is what TRACE was recorded with: the run is first repeated twice as it is, to see that it is deterministic and paints the
    picture of TRACE. It can import code and read files: run only those that you trust (docs/security.md).

    OUTPUT is a small Zarr folder, float32 (cell_y, cell_x, y, x). Interrupted, it keeps finished cells; the same command goes on.

    \b
    Examples:
      i2am faithfulness examples/demo.toml run.zarr -o faith.zarr
      i2am faithfulness examples/demo.toml run.zarr -o faith.zarr --cells 16x16 --kind zero --budget 10
    """
    lattice = read_cells(cells)
    from ..specs.spec import read_spec
    from ..store.effects import EffectStore, read_generated, read_run

    run, chosen = read_run(trace), read_spec(spec)
    recorded = read_generated(trace, run, asked["sample"])
    require_recorder()
    from ...schema.experiments.effects import EffectRecord
    from ..intervention.effects import check_cells, distance, float_arguments, measure_cells, patch_grid, reference_group, run_baseline
    from ..session.provenance import versions
    from ..specs.hub import reachable
    from ..specs.loading import load_pipeline, run_arguments

    named = reference_group(run, group)
    record = EffectRecord(
        id=str(uuid.uuid4()),
        trace=run.id,
        kind=asked["kind"],
        group=named,
        cells=check_cells(run, named, lattice),
        grid=patch_grid(run),
        sample=asked["sample"],
        layers=asked["layers"],
        branches=asked["branches"],
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        provenance={"spec": spec.read_text(encoding="utf-8"), "versions": dict(versions())},
    )
    store = EffectStore(output, record, overwrite=overwrite)
    if missing := store.missing:
        pipeline = load_pipeline(reachable(chosen))
        call = float_arguments(pipeline, run_arguments(chosen)[0])
        baseline = run_baseline(pipeline, call, record.sample)
        if recorded is not None:
            distance(baseline.picture, recorded)
        _forecast(len(missing), baseline.seconds, None if yes else budget)
        with store.opened(), _progress(len(missing)) as bar:
            measure_cells(pipeline, call, baseline, store, bar.update)
    click.echo(_summary(output, store, as_json))


def read_cells(text: str) -> tuple[int, int]:
    """(rows, columns) of `8x8`.

    Raises   InvalidInput
    """
    match = re.fullmatch(r"\s*([1-9]\d{0,3})\s*[x,]\s*([1-9]\d{0,3})\s*", text)
    if match is None:
        raise InvalidInput(f"{option('cells', text)} is no number of rows and columns; write 8x8")
    return int(match[1]), int(match[2])


def _forecast(cells: int, seconds: float, budget: float | None) -> None:
    """Say how long it will take.

    Raises   InvalidInput if that is more minutes than the budget
    """
    minutes = cells * seconds / 60
    said = f"{cells} cells at {seconds:.2g} s take about {minutes:.2g} min"
    if budget is not None and minutes > budget:
        raise InvalidInput(
            f"{said}, more than {option('budget', budget)}; ask for fewer {option('cells')}, or go on with {option('yes', True)}"
        )
    click.echo(said, err=True)


def _progress(cells: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=cells, desc="leaving out", unit="cell", leave=False, disable=None if sys.stderr else True)


def _summary(output: Path, store: EffectStore, as_json: bool) -> str:
    record = store.record
    if as_json:
        return json.dumps(
            {"path": str(output), "id": record.id, "trace": record.trace, "cells": list(record.cells), "grid": list(record.grid)}
        )
    rows, columns = record.cells
    return f"{output}: what {rows} x {columns} cells of {record.group} change in {record.grid[0]} x {record.grid[1]} patches"
