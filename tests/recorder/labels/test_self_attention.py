"""Self-attention, kept where it is asked for: what is recorded is the model's own, and what is not is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from pipelines_proofs import PROVEN
from pipelines_transformers import SHARED, TEXT
from pipelines_video import VIDEO
from spied import Spy, check_factors, check_probabilities

from i2am.recorder import record
from i2am.recorder.capture.modules import attention_modules
from i2am.schema.errors import InvalidInput, UnsupportedModel
from pipelines import FAMILIES, ip_adapter, text_to_image

__all__ = ["memory"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

PATH = Path("nowhere.zarr")
MADE = FAMILIES | SHARED | VIDEO
FIRST = dict.fromkeys(("flux", "kontext"), slice(TEXT, TEXT + 48))
"""Which of the keys are the image's own, in sequences that hold more."""


def pictures_of(output: Any) -> Any:
    return np.asarray(output.images if hasattr(output, "images") else output.frames)


def grids(memory: type[MemoryWriter]) -> set[tuple[Any, ...]]:
    return {(layer.places, tuple((g.name, g.role, g.tokens, g.grid) for g in layer.groups)) for layer in memory.last.trace.layers}


@pytest.mark.parametrize(
    ("family", "places", "grid"),
    [
        ("text", (8, 8), (8, 8)),
        ("ip-full", (8, 6), (8, 6)),
        ("paint-by-example", (8, 8), (8, 8)),
        ("flux", (8, 6), (8, 6)),
        ("kontext", (8, 6), (8, 6)),
        ("sd3", (8, 6), (8, 6)),
        ("wan-video", (2, 2, 3), None),
    ],
)
def test_self_attention_is_the_models_own_and_the_picture_too(
    family: str, places: tuple[int, ...], grid: Any, memory: type[MemoryWriter]
) -> None:
    pipeline, call = MADE[family]()
    spy = Spy(pipeline, alone=True)
    with spy:
        plain = pictures_of(pipeline(**call()))
    count = int(np.prod(places))
    assert np.array_equal(plain, pictures_of(record(pipeline, PATH, keys="self", encoding="factors", steps=[0], **call())))
    assert grids(memory) == {(places, (("self", "self", count, grid),))}
    for (index, *_), blocks in memory.last.blocks.items():
        layer = memory.last.trace.layers[index]
        query, key, _ = spy.calls[layer.path][0][layer.call]
        row = 1 if len(query) > 1 else 0  # the guided one
        own = FIRST[family] if family in FIRST else slice(0, count)
        check_factors(blocks, layer, query[row][:, own], key[row], key[row][:, own])


def test_its_probabilities_are_the_models_softmax(memory: type[MemoryWriter]) -> None:
    pipeline, call = ip_adapter("full")
    spy = Spy(pipeline, alone=True)
    with spy:
        pipeline(**call())
    record(pipeline, PATH, keys="self", steps=[0], heads=[0], values="full", **call())
    for (index, *_), blocks in memory.last.blocks.items():
        layer = memory.last.trace.layers[index]
        query, key, _ = spy.calls[layer.path][0][0]
        check_probabilities(blocks, layer, query[1, :1], key[1, :1], key[1, :1])
        assert layer.values == "full" and blocks["value"].shape == (1, layer.tokens, layer.value_dim)


def test_all_keeps_what_it_kept_and_self_attention(memory: type[MemoryWriter]) -> None:
    pipeline, call = ip_adapter("full")
    arguments = {"encoding": "factors", "steps": [0]}
    plain = record(pipeline, PATH, keys="all", self_grid=0, **arguments, **call()).images
    without = memory.last
    assert np.array_equal(plain, record(pipeline, PATH, keys="all", **arguments, **call()).images)
    every = memory.last
    assert [layer.path.rpartition(".")[2] for layer in every.trace.layers] == ["attn1", "attn2", "attn2"] * 4, "in order of execution"
    kept = [layer for layer in every.trace.layers if layer.groups[0].role != "self"]
    assert kept == list(without.trace.layers)
    for index, layer in enumerate(without.trace.layers):
        there = every.blocks[every.trace.layers.index(layer), 0, "cond", 0]
        assert all(np.array_equal(there[name], numbers) for name, numbers in without.blocks[index, 0, "cond", 0].items())


