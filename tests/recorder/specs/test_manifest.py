"""Manifests: what is meant is read; what cannot be meant is one line that names the file's line and the nearest column there is."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest

from i2am.recorder.specs.arguments import Arguments
from i2am.recorder.specs.manifest import check_columns, read_manifest, read_value, row_spec
from i2am.recorder.specs.spec import Spec
from i2am.schema.errors import InvalidInput

SPEC = Spec(Path("spec.toml"), "SomePipeline", "some/model", call={"strength": 0.5}, seed=9)
ARGUMENTS = Arguments({"image", "example_image", "prompt", "strength", "height"}, {"prompt"})


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "pairs.csv").write_text(text, encoding=encoding)
    return folder / "pairs.csv"


def test_everything_a_manifest_can_say(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "images/a.png")
    text = 'name, image,seed,prompt,strength,height\r\nanna,images/a.png,7,"one, two",0.25,64\r\n\r\nbert.1,,,1984,,\r\n'
    manifest = read_manifest(write(tmp_path, text, "utf-8-sig"))
    assert manifest.columns == ("name", "image", "seed", "prompt", "strength", "height")
    assert [(row.name, row.folder, row.line) for row in manifest.rows] == [("anna", "anna.zarr", 2), ("bert.1", "bert.1.zarr", 4)]
    check_columns(manifest, SPEC, ARGUMENTS, ())
    anna, bert = (row_spec(SPEC, manifest, row, ARGUMENTS) for row in manifest.rows)
    assert anna.images == {"image": tmp_path / "images/a.png"}
    assert (anna.seed, anna.call) == (7, {"strength": 0.25, "prompt": "one, two", "height": 64})
    assert (bert.seed, bert.call, bert.images) == (9, {"strength": 0.5, "prompt": "1984"}, {}), "an empty cell leaves the spec's"
    assert SPEC.call == {"strength": 0.5}


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("False", False), ("3", 3), ("-2", -2), ("0.5", 0.5), ("1e-3", 1e-3), ("a shirt", "a shirt")]
)
def test_a_cell_is_what_it_looks_like(text: str, value: object) -> None:
    assert read_value(text) == value and type(read_value(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"pairs.csv is empty; it should be a CSV file with a column `name`"),
        ("name,seed\n", "has a header and no rows, so there is nothing to record"),
        ("nam,seed\na,1\n", "has no column `name`; did you mean nam"),
        ("name;seed\na;1\n", "no column `name`.*separated by commas"),
        ("name,seed,seed\na,1,2\n", "has the column 'seed' twice"),
        ("name,prompt\na,x\nb,y,z\n", "line 3: 3 cells under 2 columns; put text that has commas in quotes"),
        ("name\na\nb\nA\n", "line 4: the name 'A' is taken by line 2"),
        ("name\na\na.zarr\n", "line 3: the name 'a.zarr' is taken by line 2"),
        ("name\na/b\n", "line 2: 'a/b' cannot name a trace's folder"),
        ("name\n..\n", "line 2: '..' cannot name"),
        ("name,seed\n,1\n", "line 2: '' cannot name"),
        ('name\n"a\n', "is not CSV in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_meant(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        read_manifest(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read the manifest .*give the path of a CSV file"):
        read_manifest(tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes("name\nJosé\n".encode("latin-1"))
    with pytest.raises(InvalidInput, match="is not CSV in UTF-8"):
        read_manifest(tmp_path / "latin.csv")


def test_a_column_that_is_no_argument(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, "name,strenght\na,1\n"))
    with pytest.raises(InvalidInput, match="column 'strenght' is no argument of SomePipeline; did you mean strength"):
        check_columns(manifest, SPEC, ARGUMENTS, ())
    check_columns(manifest, SPEC, Arguments((), (), any_name=True), ())
    check_columns(read_manifest(write(tmp_path, "name,reference_mask\na,1\n")), SPEC, ARGUMENTS, ("reference_mask",))


def test_a_row_has_a_truth_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "places.csv").write_text("y,x,ref_y,ref_x\n0.5,0.5,0.2,0.3\n")
    manifest = read_manifest(write(tmp_path, "name,truth\na,places.csv\nb,\n"))
    check_columns(manifest, SPEC, ARGUMENTS, ())
    first, second = (row_spec(SPEC, manifest, row, ARGUMENTS) for row in manifest.rows)
    assert first.options["truth"] == tmp_path / "places.csv" and first.named_files[-1:] == [tmp_path / "places.csv"]
    assert "truth" not in second.options and "truth" not in first.call


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("truth\na,gone.csv", r"line 2: truth = 'gone.csv' is no file \(looked at .*relative to the manifest"),
        ("truth\na,pairs.csv", r"cannot be read as truth: its first line is 'name,truth'"),
        ("image\na,gone.png", r"line 2: image = 'gone.png' is no file \(looked at .*relative to the manifest"),
        ("seed\na,-1", "seed is '-1'"),
    ],
)
def test_a_row_that_cannot_be_meant(tmp_path: Path, cell: str, words: str) -> None:
    manifest = read_manifest(write(tmp_path, f"name,{cell}\n"))
    with pytest.raises(InvalidInput, match=words):
        row_spec(SPEC, manifest, manifest.rows[0], ARGUMENTS)
