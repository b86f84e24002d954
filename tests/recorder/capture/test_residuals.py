"""Norms of the residual stream: those of what torch itself adds each module's output to, and none where it adds it to nothing as it is."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from pipelines_transformers import SHARED
from pipelines_video import VIDEO
from torch import Tensor
from torch.overrides import TorchFunctionMode

from i2am.recorder import record
from i2am.recorder.capture.modules import attention_modules
from pipelines import ip_adapter, sdxl, text_to_image

__all__ = ["memory"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PATH = Path("nowhere.zarr")
ADDED = {
    "text": text_to_image,
    "adapter": lambda: ip_adapter("full"),
    "sdxl": sdxl,
    "wan": SHARED["wan-image"],
    "video": VIDEO["svd"],
}
GATED = {"flux": SHARED["flux"], "sd3": SHARED["sd3"], "added-keys": SHARED["kandinsky"]}


class Sums(TorchFunctionMode):
    """An independent look: norms of what each module's output is added to, one a run of the module, (row, x)."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.norms: dict[str, list[np.ndarray]] = defaultdict(list)
        self._made: list[tuple[str, Tensor]] = []
        modules = attention_modules(pipeline).items()
        self.handles = [module.register_forward_hook(self._leaving(path)) for path, module in modules]

    def _leaving(self, path: str) -> Any:
        return lambda module, args, output: self._made.append((path, output)) if isinstance(output, Tensor) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "add" in getattr(func, "__name__", ""):
            for path, output in self._made[-1:]:
                for other in args[:2] if any(each is output for each in args[:2]) else ():
                    if other is not output:
                        self.norms[path].append(np.linalg.norm(other.detach().double().numpy(), axis=-1))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("branch", ["cond", "both"])
def test_norms_are_those_of_what_torch_adds_the_output_to(name: str, branch: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = ADDED[name]()
    plain = np.asarray(next(iter(pipeline(**call()).values())))
    with Sums(pipeline) as sums:
        seen = record(pipeline, PATH, encoding="factors", values="full", branches=branch, progress=False, **call())
    for handle in sums.handles:
        handle.remove()
    assert np.array_equal(plain, np.asarray(next(iter(seen.values()))))
    made = memory.last
    assert all(layer.residual for layer in made.trace.layers)
    assert "without_residuals" not in made.trace.provenance
    for (index, _, _, step), blocks in made.blocks.items():
        layer, found = made.trace.layers[index], blocks["residual_norm"]
        runs = sums.norms[layer.path]
        here = runs[step * len(runs) // made.trace.steps : (step + 1) * len(runs) // made.trace.steps]
        rows = np.concatenate([run.reshape(-1, run.shape[-1]) for run in here])
        if layer.frames and "temporal" in layer.path:
            rows = rows.reshape(-1, *layer.grid, layer.frames).transpose(0, 3, 1, 2)
        rows = rows.reshape(-1, *layer.places)
        assert min(float(np.abs(found - row).max() / row.max()) for row in rows) < 1e-6


@pytest.mark.parametrize("name", GATED)
def test_layers_without_a_plain_sum_keep_none_and_are_named(name: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = GATED[name]()
    record(pipeline, PATH, encoding="factors", values="full", keys="all", progress=False, **call())
    layers = [layer for layer in memory.last.trace.layers if layer.values == "full"]
    assert layers
    assert not any(layer.residual for layer in layers)
    assert list(memory.last.trace.provenance["without_residuals"].values()) == [[layer.name for layer in layers]]


def test_norms_of_values_come_without_the_residual_stream(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    record(pipeline, PATH, values="norms", progress=False, **call())
    assert not any(layer.residual for layer in memory.last.trace.layers)
    assert "without_residuals" not in memory.last.trace.provenance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_known_in_half_precision(dtype: torch.dtype, memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    pipeline.to(dtype)
    given = {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in call().items()}
    record(pipeline, PATH, values="full", progress=False, **given)
    assert all(layer.residual for layer in memory.last.trace.layers)
