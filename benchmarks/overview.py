"""The overview next to the map that reads as much: both scan every call once.

    python benchmarks/overview.py --steps 30 [--trace run.zarr]

Prints the time of `i2am view -o` over that of `i2am map --r2g`, and the size and peak memory of the overview, for a trace of Stable
Diffusion 1.5's size (16 layers of 8 heads, 257 keys) and for other traces that are named.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from measure import interleave, machine, size_on_disk, table

from i2am.recorder.store.writer import Writer
from i2am.schema import Image, Layer, TokenGroup, TraceRecord, encode_probability

HEADS, DEPTH, SIDE, REFERENCE = 8, 40, 512, (16, 16)
BLOCKS = (("down", 64), ("down", 32), ("down", 16), ("mid", 8), ("up", 16), ("up", 32), ("up", 64))
CALLS = {"down": 2, "mid": 1, "up": 3}
THREADS = 2


def layers() -> list[Layer]:
    """The 16 cross-attention layers of Stable Diffusion 1.5, each of which sees CLS and 16 x 16 patches of a reference."""
    tokens = 1 + REFERENCE[0] * REFERENCE[1]
    group = TokenGroup("reference", "reference", 0, tokens, 1, REFERENCE, "reference")
    return [
        Layer(
            f"unet.{part}_blocks.{b}.attentions.{i}.transformer_blocks.0.attn2", 0, HEADS, DEPTH, DEPTH**-0.5, (side,) * 2, tokens, (group,)
        )
        for b, (part, side) in enumerate(BLOCKS)
        for i in range(CALLS[part])
    ]


def smooth(random: np.random.Generator, side: int, channels: int) -> np.ndarray:
    """Noise that is even over an eighth of a side, with a little of its own in each place.

    Dims     -> (y, x, channel)
    """
    coarse = random.standard_normal((8, 8, channels), np.float32)
    return coarse.repeat(side // 8, 0).repeat(side // 8, 1) + 0.2 * random.standard_normal((side, side, channels), np.float32)


def attention(layer: Layer, seed: int, sharpness: float) -> dict[str, np.ndarray]:
    """One call: patches that look where they lie, as sharply as is asked, with noise, in every other head."""
    random = np.random.default_rng(seed)
    side = layer.grid[0]
    query = np.stack([smooth(random, side, DEPTH) for _ in range(HEADS)])
    key = random.standard_normal((HEADS, layer.tokens, DEPTH), np.float32)
    scores = np.einsum("hyxc,htc->hyxt", query, key, optimize=True) / DEPTH**0.5
    here, there = ((np.arange(n) + 0.5) / n for n in (side, REFERENCE[0]))
    near = (here[:, None] - there) ** 2
    scores[::2, ..., 1:] -= sharpness * (near[:, None, :, None] + near[None, :, None, :]).reshape(side, side, -1)
    query_lse = np.log(np.exp(scores).sum(-1))
    token_lse = np.log(np.exp(scores).sum((1, 2)))
    return {"probability": encode_probability(np.exp(scores - query_lse[..., None])), "query_lse": query_lse, "token_lse": token_lse}


def pictures() -> list[tuple[Image, np.ndarray]]:
    """A generated picture, a reference that is like it, and a mask of each."""
    random = np.random.default_rng(0)
    colours = smooth(random, SIDE, 3)
    picture = np.clip(128 + 60 * colours, 0, 255).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE, 1), np.uint8)
    mask[SIDE // 4 : SIDE * 3 // 4, SIDE // 4 : SIDE * 3 // 4] = 255
    named = {"generated_0": ("generated", picture), "reference": ("reference", picture)}
    named |= {name: (name, mask) for name in ("mask", "reference_mask")}
    return [(Image(name, role, *pixels.shape), pixels) for name, (role, pixels) in named.items()]  # type: ignore[arg-type]


def write(path: Path, steps: int) -> TraceRecord:
    """A trace of Stable Diffusion 1.5's size; two different steps a layer, repeated."""
    writer = Writer(path, TraceRecord("00000000-0000-4000-8000-000000000015", "recording", 1, ("cond",), steps, latent_grid=(64, 64)))
    plan = layers()
    blocks = [[attention(layer, 2 * i + turn, 5.0 * (i % 4) * (1 + turn)) for turn in range(2)] for i, layer in enumerate(plan)]
    for layer in plan:
        writer.add_layer(layer)
    for step in range(steps):
        for index, mine in enumerate(blocks):
            writer.put(index, 0, "cond", step, mine[step * 2 // steps])
        writer.commit(step, evaluation=step, timestep=1000.0 * (1 - step / steps), sigma=float("nan"), scheduler_step=step)
    return writer.finish(images=pictures(), model={"pipeline": "StandIn"})


def command(*words: str) -> None:
    """Run `i2am` in a fresh process, with a few threads and no cache."""
    environment = {**os.environ, "I2AM_CACHE": "none", "DASK_NUM_WORKERS": str(THREADS)}
    subprocess.run([sys.executable, "-m", "i2am.analyzer.cli", *words], check=True, capture_output=True, env=environment)


def draw_map(path: Path, out: Path) -> None:
    """R2G as a picture."""
    command("map", str(path), "--r2g", "-o", str(out / "map.png"), "--overwrite")


def write_page(path: Path, out: Path) -> None:
    """The overview, in a page."""
    command("view", str(path), "-o", str(out / "page.html"), "--overwrite")


def measure(path: Path, what: str) -> tuple[float, int]:
    """Peak resident GB of a fresh process that makes R2G or the overview, and bytes of what it made."""
    making = {"r2g": "i2am.analyzer.r2g(trace).compute().nbytes", "overview": "i2am.analyzer.make_overview(trace).nbytes"}[what]
    imports = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import i2am.analyzer, measure"
    code = f"{imports}; trace = i2am.analyzer.open_trace({str(path)!r}); size = {making}; print(measure.peak_memory(), size)"
    memory, size = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return float(memory), int(size)


@click.command()
@click.option("--steps", default=30, show_default=True, help="Of the trace that is made; a real run has 50.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--trace", "traces", type=click.Path(path_type=Path, exists=True), multiple=True, help="Another trace, such as the demo's.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to put the trace; a temporary folder if not given.")
def main(steps: int, repeats: int, traces: tuple[Path, ...], folder: Path | None) -> None:
    """Print the ratios of the overview to R2G."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        out = Path(scratch)
        path = out / "sd15.zarr"
        write(path, steps)
        click.echo(f"{machine()}\n")
        rows = []
        for name, each in [(f"Stable Diffusion 1.5's size, {steps} steps", path), *((str(given), given) for given in traces)]:
            seconds = interleave({"map": lambda p=each: draw_map(p, out), "view": lambda p=each: write_page(p, out)}, repeats)
            (before, _), (after, size) = measure(each, "r2g"), measure(each, "overview")
            ratio, disk = f"{seconds['view'] / seconds['map']:.2f}", f"{size_on_disk(each) / 1e9:.2f}"
            rows.append((name, disk, f"{seconds['map']:.1f}", ratio, f"{size / 1e6:.1f}", f"{before:.2f}", f"{after:.2f}"))
        columns = (
            "trace",
            "GB on disk",
            "`i2am map --r2g`, s",
            "`i2am view -o` over it",
            "overview, MB",
            "peak GB of R2G",
            "and of the overview",
        )
        click.echo(table(f"`i2am view -o` and `i2am map --r2g`, {THREADS} threads", columns, rows))


if __name__ == "__main__":
    main()
