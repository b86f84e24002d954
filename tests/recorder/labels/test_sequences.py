"""References in one sequence with text (OmniGen), and those that the denoiser is run on first (reference-only)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from pipelines_sequences import build, omnigen, reference_only
from spied import Spy, check_factors

from i2am.analyzer import g2r, open_trace, r2g
from i2am.recorder import record
from i2am.recorder.images.pictures import cropped_window, reference_window
from i2am.schema.codec import decode_probability
from i2am.schema.errors import UnsupportedModel
from pipelines import picture

__all__ = ["memory"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

PATH = Path("nowhere.zarr")
GENERATED = 3 * 2
OWN = 8 * 6


def spans(pipeline: Any, call: dict[str, Any]) -> list[tuple[int, int]]:
    """Where the pipeline's own processor puts the references in the guided row."""
    names = ("height", "width", "num_images_per_prompt")
    made = pipeline.multimodal_processor(
        [call["prompt"]], [[image.copy() for image in call["input_images"]]], **{name: call[name] for name in names}
    )
    return [(start, stop) for start, stop in made["input_image_sizes"][0]]


@pytest.mark.parametrize("references", [1, 2])
@pytest.mark.parametrize("encoding", ["factors", "probabilities"])
def test_omnigens_references_are_cut_out_of_its_sequence(references: int, encoding: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = omnigen(references)
    spy = Spy(pipeline)
    with spy:
        plain = pipeline(**call()).images
    assert np.array_equal(plain, record(pipeline, PATH, encoding=encoding, branches="both", **call()).images)
    trace = memory.last.trace
    grids = [("reference_0", (4, 2)), ("reference_1", (2, 3))] if references == 2 else [("reference", (4, 2))]
    for layer in trace.layers:
        assert [(g.name, g.grid, g.image) for g in layer.groups] == [(name, grid, name) for name, grid in grids]
        assert (layer.grid, layer.encoding) == ((3, 2), encoding)
    # No reference stands in the row that leaves it out, and the third row is neither branch.
    assert sorted(memory.last.blocks) == [(layer, 0, "cond", step) for layer in (0, 1) for step in (0, 1)]
    columns = [i for start, stop in spans(pipeline, call()) for i in range(start, stop)]
    for (index, _, _, step), blocks in memory.last.blocks.items():
        query, key, mask = spy.calls[trace.layers[index].path][step][0]
        assert mask.shape[0] == 3
        scores = query[0, :, -GENERATED:].double() @ key[0].double().transpose(1, 2) * trace.layers[index].scale + mask[0, :, -GENERATED:]
        truth = torch.softmax(scores, 2)[..., columns]
        np.testing.assert_allclose(blocks["query_lse"].reshape(truth.shape[:2]), torch.logsumexp(scores, 2), rtol=1e-5, atol=1e-5)
        if encoding == "factors":
            assert np.array_equal(blocks["query"], query[0, :, -GENERATED:].unflatten(1, (3, 2)).numpy())
            assert np.array_equal(blocks["key"], key[0][:, columns].numpy())
        else:
            found = decode_probability(blocks["probability"]).reshape(truth.shape)
            np.testing.assert_allclose(found, truth, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(blocks["token_lse"], torch.logsumexp(scores[..., columns], 1), rtol=1e-5, atol=1e-5)


def test_text_around_the_references_and_its_padding(memory: type[MemoryWriter]) -> None:
    pipeline, call = omnigen()
    record(pipeline, PATH, keys="text", **call())
    ((start, stop),) = spans(pipeline, call())
    layer = memory.last.trace.layers[0]
    assert [(g.name, g.tokens) for g in layer.groups] == [
        ("text_0", start),
        ("text_1", layer.call_tokens - GENERATED - 1 - stop),
        ("time", 1),
    ]
    shares = decode_probability(memory.last.blocks[0, 0, "cond", 0]["probability"])
    assert (shares[..., 0] == 0).all(), "the row is padded to the length of the longest prompt"
    assert (shares[..., start - 1] > 0).all()
    with pytest.raises(UnsupportedModel, match=r"changed during the run.*record one branch"):
        record(pipeline, PATH, keys="text", branches="both", **call())


@pytest.mark.parametrize("samples", [1, 2])
def test_omnigen_without_a_reference_has_text_in_both_branches(samples: int, memory: type[MemoryWriter]) -> None:
    pipeline, call = omnigen(references=0, samples=samples)
    plain = pipeline(**call()).images
    assert np.array_equal(plain, record(pipeline, PATH, branches="both", **call()).images)
    assert memory.last.trace.samples == samples
    assert len(memory.last.blocks) == 2 * samples * 2 * 2


def test_a_branch_without_the_reference_is_absent_on_disk_too(tmp_path: Path) -> None:
    pipeline, call = omnigen(samples=2)
    record(pipeline, tmp_path / "run.zarr", branches="both", progress=False, **call())
    run = open_trace(tmp_path / "run.zarr")
    assert np.isfinite(r2g(run).to_numpy()).all() and np.isfinite(g2r(run).to_numpy()).all()
    assert g2r(run).shape[-2:] == (4, 2)


@pytest.mark.parametrize("guided", [True, False])
def test_the_read_pass_has_the_reference_behind_the_images_own_keys(guided: bool, memory: type[MemoryWriter]) -> None:
    pipeline, call = build("reference-only" if guided else "reference-only-unguided")
    spy = Spy(pipeline)
    with spy:
        plain = pipeline(**call()).images
    branches = ("cond", "uncond") if guided else ("cond",)
    recorded = record(pipeline, PATH, keys="reference", encoding="factors", branches="both" if guided else "cond", **call())
    assert np.array_equal(plain, recorded.images)
    trace = memory.last.trace
    assert [layer.path.rpartition(".")[2] for layer in trace.layers] == ["attn1"] * 4
    assert len(memory.last.commits) == 3, "the pass over the reference is no step"
    assert len(memory.last.blocks) == 4 * 3 * len(branches)
    entries = 3 if guided else 2  # write, read, and once more for those that are not guided
    for (index, _, branch, step), blocks in memory.last.blocks.items():
        layer = trace.layers[index]
        assert [(g.name, g.grid, g.image) for g in layer.groups] == [("reference", (8, 6), "reference")]
        row = int(guided and branch == "cond")
        (_, written, _), (query, key, _) = (spy.calls[layer.path][entries * step + at][0] for at in (0, 1))
        assert key.shape[2] == 2 * OWN
        check_factors(blocks, layer, query[row], key[row], key[row][:, OWN:])
        np.testing.assert_allclose(blocks["key"], written[row], atol=1e-5)


def test_reference_only_beside_text_and_without_attention(memory: type[MemoryWriter]) -> None:
    pipeline, call = reference_only()
    record(pipeline, PATH, **call())
    roles = {(layer.path.rpartition(".")[2], layer.groups[0].role) for layer in memory.last.trace.layers}
    assert roles == {("attn1", "reference"), ("attn2", "text")}
    with pytest.raises(UnsupportedModel, match=r"reference_attn=True"):
        record(pipeline, PATH, keys="reference", **{**call(), "reference_attn": False})
    record(pipeline, PATH, **{**call(), "reference_attn": False})
    assert {layer.groups[0].role for layer in memory.last.trace.layers} == {"text"}


def test_a_reference_that_is_no_whole_multiple_of_the_image_is_refused(memory: type[MemoryWriter]) -> None:
    pipeline, call = reference_only()
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1

    def cut(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = kwargs.get("encoder_hidden_states")
        return args, {**kwargs, "encoder_hidden_states": given if given is None or given.shape[1] == OWN else given[:, :-1]}

    attention.register_forward_pre_hook(cut, with_kwargs=True)
    with pytest.raises(UnsupportedModel, match=r"mid_block.*attn1 was given 95 keys in the place of its own 48.*leave the module out"):
        record(pipeline, PATH, keys="reference", **call())


@pytest.mark.parametrize(
    ("size", "most", "window"),
    [
        ((64, 48), 1024, None),
        ((70, 40), 64, (70 / 64 * 0, 40 / 37 * 2, 70, 40 / 37 * 34)),
        ((40, 30), 1024, (4, 7, 36, 23)),
        ((8, 32), 1024, None),
        ((4096, 2048), 1024, (0, 0, 4096, 2048)),
    ],
)
def test_omnigen_crops_to_whole_tokens(size: tuple[int, int], most: int, window: Any) -> None:
    pipeline, _ = omnigen(references=0)
    found = reference_window(pipeline, picture(0, *size), most)
    assert found == cropped_window(*size, most)
    expected = None if window == (0, 0, *size) else window
    assert (found is None) == (expected is None)
    if expected is not None:
        np.testing.assert_allclose(found, expected)
