"""The dry run: published shapes in seconds, without weights; the same layers that a recording finds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import SD15, SDXL, picture, save_adapter, save_model
from diffusers import HeunDiscreteScheduler, PNDMScheduler

from i2am.recorder.cli.record import render
from i2am.recorder.dryrun.estimate import Estimate, estimate
from i2am.recorder.specs.spec import Spec, read_spec
from i2am.schema.errors import InvalidInput, UnknownSelection, UnsupportedModel

torch.set_num_threads(1)


def spec(folder: Path, text: str) -> Spec:
    (folder / "spec.toml").write_text(text)
    return read_spec(folder / "spec.toml")


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd15")
    save_model(folder / "model", "StableDiffusionInpaintPipeline", {**SD15, "in_channels": 9}, "text_encoder")
    for kind in ("plain", "plus", "full"):
        save_adapter(folder / f"adapter/{kind}.safetensors", SD15, kind)
    picture(folder / "p.png")
    return folder


def inpaint(kinds: str = "full", call: str = "", record: str = 'keys = "reference"', images: str = '"p.png"', head: str = "") -> str:
    adapters = "".join(f'[[adapters]]\nfrom_pretrained = "adapter"\nweight_name = "{kind}.safetensors"\n' for kind in kinds.split())
    return f"""
        {head}
        [pipeline]
        class = "StableDiffusionInpaintPipeline"
        from_pretrained = "model"
        arguments = {{ torch_dtype = "float16" }}
        {adapters}
        [call]
        prompt = "a person"
        {call}
        [images]
        image = "p.png"
        mask_image = "p.png"
        ip_adapter_image = {images}
        [record]
        {record}
    """


def shapes(found: Estimate) -> set[tuple[Any, ...]]:
    return {(layer.grid, layer.heads, layer.head_dim, layer.tokens) for layer in found.trace.layers}


def test_sd15_with_257_patch_tokens(sd15: Path) -> None:
    """Figures computed by hand in the project's notes: 5.54 GB of probabilities, 1.16 GB of factors."""
    start = time.perf_counter()
    found = estimate(spec(sd15, inpaint(record='keys = "reference"\nvalues = "none"')))
    assert time.perf_counter() - start < 20, "from shapes alone it takes seconds"
    assert len(found.trace.layers) == 16
    assert shapes(found) == {((64, 64), 8, 40, 257), ((32, 32), 8, 80, 257), ((16, 16), 8, 160, 257), ((8, 8), 8, 160, 257)}
    assert (found.trace.steps, found.trace.samples, found.trace.branches) == (50, 1, ("cond",))
    group = found.trace.layers[0].groups[0]
    assert (group.name, group.role, group.specials, group.grid) == ("reference", "reference", 1, (16, 16))
    positions = sum(layer.heads * layer.grid[0] * layer.grid[1] for layer in found.trace.layers)
    assert positions == 215_552
    heads = 16 * 8
    assert found.sizes["probabilities"].nbytes == pytest.approx(50 * (positions * (257 * 2 + 4) + heads * 257 * 4), rel=1e-5)
    assert positions * 257 * 2 * 50 == pytest.approx(5.54e9, rel=1e-3)
    assert found.sizes["factors"].nbytes == pytest.approx(1.16e9, rel=0.01)
    assert found.sizes["auto"].nbytes == found.sizes["factors"].nbytes
    assert found.sizes["probabilities"].files == pytest.approx(50 * 48, abs=300)
    assert found.sizes["factors"].files == pytest.approx(50 * 16 + 16, abs=300)
    # Two softmaxes of CLS and patches at each position, and of each token; of 257 tokens none has a map of its own.
    assert found.sizes["maps"].nbytes == pytest.approx(50 * (positions * 2 * 2 * 4 + heads * 257 * 2 * 4), rel=1e-3)


