"""Make a manifest of VITON-HD's test set, its pictures brought to the published 512 x 384.

    python examples/papers/viton_hd.py zalando-hd-resized/test viton-hd
    i2am record examples/papers/imacs-custom.toml --manifest viton-hd/pairs.csv -o custom

Each person keeps the garment worn (`paired`); with --unpaired it is that of test_pairs.txt.
"""

from __future__ import annotations

import csv
from pathlib import Path

import click
from PIL import Image

COLUMNS = {
    "image": "image/{person}.jpg",
    "mask_image": "agnostic-mask/{person}_mask.png",
    "example_image": "cloth/{cloth}.jpg",
    "reference_mask": "cloth-mask/{cloth}.jpg",
}
"""Column of the manifest -> file below the test set's folder."""


def make_row(source: Path, folder: Path, person: str, cloth: str, size: tuple[int, int]) -> list[str]:
    """Write the four pictures of a pair; its row of the manifest."""
    row = [person]
    for column, pattern in COLUMNS.items():
        mask = "mask" in column
        with Image.open(source / pattern.format(person=person, cloth=cloth)) as opened:
            picture = opened.convert("L" if mask else "RGB").resize(size, Image.Resampling.NEAREST if mask else Image.Resampling.BICUBIC)
        row.append(f"{person}_{column}.png")
        picture.save(folder / row[-1])
    return row


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--unpaired", is_flag=True, help="The garments of test_pairs.txt, not those worn.")
@click.option("--height", default=512, show_default=True, help="Pixels; the width is three quarters of it.")
def main(source: Path, folder: Path, unpaired: bool, height: int) -> None:
    """Write pairs.csv and its pictures to FOLDER; SOURCE is the folder `test` of VITON-HD."""
    folder.mkdir(parents=True, exist_ok=True)
    people = sorted(path.stem for path in (source / "image").glob("*.jpg"))
    cloths = {person: person for person in people}
    if unpaired:
        lines = (source.parent / "test_pairs.txt").read_text(encoding="utf-8").splitlines()
        cloths = {Path(line.split()[0]).stem: Path(line.split()[1]).stem for line in lines if line.strip()}
    size = height * 3 // 4, height
    with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["name", *COLUMNS], *(make_row(source, folder, *pair, size) for pair in cloths.items())])
    click.echo(f"{folder / 'pairs.csv'}: {len(cloths)} pairs")


if __name__ == "__main__":
    main()
