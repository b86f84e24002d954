"""The paper's custom model: its published sizes by a dry run, and the pipeline itself with tiny parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from pipelines_custom import REFERENCE, SIZE, WIDTH, tiny_custom, tiny_parts, tiny_unet
from repository import ROOT

from i2am.analyzer import g2r, open_trace, r2g, sram
from i2am.recorder import record
from i2am.recorder.custom.pipeline import CONFIGS, CustomTryOnPipeline, build_custom
from i2am.recorder.dryrun.estimate import estimate
from i2am.recorder.specs.spec import read_spec
from i2am.schema.errors import InvalidInput
from pipelines import picture, square_mask

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

EXAMPLE = ROOT / "examples" / "custom.toml"


@pytest.fixture(scope="module")
def tiny() -> CustomTryOnPipeline:
    return tiny_custom()


def arguments() -> dict[str, Any]:
    return {
        "image": picture(1, 40, 30),
        "mask_image": square_mask(40, 30),
        "example_image": picture(2, 50, 35),
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "np",
    }


def test_the_published_size_is_known_without_a_weight() -> None:
    found = estimate(read_spec(EXAMPLE))
    assert len(found.trace.layers) == 16 and found.trace.latent_grid == (64, 48)
    assert {(layer.tokens, layer.groups[0].specials, layer.groups[0].grid) for layer in found.trace.layers} == {(1037, 1, (37, 28))}
    assert found.sizes["probabilities"].nbytes > 15 * found.sizes["factors"].nbytes
    assert not list(CONFIGS.rglob("*.safetensors"))


def test_a_reference_that_is_not_square_is_laid_out_and_recorded(tiny: CustomTryOnPipeline, tmp_path: Path) -> None:
    plain = tiny(**arguments()).images
    recorded = record(tiny, tmp_path / "run.zarr", encoding="factors", branches="both", progress=False, **arguments()).images
    assert np.array_equal(plain, recorded)
    trace = open_trace(tmp_path / "run.zarr")
    assert len(trace.layers) == 4 and trace.record.branches == ("cond", "uncond") and len(trace.present) == 3
    for layer in trace.layers:
        (group,) = layer.groups
        assert (group.name, group.role, group.tokens, group.specials, group.grid, group.image) == (
            "reference", "reference", 7, 1, (3, 2), "reference",
        )  # fmt: skip
    assert {image.name for image in trace.images} == {"generated_0", "reference", "mask", "input"}
    assert r2g(trace).shape == (16, 12) and g2r(trace).shape == sram(trace, at=(3, 4)).shape == (3, 2)


def test_its_keys_are_the_tokens_of_the_encoder(tiny: CustomTryOnPipeline, tmp_path: Path) -> None:
    call = arguments()
    tokens = tiny.encode_reference(call["example_image"])
    assert tokens.shape == (1, 7, WIDTH)
    record(tiny, tmp_path / "run.zarr", encoding="factors", progress=False, **call)
    trace = open_trace(tmp_path / "run.zarr")
    path = trace.layers[0].path.removeprefix("unet.")
    with torch.no_grad():
        key = tiny.unet.get_submodule(path).to_k(tiny.unet.encoder_hid_proj(tokens))[0].unflatten(-1, (2, -1)).transpose(0, 1)
    # The run projects both branches in one batch, whose products may round otherwise.
    np.testing.assert_allclose(trace.blocks(0, "key")[0, 0, 0], key.numpy(), rtol=1e-5, atol=1e-6)


def test_tokens_given_and_tokens_made_paint_the_same(tiny: CustomTryOnPipeline) -> None:
    call = arguments()
    painted = tiny(**call).images
    given = {**arguments(), "example_image": None, "reference_embeds": tiny.encode_reference(call["example_image"])}
    assert np.array_equal(painted, tiny(**given).images)
    with pytest.raises(ValueError, match="either as example_image or as reference_embeds"):
        tiny(**{**arguments(), "example_image": None})


def test_it_comes_back_from_disk(tiny: CustomTryOnPipeline, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "weights")
    again = CustomTryOnPipeline.from_pretrained(tmp_path / "weights")
    again.set_progress_bar_config(disable=True)
    assert again.reference_size == REFERENCE
    assert np.array_equal(tiny(**arguments()).images, again(**arguments()).images)


def test_the_pose_and_several_images_have_a_place(tiny: CustomTryOnPipeline) -> None:
    with_pose = tiny(**arguments() | {"pose_image": PIL.Image.new("RGB", (30, 40), "red"), "num_images_per_prompt": 2}).images
    assert with_pose.shape == (2, *SIZE, 3)
    alone = tiny(**arguments() | {"guidance_scale": 1.0}).images
    assert not np.array_equal(with_pose[:1], alone)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 9}, "takes 9 channels, expected 12"),
        ({"encoder_hid_dim": 8}, "reads tokens 8 wide, the image encoder makes them 16 wide"),
        ({"out_channels": 8}, "makes 8 channels, a latent has 4"),
    ],
)
def test_parts_that_do_not_fit_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        build_custom(**{**tiny_parts(), "unet": tiny_unet(**config)})
