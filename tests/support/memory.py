"""A writer that keeps everything in memory, to see what a recording hands on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from i2am.schema.arrays.layers import data_plans, fixed_layout
from i2am.schema.text import Text
from i2am.schema.trace import Layer, TraceRecord

Blocks = dict[str, np.ndarray]


class MemoryWriter:
    """The writer's methods, checked as strictly, without a disk."""

    last: MemoryWriter

    def __init__(self, path: Any, trace: TraceRecord, *, queue_bytes: int = 0, workers: int = 2, overwrite: bool = False) -> None:
        assert trace.status == "recording"
        assert not trace.layers
        self.trace = trace
        self.blocks: dict[tuple[int, int, str, int], Blocks] = {}
        self.lost: dict[int, float] = {}
        self.commits: list[dict[str, Any]] = []
        self.images: dict[str, np.ndarray] = {}
        self.probe_keys: dict[int, np.ndarray] = {}
        self.outputs: dict[int, np.ndarray] = {}
        self.reason: str | None = None
        MemoryWriter.last = self

    @property
    def committed(self) -> int:
        return len(self.commits)

    def add_layer(self, layer: Layer, probe_key: np.ndarray | None = None, output: np.ndarray | None = None) -> int:
        self.trace = dataclasses.replace(self.trace, layers=(*self.trace.layers, layer))
        index = len(self.trace.layers) - 1
        plans = fixed_layout(self.trace, index)
        given = {name: values for name, values in (("probe_key", probe_key), ("output", output)) if values is not None}
        assert set(given) == set(plans)
        for name, values in given.items():
            assert (values.shape, str(values.dtype)) == (plans[name].shape, plans[name].dtype)
        if probe_key is not None:
            self.probe_keys[index] = probe_key
        if output is not None:
            self.outputs[index] = output
        return index

    def add_texts(self, texts: Sequence[Text]) -> None:
        self.trace = dataclasses.replace(self.trace, texts=(*self.trace.texts, *texts))

    def set_latent_grid(self, grid: tuple[int, int]) -> None:
        self.trace = dataclasses.replace(self.trace, latent_grid=grid)

    def put(
        self, layer: int, sample: int, branch: str, step: int, blocks: Mapping[str, Any], *, lost: float | Callable[[], float] = 0.0
    ) -> None:
        plans = data_plans(self.trace, layer)
        arrays = {name: block() if callable(block) else block for name, block in blocks.items()}
        assert set(arrays) == set(plans)
        for name, array in arrays.items():
            assert (array.shape, str(array.dtype)) == (plans[name].shape[3:], plans[name].dtype), name
        assert step == len(self.commits) < self.trace.steps
        assert sample < self.trace.samples
        assert branch in self.trace.branches
        assert (layer, sample, branch, step) not in self.blocks
        self.blocks[layer, sample, branch, step] = arrays
        self.lost[layer] = max(self.lost.get(layer, 0.0), lost() if callable(lost) else lost)

    def commit(self, step: int, **labels: Any) -> None:
        assert step == len(self.commits) < self.trace.steps
        self.commits.append(labels)

    def add_images(self, images: Any) -> None:
        self.images |= {image.name: pixels for image, pixels in images}
        self.trace = dataclasses.replace(self.trace, images=(*self.trace.images, *(image for image, _ in images)))

    def finish(self, *, images: Any = (), **updates: Any) -> TraceRecord:
        self.images = {image.name: pixels for image, pixels in images} | self.images
        self.trace = dataclasses.replace(self.trace, images=(*(image for image, _ in images), *self.trace.images))
        changes = {**updates, "steps": self.committed, "status": "complete"}
        self.trace = dataclasses.replace(self.trace, **changes)
        return self.trace

    def interrupt(self, reason: str, *, cut: bool = False) -> None:
        self.reason = reason

    def layer(self, name: str) -> int:
        """The layer whose name ends so."""
        (index,) = [i for i, layer in enumerate(self.trace.layers) if layer.name.endswith(name)]
        return index


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[MemoryWriter]:
    """Recordings of this test go to `memory.last`."""
    monkeypatch.setattr("i2am.recorder.session.run.Writer", MemoryWriter)
    return MemoryWriter
