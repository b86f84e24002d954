"""Objects of a picture data set as pairs to record: each picture with one object as mask, and the object cut out as its reference.

The rule of the I2AM authors' detection protocol: of each picture the first object whose box takes 10 to 30 % of it; the mask is the
box, the reference what is inside it, the picture is brought to the model's square. Annotations are a JSON file as COCO publishes them.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeAlias

import PIL.Image
from PIL.Image import Image as Picture

from ...schema.errors import AlreadyExists, InvalidInput

SHARES: Final = (0.1, 0.3)
"""Of the picture that the published protocol's objects take."""
SIDE: Final = 512
"""Pixels of Paint-by-Example's pictures."""
COLUMNS: Final = ("name", "image", "mask_image", "example_image")
Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a picture."""

    picture: str
    """File name."""
    box: Box
    """Left, top, right, bottom, in pixels of the picture."""
    size: tuple[int, int]
    """(width, height) of the picture."""

    @property
    def share(self) -> float:
        """What its box takes of the picture."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top) / (self.size[0] * self.size[1])


def read_objects(annotations: str | PathLike[str], shares: tuple[float, float] = SHARES) -> list[Object]:
    """Of each picture the first object whose box takes such a share of it, in the order of the file's pictures.

    Raises   InvalidInput for a file that cannot be read or is no annotation of objects, or if no object fits
    """
    path = Path(annotations)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"cannot read the annotations {path}: {error.strerror}; give a JSON file such as COCO's") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not JSON ({error})") from error
    try:
        first: dict[Any, Object] = {}
        pictures = {row["id"]: (str(row["file_name"]), (int(row["width"]), int(row["height"]))) for row in document["images"]}
        for row in document["annotations"]:
            found = _object(*pictures[row["image_id"]], row["bbox"])
            if shares[0] <= found.share <= shares[1]:
                first.setdefault(row["image_id"], found)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"{path} does not list objects as COCO does (images, annotations with image_id and bbox): {what}") from error
    if not first:
        low, high = (f"{share:.0%}" for share in shares)
        raise InvalidInput(f"none of the {len(document['annotations'])} objects of {path} takes {low} to {high} of its picture")
    return [first[key] for key in pictures if key in first]


def write_pairs(objects: Iterable[Object], pictures: str | PathLike[str], folder: str | PathLike[str], side: int = SIDE) -> Path:
    """Write each object's picture, mask and reference, then pairs.csv, which `i2am record --manifest` takes; its path.

    Raises   InvalidInput for a picture that cannot be read, or is not of the size that its annotation says; AlreadyExists
    """
    folder, rows = Path(folder), []
    table = folder / "pairs.csv"
    if table.exists():
        raise AlreadyExists(f"{table} exists; choose another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    for each in objects:
        name = Path(each.picture).stem
        files = [f"{name}_{column}.png" for column in COLUMNS[1:]]
        for file, pixels in zip(files, cut_out(each, pictures, side), strict=True):
            pixels.save(folder / file)
        rows.append((name, *files))
    with open(table, "w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, lineterminator="\n").writerows([COLUMNS, *rows])
    return table


def cut_out(one: Object, pictures: str | PathLike[str], side: int = SIDE) -> tuple[Picture, Picture, Picture]:
    """The whole picture and the mask of the object's box, both `side` pixels high and wide, and what is inside the box as it is.

    Raises   InvalidInput for a picture that cannot be read, or is not of the size that its annotation says
    """
    path = Path(pictures) / one.picture
    try:
        with PIL.Image.open(path) as opened:
            picture = opened.convert("RGB")
    except OSError as error:
        raise InvalidInput(f"{path} is no picture that can be read ({error}); give the folder of the annotated pictures") from error
    if picture.size != one.size:
        found, said = ("{} x {}".format(*size) for size in (picture.size, one.size))
        raise InvalidInput(f"{path} is {found} pixels, and its annotation says {said}; give the pictures that were annotated")
    mask = PIL.Image.new("L", (side, side))
    left, top, right, bottom = (round(edge * side / whole) for edge, whole in zip(one.box, one.size * 2, strict=True))
    mask.paste(255, (left, top, max(right, left + 1), max(bottom, top + 1)))
    left, top, right, bottom = *map(math.floor, one.box[:2]), *map(math.ceil, one.box[2:])
    return picture.resize((side, side)), mask, picture.crop((left, top, right, bottom))


def _object(picture: str, size: tuple[int, int], given: Any) -> Object:
    """An object from its row; COCO's boxes are left, top, width, height, and may reach beyond the picture."""
    left, top, width, height = (float(number) for number in given)
    right, bottom = min(left + width, size[0]), min(top + height, size[1])
    return Object(picture, (max(left, 0.0), max(top, 0.0), right, bottom), size)
