"""(e) All levels of both directions of a trace larger than memory, in one pass; and datasets in processes and on a cluster.

    python benchmarks/dataset.py --gigabytes 20 --folder /somewhere/roomy
    python benchmarks/dataset.py --gigabytes 20 --folder /somewhere/roomy --traces 32

Writes a trace of the shape of SD 1.5 with an image adapter (16 layers, 257 keys), reads all of it, and removes it. Each run is a
fresh process of two threads; times are over zarr's own reading and decoding of the same files, run in turn. Bytes are
counted where the reader reads them. With --traces so many runs of the demo model, of 10 steps, are recorded too, and `evaluate`
asks them, and the large trace, in one process, in several, and on clusters whose workers have one thread and a nanny.
"""

from __future__ import annotations

import collections
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import zarr
from measure import interleave, machine, peak_memory, size_on_disk, table

from i2am.recorder.store.writer import Writer
from i2am.schema import Layer, TokenGroup, TraceRecord, encode_probability
from i2am.schema.arrays.layers import data_plans
from i2am.schema.trace import Image

HEADS, TOKENS, DEPTH, THREADS, SIDE = 8, 257, 40, 2, 64
GRIDS = {64: 5, 32: 5, 16: 5, 8: 1}
"""Side of a layer's grid -> how many layers have it."""
LEVELS = {"ULAM": (), "TLAM": ("time",), "HLAM": ("head",), "LLAM": ("layer",)}
TIME_GROUPS = 5
BLOCKS = 2
"""Different steps that are drawn; the rest repeat them."""


def attention(side: int, seed: int) -> dict[str, np.ndarray]:
    """One call: spatially smooth queries, so that it packs as real attention does."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((HEADS, side // 8, side // 8, DEPTH), np.float32)
    query = coarse.repeat(8, 1).repeat(8, 2) + 0.3 * random.standard_normal((HEADS, side, side, DEPTH), np.float32)
    key = random.standard_normal((HEADS, TOKENS, DEPTH), np.float32)
    scores = 2 * np.einsum("hyxc,htc->hyxt", query, key, optimize=True) / DEPTH**0.5
    query_lse, token_lse = np.log(np.exp(scores).sum(-1)), np.log(np.exp(scores).sum((1, 2)))
    return {"probability": encode_probability(np.exp(scores - query_lse[..., None])), "query_lse": query_lse, "token_lse": token_lse}


def layers() -> list[Layer]:
    """The call sites, largest grids first."""
    group = (TokenGroup("reference", "reference", 0, TOKENS, 1, (16, 16), "reference"),)
    sides = [side for side, count in GRIDS.items() for _ in range(count)]
    return [Layer(f"unet.{i}.attn2", 0, HEADS, DEPTH, DEPTH**-0.5, (side, side), TOKENS, group) for i, side in enumerate(sides)]


def write(path: Path, gigabytes: float) -> TraceRecord:
    """A complete trace of at least this many GB of raw float16 attention, with masks."""
    sites = layers()
    steps = max(TIME_GROUPS, round(gigabytes * 1e9 / sum(HEADS * layer.grid[0] ** 2 * TOKENS * 2 for layer in sites)))
    blocks = {side: [attention(side, seed) for seed in range(BLOCKS)] for side in GRIDS}
    writer = Writer(path, TraceRecord("dataset", "recording", 1, ("cond",), steps, latent_grid=(SIDE, SIDE)))
    places = [writer.add_layer(layer) for layer in sites]
    for step in range(steps):
        for place, layer in zip(places, sites, strict=True):
            writer.put(place, 0, "cond", step, blocks[layer.grid[0]][(step + place) % BLOCKS])
        writer.commit(step, evaluation=step, timestep=float(steps - step), sigma=float("nan"), scheduler_step=step)
    mask = np.zeros((8 * SIDE, 8 * SIDE, 1), np.uint8)
    mask[100:300, 100:300] = 255
    pictures = [("generated_0", "generated", mask.repeat(3, 2)), ("mask", "mask", mask), ("reference_mask", "reference_mask", mask)]
    pictures.append(("reference", "reference", mask.repeat(3, 2)))
    return writer.finish(images=[(Image(name, role, *pixels.shape), pixels) for name, role, pixels in pictures])


def calls(trace: TraceRecord) -> list[tuple[int, int]]:
    """(layer, step) of every call."""
    return [(layer, step) for layer in range(len(trace.layers)) for step in range(trace.steps)]


def read_with_zarr(path: Path) -> None:
    """Every block of attention read and decoded by zarr, nothing else; as many threads as the scan has."""
    root = zarr.open_group(str(path), mode="r")
    trace = TraceRecord.from_json(root.attrs["i2am"])
    arrays = [root[f"layers/{i:03d}/probability"] for i in range(len(trace.layers))]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda at: arrays[at[0]][0, 0, at[1]].shape, calls(trace)))


def all_levels(path: Path) -> None:
    """ULAM, TLAM, HLAM and LLAM of R2G and of G2R."""
    import dask

    from i2am.analyzer import g2r, open_trace, r2g

    trace = open_trace(path)
    groups = {"TLAM": {"time_groups": TIME_GROUPS}}
    maps = [ask(trace, keep=keep, **groups.get(level, {})) for ask in (r2g, g2r) for level, keep in LEVELS.items()]
    found = dask.compute(maps, scheduler="threads", num_workers=THREADS)[0]
    assert all(np.isfinite(map.values).all() for map in found)


def lowest_level(path: Path) -> None:
    """ULAM of R2G and of G2R."""
    import dask

    from i2am.analyzer import g2r, open_trace, r2g

    trace = open_trace(path)
    dask.compute(r2g(trace), g2r(trace), scheduler="threads", num_workers=THREADS)


def one_task(path: Path) -> None:
    """What a worker of a cluster does with one trace: three scores, in one thread."""
    from i2am.analyzer.datasets.rows import DatasetRequest, evaluate_trace

    row = evaluate_trace(path, DatasetRequest(metrics=("imacs_g", "imacs_r", "imacs_r_plain")), "synchronous")
    assert not row.error, row.error


def check_all(path: Path) -> None:
    """Every file by its hash, every row of P and column of G by its sum."""
    from i2am.analyzer.inspection.verify import verify

    assert verify(path).ok


def diagnose_all(path: Path) -> None:
    """Every failure signature."""
    import dask

    from i2am.analyzer import diagnose, open_trace

    with dask.config.set(scheduler="threads", num_workers=THREADS):
        diagnose(open_trace(path))


def lazy_means(path: Path) -> None:
    """The mean of P of every layer, through lazy arrays."""
    import dask

    from i2am.analyzer import open_trace

    trace = open_trace(path)
    means = [trace.probabilities(index).mean() for index in range(len(trace.layers))]
    dask.compute(means, scheduler="threads", num_workers=THREADS)


def measured(path: Path, what: str) -> dict[str, Any]:
    """Seconds, peak GB and files read by a fresh process that does `what`."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import dataset; dataset.report({str(path)!r}, {what!r})"
    return dict(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout))