def test_sd15s_self_attention_up_to_a_grid(sd15: Path) -> None:
    """Ten of sixteen layers by default: a fourteenth as factors, and what is left out is named."""
    own = 'values = "none"\nlayers = "*attn1"\nkeys = "self"\n'
    found, every = (estimate(spec(sd15, inpaint(record=own + more))) for more in ("", "self_grid = 64"))
    grids = [(32, 32)] * 2 + [(16, 16)] * 2 + [(8, 8)] + [(16, 16)] * 3 + [(32, 32)] * 3
    assert [layer.grid for layer in found.trace.layers] == grids
    assert {tuple((g.role, g.grid) for g in layer.groups) for layer in found.trace.layers} == {(("self", grid),) for grid in set(grids)}
    rows = sum(8 * (rows * columns) for rows, columns in grids)
    cells = sum(8 * (rows * columns) ** 2 for rows, columns in grids)
    assert found.sizes["probabilities"].nbytes == pytest.approx(50 * (2 * cells + 8 * rows), rel=1e-4)
    assert found.sizes["factors"].nbytes == pytest.approx(50 * 2 * 2 * (5 * 1024 * 640 + 5 * 256 * 1280 + 64 * 1280), rel=1e-3)
    assert set(found.left_out) == {layer.path for layer in every.trace.layers if layer.grid == (64, 64)}
    assert found.to_json()["left_out"] == found.left_out and not every.left_out
    assert len(every.trace.layers) == 16 and every.sizes["probabilities"].nbytes > 14 * found.sizes["probabilities"].nbytes
    text = render(found, "probabilities", 10**12)
    assert "left out       unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1 has more than 32 x 32 positions" in text
    assert "encoding='factors' keeps self-attention exactly" in text and "keeps self-attention" not in render(found, "factors", 10**12)


def test_text_and_two_adapters_are_call_sites_of_one_module(sd15: Path) -> None:
    found = estimate(spec(sd15, inpaint("plus full", images='[["p.png", "p.png"], "p.png"]', record="")))
    resampler, layers = (
        [layer for layer in found.trace.layers if layer.queries],
        [layer for layer in found.trace.layers if not layer.queries],
    )
    assert [(layer.queries, layer.grid, layer.tokens) for layer in resampler] == [
        ("reference_0", (1, 16), 273),
        ("reference_1", (1, 16), 273),
    ] * 4
    names = [layer.name.rpartition("attn2")[2] for layer in layers]
    assert names == ["", "#1", "#2"] * 16
    assert [layer.tokens for layer in layers[:3]] == [77, 32, 257]
    groups = [[(g.name, g.start, g.stop, g.grid) for g in layer.groups] for layer in layers[:3]]
    two = [("reference_0", 0, 16, None), ("reference_1", 16, 32, None)]
    assert groups == [[("text", 0, 77, None)], two, [("reference_2", 0, 257, (16, 16))]]
    small = estimate(spec(sd15, inpaint("plain", record='keys = "reference"')))
    assert {layer.tokens for layer in small.trace.layers} == {4}
    assert small.sizes["auto"].nbytes == small.sizes["probabilities"].nbytes < small.sizes["factors"].nbytes


def test_selections_sizes_and_samples(sd15: Path) -> None:
    text = inpaint(
        call="num_inference_steps = 20\nstrength = 0.5\nheight = 512\nwidth = 384\nnum_images_per_prompt = 2",
        record='keys = "text"\nlayers = "*up_blocks.3*"\nsteps = "::3"\nbranches = "both"',
    )
    found = estimate(spec(sd15, text))
    assert shapes(found) == {((64, 48), 8, 40, 77)}
    assert (len(found.trace.layers), found.evaluations, found.trace.steps) == (3, 10, 4)
    assert (found.trace.samples, found.trace.branches, found.trace.latent_grid) == (2, ("cond", "uncond"), (64, 48))
    assert found.sizes["probabilities"].nbytes > 2 * 2 * 4 * 3 * 8 * 64 * 48 * 77 * 2


def test_an_adapter_with_scale_0_makes_no_call(sd15: Path) -> None:
    text = inpaint().replace("[call]", "scale = 0.0\n[call]")
    assert estimate(spec(sd15, text)).trace.layers == ()


