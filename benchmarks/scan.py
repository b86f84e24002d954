"""(c) ULAM of R2G and G2R over a large trace, next to merely reading it; (d) SRAM of one patch; (e) G2R weighted by values.

    python benchmarks/scan.py --gigabytes 4

Prints ratios over the time zarr needs to read and decode the same shards, and the bare codec's share of that.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import click
import numcodecs
import numpy as np
import zarr
from measure import interleave, machine, size_on_disk, table

from i2am.analyzer.methods.recipes import Weight
from i2am.recorder.store.writer import Writer
from i2am.schema import Layer, TokenGroup, TraceRecord, encode_probability
from i2am.schema.arrays.layers import data_plans

HEADS, GRID, TOKENS, DEPTH = 8, (64, 64), 257, 40
FULL: Final = {"values": "full", "value_dim": DEPTH, "output_dim": HEADS * DEPTH}
WEIGHTS: Final[tuple[Weight, ...]] = ("attention", "norm", "contribution", "knock-out")
THREADS = 2


def attention(seed: int) -> dict[str, np.ndarray]:
    """One step of one SD-1.5 layer at 64 x 64 with 257 keys: spatially smooth queries, so that it packs as real attention does."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((HEADS, GRID[0] // 8, GRID[1] // 8, DEPTH), np.float32)
    query = coarse.repeat(8, 1).repeat(8, 2) + 0.3 * random.standard_normal((HEADS, *GRID, DEPTH), np.float32)
    key = random.standard_normal((HEADS, TOKENS, DEPTH), np.float32)
    scores = 2 * np.einsum("hyxc,htc->hyxt", query, key, optimize=True) / DEPTH**0.5
    query_lse = np.log(np.exp(scores).sum(-1))
    token_lse = np.log(np.exp(scores).sum((1, 2)))
    return {"probability": encode_probability(np.exp(scores - query_lse[..., None])), "query_lse": query_lse, "token_lse": token_lse}


def write(path: Path, gigabytes: float) -> TraceRecord:
    """A trace of at least this many GB of raw float16 attention; eight different steps, repeated."""
    steps = max(1, round(gigabytes * 1e9 / (HEADS * GRID[0] * GRID[1] * TOKENS * 2)))
    group = TokenGroup("reference", "reference", 0, TOKENS, 1, (16, 16))
    layer = Layer("unet.attn2", 0, HEADS, DEPTH, DEPTH**-0.5, GRID, TOKENS, (group,), **FULL)
    random = np.random.default_rng(0)
    value = random.standard_normal((HEADS, TOKENS, DEPTH), np.float32)
    writer = Writer(path, TraceRecord("scan", "recording", 1, ("cond",), steps, latent_grid=GRID))
    index = writer.add_layer(layer, output=random.standard_normal((HEADS, DEPTH, HEADS * DEPTH), np.float32))
    blocks = [attention(seed) | {"value": value} for seed in range(8)]
    for step in range(steps):
        writer.put(index, 0, "cond", step, blocks[step % len(blocks)])
        writer.commit(step, evaluation=step, timestep=float(steps - step), sigma=float("nan"), scheduler_step=step)
    return writer.finish(images=())


def shards(path: Path) -> Iterator[tuple[int, ...]]:
    steps = zarr.open_array(str(path / "layers/000/probability"), mode="r").shape[2]
    return iter([(0, 0, step) for step in range(steps)])


def read_with_zarr(path: Path) -> None:
    """Every shard read and decoded by zarr, nothing else; as many threads as the scan has."""
    array = zarr.open_array(str(path / "layers/000/probability"), mode="r")
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda at: array[at].shape, shards(path)))


def decode_bare(path: Path) -> None:
    """The codec alone on the same number of equal blocks, already in memory."""
    plan = data_plans(TraceRecord.from_json(zarr.open_group(str(path), mode="r").attrs["i2am"]), 0)["probability"]
    block, rows = attention(0)["probability"], plan.chunks[4]
    parts = [np.ascontiguousarray(block[:, y : y + rows]) for y in range(0, GRID[0], rows)]
    codec = numcodecs.Blosc("lz4", 5, numcodecs.Blosc.BITSHUFFLE)
    packed = [codec.encode(part) for part in parts]

    def decode(_: object) -> None:
        out = np.empty_like(parts[0])
        for piece in packed:
            codec.decode(piece, out)

    numcodecs.blosc.use_threads = False
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(decode, shards(path)))


def scan(path: Path) -> None:
    """Both directions at once, through the public functions."""
    import dask

    from i2am.analyzer import g2r, open_trace, r2g

    trace = open_trace(path)
    dask.compute(r2g(trace), g2r(trace), scheduler="threads", num_workers=THREADS)


def one_patch(path: Path) -> None:
    """Where one generated patch looked, over every step and layer."""
    from i2am.analyzer import open_trace, sram

    sram(open_trace(path), at=(20, 40)).compute(scheduler="threads", num_workers=THREADS)


def weighted(path: Path, weight: Weight) -> None:
    """G2R of every step, weighted."""
    from i2am.analyzer import g2r, open_trace

    g2r(open_trace(path), weight=weight).compute(scheduler="threads", num_workers=THREADS)


def peak(path: Path, what: str) -> float:
    """Peak resident GB of a fresh process that does `what`."""
    here = str(Path(__file__).parent)
    imports = f"import sys; sys.path.insert(0, {here!r}); import pathlib, scan, measure"
    code = f"{imports}; scan.{what}(pathlib.Path({str(path)!r})); print(measure.peak_memory())"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@click.command()
@click.option("--gigabytes", default=4.0, show_default=True, help="Raw float16 attention in the trace.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to put the trace; a temporary folder if not given.")
def main(gigabytes: float, repeats: int, folder: Path | None) -> None:
    """Print the ratios of the scan and of one patch."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "scan.zarr"
        trace = write(path, gigabytes)
        raw = data_plans(trace, 0)["probability"].nbytes
        click.echo(f"{machine()}; {raw / 1e9:.1f} GB raw in {trace.steps} shards, {size_on_disk(path) / 1e9:.1f} GB on disk\n")
        runs = {
            name: lambda f=f: f(path)
            for name, f in [("zarr", read_with_zarr), ("codec", decode_bare), ("scan", scan), ("patch", one_patch)]
        }
        seconds = interleave(runs | {weight: lambda w=weight: weighted(path, w) for weight in WEIGHTS}, repeats)
        rows = [
            (
                "ULAM of R2G and G2R over zarr's own read and decode",
                f"{seconds['scan'] / seconds['zarr']:.2f}",
                f"{peak(path, 'scan'):.2f}",
            ),
            ("the bare codec over zarr", f"{seconds['codec'] / seconds['zarr']:.2f}", f"{peak(path, 'decode_bare'):.2f}"),
            ("zarr", f"1 ({raw / 1e6 / seconds['zarr']:.0f} MB/s of float16)", f"{peak(path, 'read_with_zarr'):.2f}"),
            *((f"G2R weighted by {w}, over attention", f"{seconds[w] / seconds['attention']:.2f}", "") for w in WEIGHTS[1:]),
            (
                "SRAM of one patch, all steps, over zarr",
                f"{seconds['patch'] / seconds['zarr']:.3f} ({seconds['patch']:.2f} s)",
                f"{peak(path, 'one_patch'):.2f}",
            ),
        ]
        click.echo(table(f"Reading a {raw / 1e9:.1f} GB trace, {THREADS} threads", ("what", "time ratio", "peak GB"), rows))


if __name__ == "__main__":
    main()
