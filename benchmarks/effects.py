"""What reference cells, heads and layers do to pictures of the demo model, measured by leaving them out; kept in a folder, pair by pair.

Cells are left out in batches, through the mask of keys that diffusers' own UNet takes: the interventions of i2am are what this checks, and
heads and layers are switched off by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from i2am.recorder import Intervention, alter_pixels, intervene
from i2am.recorder.demo.pairs import HELD_OUT, Pair, draw_pair
from i2am.recorder.demo.pipeline import TryOnPipeline
from i2am.recorder.intervention.outputs import place_effect

BATCH = 16
"""Runs at once, the unchanged one among them; more are no faster on one core."""
LAYERS = ".transformer_blocks.0.attn2"


def effects_of(pipeline: TryOnPipeline, folder: Path, index: int, steps: int, cells: int, few: bool = False) -> xr.Dataset:
    """Effects for one held-out pair, laid out as `open_effects` does, measured where they are not there yet; `few` leaves out pixels."""
    kept = folder / f"{index:03d}-{steps}-{cells}.effects.npz"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part.npz")
        np.savez(part, **measure(pipeline, draw_pair(HELD_OUT + index, pipeline.size), steps, cells, few))
        part.rename(kept)
    with np.load(kept) as arrays:
        return lay_out({name: arrays[name] for name in arrays})


def lay_out(arrays: dict[str, np.ndarray]) -> xr.Dataset:
    """Arrays of effects with names for their axes."""
    names = [str(name).removesuffix(LAYERS) + LAYERS for name in arrays.pop("layer_names")]
    axes = {"effect": ("cell_y", "cell_x"), "pixels": ("cell_y", "cell_x"), "layers": ("layer",), "heads": ("layer", "head")}
    dims = {name: (*axes.get(name, ()), "y", "x") for name in arrays}
    return xr.Dataset(
        {name: (dims[name], values) for name, values in arrays.items()}, coords={"layer": names, "head": range(arrays["heads"].shape[1])}
    )


def measure(pipeline: TryOnPipeline, pair: Pair, steps: int, cells: int, few: bool) -> dict[str, np.ndarray]:
    """All trials on one pair.

    Dims     each (..., y, x) on the latent grid
    """
    every = [(row, column) for row in range(cells) for column in range(cells)]
    tokens = [cell_tokens(pipeline, [cell], cells) for cell in every]
    grid = (pipeline.size // pipeline.block,) * 2
    laid = partial(np.reshape, shape=(cells, cells, *grid))
    names = [name.removesuffix(LAYERS) for name in cross_attention(pipeline)]
    heads = pipeline.unet.get_submodule(f"{names[0]}{LAYERS}".removeprefix("unet.")).heads
    call = arguments(pair, steps)
    before = intervene(pipeline, (), **call).images

    def silenced(**what: Any) -> np.ndarray:
        return place_effect(before, intervene(pipeline, Intervention(**what), **call).images, grid)

    found = {
        "layer_names": np.array(names),
        "effect": laid(np.stack(list(drop_tokens(pipeline, pair, steps, tokens, grid)))),
        "layers": np.stack([silenced(kind="off", layers=name + LAYERS) for name in names]),
        "heads": np.stack([[silenced(kind="off", layers=name + LAYERS, heads=head) for head in range(heads)] for name in names]),
        "without": silenced(kind="zero", group="reference"),
        "cls": silenced(kind="drop", group="reference", tokens=0),
    }
    if not few:
        found["pixels"] = laid(np.stack(list(invert_cells(pipeline, pair, steps, every, cells, grid))))
    return found


def arguments(pair: Pair, steps: int, count: int = 1) -> dict[str, Any]:
    """The call of a pair, with the same noise for each of some pictures."""
    generators = [torch.Generator().manual_seed(pair.seed) for _ in range(count)]
    picture = {"image": pair.agnostic, "mask_image": pair.mask, "example_image": pair.reference}
    return {**picture, "num_inference_steps": steps, "output_type": "np", "generator": generators}


def cross_attention(pipeline: TryOnPipeline) -> list[str]:
    """Modules that attend to the reference, in the order in which they run."""
    found = [name for name, _ in pipeline.unet.named_modules() if name.endswith(".attn2")]
    return [f"unet.{name}" for start in ("down", "mid", "up") for name in found if name.startswith(start)]


def cell_tokens(pipeline: TryOnPipeline, cells: Iterable[tuple[int, int]], lattice: int) -> list[int]:
    """Keys that lie in some cells; key 0 is CLS."""
    side = pipeline.size // pipeline.block
    inside = set(cells)
    return [1 + i for i in range(side * side) if (i // side * lattice // side, i % side * lattice // side) in inside]


def drop_tokens(
    pipeline: TryOnPipeline, pair: Pair, steps: int, trials: Sequence[Sequence[int]], grid: tuple[int, int]
) -> Iterator[np.ndarray]:
    """What dropping some keys from the softmax of the guided rows changes, trial by trial.

    Dims     each -> grid
    """
    for some in batches(trials):
        keep = torch.ones(1 + len(some), 1 + grid[0] * grid[1])
        for row, tokens in enumerate(some):
            keep[1 + row, list(tokens)] = 0

        def hide(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], keep: torch.Tensor = keep) -> Any:
            return args, {**kwargs, "encoder_attention_mask": torch.cat([torch.ones_like(keep), keep])}

        hook = pipeline.unet.register_forward_pre_hook(hide, with_kwargs=True)
        try:
            before, *after = pipeline(**arguments(pair, steps, len(keep)), num_images_per_prompt=len(keep)).images
        finally:
            hook.remove()
        yield from (place_effect(before[None], one[None], grid) for one in after)


def invert_cells(
    pipeline: TryOnPipeline, pair: Pair, steps: int, cells: Sequence[tuple[int, int]], lattice: int, grid: tuple[int, int]
) -> Iterator[np.ndarray]:
    """What inverting the pixels of a cell changes, cell by cell.

    Dims     each -> grid
    """
    for some in batches(cells):
        pictures = [pair.reference, *(alter_pixels(pair.reference, [cell], (lattice, lattice)) for cell in some)]
        call = arguments(pair, steps, len(pictures))
        many = {"image": [pair.agnostic] * len(pictures), "mask_image": [pair.mask] * len(pictures), "example_image": pictures}
        before, *after = pipeline(**{**call, **many}).images
        yield from (place_effect(before[None], one[None], grid) for one in after)


def batches(trials: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Trials a batch at a time; one of each batch is the unchanged run."""
    return (trials[start : start + BATCH - 1] for start in range(0, len(trials), BATCH - 1))
