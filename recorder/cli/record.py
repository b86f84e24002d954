"""`i2am record`: run a pipeline that a TOML file describes and keep its attention, or say beforehand what that would weigh."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...schema.errors import InvalidInput, NoAnswer
from ...schema.journal import disk_bytes
from ...schema.messages import option, require_extra, size_text
from ...schema.trace import VALUES
from ..plan.budget import free_bytes
from ..plan.options import Options
from ..specs.files import named_files, note_outside
from ..specs.hub import reachable
from ..specs.manifest import read_manifest
from ..specs.spec import OPTIONS, Spec, read_probe_file, read_spec
from ..store.files import check_output
from .upload import WAITING, Output, Uploads, find_output, look_up, remove_empty, require_free

if TYPE_CHECKING:
    from ..dryrun.estimate import Estimate
    from .batch import Job, Outcome


@click.command("record", short_help="Run a pipeline described in a TOML file and record its attention.")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The trace to write, as run.zarr or s3://bucket/run.zarr; with --manifest, a folder.",
)
@click.option("--manifest", type=click.Path(path_type=Path), help="A CSV file: one recording for each row, named by its column `name`.")
@click.option(
    "--scratch", type=click.Path(path_type=Path), help="Folder of traces until they are copied to an address.  [default: a new one]"
)
@click.option("--dry-run", is_flag=True, help="From shapes alone, print layers, bytes for each encoding and files; load and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--overwrite", is_flag=True, help="Replace the trace at the output path, if there is one.")
@click.option("--layers", multiple=True, help="Modules: names, globs or re: and a regular expression; with commas, or given several times.")
@click.option("--steps", help="Denoiser evaluations to record: ::5, 10:40:5 or 0,10,49.")
@click.option("--heads", help="Heads to record, in each layer: ::2, 0:4 or 0,3,7.")
@click.option("--branches", help="cond, uncond or both.")
@click.option("--encoding", help="probabilities, factors or auto.")
@click.option("--keys", help="auto, all, reference, text or self (the image's own tokens).")
@click.option("--self-grid", type=int, help="Keep self-attention of layers with at most N x N positions; 0 keeps none.  [default: 32]")
@click.option("--values", help="Kept of the values: none, norms, full, or auto (norms where they add 2 % at most).")
@click.option("--keep", help="attention, or maps: sums of it alone, for R2G, G2R and maps of tokens.")
@click.option("--token-maps", type=int, help="With --keep maps, how many tokens of each text have maps of their own, from the first.")
@click.option("--max-bytes", help="Most that a trace may hold before compression, such as 5GB; refused beforehand if it would hold more.")
@click.option("--keep-bits", type=int, help="Round probabilities to so many of float16's 10 mantissa bits, to pack better.")
@click.option("--probes", type=click.Path(path_type=Path), help="A TOML file with a table [probes]: texts and images to keep keys of.")
@click.option("--concepts", multiple=True, help="Words that attend to the image beside the run (Flux); with commas, or several times.")
@click.option("--truth", type=click.Path(path_type=Path), help="Known truth: CSV of y,x,ref_y,ref_x from 0 to 1, or a flow (.npy, .npz).")
@click.option("--codec", help="lz4 or zstd.")
@click.option("--level", type=int, help="Of the codec, 0 to 9.")
@click.option("--queue-mb", type=float, help="Most that waits to be written, in MiB.")
def record_command(
    spec: Path, output: Path | None, manifest: Path | None, scratch: Path | None, dry_run: bool, as_json: bool, overwrite: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Run the pipeline of SPEC once and record its attention.

    SPEC is a TOML file that names the pipeline's class, its weights, adapters, scheduler, call arguments, images and seed;
    examples/ has some. Options given here win over its [record] table. A spec can import code and read files: run only those
    that you trust (docs/security.md).

    With --manifest, each row of a CSV file is recorded to OUTPUT/NAME.zarr with the model loaded once. Columns are arguments of
    the call, images (paths relative to the CSV file) or `seed`. Complete traces are skipped, partial ones redone; rows that fail
    are listed at the end, with exit code 1. Under torchrun, accelerate launch or srun the processes share the rows; a row that another
    process records or has recorded meanwhile is skipped.

    Where OUTPUT is an address, each trace is made in the folder --scratch, and copied while the next one is sampled; the local one is
    removed once the other is whole.

    \b
    Examples:
      i2am record examples/demo.toml --dry-run
      i2am record examples/demo.toml -o run.zarr --encoding factors --steps ::5
      i2am record examples/demo.toml -o run.zarr --max-bytes 5GB --heads ::2 --layers "*up_blocks*"
      i2am record examples/demo.toml -o run.zarr --encoding factors --probes probes.toml
      i2am record examples/demo.toml -o run.zarr --encoding factors --keys self --steps ::5
      i2am record examples/demo.toml --manifest pairs/pairs.csv -o traces
      i2am record examples/demo.toml --manifest pairs/pairs.csv -o s3://bucket/traces --scratch /local/disk
    """
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o'; say where the trace goes, or ask for --dry-run.")
    place = None if output is None else find_output(output, scratch, one=manifest is None, dry=dry_run)
    if place is not None and place.address and not dry_run:
        folder = place.local.parent if manifest is None else place.local
        _tell(f"recorded in {folder}, then copied to {place.address}")
        if scratch is None:
            click.get_current_context().call_on_close(partial(remove_empty, folder))
    chosen = with_options(read_spec(spec), options)
    for named in (spec, options["probes"]):
        _tell(note_outside(named.name, named_files(named), [named.parent]) if named else "")
    if manifest is not None:
        _record_rows(chosen, manifest, place, dry_run, as_json, overwrite)
    elif dry_run:
        click.echo(_dry_run(chosen, None if place is None else place.local, as_json))
    else:
        assert place is not None
        click.echo(_record(chosen, place, overwrite, as_json))