def report(path: str, what: str) -> None:
    """Do it in this process and print what it took as JSON."""
    from i2am.analyzer.storage import folder

    read: collections.Counter[str] = collections.Counter()

    def counted(file: Any, offset: int, length: int) -> Any:
        read[file.name] += length
        return read_part(file, offset, length)

    read_part, folder.read_part = folder.read_part, counted
    begin, worked = time.perf_counter(), time.process_time()
    globals()[what](Path(path))
    seconds, processor = time.perf_counter() - begin, time.process_time() - worked
    shares = [count / Path(name).stat().st_size for name, count in read.items() if "/probability/c." in name]
    print(
        json.dumps(
            {"seconds": seconds, "processor": processor, "peak": peak_memory(), "files": len(shares), "most": max(shares, default=0)}
        )
    )


def record_small(folder: Path, count: int) -> Path:
    """Short recordings of the demo model."""
    here = Path(__file__).parent.parent / "examples"
    subprocess.run([sys.executable, here / "draw_pairs.py", folder / "pairs", "--count", str(count)], check=True)
    lines = (folder / "pairs/pairs.csv").read_text().splitlines()
    short = [f"{line},{'num_inference_steps' if i == 0 else 10}" for i, line in enumerate(lines)]
    (folder / "pairs/short.csv").write_text("\n".join(short))
    command("record", here / "demo.toml", "--manifest", folder / "pairs/short.csv", "-o", folder / "small", "--encoding", "factors")
    return folder / "small"


