"""Tables of layers and steps: what pandas gets of a trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from i2am.analyzer import open_trace
from i2am.analyzer.trace.tables import BLOCK, layer_rows
from i2am.schema.arrays.layers import data_plans
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

ENCODINGS = ("probabilities", "factors")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_are_the_layers_and_steps(tmp_path: Path, encoding: str) -> None:
    trace = open_trace(synthetic_trace(tmp_path / "t.zarr", encoding=encoding, steps=3, branches=("cond", "uncond"), absent={(1, 0)}).path)
    layers, steps = trace.layer_table(), trace.step_table()
    assert layers.index.name == "layer" and list(layers.index) == [0, 1, 2]
    assert list(layers["name"]) == [layer.name for layer in trace.layers]
    assert list(layers["block"]) == ["down_blocks.0", "mid_block", "up_blocks.1"]
    assert list(layers["calls"]) == [2, 3, 3]
    assert list(layers["grid"]) == [(8, 6), (4, 3), (8, 6)]
    assert set(layers["encoding"]) == {encoding} and set(layers["groups"]) == {"reference"}
    assert layers.groupby("grid")["heads"].sum().to_dict() == {(4, 3): 4, (8, 6): 4}
    assert steps.index.name == "step" and list(steps["timestep"]) == [1000.0, 990.0, 980.0]
    assert list(steps["layers"]) == [3, 2, 3] and list(steps["evaluation"]) == [0, 1, 2] and list(steps["scheduler_step"]) == [0, 1, 2]
    assert steps["sigma"].iloc[1] == pytest.approx(7)
    json.dumps([layer_rows(trace), *(table.to_dict("records") for table in (layers, steps))])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bytes_are_those_of_the_files(tmp_path: Path, encoding: str) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", encoding=encoding, steps=4, absent={(1, 0)}, static_keys=False)
    found = open_trace(made.path).layer_table()["bytes"]
    for index in range(3):
        names = data_plans(made.trace, index)
        files = [file for name in names for file in (made.path / f"layers/{index:03d}" / name).glob("c.*")]
        assert found[index] == sum(file.stat().st_size for file in files) > 0


def test_an_unfinished_trace_has_the_steps_that_count(tmp_path: Path) -> None:
    trace = open_trace(synthetic_trace(tmp_path / "t.zarr", steps=2, planned=9, status="interrupted").path, partial=True)
    assert len(trace.step_table()) == 2 and list(trace.layer_table()["calls"]) == [2, 2, 2]
    none = open_trace(synthetic_trace(tmp_path / "none.zarr", steps=0, planned=9, status="interrupted").path, partial=True)
    assert len(none.step_table()) == 0 and list(none.layer_table()["bytes"]) == [0, 0, 0]


def test_groups_are_named_in_order(tmp_path: Path) -> None:
    layer = reference_layer("transformer.single_transformer_blocks.12.attn", text=3)
    table = open_trace(synthetic_trace(tmp_path / "t.zarr", layers=[layer], steps=1).path).layer_table()
    assert table["groups"][0] == "text, reference" and table["block"][0] == "single_transformer_blocks.12"


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2", "input_blocks.4"),
        ("transformer.transformer_blocks.3.attn#1", "transformer_blocks.3"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2", "mid_block"),
        ("model.layers.7.attention", "layers.7"),
        ("attention", None),
    ],
)
def test_the_block_is_the_outermost(path: str, block: str | None) -> None:
    found = BLOCK.search(path)
    assert (found and found[0]) == block