def test_sdxl_with_an_adapter(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "StableDiffusionXLPipeline", SDXL, "text_encoder", "text_encoder_2")
    save_adapter(tmp_path / "adapter/plus.safetensors", SDXL, "plus")
    picture(tmp_path / "p.png")
    text = """
        [pipeline]
        class = "StableDiffusionXLPipeline"
        from_pretrained = "model"
        arguments = { torch_dtype = "float16" }
        [[adapters]]
        from_pretrained = "adapter"
        weight_name = "plus.safetensors"
        [call]
        prompt = "a person"
        [images]
        ip_adapter_image = "p.png"
        [record]
        keys = "reference"
    """
    found = estimate(spec(tmp_path, text))
    layers = [layer for layer in found.trace.layers if not layer.queries]
    assert (len(layers), len(found.trace.layers)) == (70, 74)
    assert shapes(found) == {((64, 64), 10, 64, 16), ((32, 32), 20, 64, 16), ((1, 16), 12, 64, 273)}
    assert sum(layer.heads * layer.grid[0] * layer.grid[1] for layer in layers) * 16 * 2 * 50 == pytest.approx(2.62e9, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "image"), [("PaintByExamplePipeline", "example_image"), ("StableDiffusionImageVariationPipeline", "image")]
)
def test_one_token_for_the_whole_reference(tmp_path: Path, name: str, image: str) -> None:
    channels = 9 if "Paint" in name else 4
    save_model(tmp_path / "model", name, {**SD15, "in_channels": channels}, "image_encoder", scheduler=PNDMScheduler(skip_prk_steps=True))
    picture(tmp_path / "p.png")
    images = f'{image} = "p.png"' + ('\nimage = "p.png"\nmask_image = "p.png"' if channels == 9 else "")
    found = estimate(spec(tmp_path, f'[pipeline]\nclass = "{name}"\nfrom_pretrained = "model"\n[images]\n{images}'))
    assert shapes(found) == {((64, 64), 8, 40, 1), ((32, 32), 8, 80, 1), ((16, 16), 8, 160, 1), ((8, 8), 8, 160, 1)}
    assert found.trace.layers[0].groups[0].role == "reference"
    assert found.evaluations == 51, "PNDM evaluates once more"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Heun on numpy 2
def test_image_to_image_takes_its_size_from_the_image(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "StableDiffusionImg2ImgPipeline", SD15, "text_encoder", scheduler=HeunDiscreteScheduler())
    picture(tmp_path / "p.png", (384, 256))
    text = '[pipeline]\nclass = "StableDiffusionImg2ImgPipeline"\nfrom_pretrained = "model"\n[call]\nprompt = "x"\nstrength = 0.4\n'
    found = estimate(spec(tmp_path, text + 'num_inference_steps = 10\n[images]\nimage = "p.png"'))
    assert found.trace.latent_grid == (32, 48)
    assert found.evaluations == 19 - 6 * 2


def test_what_a_dry_run_refuses(sd15: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownSelection, match="no layer of this pipeline matches"):
        estimate(spec(sd15, inpaint(record='layers = "nowhere"')))
    with pytest.raises(InvalidInput, match="ip_adapter_image has 2 entries for 1 adapters"):
        estimate(spec(sd15, inpaint(images='["p.png", "p.png"]')))
    with pytest.raises(InvalidInput, match=r"missing.safetensors does not exist; correct subfolder or weight_name"):
        estimate(spec(sd15, inpaint("missing")))
    save_model(tmp_path / "model", "StableDiffusionInstructPix2PixPipeline", {**SD15, "in_channels": 8}, "text_encoder")
    picture(tmp_path / "p.png")
    head = '[pipeline]\nclass = "StableDiffusionInstructPix2PixPipeline"\nfrom_pretrained = "model"\n'
    text = head + '[call]\nprompt = "x"\n[images]\nimage = "p.png"'
    with pytest.raises(UnsupportedModel, match="has no reference in its attention"):
        estimate(spec(tmp_path, text))
    index = '{"_class_name": "StableCascadeDecoderPipeline", "decoder": ["diffusers", "StableCascadeUNet"]}'
    (tmp_path / "model/model_index.json").write_text(index)
    with pytest.raises(UnsupportedModel, match=r"has neither unet nor transformer.*record a few steps instead"):
        estimate(
            spec(tmp_path, '[pipeline]\nclass = "StableCascadeDecoderPipeline"\nfrom_pretrained = "model"\n[call]\nimage_embeddings = 0')
        )
