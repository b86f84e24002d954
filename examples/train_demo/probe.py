"""Measure saved weights: paint held-out pairs, sum up the cross-attention in torch, compare both with the ground truth.

    python examples/train_demo/probe.py recorder/demo/weights --pairs 64

`benchmarks/truth.py` measures the same from recorded traces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from i2am.recorder.demo.pairs import Float, Pair
from i2am.recorder.demo.pipeline import TryOnPipeline
from i2am.recorder.demo.truth import found, held_out_pairs, painting_error


@dataclass
class CrossAttention:
    """Sums of the cross-attention probabilities of one run, by layer name; patches() divides them by the calls."""

    tokens: int
    """Number of reference tokens; calls with another number of keys are ignored."""
    total: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def add(self, layer: str, query: Tensor, key: Tensor) -> None:
        """Add the probabilities of one call, mean over heads. Under guidance, the second half of the rows has the reference.

        Dims     query (row, head, x, channel), key (row, head, token, channel)
        """
        if key.shape[2] != self.tokens:
            return
        scores = query.float() @ key.float().transpose(-1, -2) / query.shape[-1] ** 0.5
        probability = scores.softmax(-1).mean(1)  # (row, x, token)
        self.total[layer] = self.total.get(layer, torch.zeros(())) + probability
        self.calls[layer] = self.calls.get(layer, 0) + 1

    def patches(self, layer: str) -> Tensor:
        """Mean attention to the patch tokens, CLS left out.

        Dims     -> (row, x, patch)
        """
        return self.total[layer][..., 1:] / self.calls[layer]


class _Watch(TorchFunctionMode):
    """Passes query and key of every scaled_dot_product_attention inside it to a CrossAttention."""

    def __init__(self, seen: CrossAttention, layer: str) -> None:
        super().__init__()
        self.seen, self.layer = seen, layer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            self.seen.add(self.layer, args[0], args[1])
        return func(*args, **(kwargs or {}))


@contextmanager
def watching(pipeline: TryOnPipeline) -> Iterator[CrossAttention]:
    """Sum up the cross-attention of all denoiser calls inside the block."""
    seen = CrossAttention(tokens=pipeline.image_encoder.features.shape[0] + 1)
    handles = []
    for name, module in pipeline.unet.named_modules():
        if name.endswith("attn2"):
            watch = _Watch(seen, name)
            handles.append(module.register_forward_pre_hook(lambda *_, watch=watch: watch.__enter__() and None))
            handles.append(module.register_forward_hook(lambda *_, watch=watch: watch.__exit__(None, None, None), always_call=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def measure(pipeline: TryOnPipeline, pairs: list[Pair], steps: int, guidance_scale: float, batch: int = 16) -> dict[str, Any]:
    """Paint pairs and compare images and attention with the ground truth.

    Range    painting: error over the mean colour's, all pairs together; worst_pair: the same of the worst pair;
             found: share of torso patches by layer
    """
    errors: list[tuple[float, float]] = []
    hits: dict[str, NDArray[np.int64]] = {}
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        with watching(pipeline) as seen:
            images = _paint(pipeline, part, steps, guidance_scale, seed=start)
        errors += [painting_error(image, pair) for image, pair in zip(images, part, strict=True)]
        for layer in seen.total:
            hits[layer] = hits.get(layer, np.zeros(2, np.int64)) + _count_found(seen.patches(layer), part, pipeline)
    painted, plain = np.array(errors).T
    return {
        "painting": float(painted.mean() / plain.mean()),
        "worst_pair": float((painted / plain).max()),
        "found": {layer: float(hit / of) for layer, (hit, of) in hits.items()},
    }


def _paint(pipeline: TryOnPipeline, pairs: list[Pair], steps: int, guidance_scale: float, seed: int) -> Float:
    images: Float = pipeline(
        image=[pair.agnostic for pair in pairs],
        mask_image=[pair.mask for pair in pairs],
        example_image=[pair.reference for pair in pairs],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        return_dict=False,
    )[0]
    return images


def _count_found(attention: Tensor, pairs: list[Pair], pipeline: TryOnPipeline) -> NDArray[np.int64]:
    """(Patches found, patches) in one layer. Under guidance, the first half of the rows had no reference; only the last rows count."""
    side = int(pipeline.unet.config.sample_size)
    counts = np.zeros(2, np.int64)
    for row, pair in zip(attention[-len(pairs) :].cpu().numpy(), pairs, strict=True):
        level = next(s for s in (side, side // 2, side // 4, side // 8) if s * s == len(row))
        counts += found(row.reshape(level, level, -1), pair, (side, side))
    return counts


@click.command()
@click.argument("weights", type=click.Path(exists=True, path_type=Path))
@click.option("--pairs", default=64, show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--guidance", default=1.2, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(weights: Path, pairs: int, steps: int, guidance: float, threads: int) -> None:
    """Print painting error and attention hits of saved weights as JSON."""
    torch.set_num_threads(threads)
    pipeline = TryOnPipeline.from_pretrained(weights)
    pipeline.set_progress_bar_config(disable=True)
    click.echo(json.dumps(measure(pipeline, held_out_pairs(pairs, pipeline.size), steps, guidance), indent=2))


if __name__ == "__main__":
    main()
