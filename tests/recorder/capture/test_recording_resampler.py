"""The attention that makes an adapter's tokens: the model's own, one layer a reference, and no image changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from pipelines_transformers import build

from i2am.analyzer import carry, g2r, open_trace
from i2am.analyzer.inspection.verify import verify
from i2am.recorder import record
from i2am.recorder.capture.resampler import resampler_of
from i2am.schema.trace import Layer
from pipelines import ip_adapter, picture

__all__ = ["memory"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]

PATH = Path("nowhere.zarr")
HEADS = {"ip-plus": 1, "sd3-ip": 2}


def family(name: str) -> tuple[Any, Any]:
    return ip_adapter("plus") if name == "ip-plus" else build(name)


def weights_of(pipeline: Any, layer: Layer) -> Any:
    return pipeline.get_submodule(layer.path) if hasattr(pipeline, "get_submodule") else _find(pipeline, layer.path)


def _find(pipeline: Any, path: str) -> Any:
    root, _, rest = path.partition(".")
    return getattr(pipeline, root).get_submodule(rest)


@pytest.mark.parametrize("name", ["ip-plus", "sd3-ip"])
def test_tokens_are_made_as_the_model_makes_them(name: str, memory: type[MemoryWriter]) -> None:
    """Each block's recorded attention, applied to the block's own values, is what the block put out."""
    pipeline, call = family(name)
    plain = np.asarray(pipeline(**call()).images)
    made: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    values: dict[str, torch.Tensor] = {}
    handles = []
    denoiser = next(root for root in ("unet", "transformer") if hasattr(pipeline, root))
    for path, module in getattr(pipeline, denoiser).named_modules():
        if resampler_of(f"{denoiser}.{path}") is None:
            continue
        where = f"{denoiser}.{path}"
        fused = module.to_k is None

        def keep_value(_: Any, args: Any, output: torch.Tensor, where: str = where, fused: bool = fused) -> None:
            values[where] = output.chunk(2, -1)[1] if fused else output

        def keep_result(_: Any, args: Any, output: Any, where: str = where) -> None:
            made.setdefault(where, []).append((values[where].clone(), args[0].clone()))

        handles.append((module.to_kv if fused else module.to_v).register_forward_hook(keep_value))
        handles.append(module.to_out[0].register_forward_hook(keep_result))
    recorded = record(pipeline, PATH, branches="both", **call())
    for handle in handles:
        handle.remove()
    assert np.array_equal(plain, np.asarray(recorded.images))
    layers = {i: layer for i, layer in enumerate(memory.last.trace.layers) if layer.queries}
    assert layers and {layer.path for layer in layers.values()} == set(made)
    count = 0
    for (index, sample, branch, step), blocks in memory.last.blocks.items():
        if index not in layers:
            continue
        count += 1
        layer = layers[index]
        value, result = (x[1 if branch == "cond" else 0] for x in made[layer.path][step])
        probability = torch.from_numpy(blocks["probability"].astype(np.float64)) * 2.0**-15  # (head, 1, token, key)
        attended = probability[:, 0] @ value.unflatten(-1, (layer.heads, -1)).transpose(0, 1).double()
        np.testing.assert_allclose(attended.transpose(0, 1).flatten(1), result.double(), rtol=1e-2, atol=1e-3)
        assert sample == 0
    assert count == len(layers) * 2 * len(memory.last.commits)


def test_every_reference_has_its_own_layer(memory: type[MemoryWriter]) -> None:
    pipeline, call = ip_adapter("plus", "full", ip_adapter_image=[[picture(1), picture(2)], picture(3)])
    record(pipeline, PATH, encoding="factors", **call())
    layers = [layer for layer in memory.last.trace.layers if layer.queries]
    assert {(layer.queries, layer.call) for layer in layers} == {("reference_0", 0), ("reference_1", 1)}
    first = layers[0]
    assert [(g.name, g.role, g.tokens, g.grid, g.image) for g in first.groups] == [
        ("reference_0", "reference", 17, (4, 4), "reference_0"),
        ("latents", "self", 16, None, None),
    ]
    keys = {
        (layer.path, layer.queries): memory.last.blocks[i, 0, "cond", 0]["key"]
        for i, layer in enumerate(memory.last.trace.layers)
        if layer.queries
    }
    path = layers[0].path
    assert not np.array_equal(keys[path, "reference_0"], keys[path, "reference_1"])


def test_layers_and_keys_choose_it_as_any_other(memory: type[MemoryWriter]) -> None:
    pipeline, call = ip_adapter("plus")
    for options in ({"keys": "text"}, {"layers": "*attn2"}):
        record(pipeline, PATH, **options, **call())
        assert not any(layer.queries for layer in memory.last.trace.layers)
    record(pipeline, PATH, layers=["*mid_block*", "*layers.0.attn"], **call())
    assert [layer.queries for layer in memory.last.trace.layers].count("reference") == 1


def test_maps_of_a_recorded_adapter_lie_on_the_reference(tmp_path: Path) -> None:
    pipeline, call = ip_adapter("plus")
    record(pipeline, tmp_path / "run.zarr", progress=False, **call())
    assert verify(tmp_path / "run.zarr").ok
    trace = open_trace(tmp_path / "run.zarr")
    tokens = g2r(trace, group="reference")
    assert tokens.dims == ("token",)
    patches = carry(trace, tokens)
    assert patches.shape == (4, 4) and patches.attrs["image"] == "reference"
    assert 0 < float(patches.sum()) <= float(tokens.sum()) + 1e-6