def command(*arguments: object) -> None:
    """Run `i2am` in a fresh process."""
    program = [sys.executable, "-P", "-m", "i2am.analyzer.cli"]
    subprocess.run([*program, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def threads_within(path: Path) -> None:
    """Every trace of a folder, one after the other, each by threads."""
    from i2am.analyzer.datasets.rows import DatasetRequest, evaluate_trace

    for trace in sorted(path.iterdir()):
        assert not evaluate_trace(trace, DatasetRequest(metrics=("imacs_g", "imacs_r")), "threads").error


def compare_places(small: Path, large: Path, repeats: int) -> str:
    """A table of where datasets are evaluated: seconds, and over one process or one worker."""
    from distributed import Client, LocalCluster

    from i2am.analyzer import evaluate

    def started(workers: int) -> Any:
        return LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0")

    with started(1) as one, started(2) as two, Client(one) as single, Client(two) as double:
        seconds = interleave(
            {
                f"{len(list(small.iterdir()))} small traces: one process, threads within each trace": lambda: measured(
                    small, "threads_within"
                ),
                "the same: `i2am evaluate --jobs 1`": lambda: command("evaluate", small, "--jobs", 1),
                "the same: `i2am evaluate`, a process a core": lambda: command("evaluate", small),
                "the same: `i2am evaluate --scheduler`, two workers": lambda: command(
                    "evaluate", small, "--scheduler", two.scheduler_address
                ),
                "the large trace: one worker": lambda: evaluate(large, client=single),
                "the same: two workers": lambda: evaluate(large, client=double),
            },
            repeats,
        )
    bases = [next(iter(seconds.values()))] * 4 + [list(seconds.values())[4]] * 2
    rows = [(name, f"{each:.1f}", f"{each / base:.2f}") for (name, each), base in zip(seconds.items(), bases, strict=True)]
    return table("Where a dataset is evaluated", ("where", "seconds", "over the first of its kind"), rows)


@click.command()
@click.option("--traces", default=0, help="Recordings of the demo model to evaluate in processes and on clusters.  [default: none]")
@click.option("--gigabytes", default=2.0, show_default=True, help="Raw float16 attention in the trace.")
@click.option("--repeats", default=2, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to put the trace; a temporary folder if not given.")
def main(traces: int, gigabytes: float, repeats: int, folder: Path | None) -> None:
    """Print times and peak memory of one pass over a large trace."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path, small = Path(scratch) / "large.zarr", Path(scratch) / "small.zarr"
        trace = write(path, gigabytes)
        write(small, gigabytes / 20)
        raw = sum(data_plans(trace, i)["probability"].nbytes for i in range(len(trace.layers)))
        files = sum(data_plans(trace, i)["probability"].files for i in range(len(trace.layers)))
        click.echo(
            f"{machine()}; {raw / 1e9:.1f} GB raw in {len(trace.layers)} layers, {trace.steps} steps, {files} files of attention, "
            f"{size_on_disk(path) / 1e9:.1f} GB on disk\n"
        )
        names = ("read_with_zarr", "all_levels", "lowest_level", "one_task", "check_all", "diagnose_all", "lazy_means")
        runs = [{name: measured(path, name) for name in names} for _ in range(repeats)]
        seconds, processor = (
            {name: statistics.median(run[name][what] for run in runs) for name in names} for what in ("seconds", "processor")
        )
        peaks = {name: max(run[name]["peak"] for run in runs) for name in names}
        rows = [
            (
                what,
                f"{seconds[name] / seconds['read_with_zarr']:.2f}",
                f"{processor[name] / processor['read_with_zarr']:.2f}",
                f"{peaks[name]:.2f}",
                f"{measured(small, name)['peak']:.2f}",
            )
            for what, name in (
                ("ULAM, TLAM, HLAM and LLAM of R2G and G2R", "all_levels"),
                ("ULAM of both alone", "lowest_level"),
                ("one task of a cluster, in one thread: IMACS_g and IMACS_r", "one_task"),
                ("`verify`: hashes, sums of rows of P and columns of G", "check_all"),
                ("`diagnose`: maps, and a survey of every call", "diagnose_all"),
                ("the mean of P of every layer through lazy arrays", "lazy_means"),
                (f"zarr's own read and decode ({raw / 1e6 / seconds['read_with_zarr']:.0f} MB/s of float16)", "read_with_zarr"),
            )
        ]
        title = f"Reducing a {raw / 1e9:.1f} GB trace, {THREADS} threads"
        click.echo(
            table(title, ("what", "time ratio", "processor time ratio", "peak GB", f"peak GB of a trace of {gigabytes / 20:.1f} GB"), rows)
        )
        last = runs[-1]["all_levels"]
        click.echo(f"All eight maps read {last['files']} files of attention of {files}, each byte {last['most']:.2f} times at most.")
        if traces:
            click.echo(compare_places(record_small(Path(scratch), traces), path, repeats))


if __name__ == "__main__":
    main()
