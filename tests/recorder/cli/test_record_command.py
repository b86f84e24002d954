"""`i2am record`: a spec on disk becomes a trace, and the dry run said beforehand what would be in it."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import StableDiffusionInpaintPipeline
from repository import ROOT
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from i2am.recorder import record, recording
from i2am.recorder.cli.record import record_command
from i2am.recorder.plan.budget import free_bytes
from i2am.recorder.specs.hub import reachable
from i2am.recorder.specs.loading import find_class, load_pipeline
from i2am.recorder.specs.spec import read_spec
from i2am.schema.errors import AlreadyExists, InvalidInput, MissingExtra, NoSpace, TraceError, UnknownSelection
from i2am.schema.layout import layout
from i2am.schema.messages import size_text
from i2am.schema.trace import TraceRecord
from pipelines import WIDTH, adapter_weights, paint_by_example, picture, square_mask, stable_diffusion, text_to_image, vision

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PAINT = """
seed = 0
[pipeline]
class = "PaintByExamplePipeline"
from_pretrained = "model"
device = "cpu"
[scheduler]
class = "DDIMScheduler"
config = { clip_sample = false }
[call]
num_inference_steps = 3
guidance_scale = 5.0
height = 32
width = 32
output_type = "np"
[images]
image = "image.png"
mask_image = "mask.png"
example_image = "reference.png"
reference_mask = "mask.png"
[record]
branches = "both"
"""

INPAINT = """
seed = 3
[pipeline]
class = "StableDiffusionInpaintPipeline"
from_pretrained = "model"
device = "cpu"
[[adapters]]
from_pretrained = "adapters"
weight_name = "full.safetensors"
scale = 0.6
[[adapters]]
from_pretrained = "adapters"
weight_name = "plain.safetensors"
[call]
prompt = "a shirt"
num_inference_steps = 3
guidance_scale = 4.0
strength = 0.7
height = 32
width = 24
[images]
image = "image.png"
mask_image = "mask.png"
ip_adapter_image = ["reference.png", ["reference.png", "image.png"]]
[record]
steps = "0:1"
"""


def pictures(folder: Path) -> None:
    picture(1).save(folder / "image.png")
    picture(10, 48, 32).save(folder / "reference.png")
    square_mask().save(folder / "mask.png")


@pytest.fixture(scope="module")
def paint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paint")
    pipeline, _ = paint_by_example()
    pipeline.save_pretrained(folder / "model")
    pictures(folder)
    (folder / "spec.toml").write_text(PAINT)
    return folder


@pytest.fixture(scope="module")
def inpaint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a prompt, two adapters of files on disk, and an image encoder beside them."""
    folder = tmp_path_factory.mktemp("inpaint")
    pipeline = stable_diffusion(StableDiffusionInpaintPipeline, channels=9)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=40, max_position_embeddings=7,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "asrt")]
    vocabulary = {token: number for number, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=7)
    pipeline.register_modules(text_encoder=CLIPTextModel(text).eval(), tokenizer=tokenizer)
    pipeline.save_pretrained(folder / "model")
    (folder / "adapters").mkdir()
    for kind in ("full", "plain"):
        weights = adapter_weights(pipeline.unet, kind)
        flat = {f"{part}.{name}": tensor for part, tensors in weights.items() for name, tensor in tensors.items()}
        save_file(flat, folder / f"adapters/{kind}.safetensors")
    vision().save_pretrained(folder / "adapters/image_encoder")
    pictures(folder)
    (folder / "spec.toml").write_text(INPAINT)
    return folder


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(record_command, [str(a) for a in arguments])
    if isinstance(result.exception, TraceError):
        raise result.exception
    return result


def read(path: Path) -> TraceRecord:
    return TraceRecord.from_json(json.loads((path / "zarr.json").read_text())["attributes"]["i2am"])


def sites(trace: TraceRecord) -> list[tuple[Any, ...]]:
    groups = [tuple((g.name, g.role, g.start, g.stop, g.specials, g.grid) for g in layer.groups) for layer in trace.layers]
    return [(x.name, x.grid, x.heads, x.head_dim, x.tokens, x.scale, x.dtype, g) for x, g in zip(trace.layers, groups, strict=True)]


