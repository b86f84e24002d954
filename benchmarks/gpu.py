"""Recorded over unrecorded sampling on a GPU: U-Nets of published shapes, random weights in half precision.

    python benchmarks/gpu.py                             # SD 1.5 and SDXL, 257 and 16 reference tokens, 50 steps
    python benchmarks/gpu.py --model sd15 --tokens 257 --repeats 5

Each row is one way in one process: time over unrecorded, what left the device a second, peaks of device and host memory over those of
the unrecorded run. The folder that traces are written to should lie on a fast disk: --scratch says which.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from measure import interleave, machine, peak_memory, size_on_disk, table

from i2am.analyzer import open_trace
from i2am.recorder import record
from i2am.recorder.plan.budget import weigh

WAYS = ("factors", "probabilities")


@dataclass(frozen=True)
class Shape:
    """A U-Net, and the picture it makes."""

    pixels: int
    unet: dict[str, Any] = field(default_factory=dict)
    pooled: int = 0
    """Channels of the pooled text of SDXL; 0 for SD."""


SHAPES = {
    "sd15": Shape(512, {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}),
    "sdxl": Shape(
        1024,
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        pooled=1280,
    ),
}


def build(shape: Shape, tokens: int, steps: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """A pipeline that makes latents, and its arguments; its context is `tokens` reference tokens."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(**shape.unet).to(dtype).eval()
        # Never run: it says that a latent cell is 8 pixels.
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(block_out_channels=(32,) * 4, latent_channels=4, **blocks).to(dtype)
    parts = {"unet": unet, "vae": vae, "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False)}
    names = ["text_encoder", "tokenizer", *(("text_encoder_2", "tokenizer_2") if shape.pooled else ("safety_checker", "feature_extractor"))]
    pipeline = (
        StableDiffusionXLPipeline(**parts, **dict.fromkeys(names), add_watermarker=False)
        if shape.pooled
        else StableDiffusionPipeline(**parts, **dict.fromkeys(names), image_encoder=None, requires_safety_checker=False)
    )
    pipeline.set_progress_bar_config(disable=True)
    made = torch.Generator().manual_seed(0)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=made).to(device, dtype)

    width = unet.config.cross_attention_dim
    call = {name: noise(1, tokens, width) for name in ("prompt_embeds", "negative_prompt_embeds")}
    if shape.pooled:
        call |= {name: noise(1, shape.pooled) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")}
    size = {"height": shape.pixels, "width": shape.pixels, "num_inference_steps": steps, "output_type": "latent"}
    return pipeline, {**call, **size, "generator": torch.Generator().manual_seed(0)}


def finished(device: torch.device) -> None:
    """Wait for all that the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peaks(run: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Peak memory of the device and of this process during one run. Units: GB."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0, peak_memory()


def compare(name: str, shape: Shape, tokens: int, steps: int, repeats: int, device: torch.device, dtype: torch.dtype, scratch: Path) -> str:
    """Markdown table of one model with one number of tokens."""
    pipeline, call = build(shape, tokens, steps, device, dtype)

    def unrecorded() -> None:
        pipeline(**call)
        finished(device)

    def recorded(way: str) -> Callable[[], None]:
        def run() -> None:
            record(pipeline, scratch / f"{way}.zarr", encoding=way, overwrite=True, progress=False, **call)
            finished(device)

        return run

    runs = {"unrecorded": unrecorded, **{way: recorded(way) for way in WAYS}}
    seconds = interleave(runs, repeats)
    memory = {way: peaks(run, device) for way, run in runs.items()}
    rows = []
    for way in WAYS:
        path = scratch / f"{way}.zarr"
        raw = weigh(open_trace(path).record).nbytes / 1e9
        more = [f"{with_it - without:+.2f}" for with_it, without in zip(memory[way], memory["unrecorded"], strict=True)]
        ratio, rate, packed = seconds[way] / seconds["unrecorded"], raw / seconds[way], size_on_disk(path) / 1e9
        rows.append((way, f"{ratio:.2f}", f"{raw:.3g}", f"{packed:.3g}", f"{rate:.3g}", *more))
    title = f"{name}, {tokens} tokens, {steps} steps, {dtype}: unrecorded {1000 * seconds['unrecorded'] / steps:.1f} ms a step"
    head = (
        "way",
        "time over unrecorded",
        "GB before compression",
        "GB on disk",
        "GB/s",
        "device GB over unrecorded",
        "host GB over unrecorded",
    )
    return table(title, head, rows)


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(SHAPES)), default=list(SHAPES), show_default=True)
@click.option("--tokens", "counts", multiple=True, type=int, default=(257, 16), show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--device", "place", default="cuda", show_default=True)
@click.option("--scratch", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder to write traces to.")
def main(models: tuple[str, ...], counts: tuple[int, ...], steps: int, repeats: int, place: str, scratch: Path | None) -> None:
    """Print recorded over unrecorded time, throughput and memory."""
    device = torch.device(place)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("torch finds no CUDA device here; run this where there is one, or benchmarks/recording.py on a CPU")
    warnings.filterwarnings("ignore", "float16 lost")
    dtype = torch.float32 if device.type == "cpu" else torch.float16  # half precision is slow and rare on CPUs
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    click.echo(f"{named}; {machine()}, torch {torch.__version__}; {repeats} runs each, interleaved, medians\n")
    for model in models:
        for tokens in counts:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                click.echo(compare(model, SHAPES[model], tokens, steps, repeats, device, dtype, Path(folder)))


if __name__ == "__main__":
    main()
