"""Objects of annotated pictures become pairs by the rule of the published protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from i2am.recorder.cli.objects import objects_command
from i2am.recorder.specs.manifest import read_manifest
from i2am.recorder.specs.objects import read_objects, write_pairs
from i2am.schema.errors import AlreadyExists, InvalidInput

pytestmark = pytest.mark.analyzer

SIZES = {1: (40, 20), 2: (30, 30), 3: (10, 10)}
BOXES = [(2, [0, 0, 29, 29]), (1, [0, 0, 2, 2]), (1, [10, 5, 16, 10]), (1, [0, 0, 20, 10]), (2, [20.4, 3, 15, 15]), (3, [1, 1, 1, 1])]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Three pictures, of which the last has no object of a fitting size; one box reaches beyond its picture."""
    rng = np.random.default_rng(0)
    (tmp_path / "val").mkdir()
    images = []
    for key, (width, height) in SIZES.items():
        PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"val/{key:03}.png")
        images.append({"id": key, "file_name": f"{key:03}.png", "width": width, "height": height})
    rows = [{"image_id": key, "bbox": box, "category_id": 1} for key, box in BOXES]
    (tmp_path / "objects.json").write_text(json.dumps({"images": images, "annotations": rows}))
    return tmp_path


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as opened:
        return np.array(opened)


def test_the_first_object_that_fits_is_taken(coco: Path) -> None:
    found = read_objects(coco / "objects.json")
    assert [(one.picture, one.box, one.share) for one in found] == [
        ("001.png", (10, 5, 26, 15), 0.2),
        ("002.png", (20.4, 3, 30, 18), pytest.approx(9.6 * 15 / 900)),
    ]
    assert [one.picture for one in read_objects(coco / "objects.json", (0.2, 1))] == ["001.png", "002.png"]


def test_a_pair_is_the_picture_its_box_and_what_is_in_it(coco: Path) -> None:
    table = write_pairs(read_objects(coco / "objects.json"), coco / "val", coco / "pairs", side=40)
    rows = read_manifest(table).rows
    assert [row.name for row in rows] == ["001", "002"] and list(rows[0].cells) == ["image", "mask_image", "example_image"]
    picture, mask, example = (pixels(table.parent / rows[0].cells[name]) for name in rows[0].cells)
    assert picture.shape == (40, 40, 3) and mask.shape == (40, 40)
    assert np.array_equal(example, pixels(coco / "val/001.png")[5:15, 10:26])
    inside = np.zeros((40, 40), np.uint8)
    inside[10:30, 10:26] = 255  # rows are stretched to twice as many
    assert np.array_equal(mask, inside)


def test_the_command_says_what_it_made(coco: Path) -> None:
    asked = [str(coco / "objects.json"), str(coco / "val"), "-o", str(coco / "one"), "--first", "1", "--side", "16"]
    made = CliRunner().invoke(objects_command, [*asked, "--json"])
    assert json.loads(made.stdout) == {"manifest": str(coco / "one/pairs.csv"), "pairs": 1, "mean_share": 0.2}
    assert isinstance(CliRunner().invoke(objects_command, asked).exception, AlreadyExists)


def document(**changes: Any) -> str:
    return json.dumps({"images": [{"id": 1, "file_name": "001.png", "width": 40, "height": 20}], "annotations": [], **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "does not list objects as COCO does"),
        (document(images=3), "does not list objects as COCO does"),
        (document(annotations=[{"image_id": 9, "bbox": [0, 0, 1, 1]}]), "KeyError: 9"),
        (document(annotations=[{"image_id": 1, "bbox": [0, 0, 1]}]), "does not list objects"),
        (document(annotations=[{"image_id": 1, "bbox": [0, 0, 1, 1]}]), "none of the 1 objects of .* takes 10% to 30% of its picture"),
    ],
)
def test_what_is_no_annotation_is_said(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "objects.json").write_text(text)
    with pytest.raises(InvalidInput, match=message):
        read_objects(tmp_path / "objects.json")


def test_other_pictures_than_were_annotated_are_refused(coco: Path) -> None:
    found = read_objects(coco / "objects.json")
    PIL.Image.new("RGB", (5, 5)).save(coco / "val/001.png")
    with pytest.raises(InvalidInput, match=r"001\.png is 5 x 5 pixels, and its annotation says 40 x 20"):
        write_pairs(found, coco / "val", coco / "a")
    with pytest.raises(InvalidInput, match="no picture that can be read"):
        write_pairs(found, coco / "nowhere", coco / "b")
    with pytest.raises(InvalidInput, match="cannot read the annotations"):
        read_objects(coco / "nowhere.json")
