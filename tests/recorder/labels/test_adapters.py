"""IP-Adapters in company: face embeddings, several images, masks, scales by layer, ControlNet, perturbed guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from pipelines_adapters import ADAPTED, build, several_images, with_scales
from pipelines_transformers import flux_adapter

from i2am.recorder import record
from i2am.recorder.capture.modules import attention_modules
from i2am.recorder.labels.tokens import Context
from i2am.schema.errors import UnsupportedModel

__all__ = ["memory"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

PATH = Path("nowhere.zarr")
PATCHED = (1, (4, 4))
"""CLS and a grid."""
EXPECTED: dict[str, list[list[tuple[str, int, Any, str | None]]]] = {
    # For each adapter call of a module: name, tokens, specials and grid, picture of each group.
    "faceid": [[("reference", 4, (0, None), None)]],
    "several-images": [
        [("reference_0", 17, PATCHED, "reference_0"), ("reference_1", 17, PATCHED, "reference_1")],
        [("reference_2", 4, (0, None), "reference_2")],
    ],
    "several-images-masked": [
        [("reference_0", 17, PATCHED, "reference_0")],
        [("reference_1", 17, PATCHED, "reference_1")],
        [("reference_2", 4, (0, None), "reference_2")],
    ],
    "controlnet": [[("reference", 17, PATCHED, "reference")]],
    "perturbed": [[("reference", 17, PATCHED, "reference")]],
}


@pytest.mark.parametrize("family", ADAPTED)
def test_company_changes_no_bit(family: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = build(family)
    plain = pipeline(**call()).images
    assert np.array_equal(plain, record(pipeline, PATH, branches="both", **call()).images)
    trace, guided = memory.last.trace, {branch for _, _, branch, _ in memory.last.blocks}
    assert (trace.samples, len(memory.last.commits), guided) == (1, 3, {"cond", "uncond"})
    assert {layer.path for layer in trace.layers} == set(attention_modules(pipeline))
    assert len(memory.last.blocks) == len(trace.layers) * 2 * 3


@pytest.mark.parametrize("family", EXPECTED)
def test_each_reference_is_named_and_placed(family: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = build(family)
    record(pipeline, PATH, keys="reference", layers="*mid_block*", **call())
    found = [[(g.name, g.tokens, (g.specials, g.grid), g.image) for g in layer.groups] for layer in memory.last.trace.layers]
    assert found == EXPECTED[family]
    assert [layer.call for layer in memory.last.trace.layers] == list(range(1, 1 + len(found)))


def test_a_face_embedding_is_no_patch() -> None:
    pipeline, _ = build("faceid")
    assert Context.of(pipeline).adapters == ("IPAdapterFaceIDImageProjection",)


@pytest.mark.parametrize("family", ["several-images-masked", "perturbed"])
def test_adapter_keys_are_the_models_own(family: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = build(family)
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    keys: list[torch.Tensor] = []
    attention.processor.to_k_ip[0].register_forward_hook(lambda module, args, output: keys.append(output.clone()))
    record(pipeline, PATH, keys="reference", layers="*mid_block*", branches="both", encoding="factors", **call())
    each = 2 if family == "several-images-masked" else 1
    for (index, _, branch, step), blocks in memory.last.blocks.items():
        if memory.last.trace.layers[index].call > each:
            continue
        made = keys[step * each + memory.last.trace.layers[index].call - 1] if len(keys) > 3 else keys[step]
        row = made[1 if branch == "cond" else 0]
        row = row[memory.last.trace.layers[index].call - 1] if row.ndim == 3 else row
        assert np.array_equal(blocks["key"], row.unflatten(-1, (2, -1)).transpose(0, 1).numpy())


def test_a_scale_of_zero_is_absent_in_that_layer_only(memory: type[MemoryWriter]) -> None:
    pipeline, call = with_scales({"down": 0.5, "up": {"block_0": [0.0, 1.0]}})
    record(pipeline, PATH, keys="reference", **call())
    # The middle is not named, which diffusers reads as 0.
    assert [layer.path.split(".transformer")[0] for layer in memory.last.trace.layers] == [
        "unet.down_blocks.1.attentions.0",
        "unet.up_blocks.0.attentions.1",
    ]


def test_an_adapter_that_falls_silent_is_absent_from_then_on(memory: type[MemoryWriter]) -> None:
    pipeline, call = with_scales(1.0)

    def silence(this: Any, index: int, time: Any, values: Any) -> Any:
        this.set_ip_adapter_scale(0.0)
        return values

    record(pipeline, PATH, keys="reference", layers="*mid_block*", **{**call(), "callback_on_step_end": silence})
    assert [step for *_, step in memory.last.blocks] == [0]
    assert len(memory.last.commits) == 3


def test_flux_computes_a_muted_adapter_and_the_trace_leaves_it_out(memory: type[MemoryWriter]) -> None:
    pipeline, call = flux_adapter(blocks=2)
    pipeline.set_ip_adapter_scale([0.0, 0.5])
    plain = pipeline(**call()).images
    assert np.array_equal(plain, record(pipeline, PATH, keys="reference", **call()).images)
    assert [layer.name for layer in memory.last.trace.layers] == ["transformer.transformer_blocks.1.attn#1"]
    pipeline.set_ip_adapter_scale(0.0)
    with pytest.raises(UnsupportedModel, match="load an IP-Adapter with a scale above 0"):
        record(pipeline, PATH, keys="reference", **call())


def test_a_muted_image_of_several_is_absent(memory: type[MemoryWriter]) -> None:
    pipeline, call = several_images(masked=True)
    pipeline.set_ip_adapter_scale([[1.0, 0.0], 0.5])
    record(pipeline, PATH, keys="reference", layers="*mid_block*", **call())
    assert [layer.groups[0].name for layer in memory.last.trace.layers] == ["reference_0", "reference_2"]
