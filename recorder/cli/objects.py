"""`i2am objects`: pairs to record from annotated pictures, by the rule of the published detection protocol."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import click
from tqdm import tqdm

from ..specs.objects import SHARES, SIDE, read_objects, write_pairs

SHARE: Final = click.FloatRange(0, 1, min_open=True)


@click.command("objects", short_help="Make a manifest of annotated pictures: an object's box as mask, the object as reference.")
@click.argument("annotations", type=click.Path(path_type=Path), metavar="ANNOTATIONS.json")
@click.argument("pictures", type=click.Path(path_type=Path))
@click.option("-o", "--out", "folder", required=True, type=click.Path(path_type=Path), help="Folder of pairs.csv and its pictures.")
@click.option("--least", type=SHARE, default=SHARES[0], show_default=True, help="Share of the picture that an object takes at least.")
@click.option("--most", type=SHARE, default=SHARES[1], show_default=True, help="And at most.")
@click.option("--side", type=click.IntRange(min=8), default=SIDE, show_default=True, help="Pixels of pictures and masks.")
@click.option("--first", type=click.IntRange(min=1), metavar="N", help="Only the first N pictures.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def objects_command(
    annotations: Path, pictures: Path, folder: Path, least: float, most: float, side: int, first: int | None, as_json: bool
) -> None:
    """Make a manifest of annotated pictures for `i2am record --manifest`; needs no torch.

    ANNOTATIONS.json lists objects as COCO does, PICTURES is the folder of its pictures. Of each picture the first object is taken whose
    box has the right share of it: the box becomes the mask, what is inside it the reference.

    \b
    Examples:
      i2am objects instances_val2017.json val2017 -o coco
      i2am record examples/papers/detection.toml --manifest coco/pairs.csv -o traces
    """
    found = read_objects(annotations, (least, most))[:first]
    table = write_pairs(tqdm(found, desc="objects", unit="pair", leave=False, disable=None if sys.stderr else True), pictures, folder, side)
    mean = sum(one.share for one in found) / len(found)
    facts = {"manifest": str(table), "pairs": len(found), "mean_share": mean}
    click.echo(json.dumps(facts) if as_json else f"{table}: {len(found)} pairs, whose objects take {mean:.1%} of their pictures on average")
