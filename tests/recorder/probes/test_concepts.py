"""Concepts beside a run of Flux: how far positions agree with them is what the method says, and no bit of the picture changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from pipelines_text import LENGTH, prompted, prompted_flux
from pipelines_transformers import SHARED, flux_transformer
from torch import Tensor

from i2am.recorder import record, recording
from i2am.schema.errors import InvalidInput, UnsupportedModel

__all__ = ["memory"]

PATH = Path("nowhere.zarr")
CONCEPTS = ("a zebra", "cat", "sky")


def flux(blocks: int = 3, **changes: Any) -> tuple[Any, Any]:
    pipeline, call = prompted_flux(**changes)
    torch.manual_seed(0)
    pipeline.register_modules(transformer=flux_transformer(blocks=blocks))
    return pipeline, call


class Watch:
    """What each double block is given, and what the denoiser is, one entry for each of its runs."""

    def __init__(self, transformer: Any) -> None:
        self.given: list[dict[str, Any]] = []
        self.blocks: list[list[dict[str, Any]]] = []
        self.handles = [transformer.register_forward_pre_hook(self._begin, with_kwargs=True)]
        self.handles += [block.register_forward_pre_hook(self._enter, with_kwargs=True) for block in transformer.transformer_blocks]

    def _begin(self, _: Any, args: Any, kwargs: Any) -> None:
        self.given.append(dict(kwargs))
        self.blocks.append([])

    def _enter(self, _: Any, args: Any, kwargs: Any) -> None:
        self.blocks[-1].append(dict(kwargs))


def heads(tensor: Tensor, count: int) -> Tensor:
    return tensor.unflatten(-1, (count, -1)).transpose(1, 2)


def rotated(tensor: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Neighbouring channels turned by the angle of their place."""
    cosine, sine = angles
    even, odd = tensor[..., 0::2], tensor[..., 1::2]
    return tensor * cosine + torch.stack([-odd, even], -1).flatten(-2) * sine


def agreement(pipeline: Any, given: dict[str, Any], blocks: list[dict[str, Any]]) -> list[Tensor]:
    """The method from its description, in float64: (row, concept, place) of each block."""
    net = pipeline.transformer
    ids = pipeline.tokenizer_2(
        list(CONCEPTS), padding="max_length", max_length=given["encoder_hidden_states"].shape[1], return_tensors="pt"
    )
    first = pipeline.text_encoder_2(ids.input_ids)[0][:, 0]
    net = net.double()
    concept = net.context_embedder(first.double())[None].repeat(given["hidden_states"].shape[0], 1, 1)
    pooled = torch.zeros_like(given["pooled_projections"]).double()
    numbers = [1000 * given[name].double() for name in ("timestep", "guidance") if given[name] is not None]
    when = net.time_text_embed(*numbers, pooled)
    found = []
    for block, seen in zip(net.transformer_blocks, blocks, strict=True):
        attend, count = block.attn, block.attn.heads
        image = block.norm1(seen["hidden_states"].double(), emb=seen["temb"].double())[0]
        text = block.norm1_context(seen["encoder_hidden_states"].double(), emb=seen["temb"].double())[0]
        words, gate, shift, scale, last = block.norm1_context(concept, emb=when)
        angles = tuple(angle.double() for angle in seen["image_rotary_emb"])
        places = tuple(angle[text.shape[1] :] for angle in angles)
        nowhere = tuple(angle.double() for angle in net.pos_embed(torch.zeros(len(CONCEPTS), 3)))
        q, k = (rotated(norm(heads(to(image), count)), places) for to, norm in ((attend.to_q, attend.norm_q), (attend.to_k, attend.norm_k)))
        v = heads(attend.to_v(image), count)
        added = (attend.add_q_proj, attend.norm_added_q), (attend.add_k_proj, attend.norm_added_k)
        at_text = tuple(angle[: text.shape[1]] for angle in angles)
        _, text_k = (rotated(norm(heads(to(text), count)), at_text) for to, norm in added)
        concept_q, concept_k = (rotated(norm(heads(to(words), count)), nowhere) for to, norm in added)
        text_v, concept_v = heads(attend.add_v_proj(text), count), heads(attend.add_v_proj(words), count)
        size = q.shape[-1] ** -0.5
        seen_by_image = (q @ torch.cat([text_k, k], 2).mT * size).softmax(-1) @ torch.cat([text_v, v], 2)
        seen_by_concept = (concept_q @ torch.cat([concept_k, k], 2).mT * size).softmax(-1) @ torch.cat([concept_v, v], 2)
        found.append(torch.einsum("bhcd,bhxd->bcx", seen_by_concept, seen_by_image))
        concept = concept + gate[:, None] * attend.to_add_out(seen_by_concept.transpose(1, 2).flatten(2))
        concept = concept + last[:, None] * block.ff_context(block.norm2_context(concept) * (1 + scale[:, None]) + shift[:, None])
    return found


