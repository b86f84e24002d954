"""Which heads of the demo model find the truth, whether maps of the best agree with masks better, and what garments heads look for.

    python benchmarks/heads.py                       # 32 pairs, 50 steps
    python benchmarks/heads.py --pairs 8 --steps 20

No pair is judged with heads that were chosen on it. The control is as many heads drawn at random.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
import xarray as xr
from measure import machine, table
from recordings import pipelines, recordings

from i2am.analyzer import head_accuracy, head_relevance, load_heads, open_trace, r2g, save_heads
from i2am.analyzer.heads.ranking import rank_heads
from i2am.analyzer.heads.selective import deal, published_count, selective_iou
from i2am.analyzer.metrics.overlap import THRESHOLDS, iou
from i2am.analyzer.trace.images import load_mask
from i2am.analyzer.trace.reader import Trace
from i2am.recorder import record
from i2am.recorder.demo.pairs import DRAW, HELD_OUT, Pair, draw_pair
from i2am.recorder.demo.pipeline import TryOnPipeline

GARMENTS = 5
"""Pictures of each kind of garment."""
SPARE = 10_000
"""Held-out pairs from here on give the garments that no recorded pair wears."""
DRAWS = 20
"""Random choices of heads that the control is the mean of."""


def random_iou(traces: list[Trace], maps: dict[str, xr.DataArray], count: int, seed: int = 0) -> np.ndarray:
    """IoU of maps of heads drawn at random, mean over draws.

    Dims     maps (layer, head, y, x) -> (threshold, trace)
    """
    rng, found = np.random.default_rng(seed), []
    for trace in traces:
        layers, numbers = maps[trace.id].shape[:2]
        drawn = [rng.choice(layers * numbers, count, replace=False) for _ in range(DRAWS)]
        found.append(np.mean([mean_iou(trace, maps, np.divmod(each, numbers)) for each in drawn], axis=0))
    return np.array(found).T


def mean_iou(trace: Trace, maps: dict[str, xr.DataArray], where: tuple[np.ndarray, np.ndarray]) -> list[float]:
    """IoU of the mean over some heads, which is what a map of these heads is, at each threshold."""
    mine = maps[trace.id]
    mean = mine[0, 0].copy(data=mine.values[where].mean(0))
    return [float(iou(mean, load_mask(trace, "mask"), level)) for level in THRESHOLDS]


def truth_of(trace: Trace, folder: Path) -> xr.DataArray:
    """`head_truth` of one trace, kept beside the recordings."""
    path = folder / f"{trace.id}.zarr"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_heads(head_accuracy(trace), path)
    return load_heads(path)


def mean_truth(scores: dict[str, xr.DataArray], traces: list[Trace]) -> xr.DataArray:
    """`head_truth` of some traces from that of each: scoring is what takes time, so it is done once."""
    first = scores[traces[0].id]
    mean = first.copy(data=np.mean([scores[trace.id].values for trace in traces], axis=0))
    return mean.assign_attrs(traces=sorted(trace.id for trace in traces))


def judged_apart(scores: dict[str, xr.DataArray], traces: list[Trace]) -> xr.DataArray:
    """`selective_iou` of both halves, each with heads chosen on the other."""
    halves = [selective_iou(judged, mean_truth(scores, chosen)) for chosen, judged in deal(traces)]
    return xr.concat(halves, "trace").sortby("trace")


def curve(scores: dict[str, xr.DataArray], traces: list[Trace], maps: dict[str, xr.DataArray]) -> list[tuple[int, float, float]]:
    """Mean IoU at 0.4 of the k best and of the k worst heads, chosen on the other half."""
    found: dict[int, list[tuple[float, float]]] = {}
    for chosen, judged in deal(traces):
        ranked = rank_heads(mean_truth(scores, chosen))
        for trace in judged:
            names = maps[trace.id]["layer_name"].values.tolist()
            places = np.array([(names.index(layer), head) for layer, head in ranked])
            for k in (1, 2, 4, 7, 14, 21, len(ranked)):
                best, worst = (mean_iou(trace, maps, tuple(part.T))[THRESHOLDS.index(0.4)] for part in (places[:k], places[-k:]))
                found.setdefault(k, []).append((best, worst))
    return [(k, *np.mean(values, axis=0)) for k, values in found.items()]


def garments(size: int) -> dict[str, list[Pair]]:
    """Garments of each kind."""
    found: dict[str, list[Pair]] = {kind: [] for kind in DRAW}
    index = SPARE
    while any(len(pairs) < GARMENTS for pairs in found.values()):
        pair = draw_pair(HELD_OUT + index, size)
        if len(found[pair.pattern]) < GARMENTS:
            found[pair.pattern].append(pair)
        index += 1
    return found


def looked_for(pipeline: TryOnPipeline, folder: Path, pairs: int, steps: int) -> xr.DataArray:
    """Head relevance of kinds of garment, from recordings with garments as probes."""
    kinds = garments(pipeline.size)
    pictures = [pair.reference for found in kinds.values() for pair in found]
    names = {kind: [f"garments_{i * GARMENTS + j}" for j in range(GARMENTS)] for i, kind in enumerate(kinds)}
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(pairs):
        pair, path = draw_pair(HELD_OUT + index, pipeline.size), folder / f"{index:03d}-{steps}.zarr"
        paths.append(path)
        if not path.exists():
            record(
                pipeline, path, encoding="factors", progress=False, num_inference_steps=steps, output_type="np",
                generator=torch.Generator().manual_seed(pair.seed), probes={"garments": [_picture(each) for each in pictures]},
                image=pair.agnostic, mask_image=pair.mask, example_image=pair.reference,
            )  # fmt: skip
    return head_relevance(paths, concepts=names, probe="garments")


def _picture(pixels: np.ndarray) -> object:
    from PIL import Image

    return Image.fromarray(np.rint(np.asarray(pixels, np.float32) * 255).astype(np.uint8))


@click.command()
@click.option("--pairs", default=32, show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("out/pairs"), show_default=True, help="Folder of the recordings.")
def main(pairs: int, steps: int, cache: Path) -> None:
    """Print what heads of the shipped weights find and look for."""
    model = pipelines()["trained"]
    opened = [open_trace(path) for _, path in recordings(model, cache / "trained", pairs, steps)]
    traces = sorted(opened, key=lambda trace: trace.id)
    scores = {trace.id: truth_of(trace, cache / "truth") for trace in traces}
    found = judged_apart(scores, traces)
    maps = {trace.id: r2g(trace, keep=("layer", "head")).compute() for trace in traces}
    chance = random_iou(traces, maps, found.attrs["count"])
    click.echo(f"{machine()}; {pairs} held-out pairs, {steps} DDIM steps\n")
    click.echo(truth_table(mean_truth(scores, traces)))
    click.echo(iou_table(found, chance))
    rows = [(k, f"{best:.3f}", f"{worst:.3f}") for k, best, worst in curve(scores, traces, maps)]
    click.echo(table("IoU at 0.4 of the k best and the k worst heads", ("k", "best", "worst"), rows))
    click.echo(relevance_table(looked_for(model, cache / "probed", min(pairs, 8), steps)))


def truth_table(scores: xr.DataArray) -> str:
    """Share of patches that each head sends to their place."""
    rows = [(layer, *(f"{value:.2f}" for value in row)) for layer, row in zip(scores["layer"].values, scores.values, strict=True)]
    return table("Patches sent to their true place, by head", ("layer", *map(str, scores["head"].values)), rows)


def iou_table(found: xr.DataArray, chance: np.ndarray) -> str:
    """The paper's table, and as many heads at random beside it."""
    count, total = found.attrs["count"], found.attrs["of"]
    assert count == published_count(total)
    rows = []
    for i, level in enumerate(found["threshold"].values.tolist()):
        cells = [found.sel(heads=kind, threshold=level).values for kind in ("all", "top", "bottom")] + [chance[i]]
        rows.append((level, *(f"{cell.mean():.3f} ± {cell.std(ddof=1) / np.sqrt(len(cell)):.3f}" for cell in cells)))
    better = int((found.sel(heads="top").mean("threshold") > found.sel(heads="all").mean("threshold")).sum())
    ahead = f"best better than all in {better} of {found.sizes['trace']} pairs"
    title = f"IoU of R2G and the mask; heads chosen by truth on the other half; {ahead}"
    return table(title, ("threshold", f"all {total}", f"best {count}", f"worst {count}", f"random {count}"), rows)


def relevance_table(relevance: xr.DataArray) -> str:
    """For each kind of garment, the head that looks for it most, and how evenly heads look."""
    share = relevance["share"]
    rows = []
    for kind in relevance["concept"].values.tolist():
        layer, head = rank_heads(relevance, kind)[0]
        mine = share.sel(concept=kind)
        rows.append((kind, f"{layer}, {head}", f"{float(mine.sel(layer=layer, head=head)):.2f}", f"{float(mine.mean()):.2f}"))
    calls = int(relevance["count"].sum("concept").max())
    title = f"Calls won by each kind of garment; {calls} calls a head, chance {1 / relevance.sizes['concept']:.2f}"
    return table(title, ("kind", "head that looks for it most", "its share", "mean share"), rows)


if __name__ == "__main__":
    main()
