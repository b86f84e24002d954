"""Which rows are cond is proven from the pipeline's inputs, and from what it makes of the denoiser's outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory import MemoryWriter, memory
from pipelines_proofs import conditional_first, longcat, lumina, modular_sdxl, sana_sprint

from i2am.recorder import record
from i2am.recorder.labels.guidance import Inputs, leading_part, settle
from i2am.recorder.labels.rows import is_guided
from i2am.schema.errors import UnsupportedModel
from pipelines import build

__all__ = ["memory"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

PATH = Path("nowhere.zarr")


def test_a_batch_that_begins_with_cond(memory: type[MemoryWriter]) -> None:
    pipeline, call = lumina()
    attention = pipeline.transformer.layers[0].attn2
    keys: list[torch.Tensor] = []
    attention.to_k.register_forward_hook(lambda module, args, output: keys.append(attention.norm_k(output).unflatten(2, (4, -1))))
    record(pipeline, PATH, branches="both", encoding="factors", **call())
    cond, uncond = keys[0].detach().transpose(1, 2)
    assert torch.equal(torch.from_numpy(memory.last.blocks[0, 0, "cond", 0]["key"]), cond)
    assert torch.equal(torch.from_numpy(memory.last.blocks[0, 0, "uncond", 0]["key"]), uncond)


@pytest.mark.parametrize("family", ["text", "text-two", "sdxl", "inpaint"])
def test_inputs_agree_with_the_expected_order(family: str, memory: type[MemoryWriter], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> tuple[str, ...]:
        return ("cond", "uncond")

    pipeline, call = build(family)
    record(pipeline, PATH, branches="both", **call())
    expected = memory.last.blocks
    monkeypatch.setattr("i2am.recorder.session.pipeline.row_order", wrong)
    pipeline, call = build(family)
    record(pipeline, PATH, branches="both", **call())
    assert expected.keys() == memory.last.blocks.keys()
    for place, blocks in expected.items():
        assert all((memory.last.blocks[place][name] == array).all() for name, array in blocks.items())


def test_guidance_that_leads_away_from_what_is_taken_for_cond_is_refused(memory: type[MemoryWriter]) -> None:
    with pytest.raises(UnsupportedModel, match="guides its run towards the part of the batch that was taken for uncond"):
        record(conditional_first()[0], PATH)
    record(conditional_first()[0], PATH, towards=1)


@pytest.mark.parametrize("samples", [1, 2])
def test_guidance_that_is_an_input_makes_no_guided_batch(samples: int, memory: type[MemoryWriter]) -> None:
    pipeline, call = sana_sprint(samples)
    record(pipeline, PATH, branches="both", **call())
    assert memory.last.trace.samples == samples
    assert {branch for _, _, branch, _ in memory.last.blocks} == {"cond"}


@pytest.mark.parametrize("branches", ["cond", "uncond", "both"])
def test_passes_of_one_branch_are_told_by_their_inputs(branches: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = modular_sdxl(guided=True)
    record(pipeline, PATH, layers="*mid_block*0.attn2", branches=branches, encoding="factors", **call())
    assert {branch for _, _, branch, _ in memory.last.blocks} == ({branches} if branches != "both" else {"cond", "uncond"})
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    for (_, _, branch, _), blocks in memory.last.blocks.items():
        with torch.no_grad():
            key = attention.to_k(call()["prompt_embeds" if branch == "cond" else "negative_prompt_embeds"])
        assert torch.equal(torch.from_numpy(blocks["key"]), key[0].unflatten(1, (4, -1)).transpose(0, 1))


@pytest.mark.parametrize("branches", ["cond", "uncond", "both"])
def test_passes_of_one_branch_are_told_by_their_names(branches: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = longcat()
    record(pipeline, PATH, branches=branches, **call())
    assert [branch for layer, _, branch, step in memory.last.blocks if layer == step == 0] == (
        [branches] if branches != "both" else ["cond", "uncond"]
    )


def test_texts_tell_where_no_embeddings_were_given() -> None:
    said = {0: ["a bad picture"], 1: ["A cat "], 2: ["You draw: a cat on a mat"], 3: [], 4: ["a <cat>"], 5: ["bad"]}
    inputs = Inputs({"prompt": "a cat", "negative_prompt": "bad"}, lambda vectors: said[int(vectors[0, 0])])
    rows = torch.arange(6).reshape(6, 1, 1)
    assert [inputs.branch([rows], row) for row in range(6)] == [None, "cond", "cond", None, None, "uncond"]
    within = Inputs(
        {"prompt": "a dog in rain", "negative_prompt": "rain"}, lambda vectors: [["rain"], ["a dog in rain"]][int(vectors[0, 0])]
    )
    assert [within.branch([rows], row) for row in range(2)] == ["uncond", "cond"]


def test_one_prompt_for_both_branches_tells_nothing() -> None:
    same = torch.ones(1, 3, 2)
    inputs = Inputs({"prompt_embeds": same, "negative_prompt_embeds": same}, lambda vectors: [])
    assert inputs.branch([torch.ones(2, 3, 2)], 0) is None
    assert settle(("uncond", "cond"), [None, None]) == ("uncond", "cond")


def test_rows_settle_the_order_of_parts() -> None:
    assert settle(("uncond", "cond"), ["cond", None]) == ("cond", "uncond")
    assert settle(("uncond", "cond"), [None, None, None, "uncond"]) == ("cond", "uncond")
    assert settle(("cond", None, "uncond"), ["cond", "uncond", "uncond"]) == ("cond", None, "uncond")
    assert settle(("uncond", "cond"), ["cond", "cond", "cond"]) == ("cond",)
    assert settle(("uncond", "cond", None), ["uncond", "cond", "cond"]) == ("uncond", "cond", None)
    with pytest.raises(UnsupportedModel, match=r"in some order.*denoisers="):
        settle(("uncond", "cond"), ["cond", "uncond", None, "cond"])


@given(st.floats(1.1, 30), st.floats(0.2, 3), st.sampled_from([-1, 1]), st.integers(0, 9), st.sampled_from([torch.float32, torch.float16]))
def test_the_leading_part_is_the_one_that_is_extrapolated_to(scale: float, gain: float, sign: int, seed: int, dtype: torch.dtype) -> None:
    first, second = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    guided = sign * gain * (first + scale * (second - first))
    assert leading_part(first, second, guided) is True
    assert leading_part(second, first, guided) is False
    assert leading_part(first, second, torch.randn(3, 8, 6)) is None
    assert leading_part(first, second, first + 0.5 * (second - first)) is None


def test_a_property_that_reads_what_the_call_has_yet_to_set_is_no_guidance() -> None:
    class Early:
        @property
        def do_classifier_free_guidance(self) -> bool:
            return bool(self._guidance_scale > 1)  # type: ignore[attr-defined]

    assert not is_guided(Early(), {"guidance_scale": 7.5})
