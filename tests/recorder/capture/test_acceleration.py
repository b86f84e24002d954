"""What makes sampling faster or smaller does not get into the way: caches, offloading, fused projections, compiling, backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig, StableDiffusion3PAGPipeline
from memory import MemoryWriter, memory
from peft import LoraConfig
from pipelines_transformers import flux_adapter, flux_guided, kandinsky, kontext, sd3, wan

from i2am.recorder import record
from i2am.recorder.capture.modules import denoisers
from i2am.schema.errors import UnsupportedModel
from pipelines import Built, ip_adapter

__all__ = ["memory"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

PATH = Path("nowhere.zarr")


@pytest.fixture
def native() -> Iterator[None]:
    """diffusers keeps a backend that one model was given for all others too."""
    yield
    kontext()[0].transformer.set_attention_backend("native")


def first_block_cache() -> Built:
    pipeline, call = flux_guided()
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    return pipeline, call


def pyramid_broadcast() -> Built:
    pipeline, call = kontext()
    pipeline.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 2000),
            spatial_attention_block_identifiers=("transformer_blocks",),
            current_timestep_callback=lambda: 500,
        )
    )
    return pipeline, lambda: {**call(), "num_inference_steps": 4}


@pytest.mark.parametrize(
    ("made", "present"),
    [
        # The second block is skipped once the first one's output hardly changes.
        (first_block_cache, [(0, 0), (0, 1), (1, 0)]),
        (pyramid_broadcast, [(0, 0), (0, 2), (1, 0), (1, 2)]),
    ],
)
def test_cached_calls_are_absent(made: Callable[[], Built], present: Any, memory: type[MemoryWriter]) -> None:
    pipeline, call = made()
    plain = pipeline(**call()).images
    assert np.array_equal(plain, record(pipeline, PATH, **call()).images)
    assert sorted({(index, step) for index, _, _, step in memory.last.blocks}) == present
    assert len(memory.last.commits) == call()["num_inference_steps"]


def fuse(pipeline: Any) -> None:
    pipeline.transformer.fuse_qkv_projections()


def offload(pipeline: Any) -> None:
    cpu = torch.device("cpu")
    pipeline.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def offload_blocks(pipeline: Any) -> None:
    cpu = torch.device("cpu")
    for denoiser in denoisers(pipeline).values():
        denoiser.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1)


def offload_models(pipeline: Any) -> None:
    pipeline.enable_model_cpu_offload(device="cpu")


def offload_layers(pipeline: Any) -> None:
    """What enable_sequential_cpu_offload does to each component: between its calls a layer's weights are nowhere."""
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            accelerate.cpu_offload(component, torch.device("cpu"))
    assert all(parameter.is_meta for denoiser in denoisers(pipeline).values() for parameter in denoiser.parameters())


def compile_whole(pipeline: Any) -> None:
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")


def compile_blocks(pipeline: Any) -> None:
    pipeline.transformer.compile_repeated_blocks(backend="eager")


def choose_math(pipeline: Any) -> None:
    pipeline.transformer.set_attention_backend("_native_math")


@pytest.mark.parametrize(
    ("change", "made"),
    [(change, kontext) for change in (fuse, offload, compile_whole, compile_blocks, choose_math)]
    + [(change, sd3) for change in (fuse, offload, compile_whole)],
)
def test_the_same_calls_are_seen(
    change: Callable[[Any], None], made: Callable[[], Built], native: None, memory: type[MemoryWriter]
) -> None:
    pipeline, call = made()
    record(pipeline, PATH, encoding="factors", **call())
    before = memory.last
    change(pipeline)
    plain = pipeline(**call()).images
    assert np.array_equal(plain, record(pipeline, PATH, encoding="factors", **call()).images)
    assert memory.last.trace.layers == before.trace.layers
    assert memory.last.blocks.keys() == before.blocks.keys()
    for at, blocks in memory.last.blocks.items():
        for name, numbers in blocks.items():
            np.testing.assert_allclose(numbers, before.blocks[at][name], atol=1e-4)


