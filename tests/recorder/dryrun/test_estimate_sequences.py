"""The dry run of transformers and Kandinsky: from configs alone it finds the very layers that a recording has, and their bytes."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from configs import save_kontext
from memory import MemoryWriter, memory
from pipelines_transformers import DEPTH, HEADS, INNER, TEXT, WIDE, build, flux_text, noise, quiet, sd3
from repository import ROOT
from safetensors.torch import save_file
from transformers import CLIPVisionModelWithProjection, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from i2am.recorder import record
from i2am.recorder.cli.record import record_command
from i2am.recorder.dryrun.estimate import Estimate, estimate
from i2am.recorder.plan.budget import encoded, weigh
from i2am.recorder.specs.loading import load_pipeline
from i2am.recorder.specs.spec import Spec, read_spec
from i2am.schema.errors import InvalidInput, NoSpace, UnsupportedModel
from i2am.schema.trace import Layer
from pipelines import Built, picture, vision_config

__all__ = ["memory"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

PATH = Path("nowhere.zarr")


def pixart() -> Built:
    from diffusers import AutoencoderKL, DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    torch.manual_seed(0)
    sizes = {"num_layers": 2, "attention_head_dim": DEPTH, "num_attention_heads": HEADS, "sample_size": 8, "caption_channels": WIDE}
    transformer = PixArtTransformer2DModel(
        in_channels=4, out_channels=8, cross_attention_dim=INNER, norm_type="ada_norm_single", norm_elementwise_affine=False, **sizes
    )
    vae = AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=2)
    parts = {"tokenizer": None, "text_encoder": None, "transformer": transformer.eval(), "vae": vae.eval()}
    pipeline = quiet(PixArtSigmaPipeline(**parts, scheduler=DDIMScheduler(clip_sample=False)))
    masks = {name: torch.ones(1, TEXT, dtype=torch.long) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    embeds = {"prompt_embeds": noise(1, 1, TEXT, WIDE), "negative_prompt_embeds": noise(2, 1, TEXT, WIDE), "negative_prompt": None}
    given = {"num_inference_steps": 2, "height": 16, "width": 24, "use_resolution_binning": False, "output_type": "np"}
    return pipeline, lambda: {**embeds, **masks, **given}


# How each family's call is written in a spec, with pictures of the sizes that the family's own arguments have.
SIZE = "height = 16\nwidth = 12\nnum_inference_steps = 2\n"
SHORT = f"max_sequence_length = {TEXT}\n"
AREA = "max_area = 192\n_auto_resize = false\n"
FAMILIES: dict[str, tuple[str, dict[str, tuple[int, int]], str]] = {
    "flux": (SIZE + SHORT, {}, ""),
    "flux-guided": (SIZE + SHORT, {}, ""),
    "kontext": (SIZE + SHORT + AREA, {"image": (24, 16)}, ""),
    "kontext-two": (SIZE + SHORT + AREA + "num_images_per_prompt = 2\n", {"image": (24, 16)}, ""),
    "redux": (SIZE + "max_sequence_length = 512\n", {}, "[dry_run]\ntokens = 16\n"),
    "klein": (SIZE + SHORT, {"image": (64, 64)}, ""),
    "klein-two": (SIZE + SHORT, {"image_0": (64, 64), "image_1": (64, 96)}, ""),
    "klein-kv": (SIZE.replace("steps = 2", "steps = 3") + SHORT, {"image_0": (64, 64), "image_1": (64, 96)}, ""),
    "qwen-edit": ("height = 32\nwidth = 48\nnum_inference_steps = 2\n" + SHORT, {"image": (64, 48)}, ""),
    "qwen-edit-plus": ("height = 32\nwidth = 48\nnum_inference_steps = 2\n" + SHORT, {"image_0": (64, 48), "image_1": (32, 64)}, ""),
    "kandinsky": ("height = 16\nwidth = 24\nnum_inference_steps = 2\nimage_embeds = 0\nnegative_image_embeds = 0\n", {}, ""),
    "wan": ("height = 32\nwidth = 48\nnum_frames = 1\nnum_inference_steps = 3\n" + SHORT, {}, ""),
    "wan-two": ("height = 32\nwidth = 48\nnum_frames = 1\nnum_inference_steps = 3\n" + SHORT, {}, ""),
    "wan-image": ("height = 32\nwidth = 48\nnum_frames = 1\nnum_inference_steps = 3\n", {"image": (32, 48)}, ""),
    "pixart": (SIZE.replace("12", "24") + SHORT, {}, ""),
}


def write_spec(folder: Path, pipeline: Any, call: str, pictures: dict[str, tuple[int, int]], more: str = "") -> Spec:
    """The pipeline's configs without one weight, and a spec beside them."""
    pipeline.save_pretrained(folder / "model")
    for weights in (folder / "model").rglob("*.safetensors"):
        weights.unlink()
    for name, (height, width) in pictures.items():
        picture(1, height, width).save(folder / f"{name}.png")
    names = [f'"{name}.png"' for name in pictures]
    images = f"image = {names[0] if len(names) == 1 else '[' + ', '.join(names) + ']'}" if names else ""
    absent = [name for name, part in pipeline.components.items() if part is None]
    head = f'[pipeline]\nclass = "{type(pipeline).__name__}"\nfrom_pretrained = "model"\nwithout = {json.dumps(absent)}\n'
    text = f"{head}[call]\n{call}\n[images]\n{images}\n{more}"
    (folder / "spec.toml").write_text(text)
    return read_spec(folder / "spec.toml")


