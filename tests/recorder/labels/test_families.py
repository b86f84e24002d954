"""Families whose reference shares a softmax with text or with the image itself, and those that guide in several passes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from pipelines_table import ROWS, SEEN, TITLE, classes, families, row
from pipelines_transformers import TEXT, build, flux_text, kontext, qwen, wan
from repository import ROOT
from spied import Spy, check_factors, check_probabilities

from i2am.recorder import record
from i2am.schema.errors import InvalidInput, UnsupportedModel
from i2am.schema.trace import Layer

__all__ = ["memory"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

PATH = Path("nowhere.zarr")


@dataclass(frozen=True)
class Expected:
    """What a family's calls look like, worked out by hand; ranges are along queries and keys."""

    grid: tuple[int, int]
    queries: slice
    keys: tuple[slice, ...]
    """One for each call of a module."""
    groups: tuple[tuple[tuple[str, int, tuple[int, int] | None], ...], ...]
    """(name, tokens, grid) of what is stored of each call."""
    passes: int = 1
    """Denoiser passes for one step; cond first."""
    halves: bool = False
    """Whether one pass holds both branches, uncond first."""
    steps: int = 2
    only: str = ""
    """Part of the names of the modules that this is about."""


GENERATED = 8 * 6
TEXT_FIRST = slice(TEXT, TEXT + GENERATED)
ALL = slice(None)
TEXT_KEYS = (("text", TEXT, None),)
REFERENCE = slice(TEXT + GENERATED, TEXT + GENERATED + 96)
EXPECTED = {
    "flux": Expected((8, 6), TEXT_FIRST, (slice(0, TEXT),), (TEXT_KEYS,)),
    "flux-guided": Expected((8, 6), TEXT_FIRST, (slice(0, TEXT),), (TEXT_KEYS,), passes=2),
    "kontext": Expected((8, 6), TEXT_FIRST, (REFERENCE,), ((("reference", 96, (12, 8)),),)),
    "kontext-guided": Expected((8, 6), TEXT_FIRST, (REFERENCE,), ((("reference", 96, (12, 8)),),), passes=2),
    "kontext-two": Expected((8, 6), TEXT_FIRST, (REFERENCE,), ((("reference", 96, (12, 8)),),)),
    "flux-ip": Expected((8, 6), TEXT_FIRST, (slice(0, TEXT), ALL), (TEXT_KEYS, (("reference", 4, None),)), passes=2),
    "redux": Expected((8, 6), slice(528, 528 + GENERATED), (slice(512, 528),), ((("reference", 16, None),),)),
    "klein": Expected((8, 6), TEXT_FIRST, (slice(TEXT + GENERATED, None),), ((("reference", 1024, (32, 32)),),), passes=2),
    "klein-two": Expected(
        (8, 6),
        TEXT_FIRST,
        (slice(TEXT + GENERATED, None),),
        ((("reference_0", 1024, (32, 32)), ("reference_1", 1536, (32, 48))),),
        passes=2,
    ),
    "klein-kv": Expected(
        (8, 6),
        slice(TEXT, None),
        (slice(TEXT, TEXT + 2560),),
        ((("reference_0", 1024, (32, 32)), ("reference_1", 1536, (32, 48))),),
        steps=3,
    ),
    "sd3": Expected((8, 6), slice(0, GENERATED), (slice(GENERATED, None),), (TEXT_KEYS,), halves=True),
    "sd3-ip": Expected((8, 6), slice(0, GENERATED), (slice(GENERATED, None),) * 2, (TEXT_KEYS, (("reference", 8, None),)), halves=True),
    "qwen-edit": Expected((2, 3), slice(-18, -12), (slice(-12, None),), ((("reference", 12, (4, 3)),),), passes=2),
    "qwen-edit-plus": Expected(
        (2, 3), slice(-50, -44), (slice(-44, None),), ((("reference_0", 12, (4, 3)), ("reference_1", 32, (4, 8))),), passes=2
    ),
    "kandinsky": Expected((4, 6), ALL, (slice(0, 32),), ((("reference", 32, None),),), halves=True),
    "kandinsky-two": Expected((4, 6), ALL, (slice(0, 32),), ((("reference", 32, None),),), halves=True),
    "wan": Expected((2, 3), ALL, (ALL,), (TEXT_KEYS,), passes=2, steps=3),
}


def pictures_of(output: Any) -> Any:
    return np.asarray(output.images if hasattr(output, "images") else output.frames)


