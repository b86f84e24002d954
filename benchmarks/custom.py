"""(f) The paper's custom model at full size: what a dry run costs, and what recording adds to one real denoiser step.

    python benchmarks/custom.py               # 860 M + 1.1 G random weights in float32: 9 GB of memory
    python benchmarks/custom.py --steps 2 --repeats 3

One step reads 1037 reference tokens in 16 layers. The reference is encoded once, and nothing is decoded: neither is recorded.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import PIL.Image
import torch
from measure import interleave, machine, peak_memory, size_on_disk, table

from i2am.recorder import record
from i2am.recorder.custom.pipeline import build_custom
from i2am.recorder.dryrun.estimate import estimate
from i2am.recorder.specs.spec import read_spec

EXAMPLES = Path(__file__).parent.parent / "examples"
ENCODINGS = ("factors", "probabilities")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def arguments(pipeline: Any, steps: int) -> dict[str, Any]:
    """One person, one garment, one seed."""
    person, mask, garment = (PIL.Image.open(EXAMPLES / f"{name}.png") for name in ("person", "mask", "garment"))
    return {
        "image": person.convert("RGB"),
        "mask_image": mask.convert("L"),
        "reference_embeds": pipeline.encode_reference(garment.convert("RGB")),
        "num_inference_steps": steps,
        "output_type": "latent",
    }


@click.command()
@click.option("--steps", default=1, show_default=True)
@click.option("--repeats", default=2, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(steps: int, repeats: int, threads: int) -> None:
    """Print what the full-size model costs, unrecorded and recorded."""
    torch.set_num_threads(threads)
    dry, found = timed(lambda: estimate(read_spec(EXAMPLES / "custom.toml")))
    built, pipeline = timed(build_custom)
    pipeline.set_progress_bar_config(disable=True)
    call = arguments(pipeline, steps)

    def sample(**options: Any) -> None:
        given = {**call, "generator": torch.Generator().manual_seed(0)}
        if options:
            record(pipeline, overwrite=True, progress=False, **options, **given)
        else:
            pipeline(**given)

    with tempfile.TemporaryDirectory() as folder:
        paths = {encoding: Path(folder) / f"{encoding}.zarr" for encoding in ENCODINGS}
        runs: dict[str, Callable[[], None]] = {"unrecorded": sample}
        for encoding, path in paths.items():
            runs[encoding] = lambda encoding=encoding, path=path: sample(path=path, encoding=encoding)
        seconds = interleave(runs, repeats)
        rows = [(name, f"{seconds[name] / seconds['unrecorded']:.2f}", f"{size_on_disk(paths[name]) / 1e6:.0f}") for name in ENCODINGS]
    weights = sum(p.numel() for part in (pipeline.unet, pipeline.image_encoder, pipeline.vae) for p in part.parameters())
    click.echo(f"{machine()}, torch {torch.__version__}, {threads} threads; {repeats} runs each, interleaved, medians\n")
    click.echo(f"building {weights / 1e9:.1f} G random weights takes {built / dry:.0f} times the dry run ({dry:.1f} s); ", nl=False)
    click.echo(f"{len(found.trace.layers)} layers of {found.trace.layers[0].tokens} tokens; peak memory {peak_memory():.1f} GB\n")
    title = f"custom model: {steps} step(s), unrecorded {seconds['unrecorded'] / steps:.1f} s a step"
    click.echo(table(title, ("way", "time over unrecorded", "MB on disk"), rows))


if __name__ == "__main__":
    main()
