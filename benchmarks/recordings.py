"""Recordings of held-out pairs of the demo model, kept in a folder so that several benchmarks, and several runs, share them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from i2am.recorder import record
from i2am.recorder.demo.cli import pair_facts, true_places
from i2am.recorder.demo.pairs import HELD_OUT, Pair, draw_pair
from i2am.recorder.demo.pipeline import TryOnPipeline, load_shipped


def with_random_weights(pipeline: TryOnPipeline, seed: int = 0) -> TryOnPipeline:
    """The same configuration, never trained."""
    torch.manual_seed(seed)
    parts = {
        name: type(part).from_config(part.config).eval() for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)
    }
    random = TryOnPipeline(**{**pipeline.components, **parts}, scaling_factor=pipeline.config.scaling_factor)
    random.set_progress_bar_config(disable=True)
    return random


def pipelines() -> dict[str, TryOnPipeline]:
    """The shipped model, and its control."""
    torch.set_num_threads(1)  # so small a model gains nothing from more
    trained = load_shipped()
    return {"trained": trained, "random": with_random_weights(trained)}


def recordings(pipeline: TryOnPipeline, folder: Path, pairs: int, steps: int) -> Iterator[tuple[Pair, Path]]:
    """Each held-out pair and its recording, made where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(pairs):
        pair, path = draw_pair(HELD_OUT + index, pipeline.size), folder / f"{index:03d}-{steps}.zarr"
        if not path.exists():
            record_pair(pipeline, pair, steps, path)
        yield pair, path


def record_pair(pipeline: TryOnPipeline, pair: Pair, steps: int, path: Path, encoding: str = "factors", **options: Any) -> None:
    """Record one pair, exactly unless otherwise asked, with its truth; what is there is whole."""
    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    latent = pipeline.size // pipeline.block
    record(
        pipeline, part, encoding=encoding, progress=False, reference_mask=pair.reference_mask,
        facts={"demo": pair_facts(pair)}, truth=true_places(pair, (latent, latent)), num_inference_steps=steps, output_type="np",
        generator=torch.Generator().manual_seed(pair.seed),
        image=pair.agnostic, mask_image=pair.mask, example_image=pair.reference, **options,
    )  # fmt: skip
    part.rename(path)


def painted(path: Path) -> np.ndarray:
    """The generated image of a recording, in [0, 1]."""
    from i2am.analyzer import open_trace

    return open_trace(path).image("generated_0").astype(np.float64) / 255