def call_of(spy: Spy, expected: Expected, layer: Layer, at: tuple[int, str, int], samples: int) -> tuple[torch.Tensor, ...]:
    """The spied query, all keys and kept keys of one (sample, branch, step), as (head, place, channel)."""
    sample, branch, step = at
    one = step if expected.halves else step * expected.passes + (branch == "uncond")
    row = sample + (samples if expected.halves and branch == "cond" else 0)
    query, key, mask = spy.calls[layer.path][one][layer.call]
    assert mask is None
    # An adapter's own call asks for the image's tokens only.
    queries = expected.queries if query.shape[2] > layer.grid[0] * layer.grid[1] else ALL
    return query[row][:, queries], key[row], key[row][:, expected.keys[layer.call]]


@pytest.mark.parametrize("family", EXPECTED)
@pytest.mark.parametrize("encoding", ["factors", "probabilities"])
def test_the_kept_block_is_the_models_own(family: str, encoding: str, memory: type[MemoryWriter]) -> None:
    expected = EXPECTED[family]
    pipeline, call = build(family)
    spy = Spy(pipeline)
    with spy:
        plain = pictures_of(pipeline(**call()))
    guided = expected.passes == 2 or expected.halves
    recorded = record(pipeline, PATH, encoding=encoding, branches="both" if guided else "cond", **call())
    assert np.array_equal(plain, pictures_of(recorded))

    trace, samples = memory.last.trace, len(plain)
    assert (trace.samples, len(memory.last.commits)) == (samples, expected.steps)
    # What makes an adapter's tokens is test_recording_resampler's matter.
    assert {layer.path for layer in trace.layers if not layer.queries} == set(spy.calls)
    for layer in (layer for layer in trace.layers if not layer.queries):
        assert layer.grid == expected.grid
        assert tuple((g.name, g.tokens, g.grid) for g in layer.groups) == expected.groups[layer.call]
    assert len(memory.last.blocks) == len(trace.layers) * samples * len(trace.branches) * expected.steps
    for (index, *at), blocks in memory.last.blocks.items():
        layer = trace.layers[index]
        if layer.queries:
            continue
        query, every, kept = call_of(spy, expected, layer, tuple(at), samples)  # type: ignore[arg-type]
        check = check_factors if encoding == "factors" else check_probabilities
        check(blocks, layer, query, every, kept)


@pytest.mark.parametrize(
    ("keys", "groups"),
    [
        ("reference", [("reference", 0, 96)]),
        ("text", [("text", 0, TEXT)]),
        ("self", [("self", 0, GENERATED)]),
        ("all", [("text", 0, TEXT), ("self", TEXT, TEXT + GENERATED), ("reference", TEXT + GENERATED, TEXT + GENERATED + 96)]),
    ],
)
def test_keys_choose_groups_of_a_shared_softmax(keys: str, groups: Any, memory: type[MemoryWriter]) -> None:
    pipeline, call = kontext()
    spy = Spy(pipeline)
    with spy:
        pipeline(**call())
    record(pipeline, PATH, keys=keys, encoding="factors", **call())
    for layer in memory.last.trace.layers:
        assert [(g.name, g.start, g.stop) for g in layer.groups] == groups
        assert (layer.call_tokens or layer.tokens) == TEXT + GENERATED + 96
    whole = spy.calls[memory.last.trace.layers[0].path][0][0][1][0]
    kept = {"reference": whole[:, REFERENCE], "text": whole[:, :TEXT], "self": whole[:, TEXT_FIRST], "all": whole}[keys]
    assert np.array_equal(memory.last.blocks[0, 0, "cond", 0]["key"], kept.numpy())


def test_text_of_two_lengths_needs_one_branch(memory: type[MemoryWriter]) -> None:
    pipeline, call = qwen()
    with pytest.raises(UnsupportedModel, match=r"changed during the run: 6 keys.*4 on.*record one branch, or keys='reference'"):
        record(pipeline, PATH, keys="text", branches="both", **call())
    record(pipeline, PATH, keys="text", branches="uncond", **call())
    assert {layer.tokens for layer in memory.last.trace.layers} == {TEXT - 2}


def test_one_prompt_for_both_branches_is_told_apart_by_order(memory: type[MemoryWriter]) -> None:
    pipeline, call = kontext(guided=True)
    same = {**call(), "negative_prompt_embeds": call()["prompt_embeds"]}
    same["negative_pooled_prompt_embeds"] = same["pooled_prompt_embeds"]
    record(pipeline, PATH, branches="both", **same)
    assert {(branch, step) for _, _, branch, step in memory.last.blocks} == {(b, s) for b in ("cond", "uncond") for s in (0, 1)}


