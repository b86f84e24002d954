"""How true the demo model's attention is: painting error, where SRAM points, and IMACS, over held-out pairs.

    python benchmarks/truth.py                # 64 pairs, 50 steps
    python benchmarks/truth.py --pairs 8 --steps 20

Everything but the painting error is computed from recorded traces alone. The control is the same network with random weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import dask
import numpy as np
import torch
from measure import machine, table

from i2am.analyzer import g2r, imacs, open_trace, r2g
from i2am.recorder import record
from i2am.recorder.demo.evaluation import found, held_out_pairs, painting_error
from i2am.recorder.demo.pairs import Pair
from i2am.recorder.demo.pipeline import TryOnPipeline, load_shipped


def with_random_weights(pipeline: TryOnPipeline) -> TryOnPipeline:
    """The same configuration, never trained."""
    torch.manual_seed(0)
    parts = {
        name: type(part).from_config(part.config).eval() for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)
    }
    random = TryOnPipeline(**{**pipeline.components, **parts}, scaling_factor=pipeline.config.scaling_factor)
    random.set_progress_bar_config(disable=True)
    return random


def run(pipeline: TryOnPipeline, pair: Pair, steps: int, path: Path) -> np.ndarray:
    """Record one pair; the generated image in [0, 1]."""
    inputs = {"image": pair.agnostic, "mask_image": pair.mask, "example_image": pair.reference}
    generator = torch.Generator().manual_seed(pair.seed)
    output = record(
        pipeline, path, reference_mask=pair.reference_mask, progress=False, overwrite=True,
        num_inference_steps=steps, generator=generator, output_type="np", **inputs,
    )  # fmt: skip
    return np.asarray(output.images[0])


def imacs_of(path: Path) -> tuple[float, float]:
    """IMACS_g and IMACS_r (query mask of v1 Eq. 17) of the unified maps, from the trace alone."""
    trace = open_trace(path)
    generated, reference = dask.compute(r2g(trace), g2r(trace, query_mask=trace.image("mask")))
    return float(imacs(generated, trace.image("mask"))), float(imacs(reference, trace.image("reference_mask")))


def shares_found(path: Path, pair: Pair) -> dict[str, float]:
    """Share of torso patches whose SRAM, mean over heads and steps, is brightest near the true place, per layer."""
    trace = open_trace(path)
    shares = {}
    for layer in trace.layers:
        group = next(g for g in layer.groups if g.role == "reference")
        patches = trace.probabilities(layer.name).isel(sample=0, branch=0, token=slice(group.start + group.specials, group.stop))
        hits, of = found(patches.mean(("head", "step")).compute().to_numpy(), pair, group.grid)
        shares[f"{layer.path}, {layer.grid[0]}x{layer.grid[1]}"] = hits / of
    return shares


def chance(pair: Pair, grid: tuple[int, int] = (16, 16)) -> float:
    """Share that a blind guess among the reference's patches finds."""
    guesses = np.random.default_rng(0).random((64, *grid, grid[0] * grid[1]), np.float32)
    return float(np.mean([np.divide(*found(guess, pair, grid)) for guess in guesses]))


@click.command()
@click.option("--pairs", default=64, show_default=True)
@click.option("--steps", default=50, show_default=True)
def main(pairs: int, steps: int) -> None:
    """Print what the shipped weights reach, beside their targets."""
    torch.set_num_threads(1)  # so small a model gains nothing from more
    trained = load_shipped()
    random = with_random_weights(trained)
    errors, shares, chances, scores = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.zarr"
        for pair in held_out_pairs(pairs):
            errors.append(painting_error(run(trained, pair, steps, path), pair))
            shares.append(shares_found(path, pair))
            chances.append(chance(pair))
            ours = imacs_of(path)
            run(random, pair, steps, path)
            scores.append((*ours, *imacs_of(path)))
    click.echo(f"{machine()}; {pairs} held-out pairs, {steps} DDIM steps, guidance {trained_guidance(trained)}\n")
    click.echo(report(np.array(errors), shares, float(np.mean(chances)), np.array(scores)))


def trained_guidance(pipeline: TryOnPipeline) -> Any:
    import inspect

    return inspect.signature(pipeline.__call__).parameters["guidance_scale"].default


def report(errors: np.ndarray, shares: list[dict[str, float]], chance: float, scores: np.ndarray) -> str:
    """Three tables: painting, finding, IMACS."""
    mean = {name: float(np.mean([share[name] for share in shares])) for name in shares[0]}
    best = max(mean, key=lambda name: mean[name])
    ahead_g, ahead_r = (int((scores[:, i] > scores[:, i + 2]).sum()) for i in (0, 1))
    ratio = errors[:, 0].mean() / errors[:, 1].mean()
    painted = f"{ratio:.3f} (median pair {np.median(errors[:, 0] / errors[:, 1]):.3f})"
    rows = [
        (
            "(a) squared error inside the mask over the mean colour's",
            "< 0.333",
            painted,
        ),
        (f"(b) torso patches found by SRAM, best layer ({best})", ">= 0.90", f"{mean[best]:.3f} (chance {chance:.3f})"),
        ("(c) pairs with a higher IMACS_g than random weights", f"{len(scores)}", f"{ahead_g}"),
        ("(c) pairs with a higher IMACS_r than random weights", f"{len(scores)}", f"{ahead_r}"),
    ]
    layers = table("Torso patches found, by layer", ("layer", "share"), [(name, f"{value:.3f}") for name, value in mean.items()])
    averages = [(name, *(f"{scores[:, i + j].mean():.3f}" for j in (0, 1))) for name, i in (("trained", 0), ("random weights", 2))]
    return "\n".join(
        [
            table("Against known truth", ("what", "target", "measured"), rows),
            layers,
            table("IMACS, mean", ("weights", "IMACS_g", "IMACS_r"), averages),
        ]
    )


if __name__ == "__main__":
    main()
