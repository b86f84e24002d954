"""What probes cost: recording with words as probes over the same recording without, and what they add to the trace.

    python benchmarks/probing.py                  # the 340 words of the published concepts
    python benchmarks/probing.py --words 34 --steps 8

A text-to-image pipeline of Stable Diffusion's shape with random weights and fewer channels, 77 tokens a text.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import click
import torch
from measure import interleave, machine, size_on_disk, table

from i2am.analyzer import concept_words
from i2am.recorder import record

WIDTH = 256
"""Channels of a text's tokens."""


def pipeline_of(threads: int) -> Any:
    """A U-Net of Stable Diffusion's layout, a text encoder of four layers, a tokenizer that knows letters."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocab = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    size = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 8, "num_hidden_layers": 4}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPTextConfig(**size, **special, vocab_size=len(vocab), max_position_embeddings=77)
    unet = UNet2DConditionModel(sample_size=32, cross_attention_dim=WIDTH, block_out_channels=(64, 128, 256, 256), attention_head_dim=8)
    sides = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32,) * 4, latent_channels=4, **sides).eval(),
        text_encoder=CLIPTextModel(config).eval(),
        tokenizer=CLIPTokenizer(vocab={piece: i for i, piece in enumerate(vocab)}, merges=[], model_max_length=77),
        unet=unet.eval(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@click.command()
@click.option("--words", "count", default=340, show_default=True, help="Words that are probed.")
@click.option("--steps", default=10, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True, help="Of torch.")
def main(count: int, steps: int, repeats: int, threads: int) -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    pipeline, words = pipeline_of(threads), concept_words()[:count]
    folder = Path(tempfile.mkdtemp())
    call = {"prompt": "a photo of a mouse", "num_inference_steps": steps, "height": 256, "width": 256, "output_type": "np"}
    options = {"encoding": "factors", "progress": False, "overwrite": True}
    sizes: dict[str, int] = {}

    def run(name: str, **more: Any) -> None:
        record(pipeline, folder / f"{name}.zarr", **options, **more, **call, generator=torch.Generator().manual_seed(0))
        sizes[name] = size_on_disk(folder / f"{name}.zarr")

    try:
        seconds = interleave(
            {
                "none": lambda: pipeline(**call, generator=torch.Generator().manual_seed(0)),
                "recorded": lambda: run("recorded"),
                "probed": lambda: run("probed", probes={"concepts": words}),
            },
            repeats,
        )
    finally:
        shutil.rmtree(folder)
    extra = seconds["probed"] - seconds["recorded"]
    title = f"{len(words)} words as probes, {steps} steps of 256 x 256 pixels, {threads} threads, {machine()}"
    rows = [
        ("sampling alone", "1.00", ""),
        ("recorded (factors)", f"{seconds['recorded'] / seconds['none']:.2f}", "1.00"),
        ("recorded with probes", f"{seconds['probed'] / seconds['none']:.2f}", f"{sizes['probed'] / sizes['recorded']:.2f}"),
        ("probes alone, in steps of sampling", f"{extra / (seconds['none'] / steps):.1f}", ""),
    ]
    click.echo(table(title, ("", "time", "trace"), rows))


if __name__ == "__main__":
    main()
