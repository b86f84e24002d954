"""(a) Recorded over unrecorded sampling time, for both encodings, next to the naive way; the host memory that recording adds; and where
the recorder's own time goes.

    python benchmarks/recording.py            # the demo model and an SD-1.5-shaped U-Net
    python benchmarks/recording.py --model demo

The naive way is what people write first: a forward hook that computes the softmax once more, `.cpu().numpy()`, `np.save`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from measure import interleave, machine, peak_memory, size_on_disk, table
from shares import shares

from i2am.recorder import record

Sampler = tuple[Any, dict[str, Any]]


def demo(steps: int) -> Sampler:
    """The shipped model on one pair."""
    from i2am.recorder.demo.pipeline import load_shipped
    from i2am.recorder.demo.truth import held_out_pairs

    pipeline, pair = load_shipped(), held_out_pairs(1)[0]
    images = {"image": pair.agnostic, "mask_image": pair.mask, "example_image": pair.reference}
    return pipeline, {**images, "num_inference_steps": steps, "generator": torch.Generator().manual_seed(0), "output_type": "np"}


def sd15(steps: int, size: int = 256) -> Sampler:
    """Stable Diffusion 1.5's U-Net with random weights, 257 context tokens (CLS and 16 x 16 patches), a one-block VAE."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).eval()
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"))
    parts = {"unet": unet, "vae": vae.eval(), "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False)}
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False, **nothing)
    pipeline.set_progress_bar_config(disable=True)
    tokens = torch.randn(2, 1, 257, 768, generator=torch.Generator().manual_seed(0))
    call = {"prompt_embeds": tokens[0], "negative_prompt_embeds": tokens[1], "height": size, "width": size}
    return pipeline, {**call, "num_inference_steps": steps, "output_type": "np", "generator": torch.Generator().manual_seed(0)}


PATHS = {"factors": "factors.zarr", "probabilities": "probabilities.zarr", "naive": "naive"}
"""What each way writes."""

MODELS: dict[str, tuple[Callable[[int], Sampler], int, int]] = {"demo": (demo, 50, 1), "sd15": (sd15, 6, 2)}
"""How to build it, its default steps, torch threads."""


@contextmanager
def naive(pipeline: Any, folder: Path) -> Iterator[None]:
    """Softmax once more in a hook, one .npy per call."""
    folder.mkdir()
    count = iter(range(10**9))

    def save(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden, context = args[0], kwargs["encoder_hidden_states"]
        query, key = (part.unflatten(-1, (module.heads, -1)).transpose(1, 2) for part in (module.to_q(hidden), module.to_k(context)))
        attention = (query @ key.transpose(-1, -2) * module.scale).softmax(-1)[-1]
        np.save(folder / f"{next(count)}.npy", attention.half().cpu().numpy())

    hooks = [m.register_forward_hook(save, with_kwargs=True) for name, m in pipeline.unet.named_modules() if name.endswith("attn2")]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def candidates(pipeline: Any, call: dict[str, Any], scratch: Path) -> dict[str, Callable[[], None]]:
    """The same sampling, unrecorded and recorded three ways."""

    def plain() -> None:
        pipeline(**call)

    def recorded(encoding: str) -> Callable[[], None]:
        def run() -> None:
            record(pipeline, scratch / PATHS[encoding], encoding=encoding, overwrite=True, progress=False, **call)

        return run

    def by_hand() -> None:
        with naive(pipeline, scratch / PATHS["naive"]):
            pipeline(**call)

    return {"unrecorded": plain, "factors": recorded("factors"), "probabilities": recorded("probabilities"), "naive": by_hand}


def compare(model: str, repeats: int, steps: int | None) -> str:
    """Markdown table of ratios for one model."""
    build, default, threads = MODELS[model]
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        runs = candidates(*build(steps or default), scratch)

        def clear(name: str) -> None:
            """Remove what the last run wrote, which takes a tenth of a second and is no part of a recording."""
            shutil.rmtree(scratch / PATHS.get(name, "none"), ignore_errors=True)

        seconds = interleave(runs, repeats, prepare=clear)
        profiles = [profile(f"{model}, {way}", runs[way]) for way in ("factors", "probabilities")]
        rows = [
            (
                name,
                f"{seconds[name] / seconds['unrecorded']:.2f}",
                f"{size_on_disk(scratch / path) / 1e6:.1f}",
                f"{added_memory(model, name, steps):.0f}",
            )
            for name, path in PATHS.items()
        ]
    title = (
        f"{model}: {steps or default} steps, {threads} torch threads, unrecorded {seconds['unrecorded'] / (steps or default):.3f} s a step"
    )
    ratios = table(title, ("way", "time over unrecorded", "MB on disk", "peak host MB over unrecorded"), rows)
    return "\n".join([ratios, *profiles])


def profile(title: str, recorded: Callable[[], None]) -> str:
    """Markdown table of where one recorded run's time went."""
    head = ("part", "thread", "ms", "share of the recorded run")
    return table(f"{title}: where the time of one recorded run goes; writing runs beside sampling", head, shares(recorded))


def added_memory(model: str, way: str, steps: int | None) -> float:
    """Peak host memory of a fresh process that samples this way, less one that does not record. Units: MB."""

    def peak(name: str) -> float:
        command = [sys.executable, __file__, "--peak", name, "--model", model, *(["--steps", str(steps)] if steps else [])]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return peak(way) - peak("unrecorded")


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)), default=list(MODELS), show_default=True)
@click.option("--steps", type=int, help="Denoiser steps; each model has its own default.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--peak", help="Run one way once and print the process's peak memory in MB.", hidden=True)
def main(models: tuple[str, ...], steps: int | None, repeats: int, peak: str | None) -> None:
    """Print recorded over unrecorded time."""
    warnings.filterwarnings("ignore", "float16 lost")  # said once in the README's figures
    if peak:
        build, default, threads = MODELS[models[0]]
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            candidates(*build(steps or default), Path(folder))[peak]()
        click.echo(1000 * peak_memory())
        return
    click.echo(f"{machine()}, torch {torch.__version__}; {repeats} runs each, interleaved, medians\n")
    for model in models:
        click.echo(compare(model, repeats, steps))


if __name__ == "__main__":
    main()