def with_options(spec: Spec, options: dict[str, Any]) -> Spec:
    """The spec with the options of the command line in place of its own."""
    given = {name: options[name] for name in OPTIONS if options.get(name) not in (None, ())}
    if "layers" in given:
        given["layers"] = list(given["layers"])
    if "concepts" in given:
        given["concepts"] = [word.strip() for text in given["concepts"] for word in text.split(",")]
    if options.get("probes") is not None:
        given["probes"] = {**(spec.options.get("probes") or {}), **read_probe_file(options["probes"])}
    merged = {**spec.options, **given}
    Options(**merged)
    return dataclasses.replace(spec, options=merged)


def _tell(note: str) -> None:
    if note:
        click.echo(note, err=True)


def require_recorder() -> None:
    """Raise MissingExtra where torch or diffusers is not installed."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it speaks of torchvision at every start
    require_extra(("torch", "diffusers", "transformers"), "recording")


def _record(spec: Spec, place: Output, overwrite: bool, as_json: bool) -> str:
    output = place.local
    check_output(output, overwrite)  # before minutes go into loading a model
    if place.address:
        require_free(place.address, overwrite)
    require_recorder()
    from ..specs.loading import load_pipeline
    from .batch import check_estimate, foretell, record_spec

    spec = reachable(spec)
    if (found := foretell(spec)) is not None:
        check_estimate(found, spec, output)
    trace = record_spec(load_pipeline(spec), spec, output, overwrite=overwrite, facts={"spec": spec.path.read_text(encoding="utf-8")})
    nbytes = disk_bytes(output)
    if place.address:
        copies = Uploads(overwrite)
        copies.submit(output, place.address)
        if error := copies.finish()[place.address]:
            raise NoAnswer(error)
    if as_json:
        return json.dumps(
            {"path": place.address or str(output), "id": trace.id, "steps": trace.steps, "layers": len(trace.layers), "bytes": nbytes}
        )
    return f"{place.address or output}: {trace.steps} steps of {len(trace.layers)} layers, {size_text(nbytes)}"


def _dry_run(spec: Spec, output: Path | None, as_json: bool) -> str:
    require_recorder()
    from ..dryrun.estimate import estimate
    from .batch import check_estimate

    found = estimate(reachable(spec))
    check_estimate(found, spec, output)
    wanted, free = spec.encoding, free_bytes(output or Path.cwd())
    if as_json:
        return json.dumps({**found.to_json(), "encoding": wanted, "free_bytes": free})
    return render(found, wanted, free)


def _record_rows(spec: Spec, path: Path, to: Output | None, dry_run: bool, as_json: bool, overwrite: bool) -> None:
    """Record the rows of a manifest, or say what that would weigh; ends with exit code 1 if one failed."""
    manifest = read_manifest(path)
    require_recorder()
    from .batch import check_jobs, find_place, gather, plan_jobs, run_jobs

    place, output = find_place(), None if to is None else to.local
    jobs = plan_jobs(reachable(spec), manifest, output or Path(), overwrite)
    _tell(note_outside(path.name, [file for job in jobs for file in job.spec.named_files], [path.parent, spec.path.parent]))
    if dry_run:
        click.echo(_dry_rows(jobs, output, as_json))
        return
    assert to is not None and output is not None
    if place.world > 1:
        share = f"process {place.rank} of {place.world} ({place.said}) records {len(jobs[place.rank :: place.world])} of {len(jobs)} rows"
        click.echo(f"{share}; the others are for the other processes", err=True)
    check_jobs(jobs, WAITING + 1 if to.address else len(jobs))
    copies = Copies(to, overwrite, lambda outcome: click.echo(str(outcome), err=True))
    try:
        mine = [dataclasses.asdict(outcome) for outcome in copies.finish(run_jobs(jobs, place, copies.say, copies.look))]
    except BaseException:
        copies.abandon()
        raise
    gathered = gather(place, mine)
    rows, order = mine if gathered is None else gathered, [job.row.name for job in jobs]
    rows.sort(key=lambda row: order.index(row["name"]))
    if place.rank == 0 or gathered is None:
        click.echo(render_rows(to.address or output, rows, as_json))
    if any(row["result"] in ("failed", "not tried") for row in rows):
        click.get_current_context().exit(1)


class Copies:
    """The rows of a manifest on their way to an address; of a folder there is nothing to copy."""

    def __init__(self, to: Output, overwrite: bool, say: Callable[[Outcome], None]) -> None:
        self._to, self._overwrite, self._say = to, overwrite, say
        self._uploads = Uploads(overwrite) if to.address else None

    def look(self, job: Job) -> Job:
        """The job, done if its trace is at the address."""
        from .batch import compare

        try:
            record = None if self._uploads is None or self._overwrite else look_up(self._address(job.path))
        except InvalidInput as error:
            return dataclasses.replace(job, error=str(error))
        return job if record is None else compare(job, record)

    def say(self, outcome: Outcome) -> None:
        """Tell what became of a row, and copy what it left, be it of an earlier run."""
        self._say(outcome)
        local = Path(outcome.path)
        if self._uploads is not None and outcome.result in ("recorded", "skipped") and not outcome.note and local.exists():
            self._uploads.submit(local, self._address(local))

    def finish(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """The outcomes, once all copies ended: those that could not be copied have failed."""
        rows, found = list(outcomes), {} if self._uploads is None else self._uploads.finish()
        if self._uploads is None:
            return rows
        moved = [(row, self._address(Path(row.path))) for row in rows]
        return [
            dataclasses.replace(row, path=address) if not found.get(address)
            else dataclasses.replace(row, result="failed", error=found[address])
            for row, address in moved
        ]  # fmt: skip

    def abandon(self) -> None:
        """Begin no further copy."""
        if self._uploads is not None:
            self._uploads.abandon()

    def _address(self, local: Path) -> str:
        return f"{self._to.address}/{local.name}"


def render_rows(output: Path | str, rows: Sequence[dict[str, Any]], as_json: bool) -> str:
    """A batch as JSON, or for people: how many rows came to what, then those that somebody should look at."""
    counts = Counter(row["result"] for row in rows)
    if as_json:
        return json.dumps({"output": str(output), "counts": counts, "rows": rows})
    told = [f"  {row['name']}: {row['result']}: {row['error'] or row['note']}" for row in rows if row["error"] or row["note"]]
    return "\n".join([f"{output}: {', '.join(f'{count} {result}' for result, count in counts.items())}", *told])


def _dry_rows(jobs: Sequence[Job], output: Path | None, as_json: bool) -> str:
    """The first row's table, and what all rows still to be recorded come to."""
    from ..dryrun.estimate import estimate
    from .batch import check_jobs

    waiting = [job for job in jobs if not (job.done or job.error)]
    errors = {job.row.name: job.error for job in jobs if job.error}
    check_jobs(jobs)
    found = estimate(waiting[0].spec) if waiting else None
    wanted = jobs[0].spec.encoding
    if as_json:
        first = found.to_json() if found else None
        return json.dumps({"rows": len(jobs), "waiting": len(waiting), "errors": errors, "encoding": wanted, "each": first})
    lines = [f"{len(waiting)} of {len(jobs)} rows are to be recorded"]
    lines += [f"  {name}: {error}" for name, error in errors.items()]
    if found is not None:
        each = found.sizes[wanted].nbytes
        sizes = f"{size_text(each)} each and {size_text(each * len(waiting))} in all"
        lines[0] += f", {sizes} before compression if all are like {waiting[0].row.name}:"
        lines += ["", render(found, wanted, free_bytes(output or Path.cwd()))]
    return "\n".join(lines)