@pytest.mark.parametrize("values", ["none", "full"])
@pytest.mark.parametrize("samples", [1, 2])
def test_agreement_is_the_methods_and_the_picture_is_the_same(values: str, samples: int, memory: type[MemoryWriter]) -> None:
    pipeline, call = flux(num_images_per_prompt=samples)
    plain = pipeline(**call()).images
    watch = Watch(pipeline.transformer)
    seen = record(pipeline, PATH, keys="text", values=values, concepts=CONCEPTS, progress=False, **call()).images
    for handle in watch.handles:
        handle.remove()
    assert np.array_equal(plain, seen)
    trace = memory.last.trace
    double = [layer for layer in trace.layers if not layer.path.startswith("transformer.single")]
    assert [layer.concepts for layer in double] == [CONCEPTS] * 3
    assert not any(layer.concepts for layer in trace.layers if layer not in double)
    with torch.no_grad():
        truth = [agreement(pipeline, given, blocks) for given, blocks in zip(watch.given, watch.blocks, strict=True)]
    for (index, sample, _, step), blocks in memory.last.blocks.items():
        if trace.layers[index].concepts:
            expected = truth[step][int(trace.layers[index].path.split(".")[2])][sample].reshape(len(CONCEPTS), *trace.layers[index].grid)
            np.testing.assert_allclose(blocks["concept_score"], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["kontext", "guided"])
