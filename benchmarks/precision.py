"""What rounding probabilities to fewer mantissa bits saves, and what it costs each map: the table of docs/precision.md.

    python benchmarks/precision.py                       # the shipped model, 2 held-out pairs, 50 steps
    python benchmarks/precision.py --pairs 1 --steps 5

The truth is computed in float64 from a recording of the same run as factors, which lose nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import zarr
from measure import machine, size_on_disk, table
from numpy.typing import NDArray

from i2am.recorder import record
from i2am.recorder.demo.pairs import HELD_OUT, draw_pair
from i2am.recorder.demo.pipeline import load_shipped
from i2am.schema import Layer, TraceRecord, decode_probability

BITS = (10, 8, 7, 6, 5, 4, 3)
MAPS = ("R2G", "G2R", "SRAM")
Maps = dict[tuple[str, int], NDArray[Any]]
"""(map, layer) -> (step, head, ...)"""


def run(pipeline: Any, seed: int, steps: int, path: Path, **options: Any) -> TraceRecord:
    """Record one held-out pair; the trace's record."""
    pair = draw_pair(HELD_OUT + seed, pipeline.size)
    record(
        pipeline, path, progress=False, overwrite=True, image=pair.agnostic, mask_image=pair.mask, example_image=pair.reference,
        num_inference_steps=steps, generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip
    return TraceRecord.from_json(json.loads((path / "zarr.json").read_text())["attributes"]["i2am"])


def read_maps(trace: TraceRecord, path: Path) -> Maps:
    """R2G, G2R and SRAM of every step, head and layer, over the reference's patches, in float64."""
    maps: Maps = {}
    for index, layer in enumerate(trace.layers):
        group = next(g for g in layer.groups if g.role == "reference")
        patches = slice(group.start + group.specials, group.stop)
        kinds = zip(
            *((g[..., patches].mean(-1), p[..., patches].mean(1), p[..., patches]) for p, g in both(path, index, layer)), strict=True
        )
        maps |= {(name, index): np.stack(values) for name, values in zip(MAPS, kinds, strict=True)}
    return maps


def both(path: Path, index: int, layer: Layer) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """P and G of each step, (head, x, token)."""

    def stored(name: str) -> Any:
        return zarr.open_array(path / f"layers/{index:03d}/{name}", mode="r")

    if layer.encoding == "factors":
        queries, keys, at = stored("query"), stored("key"), stored("key_step")
        for step in range(queries.shape[2]):
            query = queries[0, 0, step].reshape(layer.heads, -1, layer.head_dim).astype(np.float64)
            scores = layer.scale * query @ keys[0, 0, int(at[0, 0, step])].astype(np.float64).swapaxes(1, 2)
            yield softmax(scores, 2), softmax(scores, 1)
        return
    probabilities, rows, columns = stored("probability"), stored("query_lse"), stored("token_lse")
    for step in range(probabilities.shape[2]):
        p = decode_probability(probabilities[0, 0, step]).reshape(layer.heads, -1, layer.tokens).astype(np.float64)
        shift = rows[0, 0, step].reshape(layer.heads, -1, 1).astype(np.float64) - columns[0, 0, step][:, None].astype(np.float64)
        yield p, p * np.exp(shift)


def softmax(scores: NDArray[Any], axis: int) -> NDArray[Any]:
    weights = np.exp(scores - scores.max(axis, keepdims=True))
    return np.asarray(weights / weights.sum(axis, keepdims=True))


def errors(found: Maps, truth: Maps, name: str) -> tuple[float, float]:
    """Largest error, as a share of the map's largest value: of a layer's mean over steps and heads, and of any one step and head."""
    averages, singles = [], []
    for key in (key for key in truth if key[0] == name):
        mine, right = found[key], truth[key]
        mean = right.mean((0, 1))
        averages.append(np.abs(mine.mean((0, 1)) - mean).max() / mean.max())
        axes = tuple(range(2, right.ndim))
        singles.append((np.abs(mine - right).max(axes) / right.max(axes)).max())
    return float(max(averages)), float(max(singles))


def measure(pipeline: Any, seed: int, steps: int, folder: Path) -> dict[int, tuple[int, float, Mapping[str, tuple[float, float]]]]:
    """For each number of bits: bytes of the probabilities on disk, worst column mass lost, and each map's errors."""
    path, found = folder / "run.zarr", {}
    truth = read_maps(run(pipeline, seed, steps, path, encoding="factors"), path)
    for bits in BITS:
        trace = run(pipeline, seed, steps, path, encoding="probabilities", keep_bits=bits)
        size = sum(size_on_disk(path / f"layers/{index:03d}/probability") for index in range(len(trace.layers)))
        maps = read_maps(trace, path)
        lost = max(layer.column_mass_lost for layer in trace.layers)
        found[bits] = (size, lost, {name: errors(maps, truth, name) for name in MAPS})
    return found


@click.command()
@click.option("--pairs", default=2, show_default=True)
@click.option("--steps", default=50, show_default=True)
def main(pairs: int, steps: int) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    pipeline = load_shipped()
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(pipeline, seed, steps, Path(folder)) for seed in range(pairs)]
    whole = sum(found[BITS[0]][0] for found in runs)
    rows = []
    for bits in BITS:
        size = sum(found[bits][0] for found in runs)
        worst = [max(found[bits][2][name][i] for found in runs) for name in MAPS for i in (0, 1)]
        lost = max(found[bits][1] for found in runs)
        rows.append((bits, f"{size / 1e6:.1f} MB", f"{whole / size:.2f}x", *(f"{value:.1e}" for value in worst), f"{lost:.2%}"))
    head = ["bits", "probabilities", "smaller", *(f"{name}, {level}" for name in MAPS for level in ("mean", "single")), "column mass lost"]
    click.echo(f"{machine()}; the demo model, {pairs} held-out pairs, {steps} DDIM steps\n")
    click.echo(table("Largest error as a share of the map's largest value", head, rows))


if __name__ == "__main__":
    main()
