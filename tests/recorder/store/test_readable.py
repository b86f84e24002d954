"""What is written can be read: a record that no reader would take is refused before a step is recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2am.analyzer import open_trace
from i2am.recorder.store.writer import Writer
from i2am.schema.errors import InvalidInput
from i2am.schema.journal import require_bounded
from i2am.schema.trace import Layer, TraceRecord
from traces import reference_layer

pytestmark = pytest.mark.analyzer


def first_step(path: Path, layer: Layer, **fields: Any) -> Writer:
    """A recording of which the first step has been committed, as far as the writer lets it come."""
    writer = Writer(path, TraceRecord("id", "recording", 1, ("cond",), fields.pop("steps", 3), **fields))
    writer.add_layer(layer)
    blocks = {"query": np.ones((1, 1, 1, 8), "f4"), "key": np.ones((1, layer.tokens, 8), "f4")}
    writer.put(0, 0, "cond", 0, blocks, lost=math.nan)
    writer.commit(0, evaluation=0, timestep=math.nan, sigma=math.nan, scheduler_step=0)
    writer.finish()
    return writer


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 5_000_000}, "plans 5000000 calls, and a trace has at most 4000000"),
        ({"latent_grid": (4096, 4096)}, "places of the latent grid"),
        ({"inputs": {"deep": json.loads("[" * 40 + "]" * 40)}}, "nested at most 32 deep"),
        ({"provenance": {"a": [[] for _ in range(2**20)]}}, "more lists and objects"),
        ({"inputs": {"prompt": "x" * 2**24}}, "and readers take"),
    ],
    ids=["calls", "grid", "depth", "lists", "bytes"],
)
def test_what_no_reader_would_take_is_refused_before_a_step(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    layer = reference_layer(grid=(1, 1), heads=1, encoding="factors")
    with pytest.raises(InvalidInput, match=words):
        first_step(tmp_path / "t", layer, **fields)
    assert not (tmp_path / "t/journal.jsonl").exists()


def test_numbers_that_are_none_do_not_keep_a_trace_from_being_read(tmp_path: Path) -> None:
    first_step(tmp_path / "t", reference_layer(grid=(1, 1), heads=1, encoding="factors"))
    trace = open_trace(tmp_path / "t")
    assert trace.lost == (1.0,)
    assert np.isnan(trace.steps["timestep"]).all()


def test_a_long_plan_of_a_large_model_is_within_the_bounds() -> None:
    layers = tuple(reference_layer(f"unet.{i}.attn2", (32, 32), heads=10, head_dim=64) for i in range(140))
    require_bounded(TraceRecord("id", "recording", 2, ("cond", "uncond"), 1000, layers=layers))
