"""The pictures of a run: kept by what they are, bit by bit, with the part that token grids cover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from memory import MemoryWriter, memory
from pipelines_transformers import redux

from i2am.recorder import record
from i2am.recorder.images.pictures import generated_pictures, reference_window, to_pixels
from i2am.schema.errors import InvalidInput
from pipelines import build, ip_adapter, processor, square_mask, text_to_image

__all__ = ["memory"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PATH = Path("nowhere.zarr")
MID = "*mid_block*"


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("text-two", ["generated_0", "generated_1"]),
        ("img2img", ["generated_0", "input"]),
        ("inpaint", ["generated_0", "input", "mask"]),
        ("ip-two", ["generated_0", "generated_1", "reference_0", "reference_1"]),
        ("paint-by-example", ["generated_0", "reference", "input", "mask"]),
        ("image-variation", ["generated_0", "reference"]),
    ],
)
def test_images_are_kept_by_what_they_are(family: str, names: list[str], memory: type[MemoryWriter]) -> None:
    pipeline, call = build(family)
    record(pipeline, PATH, layers=MID, **call())
    assert list(memory.last.images) == names
    given = {"input": "image", "mask": "mask_image", "reference": "example_image" if "paint" in family else "image"}
    for name in names:
        if name in given:
            value = np.asarray(call()[given[name]])
            assert np.array_equal(memory.last.images[name].squeeze(), value)


def test_references_have_the_window_that_the_encoder_sees(memory: type[MemoryWriter]) -> None:
    pipeline, call = ip_adapter("full")
    record(pipeline, PATH, layers=MID, reference_mask=square_mask(48, 32), **call())
    images = {image.name: image for image in memory.last.trace.images}
    assert (images["reference"].height, images["reference"].width) == (48, 32)
    # The shorter edge already has the encoder's size; the middle 32 of 48 rows are seen.
    assert images["reference"].window == images["reference_mask"].window == (8, 0, 40, 32)
    assert images["reference_mask"].channels == 1


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (100, 33), (31, 77), (32, 32)])
def test_the_window_is_what_clip_leaves(shape: tuple[int, int]) -> None:
    height, width = shape
    encoder = processor()
    ramp = np.stack([*np.mgrid[0:height, 0:width].astype(np.float32) + 0.5, np.zeros(shape, np.float32)], 2) / 128
    pixels = (ramp * 255).round().astype(np.uint8)
    seen = encoder(picture_of(pixels), do_normalize=False, return_tensors="np").pixel_values[0] * 128
    window = reference_window(type("P", (), {"feature_extractor": encoder}), picture_of(pixels)) or (0, 0, height, width)
    rows, columns = seen[0].mean(1), seen[1].mean(0)
    centres = (np.arange(32) + 0.5) / 32
    expected = [window[axis] + centres * (window[axis + 2] - window[axis]) for axis in (0, 1)]
    inner = slice(3, -3)  # resampling bends the ramp at the borders
    np.testing.assert_allclose(rows[inner], expected[0][inner], atol=1.0)
    np.testing.assert_allclose(columns[inner], expected[1][inner], atol=1.0)


def picture_of(pixels: Any) -> Any:
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize("output", ["pil", "np", "pt"])
def test_every_output_type_is_kept_the_same(output: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image(output_type=output)
    record(pipeline, PATH, layers=MID, **call())
    reference, plain = text_to_image()
    expected = (reference(**plain()).images[0] * 255).round().astype(np.uint8)
    assert np.array_equal(memory.last.images["generated_0"], expected)


def test_latents_are_no_image_and_that_is_said(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image(output_type="latent")
    record(pipeline, PATH, layers=MID, **call())
    assert memory.last.images == {}
    assert memory.last.trace.provenance["notes"] == ["the pipeline returned no images that could be kept (output_type latent)"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.full((2, 2, 3), 1.0), 255),
        (np.full((2, 2), 0.5), 128),
        (torch.full((3, 2, 2), -1.0), 0),
        (torch.full((1, 2, 2), 0.25), 64),
        (np.full((2, 2, 4), 9, np.uint8), 9),
    ],
)
def test_pixels_of_every_kind(value: Any, expected: int) -> None:
    pixels = to_pixels(value)
    assert pixels is not None
    assert pixels.shape == (2, 2, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == expected).all()


def test_what_is_no_image_is_none() -> None:
    assert to_pixels("reference.png") is None
    assert to_pixels(np.zeros(3)) is None
    assert generated_pictures(object()) == []


def test_references_that_are_given_as_embeddings_are_kept_and_tied(memory: type[MemoryWriter]) -> None:
    pipeline, call = redux()
    picture = PIL.Image.new("RGB", (20, 30), (200, 10, 10))
    record(pipeline, PATH, reference_image=picture, **call())
    (image,) = [image for image in memory.last.trace.images if image.role == "reference"]
    # Redux's prior stretches the whole picture.
    assert (image.name, image.height, image.width, image.window) == ("reference", 30, 20, None)
    assert {group.image for layer in memory.last.trace.layers for group in layer.groups} == {"reference"}
    assert "reference_image" not in memory.last.trace.provenance["options"]

    pipeline, call = ip_adapter("full")
    embedded = pipeline.prepare_ip_adapter_image_embeds(call()["ip_adapter_image"], None, "cpu", 1, True)
    arguments = {name: value for name, value in call().items() if name != "ip_adapter_image"}
    record(pipeline, PATH, reference_image=picture, keys="reference", ip_adapter_image_embeds=embedded, **arguments)
    (image,) = [image for image in memory.last.trace.images if image.role == "reference"]
    assert image.window == (5, 0, 25, 20)
    assert {group.image for layer in memory.last.trace.layers for group in layer.groups} == {"reference"}
    with pytest.raises(InvalidInput, match="reference_image is no picture; give a PIL image"):
        record(pipeline, PATH, reference_image="reference.png", **call())
