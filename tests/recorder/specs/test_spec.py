"""Specs: what is meant is read; what cannot be meant is named with its table, its key and the nearest one that exists."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest
from repository import ROOT

from i2am.recorder.specs.spec import Adapter, read_spec
from i2am.schema.errors import InvalidInput

BASIC = '[pipeline]\nclass = "StableDiffusionPipeline"\nfrom_pretrained = "some/model"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    (folder / "spec.toml").write_text(text)
    return folder / "spec.toml"


def test_everything_a_spec_can_say(folder: Path) -> None:
    spec = read_spec(
        write(
            folder,
            """
            seed = [1, 2]
            [pipeline]
            class = "module:Class"
            from_pretrained = "model"
            device = "cpu"
            without = ["safety_checker"]
            arguments = { torch_dtype = "float16", local_files_only = true }
            [[adapters]]
            from_pretrained = "h94/IP-Adapter"
            subfolder = "models"
            weight_name = "a.safetensors"
            scale = 0.5
            [[adapters]]
            from_pretrained = "./model"
            weight_name = "b.bin"
            image_encoder_folder = ""
            [scheduler]
            class = "DDIMScheduler"
            config = { timestep_spacing = "trailing" }
            [call]
            prompt = "x"
            [images]
            image = "p.png"
            ip_adapter_image = [["p.png", "p.png"], "p.png"]
            [record]
            layers = ["*up*"]
            encoding = "auto"
            [dry_run]
            tokens = 5
            """,
        )
    )
    picture = folder / "p.png"
    assert (spec.pipeline, spec.source, spec.device, spec.without) == ("module:Class", str(folder / "model"), "cpu", ("safety_checker",))
    assert spec.arguments == {"torch_dtype": "float16", "local_files_only": True}
    assert spec.adapters == (
        Adapter("h94/IP-Adapter", "a.safetensors", "models", "image_encoder", 0.5),
        Adapter(str(folder / "model"), "b.bin", "", None, 1.0),
    )
    assert (spec.scheduler, spec.scheduler_config) == ("DDIMScheduler", {"timestep_spacing": "trailing"})
    assert (spec.call, spec.images) == ({"prompt": "x"}, {"image": picture, "ip_adapter_image": [[picture, picture], picture]})
    assert (spec.options, spec.seed, spec.tokens) == ({"layers": ["*up*"], "encoding": "auto"}, [1, 2], 5)


def test_the_least_a_spec_can_say(folder: Path) -> None:
    spec = read_spec(write(folder, BASIC))
    assert (spec.source, spec.adapters, spec.call, spec.scheduler, spec.seed) == ("some/model", (), {}, None, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pipeline", "spec.toml is not TOML"),
        (BASIC + "[recrod]", "spec.toml has an unknown key 'recrod'; did you mean record?"),
        (BASIC + "devise = 'cpu'", r"\[pipeline\] of spec.toml has an unknown key 'devise'; did you mean device\? known are arguments"),
        (BASIC + "[record]\nencodings = 'auto'", r"\[record\] of spec.toml has an unknown key 'encodings'; did you mean encoding\?"),
        (BASIC + "[record]\noverwrite = true", r"unknown key 'overwrite'"),
        (BASIC + "arguments = { dtype = 1 }", r"\[pipeline.arguments\] of spec.toml has an unknown key 'dtype'; did you mean torch_dtype"),
        (BASIC + "arguments = { custom_pipeline = 'x' }", r"\[pipeline.arguments\] of spec.toml has an unknown key 'custom_pipeline'"),
        (BASIC + "arguments = { cache_dir = '/etc' }", r"unknown key 'cache_dir'"),
        (BASIC + "arguments = { trust_remote_code = true }", r"unknown key 'trust_remote_code'"),
        (BASIC + "x = " + "[" * 5000, "spec.toml is not TOML"),
        (BASIC + "[record]\nencoding = 'probability'", 'encoding = "probability"; use probabilities, factors or auto'),
        (BASIC + "[record]\nsteps = 'some'", 'steps = "some" is no choice of steps; write 5, or 0,3,7'),
        ("", r"\[pipeline\] of spec.toml: class is missing"),
        ("pipeline = 3", r"pipeline should be a table, \[pipeline\], but is 3"),
        ("[pipeline]\nclass = 'X'\n", r"from_pretrained is missing"),
        ("[pipeline]\nclass = 'X'\nfrom_pretrained = './gone'", r"'./gone' does not exist \(looked at .*written by save_pretrained"),
        ("[pipeline]\nclass = 'X'\nfrom_pretrained = 'a/b/c'", "'a/b/c' does not exist"),
        (BASIC + "without = 'safety_checker'", "without is 'safety_checker'; it should be a list of names"),
        (BASIC + "[adapters]\nweight_name = 'x'", r"should be \[\[adapters\]\], with two brackets"),
        (BASIC + "[[adapters]]\nfrom_pretrained = 'a/b'", r"\[adapters\] of spec.toml: weight_name is missing"),
        (BASIC + "[scheduler]\nconfig = {}", r"\[scheduler\] of spec.toml: class is missing"),
        (BASIC + "[images]\nimage = 'gone.png'", r"image = 'gone.png' is no file \(looked at .*relative to the spec"),
        (BASIC + "[images]\nimage = 3", "should be the path of an image"),
        ("seed = -1\n" + BASIC, "seed is -1; it should be a whole number from 0"),
        ("seed = 'x'\n" + BASIC, "seed is 'x'"),
        (BASIC + "[dry_run]\ntokens = 0", "tokens is 0; it should be a number above 0"),
    ],
)
def test_what_cannot_be_meant(folder: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        read_spec(write(folder, text))
    assert "\n" not in str(caught.value) or "TOML" in str(caught.value)


def test_a_spec_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read the spec .*gone.toml: No such file"):
        read_spec(tmp_path / "gone.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="is not TOML"):
        read_spec(tmp_path / "binary.toml")


def test_every_example_is_a_spec() -> None:
    examples = sorted((ROOT / "examples").glob("*.toml"))
    assert len(examples) >= 3
    for path in examples:
        assert read_spec(path).pipeline
