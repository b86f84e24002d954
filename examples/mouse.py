"""Which mouse did the picture become? An ambiguous word, asked of the heads step by step.

    python examples/mouse.py stable-diffusion-v1-5/stable-diffusion-v1-5 "a photo of a mouse" -o mouse.zarr
    python examples/mouse.py --trace mouse.zarr

The run is recorded with words for each meaning as probes: their keys, which the picture never sees. Then, at each step, every head's
queries are held against one word of each meaning, and the meaning that draws more attention is counted. The second command asks the
recording alone, without the model.
"""

from __future__ import annotations

from pathlib import Path

import click
import xarray as xr

from i2am.analyzer import concept_words, head_relevance

MEANINGS = {
    "animal": ["rodent", "mouse animal", "small rat", "house mouse", "furry mouse"],
    "device": ["computer mouse", "mouse device", "wireless mouse", "mouse and keyboard", "mouse cursor"],
}
PROBE = "meanings"


def record_mouse(model: str, prompt: str, path: Path, seed: int, steps: int) -> None:
    """Record one text-to-image run with the meanings as probes."""
    import torch
    from diffusers import AutoPipelineForText2Image

    from i2am.recorder import record

    pipeline = AutoPipelineForText2Image.from_pretrained(model)
    pipeline = pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    probes = {PROBE: concept_words(MEANINGS)}
    record(
        pipeline, path, encoding="factors", probes=probes,
        prompt=prompt, num_inference_steps=steps, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def lean(path: Path, draws: int = 20, seed: int = 0) -> xr.DataArray:
    """Share of heads that lean to each meaning, at every step.

    Dims     -> (time, concept)
    Range    [0, 1], sums to 1 over the meanings
    """
    found = head_relevance(path, concepts=MEANINGS, probe=PROBE, keep="time", draws=draws, seed=seed)
    return found["share"].mean(("layer", "head"))


def write(leaning: xr.DataArray) -> str:
    """A row a step, and what the run comes to."""
    names = leaning["concept"].values.tolist()
    lines = ["step  timestep" + "".join(f"{name:>10}" for name in names)]
    for step in range(leaning.sizes["time"]):
        row = leaning.isel(time=step)
        lines.append(f"{step:>4}  {float(row['timestep']):>8.0f}" + "".join(f"{share:>10.2f}" for share in row.values))
    whole = leaning.mean("time")
    best = whole.idxmax("concept").item()
    return "\n".join([*lines, f"heads lean to the {best} in {float(whole.max()):.0%} of their calls"])


@click.command()
@click.argument("model", required=False)
@click.argument("prompt", default="a photo of a mouse")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("mouse.zarr"), show_default=True)
@click.option("--trace", type=click.Path(path_type=Path), help="Ask this recording instead of making one.")
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=50, show_default=True)
def main(model: str | None, prompt: str, out: Path, trace: Path | None, seed: int, steps: int) -> None:
    """Record a prompt with an ambiguous word, or take a recording, and print which meaning its heads lean to."""
    if trace is None:
        if model is None:
            raise click.UsageError("name a text-to-image model to record, or a recording with --trace")
        record_mouse(model, prompt, out, seed, steps)
    click.echo(write(lean(trace or out)))


if __name__ == "__main__":
    main()