@pytest.mark.parametrize("family", ["paint", "inpaint"])
def test_the_dry_run_foretells_the_recording(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(family)
    foretold = json.loads(run(folder / "spec.toml", "--dry-run", "--json").stdout)
    made = json.loads(run(folder / "spec.toml", "-o", tmp_path / "t.zarr", "--json").stdout.splitlines()[-1])
    trace = read(tmp_path / "t.zarr")
    assert (trace.status, made["id"], made["steps"], made["layers"]) == ("complete", trace.id, trace.steps, len(trace.layers))
    assert [row["layer"] for row in foretold["layers"]] == [layer.name for layer in trace.layers]
    assert [row["groups"] for row in foretold["layers"]] == [
        [{**g, "image": None} for g in layer["groups"]] for layer in trace.to_json()["layers"]
    ]
    for key in ("grid", "heads", "head_dim", "tokens"):
        assert [row[key] for row in foretold["layers"]] == [layer[key] for layer in trace.to_json()["layers"]]
    assert (foretold["samples"], foretold["steps"], foretold["branches"]) == (trace.samples, trace.steps, list(trace.branches))
    assert foretold["latent_grid"] == list(trace.latent_grid or ())
    data = [plan for plan in layout(trace) if not plan.path.startswith("images/")]
    once = {plan.path: trace.steps if plan.path.endswith("/value_norm") else 1 for plan in data}  # norms are stored once
    assert foretold["sizes"]["probabilities"]["bytes"] == sum(plan.nbytes // once[plan.path] for plan in data)
    disk = [path for path in (tmp_path / "t.zarr").rglob("*") if path.is_file() and "images/" not in str(path)]
    assert foretold["sizes"]["probabilities"]["files"] == len(disk) + 1  # the group of images


def test_the_image_is_the_pipelines_own(inpaint: Path, tmp_path: Path) -> None:
    run(inpaint / "spec.toml", "-o", tmp_path / "t.zarr", "--encoding", "factors", "--layers", "*mid*", "--steps", "1", "--codec", "zstd")
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(inpaint / "model")
    pipeline.set_progress_bar_config(disable=True)
    names = ["full.safetensors", "plain.safetensors"]
    pipeline.load_ip_adapter([str(inpaint / "adapters")], subfolder="", weight_name=names)
    pipeline.set_ip_adapter_scale([0.6, 1.0])
    first, second = (PIL.Image.open(inpaint / f"{name}.png").convert("RGB") for name in ("reference", "image"))
    expected = pipeline(
        prompt="a shirt", num_inference_steps=3, guidance_scale=4.0, strength=0.7, height=32, width=24, image=second,
        mask_image=PIL.Image.open(inpaint / "mask.png").convert("L"), ip_adapter_image=[first, [first, second]],
        generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    import zarr

    stored = zarr.open_array(tmp_path / "t.zarr/images/generated_0", mode="r")[:]
    np.testing.assert_array_equal(stored, np.asarray(expected))
    trace = read(tmp_path / "t.zarr")
    assert {layer.encoding for layer in trace.layers} == {"factors"}
    assert {layer.path for layer in trace.layers} == {"unet.mid_block.attentions.0.transformer_blocks.0.attn2"}
    assert (trace.codec.name, trace.steps) == ("zstd", 1)
    assert trace.provenance["facts"] == {"spec": INPAINT}


def test_the_schedulers_class_and_config(paint: Path, tmp_path: Path) -> None:
    run(paint / "spec.toml", "-o", tmp_path / "t.zarr")
    trace = read(tmp_path / "t.zarr")
    assert trace.steps == 3, "the saved PNDM would have evaluated 4 times"
    assert "DDIMScheduler" in json.dumps(trace.sampler)
    assert {image.name for image in trace.images} >= {"generated_0", "reference", "mask", "reference_mask"}


def test_truth_of_a_spec_and_of_the_command_line(paint: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text((paint / "spec.toml").read_text() + 'truth = "places.csv"\n')
    (tmp_path / "places.csv").write_text("y,x,ref_y,ref_x\n0.1,0.9,0.25,0.5\n")
    np.save(tmp_path / "flow.npy", np.full((32, 32, 2), 0.75))
    for name in ("model", "image.png", "mask.png", "reference.png"):
        (tmp_path / name).symlink_to(paint / name)
    run(tmp_path / "spec.toml", "-o", tmp_path / "a.zarr", "--steps", "0")
    run(tmp_path / "spec.toml", "-o", tmp_path / "b.zarr", "--steps", "0", "--truth", tmp_path / "flow.npy")
    places, flow = (np.array(read(tmp_path / f"{name}.zarr").provenance["truth"], float) for name in "ab")
    grid = read(tmp_path / "a.zarr").map_grid
    assert places.shape == (*grid, 2) and np.isfinite(places).all(-1).sum() == 1
    assert places[int(0.1 * grid[0]), int(0.9 * grid[1])].tolist() == [0.25, 0.5]
    np.testing.assert_array_equal(flow, 0.75)
    (tmp_path / "places.csv").write_text("y,x,ref_y,ref_x\n3,4,5,6\n")
    with pytest.raises(InvalidInput, match="has a place at 3; places are shares"):
        read_spec(tmp_path / "spec.toml")


def test_what_people_see(paint: Path, tmp_path: Path) -> None:
    table = run(paint / "spec.toml", "--dry-run", "--encoding", "auto").stdout
    assert table.splitlines()[0].split() == ["layer", "heads", "dim", "grid", "keys", "probabilities", "factors"]
    assert "3 of 3 denoiser evaluations" in table
    assert "<- chosen" in next(line for line in table.splitlines() if line.startswith("auto"))
    table = run(paint / "spec.toml", "--dry-run", "--keep", "maps", "--token-maps", "0").stdout
    assert "<- chosen" in next(line for line in table.splitlines() if line.startswith("maps"))
    assert " 1 of 2 " in run(paint / "spec.toml", "--dry-run", "--heads", "1").stdout.splitlines()[1]
    assert f"{tmp_path / 't.zarr'}: 3 steps of" in run(paint / "spec.toml", "-o", tmp_path / "t.zarr").stdout
    assert [size_text(n) for n in (0, 999, 1000, 5.54e9, 2e15)] == ["0 B", "999 B", "1 kB", "5.54 GB", "2e+03 TB"]
    assert free_bytes(tmp_path / "not/there") > 0


def changed(folder: Path, tmp_path: Path, old: str, new: str) -> Path:
    """A copy of a spec with something else in it."""
    text = (folder / "spec.toml").read_text()
    for name in ("image", "reference", "mask"):
        shutil.copy(folder / f"{name}.png", tmp_path)
    text = text.replace('"model"', f'"{folder / "model"}"').replace('"adapters"', f'"{folder / "adapters"}"')
    assert old in text
    (tmp_path / "spec.toml").write_text(text.replace(old, new))
    return tmp_path / "spec.toml"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"PaintByExamplePipeline"', '"PaintByExamplPipeline"', "no pipeline 'PaintByExamplPipeline'; did you mean PaintByExamplePipeline"),
        ('"PaintByExamplePipeline"', '"i2am.gone:Class"', "cannot import i2am.gone"),
        ('"PaintByExamplePipeline"', '"i2am.recorder.specs.spec:Spek"', r"has no class Spek; did you mean Spec"),
        ('"DDIMScheduler"', '"DDIMSchedule"', "no scheduler 'DDIMSchedule'; did you mean DDIMScheduler"),
        ("clip_sample", "clip_samples", r"\[scheduler.config\] of spec.toml has an unknown key 'clip_samples'; did you mean clip_sample"),
        ("guidance_scale", "guidance", r"\[call\] of spec.toml has an unknown key 'guidance'; did you mean guidance_scale"),
        ("example_image", "exampel_image", r"\[images\] of spec.toml has an unknown key 'exampel_image'; did you mean example_image"),
        ('example_image = "reference.png"', "", "PaintByExamplePipeline needs example_image; give it in"),
        ('[images]\n', 'image = "x"\n[images]\n', "image stands both in"),
        ('device = "cpu"', 'arguments = { torch_dtype = "int8" }', "torch_dtype is 'int8'; use float16, bfloat16 or float32"),
        ('device = "cpu"', 'device = "quantum"', "cannot move the pipeline to quantum"),
        ('"reference.png"', '"spec.toml"', "is no image that can be read"),
    ],
)  # fmt: skip
def test_a_spec_that_does_not_fit(paint: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    spec = changed(paint, tmp_path, old, new)
    with pytest.raises(InvalidInput, match=words) as caught:
        run(spec, "-o", tmp_path / "t.zarr")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "t.zarr").exists()


def test_arguments_that_the_pipeline_refuses(inpaint: Path, tmp_path: Path) -> None:
    spec = changed(inpaint, tmp_path, "height = 32", "height = 33")
    with pytest.raises(InvalidInput, match=r"^StableDiffusionInpaintPipeline refuses its arguments: .*divisible by 8"):
        run(spec, "-o", tmp_path / "t.zarr")
    assert not (tmp_path / "t.zarr").exists()


def test_weights_that_are_not_there(paint: Path, tmp_path: Path) -> None:
    spec = changed(paint, tmp_path, str(paint / "model"), str(tmp_path / "model"))
    shutil.copytree(paint / "model", tmp_path / "model")
    (tmp_path / "model/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"cannot load PaintByExamplePipeline from .*model"):
        run(spec, "-o", tmp_path / "t.zarr")
    assert run(spec, "--dry-run").exit_code == 0, "a dry run needs none"
    (tmp_path / "model/unet/config.json").unlink()
    with pytest.raises(InvalidInput, match="cannot read the configs"):
        run(spec, "--dry-run")


def test_pickled_weights_are_loaded_only_when_asked_for(paint: Path, inpaint: Path, tmp_path: Path) -> None:
    shutil.copytree(paint / "model", tmp_path / "model")
    torch.save(load_file(tmp_path / "model/vae/diffusion_pytorch_model.safetensors"), tmp_path / "model/vae/diffusion_pytorch_model.bin")
    (tmp_path / "model/vae/diffusion_pytorch_model.safetensors").unlink()
    spec = changed(paint, tmp_path, str(paint / "model"), str(tmp_path / "model"))
    with pytest.raises(InvalidInput, match=r"pickled weights, which can be programs, are loaded only with use_safetensors = false"):
        run(spec, "-o", tmp_path / "t.zarr")
    spec.write_text(spec.read_text().replace("[scheduler]", "[pipeline.arguments]\nuse_safetensors = false\n[scheduler]"))
    assert load_pipeline(read_spec(spec)).vae is not None
    spec = changed(inpaint, tmp_path, "plain.safetensors", "plain.bin")
    for arguments in (("--dry-run",), ("-o", tmp_path / "t.zarr")):
        with pytest.raises(InvalidInput, match=r"plain.bin is no .safetensors file; pickled weights"):
            run(spec, *arguments)


def test_files_outside_the_spec_are_named_first(paint: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("my key\n")
    (tmp_path / "table").mkdir()
    picture(3).save(tmp_path / "far.png")
    (paint / "near.png").unlink(missing_ok=True)
    (paint / "near.png").symlink_to(tmp_path / "far.png")
    own = run(paint / "spec.toml", "--dry-run")
    assert own.stderr == ""
    text = PAINT.replace('"image.png"', '"near.png"') + f'[probes]\nwords = {{ lines = "{tmp_path}/secret" }}\n'
    (paint / "far.toml").write_text(text.replace("[record]", '[record]\nencoding = "factors"'))
    told = f"note: far.toml reads files outside its folder, which the trace will hold: {tmp_path / 'far.png'}, {tmp_path / 'secret'}\n"
    result = run(paint / "far.toml", "--dry-run")
    assert result.stderr.startswith(told) and "factors" in result.stdout
    (tmp_path / "table/rows.csv").write_text("name,image\na,../far.png\n")
    rows = run(paint / "spec.toml", "--dry-run", "--manifest", tmp_path / "table/rows.csv")
    assert f"note: rows.csv reads files outside its folder, which the trace will hold: {tmp_path / 'far.png'}\n" in rows.stderr


def test_a_hub_that_does_not_answer(paint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = changed(paint, tmp_path, json.dumps(str(paint / "model")), '"somebody/painter"')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port in (silent.getsockname()[1], 9):
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
            for arguments in (("--dry-run",), ("-o", tmp_path / "t.zarr")):
                began = time.monotonic()
                with pytest.raises(InvalidInput, match=r"hub at http://127.* cannot be reached \(.*\), and somebody/painter is not in the"):
                    run(spec, *arguments)
                assert time.monotonic() - began < 5
        snapshot = tmp_path / "cache/models--somebody--painter/snapshots/abc"
        shutil.copytree(paint / "model", snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs/main").write_text("abc")
        found = reachable(read_spec(spec))
    assert found.arguments["local_files_only"] and found.source == "somebody/painter"
    assert reachable(read_spec(paint / "spec.toml")) == read_spec(paint / "spec.toml")


@pytest.mark.parametrize("library", ["diffusers", "paint_by_example"])
def test_classes_that_diffusers_moved_are_found(paint: Path, tmp_path: Path, library: str) -> None:
    """What this diffusers saves, and what is published, names a place where the image encoder no longer is."""
    spec = changed(paint, tmp_path, str(paint / "model"), str(tmp_path / "model"))
    shutil.copytree(paint / "model", tmp_path / "model")
    index = json.loads((tmp_path / "model/model_index.json").read_text())
    index["image_encoder"][0] = library
    (tmp_path / "model/model_index.json").write_text(json.dumps(index))
    assert type(load_pipeline(read_spec(spec)).image_encoder).__name__ == "PaintByExampleImageEncoder"
    assert not hasattr(diffusers, "PaintByExampleImageEncoder")
    assert not hasattr(diffusers.pipelines, "paint_by_example")


def test_adapters_that_do_not_fit(paint: Path, inpaint: Path, tmp_path: Path) -> None:
    table = f'[[adapters]]\nfrom_pretrained = {json.dumps(str(inpaint / "adapters"))}\nweight_name = "full.safetensors"\n[call]'
    spec = changed(paint, tmp_path, "[call]", table)
    for arguments in (("--dry-run",), ("-o", tmp_path / "t.zarr")):
        with pytest.raises(InvalidInput, match="takes no IP-Adapters; remove"):
            run(spec, *arguments)


def test_refusals_come_before_the_model_is_loaded(paint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.zarr").mkdir()
    with pytest.raises(AlreadyExists, match="exists already"):
        run(paint / "spec.toml", "-o", tmp_path / "t.zarr")
    with pytest.raises(UnknownSelection, match="no layer of this pipeline matches"):
        run(paint / "spec.toml", "--dry-run", "--layers", "nowhere")
    with pytest.raises(InvalidInput, match="encoding='all'"):
        run(paint / "spec.toml", "--dry-run", "--encoding", "all")
    usage = run(paint / "spec.toml")
    assert usage.exit_code == 2
    assert "--dry-run" in usage.stderr
    monkeypatch.setattr("i2am.recorder.cli.batch.free_bytes", lambda path: 10)
    with pytest.raises(NoSpace, match=r"would hold .* before compression and 10 B are free, too little even if compressed; "):
        run(paint / "spec.toml", "--dry-run", "-o", tmp_path / "new.zarr")
    with pytest.raises(NoSpace, match=r"10 B are free"):  # before any sampling, too
        run(paint / "spec.toml", "-o", tmp_path / "new.zarr")
    with pytest.raises(
        NoSpace, match=r"the limit is max_bytes='1kB'; no other encoding is smaller, layers=.*, steps='::3' makes it .* together"
    ):
        run(paint / "spec.toml", "-o", tmp_path / "new.zarr", "--max-bytes", "1kB")
    for arguments, words in (
        (("--max-bytes", "5 apples"), "max_bytes='5 apples' is no size"),
        (("--keep-bits", "11"), "keep_bits 11"),
        (("--heads", "7"), "has no head 7; it has 0 to"),
    ):
        with pytest.raises((InvalidInput, UnknownSelection), match=words):
            run(paint / "spec.toml", "--dry-run", *arguments)
    monkeypatch.setattr("i2am.schema.messages.find_spec", lambda name: None if name == "diffusers" else name)
    for arguments in (("--dry-run",), ("-o", tmp_path / "new.zarr")):
        with pytest.raises(MissingExtra, match=r'needs diffusers, which is not installed; install it: pip install "i2am\[record\]"'):
            run(paint / "spec.toml", *arguments)


def test_addresses_and_names_that_no_file_system_takes(paint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline, _ = text_to_image()
    manifest = ("--manifest", paint / "rows.csv")
    (paint / "rows.csv").write_text("name,seed\na,1\n")
    for address in ("file:///data/x.zarr", "https://host/x.zarr", "HTTP://host/x.zarr"):
        for arguments in ((), ("--overwrite",), ("--dry-run",), manifest, (*manifest, "--dry-run")):
            with pytest.raises(InvalidInput, match=f"{address.replace('///', '//')} is an address, and traces are written to local"):
                run(paint / "spec.toml", "-o", address, *arguments)
    for address in ("s3://bucket/x.zarr", "gs://bucket/x.zarr", "file:///data/x.zarr", "abfs://a@b/c.zarr", "https://host/x.zarr"):
        with pytest.raises(InvalidInput, match="is an address"):
            record(pipeline, address)
    assert not list(tmp_path.iterdir())
    for name, words in (("é" * 128, "has 256 bytes, and file systems take 255"), ("a\0b", "has a character that no file name can have")):
        with pytest.raises(InvalidInput, match=words), recording(pipeline, tmp_path / name):
            pass
    with pytest.raises(InvalidInput, match="has 256 bytes"):
        run(paint / "spec.toml", "-o", tmp_path / ("x" * 256))


def test_overwriting_a_trace_must_be_said(paint: Path, tmp_path: Path) -> None:
    first = run(paint / "spec.toml", "-o", tmp_path / "t.zarr", "--json", "--layers", "*mid*")
    again = run(paint / "spec.toml", "-o", tmp_path / "t.zarr", "--json", "--layers", "*mid*", "--overwrite")
    assert json.loads(first.stdout)["id"] != json.loads(again.stdout)["id"] == read(tmp_path / "t.zarr").id


def test_classes_are_found_by_name_or_by_place() -> None:
    assert find_class("StableDiffusionInpaintPipeline", "pipeline") is StableDiffusionInpaintPipeline
    assert find_class("i2am.recorder.demo.pipeline:TryOnPipeline", "pipeline").__name__ == "TryOnPipeline"


def test_a_module_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("raise ValueError('half done')")
    monkeypatch.syspath_prepend(tmp_path)
    for name, words in (
        ("broken_module:X", r"cannot import broken_module \(half done\)"),
        (".a:X", "cannot import .a"),
        ("a..b:X", "cannot"),
    ):
        with pytest.raises(InvalidInput, match=words):
            find_class(name, "pipeline")


def test_the_shipped_example_is_foretold() -> None:
    example = ROOT / "examples/demo.toml"
    assert read_spec(example).options["keys"] == "reference"
    found = json.loads(run(example, "--dry-run", "--json").stdout)
    assert {row["tokens"] for row in found["layers"]} == {257}
    assert found["sizes"]["factors"]["bytes"] < found["sizes"]["probabilities"]["bytes"] / 5


def test_help_is_quick() -> None:
    import subprocess
    import sys

    code = (
        "import sys, i2am.recorder.cli.record as c; c.record_command(['--help'], standalone_mode=False); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
