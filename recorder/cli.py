"""`i2am record`: run a pipeline that a TOML file describes and keep its attention, or say beforehand what that would weigh."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..schema.errors import MissingExtra, NoSpace
from .selection import Options
from .spec import OPTIONS, Spec, read_spec
from .storage import check_output

if TYPE_CHECKING:
    from .estimate import Estimate

COMPRESSION = 3
"""No recording was ever seen to compress better than this; what needs more room than that cannot fit."""


@click.command("record", short_help="Run a pipeline described in a TOML file and record its attention.")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The trace to write, such as run.zarr.")
@click.option("--dry-run", is_flag=True, help="From shapes alone, print layers, bytes for each encoding and files; load and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--overwrite", is_flag=True, help="Replace the trace at the output path, if there is one.")
@click.option("--layers", multiple=True, help="Modules to record: a glob, or re: and a regular expression; may be repeated.")
@click.option("--steps", help="Denoiser evaluations to record: every=5, 10:40:5 or 0,10,49.")
@click.option("--branches", help="cond, uncond or both.")
@click.option("--encoding", help="probabilities, factors or auto.")
@click.option("--keys", help="all, reference or text.")
@click.option("--codec", help="lz4 or zstd.")
@click.option("--level", type=int, help="Of the codec, 0 to 9.")
@click.option("--queue-mb", type=float, help="Most that waits to be written, in MiB.")
def record_command(spec: Path, output: Path | None, dry_run: bool, as_json: bool, overwrite: bool, **options: Any) -> None:
    """Run the pipeline of SPEC once and record its attention.

    SPEC is a TOML file that names the pipeline's class, its weights, adapters, scheduler, call arguments, images and seed;
    examples/ has some. Options given here win over its [record] table.

    \b
    Examples:
      i2am record examples/demo.toml --dry-run
      i2am record examples/demo.toml -o run.zarr --encoding factors --steps every=5
    """
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o'; say where the trace goes, or ask for --dry-run.")
    chosen = with_options(read_spec(spec), options)
    if dry_run:
        click.echo(_dry_run(chosen, output, as_json))
        return
    assert output is not None
    click.echo(_record(chosen, output, overwrite, as_json))


def with_options(spec: Spec, options: dict[str, Any]) -> Spec:
    """The spec with the options of the command line in place of its own."""
    given = {name: options[name] for name in OPTIONS if options.get(name) not in (None, ())}
    if "layers" in given:
        given["layers"] = list(given["layers"])
    steps = given.get("steps")
    if steps is not None and "=" not in steps and ":" not in steps and all(part.strip().isdigit() for part in steps.split(",")):
        given["steps"] = [int(part) for part in steps.split(",")]
    merged = {**spec.options, **given}
    Options(**merged)
    return dataclasses.replace(spec, options=merged)


def require_extra() -> None:
    """Raise MissingExtra where torch or diffusers is not installed."""
    missing = [name for name in ("torch", "diffusers", "transformers") if importlib.util.find_spec(name) is None]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it speaks of torchvision at every start
    if missing:
        raise MissingExtra(f'recording needs {", ".join(missing)}, not installed here; install with: pip install "i2am[record]"')


def _record(spec: Spec, output: Path, overwrite: bool, as_json: bool) -> str:
    check_output(output, overwrite)  # before minutes go into loading a model
    require_extra()
    from .loading import call_arguments, explained, load_pipeline, record_arguments
    from .session import recording

    arguments, options = call_arguments(spec), record_arguments(spec)
    pipeline = load_pipeline(spec)
    facts = {"spec": spec.path.read_text(encoding="utf-8")}
    refused = explained(f"{spec.pipeline} refuses its arguments", (ValueError, TypeError))
    with recording(pipeline, output, overwrite=overwrite, facts=facts, **options) as made, refused:
        pipeline(**arguments)
    trace = made.trace
    assert trace is not None
    nbytes = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if as_json:
        return json.dumps({"path": str(output), "id": trace.id, "steps": trace.steps, "layers": len(trace.layers), "bytes": nbytes})
    return f"{output}: {trace.steps} steps of {len(trace.layers)} layers, {human(nbytes)}"


def _dry_run(spec: Spec, output: Path | None, as_json: bool) -> str:
    require_extra()
    from .estimate import estimate

    found = estimate(spec)
    free = free_bytes(output or Path.cwd())
    wanted = spec.options.get("encoding", "probabilities")
    if output is not None and found.sizes[wanted].nbytes > COMPRESSION * free:
        raise NoSpace(
            f"{output} has {human(free)} free; {human(found.sizes[wanted].nbytes)} before compression cannot fit; "
            "record fewer layers or steps, or with encoding factors"
        )
    if as_json:
        return json.dumps({**found.to_json(), "encoding": wanted, "free_bytes": free})
    return render(found, wanted, free)


def render(found: Estimate, wanted: str, free: int) -> str:
    """The estimate as a table for people."""
    rows = [("layer", "heads", "dim", "grid", "keys", "probabilities", "factors")]
    for layer, sizes in zip(found.trace.layers, found.layers, strict=True):
        keys = " + ".join(f"{group.name} {group.tokens}" for group in layer.groups)
        weights = (human(sizes["probabilities"]), human(sizes["factors"]))
        rows.append((layer.name, str(layer.heads), str(layer.head_dim), f"{layer.grid[0]}x{layer.grid[1]}", keys, *weights))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [str.ljust if name in ("layer", "keys") else str.rjust for name in rows[0]]
    lines = ["  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True)).rstrip() for row in rows]
    trace = found.trace
    branches = ", ".join(trace.branches)
    lines += ["", f"{trace.samples} image(s), branches {branches}, {trace.steps} of {found.evaluations} denoiser evaluations"]
    for name, size in found.sizes.items():
        mark = "   <- chosen" if name == wanted else ""
        lines.append(f"{name:13}  {human(size.nbytes):>9} before compression, {size.files} files{mark}")
    lines.append(f"{'free':13}  {human(free):>9}")
    return "\n".join(lines)


def human(nbytes: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def free_bytes(path: Path) -> int:
    """Free space where a path is, or would be."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
