"""FID, KID and LPIPS of painted pictures against real ones: two folders as `i2am pictures` writes them.

    pip install 'torchmetrics[image]'
    python examples/papers/likeness.py pictures/refined pictures/real

The libraries fetch the weights of Inception, and of AlexNet for LPIPS, when they first run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

SUBSET = 1000
"""Pictures of each of KID's samples, or all where there are fewer."""


def read_picture(path: Path) -> Tensor:
    """The pixels of a picture.

    Dims     (1, rgb, y, x), uint8
    """
    with Image.open(path) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)[None].contiguous()


def measure_sets(painted: Iterable[Path], real: Iterable[Path], features: int | nn.Module = 2048) -> dict[str, float]:
    """FID and KID of two sets of pictures; `features` are Inception's, or what another network gives."""
    sets = list(painted), list(real)
    subset = min(SUBSET, *map(len, sets))
    fid, kid = FrechetInceptionDistance(features), KernelInceptionDistance(features, subset_size=subset)
    for paths, are_real in zip(sets, (False, True), strict=True):
        for path in paths:
            for metric in (fid, kid):
                metric.update(read_picture(path), real=are_real)
    return {"FID": float(fid.compute()), "KID": float(kid.compute()[0])}


def measure_pairs(painted: Iterable[Path], real: Path, distance: Metric) -> float:
    """The mean distance of each picture from that of its name in the folder `real`."""
    for path in painted:
        distance.update(*(read_picture(each) / 255 for each in (path, real / path.name)))
    return float(distance.compute())


@click.command()
@click.argument("painted", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("real", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--network", type=click.Choice(["alex", "vgg", "squeeze"]), default="alex", show_default=True, help="Of LPIPS.")
@click.option("--unpaired", is_flag=True, help="Leave out LPIPS: the real pictures are not what each should be.")
def main(painted: Path, real: Path, network: str, unpaired: bool) -> None:
    """Print FID and KID of the PNG files of PAINTED against those of REAL, and LPIPS of the pairs."""
    files = sorted(painted.glob("*.png")), sorted(real.glob("*.png"))
    if min(map(len, files)) < 2:
        raise click.UsageError(f"{painted} has {len(files[0])} PNG files and {real} has {len(files[1])}; each needs two or more")
    if not unpaired and (lone := [path.name for path in files[0] if not (real / path.name).is_file()]):
        raise click.UsageError(f"{real} has no {lone[0]}; give pictures of the same names, or --unpaired")
    scores = measure_sets(*files)
    if not unpaired:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        scores["LPIPS"] = measure_pairs(files[0], real, LearnedPerceptualImagePatchSimilarity(network, normalize=True))
    click.echo("  ".join(f"{name} {value:.4f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