def test_a_branch_that_no_pass_was_made_for_is_an_error() -> None:
    pipeline, call = flux_text()
    with pytest.raises(InvalidInput, match=r"branches='uncond' selects nothing: this run is not guided and has cond only"):
        record(pipeline, PATH, branches="uncond", **call())


def test_two_denoisers_take_turns(memory: type[MemoryWriter]) -> None:
    pipeline, call = wan(two=True)
    plain = pictures_of(pipeline(**call()))
    assert np.array_equal(plain, pictures_of(record(pipeline, PATH, **call())))
    names = [layer.path.split(".")[0] for layer in memory.last.trace.layers]
    assert names == ["transformer", "transformer_2"]
    # 1000 is above 0.9 of the noise, the others are below.
    assert [(index, step) for index, _, _, step in memory.last.blocks] == [(0, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("family", ROWS)
def test_the_page_on_pipelines_says_what_is_seen(family: str) -> None:
    page = (ROOT / "docs" / "pipelines.md").read_text()
    assert row(family) in page.splitlines()


def test_the_page_on_pipelines_has_nothing_else() -> None:
    head = "\n".join((TITLE, *families(), "", SEEN, "")).splitlines()
    lines = (ROOT / "docs" / "pipelines.md").read_text().splitlines()
    assert lines[: len(head)] == head
    assert len(lines) == len(head) + 2 + len(ROWS) + len("\n".join(classes()).splitlines())


@pytest.mark.parametrize(("keys", "encoding", "stored"), [("reference", "factors", "factors"), ("text", "factors", "probabilities")])
def test_a_mask_counts_only_where_it_hides_what_is_kept(keys: str, encoding: str, stored: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = qwen(guided=False)
    seen = torch.ones(1, TEXT, dtype=torch.long)
    seen[0, -1] = 0
    arguments = {"prompt_embeds_mask": seen}
    spy = Spy(pipeline)
    with spy:
        plain = pipeline(**{**call(), **arguments}).images
    assert np.array_equal(plain, record(pipeline, PATH, keys=keys, encoding=encoding, **{**call(), **arguments}).images)
    (layer,) = memory.last.trace.layers
    assert layer.encoding == stored
    query, key, mask = spy.calls[layer.path][0][0]
    scores = query[0, :, -18:-12].double() @ key[0].double().transpose(1, 2) * layer.scale
    truth = torch.logsumexp(scores.masked_fill(~mask[0, 0], -torch.inf), 2)
    np.testing.assert_allclose(memory.last.blocks[0, 0, "cond", 0]["query_lse"].reshape(truth.shape), truth, rtol=1e-5, atol=1e-5)
    if keys == "text":
        assert (memory.last.blocks[0, 0, "cond", 0]["probability"][..., -1] == 0).all()


def test_timesteps_are_the_schedulers_even_from_a_bfloat16_model(memory: type[MemoryWriter]) -> None:
    pipeline, call = kontext()
    pipeline.transformer.to(torch.bfloat16)
    pipeline.vae.to(torch.bfloat16)
    arguments = {name: value.bfloat16() if isinstance(value, torch.Tensor) else value for name, value in call().items()}
    record(pipeline, PATH, encoding="factors", **{**arguments, "num_inference_steps": 3})
    assert [commit["timestep"] for commit in memory.last.commits] == pipeline.scheduler.timesteps.tolist()
    assert [commit["sigma"] for commit in memory.last.commits] == pipeline.scheduler.sigmas[:-1].tolist()


def test_image_keys_beside_the_texts_are_a_call_of_their_own(memory: type[MemoryWriter]) -> None:
    pipeline, call = build("wan-image")
    spy = Spy(pipeline)
    with spy:
        plain = pictures_of(pipeline(**call()))
    assert np.array_equal(plain, pictures_of(record(pipeline, PATH, keys="reference", encoding="factors", branches="both", **call())))
    (layer,) = memory.last.trace.layers
    assert (layer.call, layer.grid, layer.groups[0].specials, layer.groups[0].grid) == (1, (2, 3), 1, (4, 4))
    for (_, _, branch, step), blocks in memory.last.blocks.items():
        query, key, _ = spy.calls[layer.path][2 * step + (branch == "uncond")][0]
        assert np.array_equal(blocks["key"], key[0].numpy())
        assert np.array_equal(blocks["query"], query[0].unflatten(1, (2, 3)).numpy())
