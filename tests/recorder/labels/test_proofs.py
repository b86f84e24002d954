"""Token groups, pictures and grids where no constant tells them: each case was once wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from pipelines_proofs import PROVEN, klein_inpaint, kontext_inpaint, long_text, lumina, vace
from pipelines_transformers import TEXT
from spied import Spy, check_factors

from i2am.recorder import record
from i2am.recorder.capture.call import Call
from i2am.recorder.labels.tokens import Context, Scene, token_groups
from i2am.schema.errors import UnsupportedModel
from pipelines import picture

__all__ = ["memory"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

PATH = Path("nowhere.zarr")
WORDS = ("text", TEXT, None, None)
REGISTERS = ("registers", 8, None, None)
EXPECTED: dict[str, tuple[tuple[str, int, tuple[int, int] | None, str | None], ...]] = {
    # (name, tokens, grid, picture) of what every layer stores
    "lumina": (WORDS,),
    "sana-sprint": (WORDS,),
    "aura-flow": (REGISTERS, WORDS),
    "fibo": (WORDS,),
    "kandinsky-text": (("reference", 10, None, None), WORDS, ("self", 24, (4, 6), None)),
    "kandinsky-start": (("reference", 32, None, None),),
    "fill-redux": (("reference", 16, None, None),),
    "kontext-inpaint": (("reference", 128, (8, 16), "reference"),),
    "klein-inpaint": (("reference_0", 1024, (32, 32), "reference_0"), ("reference_1", 768, (16, 48), "reference_1")),
    "vace": (WORDS,),
    "longcat": (WORDS,),
    "modular-flux": (WORDS,),
    "modular-guided": (("text", 7, None, None),),
    "modular-sdxl": (("text", 7, None, None),),
}
LAYERS = {"aura-flow": 2, "fibo": 2, "vace": 2, "longcat": 2}
"""Where blocks of one kind were once left out."""


@pytest.mark.parametrize("family", PROVEN)
def test_keys_are_what_the_pipeline_made_them_of(family: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = PROVEN[family]()
    keys = "all" if family == "kandinsky-text" else "auto"
    record(pipeline, PATH, keys=keys, **call())
    layers = memory.last.trace.layers
    assert len(layers) >= LAYERS.get(family, 1)
    for layer in layers:
        assert tuple((group.name, group.tokens, group.grid, group.image) for group in layer.groups) == EXPECTED[family], layer.name


@pytest.mark.parametrize("family", [name for name in PROVEN if not name.startswith("modular")])
def test_the_image_is_the_same_bit_by_bit(family: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = PROVEN[family]()
    plain, recorded = pipeline(**call())[0], record(pipeline, PATH, **call())[0]
    assert np.array_equal(np.asarray(plain), np.asarray(recorded))


@pytest.mark.parametrize(("family", "first"), [("aura-flow", 8 + TEXT), ("fibo", TEXT)])
def test_single_blocks_are_recorded_at_the_image(family: str, first: int, memory: type[MemoryWriter]) -> None:
    pipeline, call = PROVEN[family]()
    spy = Spy(pipeline)
    with spy:
        record(pipeline, PATH, encoding="factors", **call())
    index = memory.last.layer("single_transformer_blocks.0.attn")
    layer = memory.last.trace.layers[index]
    for step, calls in enumerate(spy.calls[layer.path]):
        (query, key, _), generated = calls[0], slice(first, first + layer.grid[0] * layer.grid[1])
        check_factors(memory.last.blocks[index, 0, "cond", step], layer, query[1, :, generated], key[1], key[1, :, :first])


def test_pictures_that_are_painted_into_are_references_where_they_join_the_sequence(memory: type[MemoryWriter]) -> None:
    for build in (kontext_inpaint, klein_inpaint):
        pipeline, call = build(own=False)
        record(pipeline, PATH, **call())
        assert [image.name for image in memory.last.trace.images if image.role == "reference"] == ["reference"]
    pipeline, call = kontext_inpaint()
    record(pipeline, PATH, **call())
    assert np.array_equal(memory.last.images["reference"], np.asarray(call()["image_reference"]))
    assert np.array_equal(memory.last.images["input"], np.asarray(call()["image"]))


def test_text_beyond_what_the_encoders_make_is_refused_unless_a_reference_is_named(memory: type[MemoryWriter]) -> None:
    pipeline, call = long_text()
    with pytest.raises(UnsupportedModel, match=r"700 tokens of text, more than the 512.*reference_image="):
        record(pipeline, PATH, **call())
    record(pipeline, PATH, reference_image=picture(9), **call())
    assert {(group.name, group.image) for layer in memory.last.trace.layers for group in layer.groups} == {("reference", "reference")}


@pytest.mark.parametrize("references", [0, 1, 2])
def test_frames_of_references_are_not_frames_of_the_video(references: int, memory: type[MemoryWriter]) -> None:
    pipeline, call = vace(references)
    spy, decoded = Spy(pipeline), []
    decode = pipeline.vae.decode
    pipeline.vae.decode = lambda latents, **kwargs: decoded.append(latents.shape[2]) or decode(latents, **kwargs)
    with spy:
        record(pipeline, PATH, encoding="factors", **call())
    for index, layer in enumerate(memory.last.trace.layers):
        assert [layer.frames] == decoded
        query, key, _ = spy.calls[layer.path][0][0]
        before = references * layer.grid[0] * layer.grid[1]
        check_factors(memory.last.blocks[index, 0, "cond", 0], layer, query[0, :, before:], key[0], key[0])


def test_more_references_than_frames_are_refused() -> None:
    pipeline, call = vace(2)
    latents = pipeline.prepare_latents(1, 16, 32, 48, 5)
    with pytest.raises(UnsupportedModel, match="given 2 frames, 2 of them references"):
        record(pipeline, PATH, **call(), latents=latents)


def test_key_heads_that_several_query_heads_share(memory: type[MemoryWriter]) -> None:
    pipeline, call = lumina(key_heads=2)
    spy = Spy(pipeline)
    with spy:
        record(pipeline, PATH, encoding="factors", **call())
    (layer,) = memory.last.trace.layers
    query, key, _ = spy.calls[layer.path][0][0]
    check_factors(memory.last.blocks[0, 0, "cond", 0], layer, query[0], key[0], key[0])
    assert torch.equal(key[0, 0], key[0, 1])


def test_tokens_beside_the_text_that_nobody_gave_are_no_text() -> None:
    shape = torch.zeros(1, 2, 12, 4)
    call = Call(path="unet.attn2", projection="to_v", query=torch.zeros(1, 2, 6, 4), key=shape, scale=1.0)
    context = Context("text", None, (), ())
    for scene in (Scene(text=12), Scene(text=5, further=(7,)), Scene(text=5, further=(12,)), Scene()):
        assert [(group.name, group.tokens) for group in token_groups(call, context, scene)] == [("text", 12)]
    # I2VGenXL's U-Net puts an image's tokens behind the text by itself.
    with pytest.raises(UnsupportedModel, match=r"given 5 tokens of text, and its attention reads 12 beside the image.*layers="):
        token_groups(call, context, Scene(text=5))
