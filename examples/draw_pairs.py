"""Draw try-on pairs for the demo model, and a manifest of them.

    python examples/draw_pairs.py pairs
    torchrun --nproc-per-node 2 --no-python i2am record examples/demo.toml --manifest pairs/pairs.csv -o traces

The second command records all 12 in two processes. Run it again after a failure or a kill, and only what is missing is recorded.
On GPUs this does the same:

    accelerate launch --multi_gpu --module i2am.analyzer.cli record examples/demo.toml --manifest pairs/pairs.csv -o traces
"""

from __future__ import annotations

import csv
from pathlib import Path

import click
import numpy as np
from PIL import Image

from i2am.recorder.demo import HELD_OUT, Pair, draw_pair

COLUMNS = {"image": "agnostic", "mask_image": "mask", "example_image": "reference", "reference_mask": "reference_mask"}
"""Column of the manifest -> field of a pair."""


def draw(folder: Path, count: int) -> Path:
    """Write the pictures of the first held-out pairs, and the manifest that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairs.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["name", "seed", *COLUMNS])
        for number in range(count):
            table.writerow([f"pair_{number:03d}", number, *save(folder, number, draw_pair(HELD_OUT + number))])
    return path


def save(folder: Path, number: int, pair: Pair) -> list[str]:
    """Write the pictures of one pair; their names, in the order of COLUMNS."""
    names = []
    for column, field in COLUMNS.items():
        pixels = np.rint(np.asarray(getattr(pair, field), dtype=np.float32) * 255).astype(np.uint8)
        names.append(f"{number:03d}_{column}.png")
        Image.fromarray(pixels).save(folder / names[-1])
    return names


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", default=12, show_default=True, help="How many pairs.")
def main(folder: Path, count: int) -> None:
    """Write images and pairs.csv to FOLDER."""
    click.echo(draw(folder, count))


if __name__ == "__main__":
    main()