def test_agreement_is_of_the_image_being_made_and_of_each_branch(kind: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = flux()
    more: dict[str, Any] = {"negative_prompt": "a cat", "true_cfg_scale": 3.0}
    if kind == "kontext":
        other, given = SHARED["kontext"]()
        pipeline = type(other)(**{**pipeline.components, "image_encoder": None, "feature_extractor": None})
        pipeline.tokenizer_max_length = LENGTH
        pipeline.set_progress_bar_config(disable=True)
        more = {name: given()[name] for name in ("image", "max_area", "_auto_resize", "height", "width")}
    plain = pipeline(**call(), **{name: value for name, value in more.items() if name not in call()}).images
    watch = Watch(pipeline.transformer)
    given = {**call(), **{name: value for name, value in more.items() if name not in call()}}
    both = {"keys": "all", "concepts": CONCEPTS, "branches": "both" if kind == "guided" else "cond"}
    assert np.array_equal(plain, record(pipeline, PATH, **both, progress=False, **given).images)
    for handle in watch.handles:
        handle.remove()
    branches = memory.last.trace.branches
    with torch.no_grad():
        truth = [agreement(pipeline, seen, blocks) for seen, blocks in zip(watch.given, watch.blocks, strict=True)]
    for (index, sample, branch, step), blocks in memory.last.blocks.items():
        if (layer := memory.last.trace.layers[index]).concepts:
            run = step * len(branches) + branches.index(branch)
            expected = truth[run][int(layer.path.split(".")[2])][sample][:, : layer.grid[0] * layer.grid[1]]
            found = blocks["concept_score"].reshape(len(CONCEPTS), -1)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_choice_of_layers_steps_and_heads_leaves_their_agreement_as_it_is(memory: type[MemoryWriter]) -> None:
    pipeline, call = flux()
    record(pipeline, PATH, keys="text", concepts=CONCEPTS, progress=False, **call())
    whole = memory.last
    chosen = {"layers": "*transformer_blocks.1.attn", "steps": [1], "heads": [0]}
    record(pipeline, PATH, keys="text", concepts=CONCEPTS, **chosen, progress=False, **call())
    (layer,) = [layer for layer in memory.last.trace.layers if layer.concepts]
    at = whole.layer(layer.name)
    np.testing.assert_array_equal(memory.last.blocks[0, 0, "cond", 0]["concept_score"], whole.blocks[at, 0, "cond", 1]["concept_score"])


def test_they_are_kept_with_maps_in_place_of_attention_too(memory: type[MemoryWriter]) -> None:
    pipeline, call = flux()
    record(pipeline, PATH, keys="text", concepts=CONCEPTS, progress=False, **call())
    whole = memory.last
    record(pipeline, PATH, keys="text", keep="maps", concepts=CONCEPTS, progress=False, **call())
    scores = {at: blocks["concept_score"] for at, blocks in memory.last.blocks.items() if "concept_score" in blocks}
    assert len(scores) == 6
    for at, found in scores.items():
        np.testing.assert_array_equal(found, whole.blocks[at]["concept_score"])


def test_texts_of_the_run_are_known_as_without_concepts(memory: type[MemoryWriter]) -> None:
    pipeline, call = flux()
    record(pipeline, PATH, keys="text", progress=False, **call())
    plain = memory.last.trace.texts
    record(pipeline, PATH, keys="text", concepts=CONCEPTS, progress=False, **call())
    assert memory.last.trace.texts == plain


def test_concepts_run_in_half_precision(memory: type[MemoryWriter]) -> None:
    pipeline, call = flux()
    pipeline.to(torch.bfloat16)
    plain = pipeline(**call()).images
    seen = record(pipeline, PATH, keys="text", concepts=CONCEPTS, progress=False, **call()).images
    assert np.array_equal(plain, seen)
    assert all(np.isfinite(blocks["concept_score"]).all() for blocks in memory.last.blocks.values() if "concept_score" in blocks)


def test_an_adapters_calls_leave_concepts_as_they_are(memory: type[MemoryWriter]) -> None:
    pipeline, call = SHARED["flux-ip"]()
    encoders, more = prompted_flux()
    parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    pipeline.register_modules(**{name: getattr(encoders, name) for name in parts})
    pipeline.tokenizer_max_length = encoders.tokenizer_max_length
    given = {**more(), "ip_adapter_image": call()["ip_adapter_image"]}
    plain = pipeline(**given | {"generator": more()["generator"]}).images
    seen = record(pipeline, PATH, keys="all", concepts=CONCEPTS, progress=False, **given | {"generator": more()["generator"]}).images
    assert np.array_equal(plain, seen)
    assert {layer.name: bool(layer.concepts) for layer in memory.last.trace.layers if "single" not in layer.path} == {
        "transformer.transformer_blocks.0.attn": True,
        "transformer.transformer_blocks.0.attn#1": False,
    }


def test_fused_projections_leave_concepts_as_they_are(memory: type[MemoryWriter]) -> None:
    pipeline, call = flux()
    record(pipeline, PATH, keys="text", concepts=CONCEPTS, progress=False, **call())
    plain = memory.last
    pipeline.transformer.fuse_qkv_projections()
    record(pipeline, PATH, keys="text", concepts=CONCEPTS, progress=False, **call())
    for at, blocks in memory.last.blocks.items():
        if "concept_score" in blocks:
            np.testing.assert_allclose(blocks["concept_score"], plain.blocks[at]["concept_score"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (["cat"], r"concepts='cat' is one concept"),
        (["cat", "cat"], r"concepts= holds 'cat', twice"),
        (["cat", ""], r"concepts= holds '', which is no text"),
        ("cat", r"is one concept"),
        ([1, 2], r"concepts= holds 1, which is no text"),
    ],
)
def test_what_is_no_choice_of_concepts_is_refused(concepts: Any, message: str) -> None:
    pipeline, call = flux()
    with pytest.raises(InvalidInput, match=message):
        record(pipeline, PATH, keys="text", concepts=concepts, progress=False, **call())


def test_models_and_runs_that_cannot_have_concepts_are_refused_by_name() -> None:
    pipeline, call = prompted()
    with pytest.raises(UnsupportedModel, match=r"FluxTransformer2DModel, and StableDiffusionPipeline has UNet2DConditionModel; .*concepts"):
        record(pipeline, PATH, concepts=CONCEPTS, progress=False, **call())
    pipeline, call = flux()
    with pytest.raises(UnsupportedModel, match=r"no chosen module is in a double block.*transformer_blocks\.0\.attn"):
        record(pipeline, PATH, keys="text", layers="*single*", concepts=CONCEPTS, progress=False, **call())
    with pytest.raises(InvalidInput, match=r"concepts are encoded as a diffusers pipeline encodes its own inputs"):
        recording(pipeline, PATH, denoisers={"transformer": pipeline.transformer}, groups=["text"], concepts=CONCEPTS)
    pipeline, call = SHARED["flux"]()
    with pytest.raises(UnsupportedModel, match=r"FluxPipeline cannot encode concepts: .*; load its text encoders"):
        record(pipeline, PATH, keys="text", concepts=CONCEPTS, progress=False, **call())
