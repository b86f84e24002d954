"""Where a recording comes from: model, sampler, inputs, libraries and options, as plain JSON."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

LIBRARIES: Final = ("i2am", "torch", "diffusers", "transformers", "numpy", "zarr")
MANY: Final = 4096
"""Longest list of numbers that is kept."""


@functools.cache
def versions() -> Mapping[str, str]:
    """Versions of the libraries; looked up once, since Python keeps what each look finds as long as folders change."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def model_record(model: Any, denoisers: Mapping[str, nn.Module], components: Mapping[str, Any]) -> dict[str, Any]:
    """A model and its components: classes, names, hashes of their configs, device and dtype of the first denoiser."""
    parameter = next((parameter for denoiser in denoisers.values() for parameter in denoiser.parameters()), None)
    return {
        "pipeline": type(model).__name__,
        "name": _name(model, _config(model)),
        "components": {name: _component(part) for name, part in components.items() if _has_config(part)},
        "device": "" if parameter is None else str(parameter.device),
        "dtype": "" if parameter is None else str(parameter.dtype).removeprefix("torch."),
    }


def sampler_record(scheduler: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler's class and config, its timesteps and sigmas in this run, and the call's guidance."""
    return {
        "scheduler": type(scheduler).__name__,
        "config": to_plain(_config(scheduler)) or {},
        "timesteps": to_plain(getattr(scheduler, "timesteps", None)),
        "sigmas": to_plain(getattr(scheduler, "sigmas", None)),
        "guidance_scale": to_plain(arguments.get("guidance_scale")),
        "num_inference_steps": to_plain(arguments.get("num_inference_steps")),
    }


def input_record(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments as far as JSON can say them; seeds of generators; images and embeddings are left out."""
    record: dict[str, Any] = {"seed": _seed(arguments.get("generator"))}
    for name, value in arguments.items():
        if isinstance(value, (bool, int, float, str)) or (isinstance(value, (list, tuple, dict)) and value and to_plain(value) is not None):
            record[name] = to_plain(value)
    return record


def to_plain(value: Any) -> Any:
    """A value as JSON has it, exactly or not at all: None where it cannot be."""
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        return to_plain(value.tolist()) if 0 < math.prod(value.shape) <= MANY else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items() if not str(key).startswith("_")}
    if isinstance(value, (list, tuple)):
        items = [to_plain(item) for item in value[: MANY + 1]]
        whole = len(items) <= MANY and all(new is not None or old is None for new, old in zip(items, value, strict=True))
        return items if whole else None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) else None


def _seed(generator: Any) -> int | list[int] | None:
    if isinstance(generator, (list, tuple)):
        return [int(g.initial_seed()) for g in generator]
    return int(generator.initial_seed()) if isinstance(generator, torch.Generator) else None


def _has_config(part: Any) -> bool:
    return isinstance(part, nn.Module) or hasattr(part, "config") or hasattr(part, "to_dict")


def _component(part: Any) -> dict[str, str]:
    config = _config(part)
    text = json.dumps(config, sort_keys=True, default=str)
    return {"class": type(part).__name__, "name": _name(part, config), "config_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _name(part: Any, config: dict[str, Any]) -> str:
    return str(getattr(part, "name_or_path", "") or config.get("_name_or_path", "") or "")


def _config(part: Any) -> dict[str, Any]:
    config = getattr(part, "config", None)
    if isinstance(config, Mapping):
        return dict(config)
    describe = getattr(config, "to_dict", None) or getattr(part, "to_dict", None)
    return dict(describe()) if callable(describe) else {}