def bare(layers: tuple[Layer, ...]) -> list[Layer]:
    """Layers as shapes tell them: without the names of stored pictures, as probabilities."""
    return [
        dataclasses.replace(
            layer,
            groups=tuple(dataclasses.replace(group, image=None) for group in layer.groups),
            encoding="probabilities",
            column_mass_lost=0.0,
        )
        for layer in layers
    ]


def check(found: Estimate, memory: type[MemoryWriter]) -> None:
    trace = dataclasses.replace(memory.last.trace, images=())
    assert bare(found.trace.layers) == bare(trace.layers)
    assert (found.trace.steps, found.trace.samples) == (trace.steps, trace.samples)
    assert trace.latent_grid in (found.trace.latent_grid, None)
    for choice in ("probabilities", "factors", "auto"):
        assert found.sizes[choice] == weigh(encoded(trace, choice))
    written = sum(block.nbytes for blocks in memory.last.blocks.values() for block in blocks.values())
    assert written <= found.sizes["probabilities"].nbytes < 1.02 * written + 400 * len(trace.layers) + 400


@pytest.mark.parametrize("keys", ["auto", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_dry_run_finds_what_the_recording_has(family: str, keys: str, tmp_path: Path, memory: type[MemoryWriter]) -> None:
    pipeline, call = pixart() if family == "pixart" else build(family)
    written, pictures, more = FAMILIES[family]
    found = estimate(write_spec(tmp_path, pipeline, written, pictures, more + f'[record]\nkeys = "{keys}"\nvalues = "none"\n'))
    record(pipeline, PATH, keys=keys, values="none", **call())
    check(found, memory)


@pytest.mark.parametrize("values", ["auto", "norms", "full"])
@pytest.mark.parametrize("family", ["flux", "klein", "kandinsky", "wan-image"])
def test_the_dry_run_counts_what_is_kept_of_values(family: str, values: str, tmp_path: Path, memory: type[MemoryWriter]) -> None:
    pipeline, call = build(family)
    written, pictures, more = FAMILIES[family]
    found = estimate(write_spec(tmp_path, pipeline, written, pictures, more + f'[record]\nvalues = "{values}"\n'))
    record(pipeline, PATH, values=values, **call())
    assert [layer.values for layer in found.trace.layers] == [layer.values for layer in memory.last.trace.layers]
    assert found.sizes["probabilities"] == weigh(dataclasses.replace(memory.last.trace, images=()))


def test_the_dry_run_counts_concepts(tmp_path: Path) -> None:
    pipeline, _ = build("flux")
    written, pictures, more = FAMILIES["flux"]
    plain, found = (
        estimate(write_spec(tmp_path, pipeline, written, pictures, more + f'[record]\nkeys = "text"\n{line}'))
        for line in ("", 'concepts = ["cat", "sky"]\n')
    )
    assert [layer.concepts for layer in found.trace.layers] == [("cat", "sky"), ()]
    places = found.trace.layers[0].places
    assert found.sizes["factors"].nbytes == plain.sizes["factors"].nbytes + found.trace.steps * 2 * places[0] * places[1] * 4


def adapter_file(folder: Path, embedding: int) -> None:
    """An IP-Adapter of SD3's published layout for the tiny transformer, and its encoder's config."""
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    torch.manual_seed(1)
    projection = IPAdapterTimeImageProjection(
        embed_dim=embedding, output_dim=INNER, hidden_dim=64, depth=4, dim_head=64, heads=1, num_queries=5, timestep_in_dim=8
    )
    theirs = {
        "ln0": "0.norm1", "ln1": "0.norm2", "attn.to_q": "0.to_q", "attn.to_kv": "0.to_kv", "attn.to_out.0": "0.to_out",
        "adaln_norm": "1.0", "ff.net.0.proj": "1.1", "ff.net.2": "1.3", "adaln_proj": "2.1",
    }  # fmt: skip
    weights = {}
    for name, value in projection.state_dict().items():
        for ours, other in theirs.items():
            name = name.replace(f".{ours}.", f".{other}.") if name.startswith("layers.") else name
        weights[f"image_proj.{name}"] = value
    for i in range(2):
        processor = SD3IPAdapterJointAttnProcessor2_0(INNER, INNER, DEPTH, timesteps_emb_dim=64)
        weights |= {f"ip_adapter.{i}.{name}": value.clone() for name, value in processor.state_dict().items()}
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "ip.safetensors")
    config = SiglipVisionConfig(
        hidden_size=embedding, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=6, patch_size=2
    )
    SiglipVisionModel(config).save_pretrained(folder / "image_encoder")
    SiglipImageProcessor(size={"height": 6, "width": 6}).save_pretrained(folder / "image_encoder")


def test_sd3_with_an_adapter_from_its_file(tmp_path: Path, memory: type[MemoryWriter]) -> None:
    pipeline, call = sd3()
    adapter_file(tmp_path / "adapter", embedding=4)
    more = '[[adapters]]\nfrom_pretrained = "adapter"\nweight_name = "ip.safetensors"\nscale = 0.7\n'
    found = estimate(write_spec(tmp_path, pipeline, SIZE + SHORT, {}, more + '[record]\nvalues = "none"\n'))
    pipeline.save_pretrained(tmp_path / "model")
    pipeline = load_pipeline(read_spec(tmp_path / "spec.toml"))
    texts = {name: noise(i, 1, 77 + TEXT, WIDE) for i, name in enumerate(("prompt_embeds", "negative_prompt_embeds"))}
    record(pipeline, PATH, values="none", **{**call(), **texts, "ip_adapter_image_embeds": noise(5, 2, 9, 4)})
    check(found, memory)
    blocks = [layer for layer in found.trace.layers if "transformer_blocks" in layer.path]
    assert [layer.groups[0].role for layer in blocks] == ["text", "reference"] * 2
    assert len(found.trace.layers) == 4 + 4, "the resampler's own attention is recorded too"
    two = (tmp_path / "spec.toml").read_text() + more
    (tmp_path / "spec.toml").write_text(two)
    with pytest.raises(InvalidInput, match=r"takes one IP-Adapter; spec.toml has 2 \[\[adapters\]\]"):
        estimate(read_spec(tmp_path / "spec.toml"))


def flux_adapter_file(folder: Path) -> None:
    """An IP-Adapter of the published Flux layout for the tiny transformer, and its encoder beside it."""
    shapes = {"ip_adapter_proj_model.proj.weight": (4 * WIDE, 8), "ip_adapter_proj_model.proj.bias": (4 * WIDE,)}
    shapes |= {f"ip_adapter_proj_model.norm.{name}": (WIDE,) for name in ("weight", "bias")}
    for part in ("k", "v"):
        block = f"double_blocks.0.processor.ip_adapter_double_stream_{part}_proj"
        shapes |= {f"{block}.weight": (INNER, WIDE), f"{block}.bias": (INNER,)}
    folder.mkdir()
    save_file({name: noise(i, *shape) for i, (name, shape) in enumerate(shapes.items())}, folder / "ip.safetensors")
    CLIPVisionModelWithProjection(vision_config(8)).save_pretrained(folder / "image_encoder")


@pytest.mark.parametrize("folder", ["image_encoder", "{}/adapter/image_encoder"])
def test_flux_with_an_adapter_from_its_file(folder: str, tmp_path: Path, memory: type[MemoryWriter]) -> None:
    pipeline, call = flux_text()
    pipeline.save_pretrained(tmp_path / "model")
    flux_adapter_file(tmp_path / "adapter")
    picture(1, 32, 24).save(tmp_path / "p.png")
    text = f"""
        [pipeline]
        class = "FluxPipeline"
        from_pretrained = "model"
        device = "cpu"
        without = {json.dumps([name for name, part in pipeline.components.items() if part is None])}
        [[adapters]]
        from_pretrained = "adapter"
        weight_name = "ip.safetensors"
        image_encoder_folder = "{folder.format(tmp_path)}"
        scale = 0.7
        [call]
        {SIZE}
        {SHORT}
        [images]
        ip_adapter_image = "p.png"
    """
    (tmp_path / "spec.toml").write_text(text)
    spec = read_spec(tmp_path / "spec.toml")
    found = estimate(dataclasses.replace(spec, options={**spec.options, "values": "none"}))
    loaded = load_pipeline(spec)
    record(loaded, PATH, values="none", **{**call(), "ip_adapter_image": picture(1, 32, 24)})
    check(found, memory)
    assert [(layer.call, layer.groups[0].role, layer.tokens) for layer in found.trace.layers[:2]] == [
        (0, "text", TEXT),
        (1, "reference", 4),
    ]


def test_what_is_not_known_is_said_before_anything_is_made(tmp_path: Path) -> None:
    pipeline, _ = build("kontext")
    spec = write_spec(tmp_path, pipeline, SIZE + 'prompt = "x"\n', {"image": (24, 16)})
    inpaint = dataclasses.replace(spec, pipeline="FluxKontextInpaintPipeline", images={**spec.images, "mask_image": spec.images["image"]})
    with pytest.raises(
        UnsupportedModel, match=r"does not know what FluxKontextInpaintPipeline gives its FluxTransformer2DModel; record a few"
    ):
        estimate(inpaint)
    pipeline, _ = build("qwen-edit")
    spec = write_spec(tmp_path / "qwen", pipeline, SHORT, {})
    with pytest.raises(InvalidInput, match=r"a dry run needs the size of an image that is not given"):
        estimate(dataclasses.replace(spec, images={"image": "x"}))  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_kontext(tmp_path_factory.mktemp("kontext"))


def test_kontext_at_its_published_size_from_configs_alone(published: Path) -> None:
    start = time.process_time()
    spec = read_spec(published)
    found = estimate(dataclasses.replace(spec, options={**spec.options, "values": "none"}))
    assert time.process_time() - start < 30, "twelve thousand million weights, none of them made"
    assert len(found.trace.layers) == 19 + 38
    assert {(layer.heads, layer.head_dim, layer.grid, layer.tokens, layer.call_tokens) for layer in found.trace.layers} == {
        (24, 128, (64, 64), 4096, 512 + 2 * 4096)
    }
    places = 57 * 24 * 4096 * found.evaluations
    # q and k in float32, which holds the model's bfloat16, and one float32 log-sum-exp for each place.
    assert found.sizes["factors"].nbytes == pytest.approx(places * (2 * 128 * 4 + 4), rel=1e-4)
    assert found.sizes["probabilities"].nbytes == pytest.approx(places * (4096 * 2 + 4 + 4), rel=1e-4)


def test_the_one_line_of_the_docs_makes_a_small_trace_of_it(published: Path) -> None:
    page = (ROOT / "docs" / "batches.md").read_text()
    line = re.search(r"^i2am record kontext\.toml (.*)$", page, re.MULTILINE)
    assert line is not None
    options = shlex.split(line[1])
    shown = CliRunner().invoke(record_command, [str(published), *options, "--dry-run"], catch_exceptions=False)
    printed = re.search(r"The same line with `--dry-run`.*?```\n(.*?)```", page, re.DOTALL)
    assert printed is not None
    assert printed[1] in shown.output
    size = re.search(r"factors +([\d.]+) GB", shown.output)
    assert size is not None and float(size[1]) < 5


def test_what_is_too_large_is_refused_before_any_weight_is_read(published: Path, tmp_path: Path) -> None:
    arguments = [str(published), "-o", str(tmp_path / "run.zarr"), "--encoding", "factors", "--values", "none", "--max-bytes", "5GB"]
    with pytest.raises(
        NoSpace, match=r"would hold 161 GB before compression and the limit is max_bytes='5GB'; .*layers='transformer\..*steps='::28'"
    ):
        CliRunner().invoke(record_command, arguments, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []
