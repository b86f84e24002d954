"""`i2am faithfulness`: the run of a trace repeated with parts of its reference left out, to hold maps against what really matters."""

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
from ...schema.experiments.effects import SHARES, TRUTH, EffectRecord
from ...schema.messages import option
from .record import require_recorder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...schema.trace import TraceRecord
    from ..intervention.effects import Replay
    from ..specs.spec import Spec
    from ..store.effects import EffectStore


@click.command("faithfulness", short_help="Repeat a recorded run with parts of the reference left out, and keep what that changes.")
@click.argument("spec", type=click.Path(path_type=Path))
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the effects, such as faith.zarr.")
@click.option(
    "--trials",
    default="cells",
    show_default=True,
    help="What is tried, with commas between: cells (their keys left out), pixels (theirs inverted), layers, heads (silenced one by one), "
    "curves (more and more cells left out, in several orders).",
)
@click.option("--cells", default="8x8", show_default=True, metavar="ROWSxCOLUMNS", help="How the reference is cut into cells.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Paint N pictures in one run: one as it is, N - 1 trials.",
)
@click.option("--group", help="Token group whose keys are left out.  [default: the only reference with places]")
@click.option(
    "--kind",
    type=click.Choice(["drop", "zero"]),
    default="drop",
    show_default=True,
    help="drop: other keys take the cell's share of the softmax; zero: nothing does.",
)
@click.option("--layers", multiple=True, help="Modules: names, globs or re: and a regular expression.  [default: all]")
@click.option("--branches", type=click.Choice(["cond", "uncond", "both"]), default="cond", show_default=True, help="Of guidance.")
@click.option("--sample", type=click.IntRange(min=0), default=0, show_default=True, help="Which generated image.")
@click.option("--budget", type=click.FloatRange(min=0), metavar="MINUTES", help="Refuse if it would take longer than this.")
@click.option("--yes", is_flag=True, help="Go on though it takes longer than the budget.")
@click.option(
    "--overwrite", is_flag=True, help="Replace effects at the output path; else what is finished there is kept, and the rest is added."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def faithfulness_command(
    spec: Path, trace: Path, output: Path, trials: str, cells: str, budget: float | None, yes: bool, overwrite: bool, as_json: bool,
    **asked: Any,
) -> None:  # fmt: skip
    """Run SPEC again with parts of the attention to the reference left out, one trial after another, and keep what changes in each patch.

    SPEC is what TRACE was recorded with: the run is first repeated twice as it is, to see that it is deterministic and paints the
    picture of TRACE. It can import code and read files: run only those that you trust (docs/security.md).

    OUTPUT is a small Zarr folder with one array for each kind of trial. Interrupted, it keeps finished trials; the same command goes
    on, and one that asks for other trials adds them.

    \b
    Examples:
      i2am faithfulness examples/demo.toml run.zarr -o faith.zarr
      i2am faithfulness examples/demo.toml run.zarr -o faith.zarr --cells 16x16 --kind zero --budget 10
      i2am faithfulness examples/demo.toml run.zarr -o faith.zarr --trials cells,pixels,layers,heads,curves --batch 9
    """
    lattice = read_cells(cells)
    from ..specs.spec import read_spec
    from ..store.effects import EffectStore, read_generated, read_run

    run, chosen = read_run(trace), read_spec(spec)
    recorded = read_generated(trace, run, asked["sample"])
    require_recorder()
    record, ranks = _plan(run, trace, lattice, trials, spec.read_text(encoding="utf-8"), asked)
    store = EffectStore(output, record, overwrite=overwrite)
    if not (missing := store.missing):
        with store.opened():  # what describes the arrays is written anew, should it have been lost
            pass
    else:
        from ..intervention.effects import alter_call, measure
        from ..intervention.trials import group_image

        replay, image = _prepare(chosen, store.record, run, recorded), group_image(run, record.group)
        if "pixels" in record.trials and image is not None:  # refused before anything is tried
            alter_call(replay.pipeline, replay.call, image, (), record.cells)
        _forecast(len(missing), *replay.forecast(missing), None if yes else budget)
        try:
            with store.opened(), _progress(len(missing)) as bar:
                measure(replay, store, ranks, image, bar.update)
        except KeyboardInterrupt:
            click.echo(
                f"{output} keeps what was tried, all but {len(store.missing)} of {len(missing)} trials; the same command goes on", err=True
            )
            raise
    click.echo(_summary(output, store, as_json))


def _plan(
    run: TraceRecord, trace: Path, cells: tuple[int, int], trials: str, spec: str, asked: dict[str, Any]
) -> tuple[EffectRecord, dict[str, NDArray[np.float64]]]:
    """The record of an experiment on a trace, and the importance of each cell by the orders that need no trials.

    Raises   InvalidInput, UnknownSelection for what the trace does not have
    """
    from ..intervention import orders
    from ..intervention.trials import check_trials, patch_grid, read_trials, reading_layers, reference_group
    from ..session.provenance import versions

    tried, group = read_trials(trials), reference_group(run, asked["group"])
    layers = reading_layers(run, group, asked["layers"])
    check_trials(run, layers, group, cells, tried)
    ranks = {}
    if "curves" in tried:
        branch = asked["branches"] if asked["branches"] in run.branches else run.branches[0]
        ranks = {"random": orders.random_order(cells), **orders.map_orders(trace, group, cells, asked["sample"], branch)}
        if len(ranks) == 1:
            click.echo(
                "curves leave cells out at random and by what each was found to change: no maps that rank them are installed", err=True
            )
    record = EffectRecord(
        id=str(uuid.uuid4()),
        trace=run.id,
        group=group,
        cells=cells,
        grid=patch_grid(run),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        provenance={"spec": spec, "versions": dict(versions())},
        trials=tried,
        layer_names=tuple(layer.name for layer in layers),
        layer_heads=tuple(layer.model_heads for layer in layers),
        orders=(TRUTH, *ranks) if ranks else (),
        shares=SHARES,
        **{name: asked[name] for name in ("kind", "sample", "layers", "branches", "batch")},
    )
    return record, ranks


def _prepare(spec: Spec, record: EffectRecord, run: TraceRecord, recorded: NDArray[np.uint8] | None) -> Replay:
    """The spec's run, which paints the recorded picture."""
    from ..intervention.effects import prepare
    from ..intervention.outputs import check_inputs, check_recorded
    from ..session.provenance import input_record
    from ..specs.hub import reachable
    from ..specs.loading import load_pipeline, run_arguments

    arguments = run_arguments(spec)[0]
    check_inputs(input_record(arguments), run.inputs)
    replay = prepare(load_pipeline(reachable(spec)), arguments, record.sample, record.batch, run.samples)
    if recorded is not None:
        check_recorded(replay.picture, recorded)
    return replay


def read_cells(text: str) -> tuple[int, int]:
    """(rows, columns) of `8x8`.

    Raises   InvalidInput
    """
    match = re.fullmatch(r"\s*([1-9]\d{0,3})\s*[x,]\s*([1-9]\d{0,3})\s*", text)
    if match is None:
        raise InvalidInput(f"{option('cells', text)} is no number of rows and columns; write 8x8")
    return int(match[1]), int(match[2])


def _forecast(trials: int, runs: int, seconds: float, budget: float | None) -> None:
    """Say how long it will take.

    Raises   InvalidInput if that is more minutes than the budget
    """
    said = f"{trials} trials in {runs} runs of {seconds / runs:.2g} s take about {seconds / 60:.2g} min"
    if budget is not None and seconds > budget * 60:
        fewer = f"ask for fewer {option('cells')} or {option('trials')}"
        raise InvalidInput(f"{said}, more than {option('budget', budget)}; {fewer}, or go on with {option('yes', True)}")
    click.echo(said, err=True)


def _progress(trials: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=trials, desc="leaving out", unit="trial", leave=False, disable=None if sys.stderr else True)


def _summary(output: Path, store: EffectStore, as_json: bool) -> str:
    record = store.record
    if as_json:
        known = ("id", "trace", "trials", "cells", "grid", "batch", "orders")
        return json.dumps({"path": str(output), **{name: getattr(record, name) for name in known}})
    (rows, columns), patches = record.cells, f"{record.grid[0]} x {record.grid[1]} patches"
    return f"{output}: what {', '.join(record.trials)} of {record.group} in {rows} x {columns} cells change in {patches}"
