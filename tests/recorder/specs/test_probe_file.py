"""Probes written down in TOML: what they mean, what cannot be meant, and that the command records them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pipelines_text import prompted
from repository import ROOT

from i2am.analyzer import concept_words, list_words, open_trace, word_map
from i2am.recorder.cli.record import record_command
from i2am.recorder.specs.spec import read_probe_file, read_spec
from i2am.schema.errors import InvalidInput
from pipelines import picture

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SPEC = """
seed = 0
[pipeline]
class = "StableDiffusionPipeline"
from_pretrained = "model"
device = "cpu"
without = ["safety_checker", "feature_extractor", "image_encoder"]
[call]
prompt = "a red dog"
num_inference_steps = 2
height = 32
width = 32
[record]
encoding = "factors"
[probes]
scene = "a zebra"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(1).save(tmp_path / "cat.png")
    (tmp_path / "words.txt").write_text("mouse\n\n  red hat \n", encoding="utf-8")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    (folder / "probes.toml").write_text(text, encoding="utf-8")
    return folder / "probes.toml"


def test_a_file_of_probes(folder: Path) -> None:
    texts = ["[probes]", 'one = "a"', 'two = ["a", "b"]', 'three = { lines = "words.txt" }']
    images = ['four = { images = ["cat.png"] }', 'five = { images = "cat.png" }']
    cat = [folder / "cat.png"]
    expected = {"one": "a", "two": ["a", "b"], "three": ["mouse", "red hat"], "four": cat, "five": cat}
    assert read_probe_file(write(folder, "\n".join([*texts, *images]))) == expected


@pytest.mark.parametrize(("text", "words"), [
    ("[probes", "is not TOML"),
    ("", r"probes\.toml has no table \[probes\]"),
    ("probes = 3", r"has no table \[probes\]"),
    ("[probes]\na = 'x'\n[record]\n", r"has 'record' beside its table \[probes\]"),
    ("[probes]\na = 3", r"a is 3; expected name = \"one text\""),
    ("[probes]\na = [3]", r"a is \[3\]; expected"),
    ("[probes]\na = []", "probe 'a' is empty"),
    ("[probes]\na = { image = 'cat.png' }", "expected name ="),
    ("[probes]\na = { images = ['cat.png'], lines = 'words.txt' }", "expected name ="),
    ("[probes]\na = { images = ['dog.png'] }", r"a = 'dog.png' is no file \(looked at .*relative to probes.toml"),
    ("[probes]\na = { images = [3] }", "a names the file 3; expected a path"),
    ("[probes]\na = { lines = 'cat.png' }", "cannot be read as lines of text"),
    ("[probes]\ntext = 'x'", "a probe cannot be called 'text'"),
])  # fmt: skip
def test_what_cannot_be_meant(folder: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_probe_file(write(folder, text))


def test_files_that_are_not_there(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read the probes .*gone.toml"):
        read_probe_file(folder / "gone.toml")
    (folder / "spec.toml").write_text(SPEC.replace('scene = "a zebra"', "scene = 3"))
    with pytest.raises(InvalidInput, match=r"\[probes\] of spec.toml: scene is 3"):
        read_spec(folder / "spec.toml")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(record_command, [str(argument) for argument in arguments])


def test_the_command_records_probes(folder: Path) -> None:
    prompted()[0].save_pretrained(folder / "model")
    (folder / "spec.toml").write_text(SPEC)
    probes = write(folder, '[probes]\nwords = { lines = "words.txt" }')
    result = run(folder / "spec.toml", "-o", folder / "run.zarr", "--probes", probes)
    assert result.exit_code == 0, (result.output, result.exception)
    trace = open_trace(folder / "run.zarr")
    assert [group.name for group in trace.layers[0].probes] == ["scene", "words"]
    assert [row.word for row in list_words(trace, probe="words")] == ["mouse", "red", "hat"]
    assert word_map(trace, "zebra", probe="scene").compute().min() >= 0
    assert [row.word for row in list_words(trace)] == ["a", "red", "dog"]
    refused = run(folder / "spec.toml", "-o", folder / "other.zarr", "--encoding", "probabilities")
    assert isinstance(refused.exception, InvalidInput)
    assert "probes are asked of queries" in str(refused.exception)
    options = json.loads((folder / "run.zarr/zarr.json").read_text())["attributes"]["i2am"]["provenance"]["options"]
    assert options["probes"] == {"scene": "a zebra", "words": ["mouse", "red hat"]}


def test_the_shipped_example_asks_for_the_words_of_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = ROOT / "examples"
    monkeypatch.syspath_prepend(str(examples))
    mouse = importlib.import_module("mouse")
    spec = read_spec(examples / "mouse.toml")
    assert spec.options["probes"] == {mouse.PROBE: concept_words(mouse.MEANINGS)}
    assert spec.call["prompt"] == "a photo of a mouse"
