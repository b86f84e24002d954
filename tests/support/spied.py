"""An independent look at attention calls, and what the recorder kept of them held against it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from i2am.recorder.capture.modules import attention_modules
from i2am.schema.codec import decode_probability
from i2am.schema.trace import Layer


class Spy(TorchFunctionMode):
    """An independent look at attention: every call's query and key, by module and pass."""

    def __init__(self, pipeline: Any, alone: bool = False) -> None:
        super().__init__()
        self.calls: dict[str, list[list[Any]]] = defaultdict(list)
        self.path: str | None = None
        self.handles: list[Any] = []
        for path, module in attention_modules(pipeline, alone).items():
            self.handles.append(module.register_forward_pre_hook(self._entering(path)))
            self.handles.append(module.register_forward_hook(self._leaving))

    def _entering(self, path: str) -> Any:
        def enter(*_: Any) -> None:
            self.path = path
            self.calls[path].append([])

        return enter

    def _leaving(self, *_: Any) -> None:
        self.path = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention and self.path is not None:
            given = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **(kwargs or {})}
            self.calls[self.path][-1].append((given["query"].clone(), given["key"].clone(), given.get("attn_mask")))
        return func(*args, **(kwargs or {}))


def check_factors(blocks: Any, layer: Layer, query: torch.Tensor, every: torch.Tensor, kept: torch.Tensor) -> None:
    assert np.array_equal(blocks["query"], query.unflatten(1, layer.places).numpy())
    assert np.array_equal(blocks["key"], kept.numpy())
    assert ("query_lse" in blocks) == (every.shape[1] > kept.shape[1])
    if "query_lse" in blocks:
        total = torch.logsumexp(query.double() @ every.double().transpose(1, 2) * layer.scale, 2)
        np.testing.assert_allclose(blocks["query_lse"].reshape(total.shape), total, rtol=1e-5, atol=1e-5)


def check_probabilities(blocks: Any, layer: Layer, query: torch.Tensor, every: torch.Tensor, kept: torch.Tensor) -> None:
    scores = query.double() @ every.double().transpose(1, 2) * layer.scale
    a = torch.logsumexp(scores, 2)
    part = query.double() @ kept.double().transpose(1, 2) * layer.scale
    truth = torch.exp(part - a[..., None])
    found = decode_probability(blocks["probability"])
    np.testing.assert_allclose(found.reshape(truth.shape), truth, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(blocks["query_lse"].reshape(a.shape), a, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(blocks["token_lse"], torch.logsumexp(part, 1), rtol=1e-5, atol=1e-5)
    generated = found.reshape(truth.shape) * np.exp(a.numpy()[..., None] - blocks["token_lse"][:, None, :])
    np.testing.assert_allclose(generated.sum(1), 1, atol=1e-3)