@pytest.mark.parametrize("change", [offload_models, offload_layers, offload_blocks])
@pytest.mark.parametrize(
    "made",
    [lambda: ip_adapter("full"), kontext, flux_adapter, kandinsky, lambda: wan(two=True)],
    ids=["ip", "kontext", "flux-ip", "kandinsky", "wan"],
)
def test_weights_may_come_and_go(change: Callable[[Any], None], made: Callable[[], Built], memory: type[MemoryWriter]) -> None:
    pipeline, call = made()
    there = record(pipeline, PATH, encoding="factors", branches="both" if "true_cfg_scale" in call() else "cond", **call())
    before = memory.last
    change(pipeline)
    moved = record(pipeline, PATH, encoding="factors", branches="both" if "true_cfg_scale" in call() else "cond", **call())
    assert np.array_equal(pictures_of(there), pictures_of(moved))
    assert memory.last.trace.layers == before.trace.layers
    assert memory.last.blocks.keys() == before.blocks.keys()
    for at, blocks in memory.last.blocks.items():
        assert all(np.array_equal(numbers, before.blocks[at][name]) for name, numbers in blocks.items())


def pictures_of(output: Any) -> Any:
    return np.asarray(output.images if hasattr(output, "images") else output.frames)


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (lambda: ip_adapter("full"), ("to_q", "to_k", "to_v")),
        (lambda: ip_adapter("full"), ("to_k_ip.0", "to_v_ip.0")),
        (flux_adapter, ("to_q", "to_k", "to_v", "add_k_proj", "to_k_ip.0")),
        (kontext, ("to_q", "to_k", "add_k_proj", "add_v_proj")),
    ],
)
def test_a_lora_is_part_of_query_and_key(made: Callable[[], Built], names: tuple[str, ...], memory: type[MemoryWriter]) -> None:
    pipeline, call = made()
    (denoiser,) = denoisers(pipeline).values()
    record(pipeline, PATH, encoding="factors", keys="all", **call())
    without = memory.last.blocks
    torch.manual_seed(5)
    denoiser.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=list(names), init_lora_weights=False))
    plain = pictures_of(pipeline(**call()))
    assert np.array_equal(plain, pictures_of(record(pipeline, PATH, encoding="factors", keys="all", **call())))
    beside = memory.last
    denoiser.fuse_lora()
    record(pipeline, PATH, encoding="factors", keys="all", **call())
    assert memory.last.trace.layers == beside.trace.layers
    for at, blocks in beside.blocks.items():
        for name, numbers in blocks.items():
            np.testing.assert_allclose(numbers, memory.last.blocks[at][name], rtol=1e-3, atol=1e-3)
    changed = {
        name for at, blocks in without.items() for name in blocks if not np.allclose(blocks[name], beside.blocks[at][name], atol=1e-2)
    }
    assert "key" in changed


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_backend_that_is_not_seen_is_named(native: None) -> None:
    pipeline, call = kontext()
    pipeline.transformer.set_attention_backend("flex")
    with pytest.raises(UnsupportedModel, match=r"transformer_blocks\.0\.attn ran.*backend is 'flex'.*set_attention_backend\(\"native\"\)"):
        record(pipeline, PATH, **call())


def test_perturbed_rows_of_a_joint_softmax_are_neither_branch(memory: type[MemoryWriter]) -> None:
    plain_pipeline, call = sd3()
    pipeline = StableDiffusion3PAGPipeline.from_pipe(plain_pipeline, pag_applied_layers=["blocks.1"])
    pipeline.set_progress_bar_config(disable=True)
    arguments = {**call(), "pag_scale": 2.0}
    plain = pipeline(**{**call(), "pag_scale": 2.0}).images
    assert np.array_equal(plain, record(pipeline, PATH, branches="both", **arguments).images)
    assert {(index, branch) for index, _, branch, _ in memory.last.blocks} == {(i, b) for i in (0, 1) for b in ("cond", "uncond")}
    assert memory.last.trace.samples == 1


def test_a_pass_without_some_layers_is_neither_branch(memory: type[MemoryWriter]) -> None:
    pipeline, call = sd3()
    skipping = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0, "num_inference_steps": 4}
    plain = pipeline(**{**call(), **skipping}).images
    assert np.array_equal(plain, record(pipeline, PATH, **{**call(), **skipping}).images)
    assert [step for index, *_, step in memory.last.blocks if index == 0] == [0, 1, 2, 3]


def test_the_names_of_passes_are_read_and_the_class_is_left_as_it_was(memory: type[MemoryWriter]) -> None:
    pipeline, call = flux_guided()
    context = type(pipeline.transformer).cache_context
    record(pipeline, PATH, branches="both", **call())
    assert type(pipeline.transformer).cache_context is context
    assert {branch for _, _, branch, _ in memory.last.blocks} == {"cond", "uncond"}