def render(found: Estimate, wanted: str, free: int) -> str:
    """The estimate as a table for people."""
    rows: list[tuple[str, ...]] = [("layer", "heads", "dim", "grid", "keys", "probabilities", "factors")]
    for layer, sizes in zip(found.trace.layers, found.layers, strict=True):
        keys = " + ".join(f"{group.name} {group.tokens}" for group in layer.groups)
        weights = (size_text(sizes[name]) for name in ("probabilities", "factors"))
        rows.append((layer.name, layer.head_count, str(layer.head_dim), f"{layer.grid[0]}x{layer.grid[1]}", keys, *weights))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [str.ljust if name in ("layer", "keys") else str.rjust for name in rows[0]]
    lines = ["  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True)).rstrip() for row in rows]
    trace, branches = found.trace, ", ".join(found.trace.branches)
    lines += ["", f"{trace.samples} image(s), branches {branches}, {trace.steps} of {found.evaluations} denoiser evaluations"]
    for name, size in found.sizes.items():
        mark = "   <- chosen" if name == wanted else ""
        lines.append(f"{name:13}  {size_text(size.nbytes):>9} before compression, {size.files} files{mark}")
    lines.append(f"{'free':13}  {size_text(free):>9}")
    if wanted == "probabilities" and any(group.role == "self" for layer in trace.layers for group in layer.groups):
        exact = f"{option('encoding', 'factors')} keeps self-attention exactly, in far less room"
        lines.append(f"{'note':13}  {exact}")
    lines += [f"left out       {path} {why}" for path, why in found.left_out.items()]
    kinds = [layer.values for layer in trace.layers]
    lines += [f"{'values':13}  {kind} in {kinds.count(kind)} of {len(kinds)} layers" for kind in VALUES[1:] if kind in kinds]
    return "\n".join(lines)
