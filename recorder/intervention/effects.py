"""Effects of single cells: the run repeated with each cell of the reference left out, and how far each patch of the picture moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from ...schema.errors import InvalidInput, UnsupportedModel
from ...schema.experiments.effects import EffectRecord
from ...schema.messages import listed, option
from ...schema.trace import TraceRecord
from ..specs.arguments import arguments_of
from ..store.effects import EffectStore
from .request import Intervention
from .running import check_determinism, intervene

NEAR: Final = 1.0
"""Mean difference, of 255, up to which a repeated picture is the recorded one: other hardware rounds otherwise."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The run without interventions."""

    picture: NDArray[np.float32]
    """(y, x, channel)"""
    seconds: float
    """That one run takes."""


def float_arguments(pipeline: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call whose pictures are numbers, not 8 bits, which would round small effects to none."""
    takes = "output_type" in arguments_of(pipeline).names and call.get("output_type", "pil") == "pil"
    return {**call, "output_type": "np"} if takes else dict(call)


def run_baseline(pipeline: Any, call: Mapping[str, Any], sample: int) -> Baseline:
    """Run the pipeline twice without interventions.

    Raises   UnsupportedModel if it is not deterministic, or paints no single pictures
    """
    began = time.monotonic()
    output = check_determinism(pipeline, **call)
    return Baseline(picture_of(output, sample), (time.monotonic() - began) / 2)


def picture_of(output: Any, sample: int) -> NDArray[np.float32]:
    """One picture of a pipeline's output.

    Dims     (y, x, channel)
    Range    [0, 1]
    """
    images = getattr(output, "images", None)
    if images is None:
        raise UnsupportedModel(f"effects are of pictures, and the pipeline returned a {type(output).__name__} without images")
    one = images[sample]
    if isinstance(one, torch.Tensor):
        one = one.detach().cpu().float().permute(1, 2, 0).numpy()
    if isinstance(one, PIL.Image.Image):
        return np.asarray(one.convert("RGB"), np.float32) / np.float32(255)
    return np.asarray(one, np.float32)


def distance(picture: NDArray[np.float32], recorded: NDArray[np.uint8]) -> float:
    """How far a repeated picture is from the recorded one, on average.

    Range    [0, 255]
    Raises   InvalidInput if it is another picture
    """
    found = np.rint(picture * 255).clip(0, 255)
    far = float(np.abs(found - recorded).mean()) if found.shape == recorded.shape else 255.0
    if far > NEAR:
        raise InvalidInput(
            f"the spec paints another picture than the trace has (they differ by {far:.3g} of 255 on average), so its effects would say "
            "nothing about that trace; give the spec, seed and weights that it was recorded with"
        )
    return far


def place_effect(before: NDArray[np.float32], after: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Mean absolute difference of two pictures over each patch of a grid.

    Dims     (y, x, channel) twice -> grid
    """
    moved: NDArray[np.float64] = np.abs(before - after).mean(axis=2, dtype=np.float64)
    for axis, count in enumerate(grid):
        edges = np.arange(count + 1) * moved.shape[axis] / count
        starts, stops = np.floor(edges[:-1]).astype(int), np.maximum(np.ceil(edges[1:]), 1).astype(int)
        parts = [moved.take(range(start, stop), axis).mean(axis) for start, stop in zip(starts, stops, strict=True)]
        moved = np.stack(parts, axis)
    return moved.astype(np.float32)


def reference_group(trace: TraceRecord, name: str | None) -> str:
    """The token group of a trace whose cells are left out; None is its only reference with places.

    Raises   InvalidInput if there is none, or several
    """
    groups = [group for layer in trace.layers if not layer.is_resampler for group in layer.groups]
    placed = sorted({group.name for group in groups if group.grid is not None and group.role == "reference"})
    if name is None and len(placed) == 1:
        return placed[0]
    if name not in placed:
        raise InvalidInput(f"cells need a token group with places, and the trace has {listed(placed)}; choose one with {option('group')}")
    return name


def check_cells(trace: TraceRecord, group: str, cells: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of cells that the tokens of a trace's group can be told apart by.

    Raises   InvalidInput if no layer has so many
    """
    grids = {found.grid for layer in trace.layers for found in layer.groups if found.name == group and found.grid is not None}
    if not any(cells[0] <= rows and cells[1] <= columns for rows, columns in grids):
        rows, columns = max(grids)
        raise InvalidInput(
            f"{option('cells', f'{cells[0]}x{cells[1]}')} is finer than the {rows} x {columns} tokens of {group}; ask for fewer cells"
        )
    return cells


def patch_grid(trace: TraceRecord) -> tuple[int, int]:
    """(rows, columns) of the grid that maps of a trace are brought to."""
    grids = (layer.grid for layer in trace.layers if not layer.is_resampler)
    return trace.latent_grid or max(grids, key=lambda grid: grid[0] * grid[1])


def measure_cells(
    pipeline: Any, call: Mapping[str, Any], baseline: Baseline, store: EffectStore, progress: Callable[[], object] = lambda: None
) -> None:
    """Repeat the run once for each cell that was not tried yet; each is kept as soon as it is known.

    Raises   as `intervene`
    """
    record: EffectRecord = store.record
    for name, cell in store.missing:
        what = Intervention(
            record.kind,
            group=record.group,
            cells=(cell,),
            lattice=record.cells,
            layers=record.layers or None,
            branches=record.branches,
        )
        after = picture_of(intervene(pipeline, what, **call), record.sample)
        store.put(name, cell, place_effect(baseline.picture, after, record.grid))
        progress()
