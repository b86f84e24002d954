"""Holds the labels of a recording against what changes its keys: each branch answers to its own prompt, each reference to its own picture.

python tests/support/every_influence.py "Qwen*"   # the classes whose labels do not
"""

from __future__ import annotations

import sys
import warnings
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from every_pipeline import build
from every_row import load
from memory import MemoryWriter

from i2am.recorder import record
from i2am.recorder.session import run
from i2am.schema.errors import UnsupportedModel

REFERENCES = ("ip_adapter_image", "image_embeds", "image_reference", "example_image", "image")
"""Arguments that may be a reference."""
Key = tuple[str, str, str | None]
"""(branch, role of a token group, its stored picture)."""


def other(value: Any) -> Any:
    """Another text, tensor or picture of the same kind and size."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value + torch.randn(value.shape, generator=torch.Generator().manual_seed(9))
    if isinstance(value, PIL.Image.Image):
        pixels = np.random.default_rng(9).integers(0, 256, np.asarray(value).shape, dtype=np.uint8)
        return PIL.Image.fromarray(pixels, value.mode)
    if isinstance(value, (list, tuple)):
        return type(value)(other(part) for part in value)
    return value.replace("dog", "mouse").replace("hat", "grass") if isinstance(value, str) else value


def first_keys(name: str, **changes: Any) -> dict[tuple[int, str, str], tuple[Key, Any]]:
    """What the first module that is recorded stores of the keys of its first step, by call, branch and group."""
    pipeline, call = build(name)
    torch.manual_seed(0)
    kept, run.Writer = run.Writer, MemoryWriter  # type: ignore[misc, assignment]
    try:
        options = {"branches": "both", "keys": "all", "encoding": "factors", "steps": [0], "progress": False}
        record(pipeline, Path("nowhere.zarr"), **options, **{**call(), **changes})
    finally:
        run.Writer = kept  # type: ignore[misc]
    layers = MemoryWriter.last.trace.layers
    return {
        (layer.call, branch, group.name): ((branch, group.role, group.image), blocks["key"][:, group.start : group.stop])
        for (index, _, branch, _), blocks in MemoryWriter.last.blocks.items()
        if (layer := layers[index]).path == layers[0].path and "key" in blocks  # which a mask rules out
        for group in layer.groups
    }


def changed(name: str, arguments: dict[str, Any]) -> set[Key]:
    """Which token groups are others when these arguments are."""
    before, after = first_keys(name), first_keys(name, **{key: other(value) for key, value in arguments.items()})
    return {label for key, (label, seen) in before.items() if key in after and not np.array_equal(seen, after[key][1])}


def mistakes(name: str) -> list[str]:
    """What the labels of a class say that its inputs contradict."""
    _, call = build(name)
    given = {key: value for key, value in call().items() if value is not None}
    prompts = {key: value for key, value in given.items() if "prompt" in key and "mask" not in key}
    found = []
    for branch, wrong in (("cond", "uncond"), ("uncond", "cond")):
        own = {key: value for key, value in prompts.items() if key.startswith("negative") == (branch == "uncond")}
        if any(label[0] == wrong for label in (changed(name, own) if own else ())):
            found.append(f"{wrong} answers to {', '.join(own)}")
    for argument in (argument for argument in REFERENCES if argument in given):
        answers = changed(name, {argument: given[argument]})
        if any(role == "text" for _, role, _ in answers):
            found.append(f"text answers to {argument}")
        if argument != "image_embeds" and any(role == "reference" and image is None for _, role, image in answers):
            found.append(f"the reference that answers to {argument} has no picture")
    return found


def main(globs: list[str]) -> None:
    """Print the recorded classes whose labels are contradicted, and by what."""
    warnings.simplefilter("ignore")
    for name, (result, *_) in load().items():
        if result == "recorded" and any(fnmatchcase(name, glob) for glob in globs or ["*"]):
            try:
                found = mistakes(name)
            except UnsupportedModel as error:  # all of its keys at once
                found = [f"not looked at: {error}"]
            print(*(f"{name}: {one}\n" for one in found), sep="", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