def test_auto_listens_to_no_self_attention() -> None:
    pipeline, _ = text_to_image()
    assert all(path.endswith("attn2") for path in attention_modules(pipeline))
    assert sum(path.endswith("attn1") for path in attention_modules(pipeline, alone=True)) == 4


@pytest.mark.parametrize(("family", "limit"), [("ip-full", 6), ("kontext", 6)])
def test_layers_with_more_positions_are_left_out_and_named(family: str, limit: int, memory: type[MemoryWriter]) -> None:
    pipeline, call = MADE[family]()
    with pytest.raises(UnsupportedModel, match=rf"keys='self' recorded nothing: \S+ has more than {limit} x {limit} positions.*self_grid"):
        record(pipeline, PATH, keys="self", self_grid=limit, **call())
    record(pipeline, PATH, keys="all", self_grid=limit, **call())
    assert {group.role for layer in memory.last.trace.layers for group in layer.groups} == {"text", "reference"}
    ((why, paths),) = memory.last.trace.provenance["self_left_out"].items()
    assert why == f"has more than {limit} x {limit} positions; raise self_grid=, with encoding='factors'"
    modules = attention_modules(pipeline, alone=True)
    assert set(paths) == {path for path in modules if not path.endswith("attn2")}
    assert any(note.startswith(f"self-attention of {len(paths)} modules is left out: {paths[0]} has more") for note in note_of(memory))
    record(pipeline, PATH, keys="self", self_grid=7, **call())
    assert not memory.last.trace.provenance["self_left_out"]


def note_of(memory: type[MemoryWriter]) -> list[str]:
    notes: list[str] = memory.last.trace.provenance["notes"]
    return notes


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (VIDEO["svd"], "attends within single frames, or at single places over time, each with keys of its own"),
        (PROVEN["sana-sprint"], "multiplies matrices itself"),
    ],
)
def test_self_attention_that_cannot_be_recorded_is_named_and_the_rest_kept(made: Any, why: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = made()
    with pytest.raises(UnsupportedModel, match=rf"keys='self' recorded nothing: \S+attn1 .*{why}"):
        record(pipeline, PATH, keys="self", **call())
    record(pipeline, PATH, keys="all", **call())
    assert {group.role for layer in memory.last.trace.layers for group in layer.groups} <= {"text", "reference"}


def test_a_module_that_hides_its_self_attention_does_not_stop_all_keys(memory: type[MemoryWriter]) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    pipeline, call = text_to_image()
    for path, module in attention_modules(pipeline, alone=True).items():
        if path.endswith("attn1"):
            module.set_processor(AttnProcessor())
    plain = pipeline(**call()).images
    assert np.array_equal(plain, record(pipeline, PATH, keys="all", **call()).images)
    assert {layer.groups[0].role for layer in memory.last.trace.layers} == {"text"}
    assert sum(len(paths) for paths in memory.last.trace.provenance["self_left_out"].values()) == 4
    with pytest.raises(UnsupportedModel, match=r"attn1 ran, but made no scaled_dot_product_attention"):
        record(pipeline, PATH, keys="self", **call())


def test_a_hole_is_no_omission(memory: type[MemoryWriter]) -> None:
    """Self-attention that was recorded once cannot be left out later."""
    pipeline, call = text_to_image()
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    seen = []

    def cut(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        seen.append(args)
        return ((args[0][:, :32], *args[1:]) if len(seen) == 2 else args), kwargs

    attention.register_forward_pre_hook(cut, with_kwargs=True)
    attention.register_forward_hook(lambda module, args, output: torch.cat([output, output], 1) if output.shape[1] == 32 else output)
    with pytest.raises(UnsupportedModel, match=r"mid_block.*attn1 has 32 keys in one sequence"):
        record(pipeline, PATH, keys="self", **call())


@pytest.mark.parametrize("grid", [-1, 2.0, True, "32"])
def test_a_grid_that_is_none_is_refused(grid: Any) -> None:
    pipeline, call = text_to_image()
    with pytest.raises(InvalidInput, match=r"self_grid.*the side of the largest grid"):
        record(pipeline, PATH, keys="self", self_grid=grid, **call())
    with pytest.raises(InvalidInput, match="self_grid=0"):
        record(pipeline, PATH, keys="self", self_grid=0, **call())
