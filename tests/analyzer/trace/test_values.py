"""Values in a trace: norms and values in full come back as they were put, from every layout, and traces without them are as before."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from i2am.analyzer import open_trace
from i2am.analyzer.inspection.info import describe
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.sharing.packing import pack, unpack
from i2am.recorder.store.recovery import seal
from i2am.schema.arrays.layers import data_plans, fixed_layout
from i2am.schema.errors import CorruptTrace, InvalidInput, UnknownSelection
from i2am.schema.journal import require_bounded
from i2am.schema.layout import layout
from i2am.schema.trace import Layer, TraceRecord
from traces import Synthetic, default_layers, reference_layer, synthetic_trace, value_norms

pytestmark = pytest.mark.analyzer

FULL = {"values": "full", "value_dim": 5, "output_dim": 6}
LAYERS = (
    reference_layer("unet.down.attn2", (8, 6), heads=2, values="norms"),
    reference_layer("unet.mid.attn2", (4, 3), heads=4, **FULL, gain=0.75, residual=True),
    reference_layer("unet.up.attn2", (8, 6), heads=2),
)


def made_trace(path: Path, encoding: str = "factors", **options: object) -> Synthetic:
    return synthetic_trace(path, layers=LAYERS, encoding=encoding, steps=5, branches=("cond", "uncond"), absent={(2, 0), (3, 1)}, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["static", "changing"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return made_trace(tmp_path_factory.mktemp("values") / "run.zarr", static_keys=request.param == "static")


def check(made: Synthetic, path: Path) -> None:
    """Norms and values of a trace, against what was put; NaN where a call is absent."""
    trace = open_trace(path)
    for index, layer in enumerate(made.trace.layers[:2]):
        truth, there = value_norms(made, index), trace.present[:, index]
        found = trace.value_norms(layer.path)
        assert found.dims == ("sample", "branch", "step", "head", "token")
        np.testing.assert_allclose(found.values[:, :, there], truth[:, :, there], rtol=1e-6)
        assert np.isnan(found.values[:, :, ~there]).all()
    values = trace.values("*mid*")
    assert values.dims == ("sample", "branch", "step", "head", "token", "value_channel")
    assert values.attrs["gain"] == 0.75
    there = trace.present[:, 1]
    np.testing.assert_array_equal(values.values[:, :, there], made.value[1][:, :, there])
    np.testing.assert_array_equal(trace.output_projection("*mid*"), made.output[1])
    residual = trace.residual_norms("*mid*")
    assert residual.dims == ("sample", "branch", "step", "y", "x")
    np.testing.assert_array_equal(residual.values[:, :, there], made.residual[1][:, :, there])
    assert np.isnan(residual.values[:, :, ~there]).all()


def test_values_come_back(made: Synthetic) -> None:
    check(made, made.path)
    assert verify(made.path).ok
    assert [row["values"] for row in describe(open_trace(made.path))["layers"]] == ["norms", "full", "none"]


def test_what_does_not_change_is_stored_once(tmp_path: Path) -> None:
    for static, files in ((True, 1), (False, 4)):
        made = made_trace(tmp_path / f"{static}.zarr", "probabilities", static_keys=static)
        for name in ("layers/000/value_norm", "layers/001/value"):
            assert len(list((made.path / name).glob("c.*"))) == 2 * files  # branches, and steps at which it was called


def test_packing_keeps_every_bit(made: Synthetic, tmp_path: Path) -> None:
    for name in ("packed.zarr", "packed.zarr.zip"):
        pack(made.path, tmp_path / name, chunk_steps=3)
        check(made, tmp_path / name)
        assert verify(tmp_path / name).ok
    unpack(tmp_path / "packed.zarr.zip", tmp_path / "again.zarr")
    check(made, tmp_path / "again.zarr")
    for plan in layout(made.trace):
        for name in plan.file_names:
            before, after = made.path / name, tmp_path / "again.zarr" / name
            assert before.exists() == after.exists()
            assert not before.exists() or before.read_bytes() == after.read_bytes()


def test_a_part_keeps_its_values(made: Synthetic, tmp_path: Path) -> None:
    pack(made.path, tmp_path / "part.zarr", layers=["*mid*", "*down*"], steps=[1, 2, 4], heads=[1], encoding="probabilities")
    trace, whole = open_trace(tmp_path / "part.zarr"), open_trace(made.path)
    for name in ("*mid*", "*down*"):
        expected = whole.value_norms(name).isel(step=[1, 2, 4], head=[1])
        np.testing.assert_array_equal(trace.value_norms(name).values, expected.values)
    np.testing.assert_array_equal(trace.values("*mid*").values, whole.values("*mid*").isel(step=[1, 2, 4], head=[1]).values)
    np.testing.assert_array_equal(trace.output_projection("*mid*"), whole.output_projection("*mid*")[[1]])
    np.testing.assert_array_equal(trace.residual_norms("*mid*").values, whole.residual_norms("*mid*").isel(step=[1, 2, 4]).values)
    assert verify(tmp_path / "part.zarr").ok


@pytest.mark.parametrize("static", [True, False])
def test_what_a_killed_recording_left_has_its_values_and_is_sealed_with_them(static: bool, tmp_path: Path) -> None:
    made = made_trace(tmp_path / "run.zarr", status="recording", planned=9, static_keys=static)
    found = open_trace(made.path, partial=True).value_norms("*mid*").values
    np.testing.assert_allclose(found[:, :, 4], value_norms(made, 1)[:, :, 4], rtol=1e-6)
    made.writer._trace_lock.release()
    seal(made.path)
    check(made, made.path)
    assert verify(made.path).ok


@pytest.mark.parametrize("name", ["layers/000/value_norm/c.0.0.0.0.0", "layers/001/value/c.0.1.0.0.0.0", "layers/001/output/c.2.0.0"])
def test_a_changed_byte_is_found(name: str, tmp_path: Path) -> None:
    path = made_trace(tmp_path / "run.zarr").path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert [finding.where for finding in verify(tmp_path / "run.zarr").findings] == [name]
    layer = "*down*" if "000" in name else "*mid*"
    with pytest.raises(CorruptTrace, match=name):
        open_trace(tmp_path / "run.zarr").value_norms(layer).compute()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    made = made_trace(tmp_path / "run.zarr")
    (made.path / "layers/000/value_norm/c.0.1.0.0.0").unlink()
    with pytest.raises(CorruptTrace, match=r"layers/000/value_norm/c\.0\.1\.0\.0\.0"):
        open_trace(made.path)


def test_norms_that_are_none_are_found(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "run.zarr", layers=LAYERS[:1], status="recording", planned=2, steps=1)
    blocks = {"probability": np.zeros((2, 8, 6, 16), np.float16), "query_lse": np.zeros((2, 8, 6), np.float32)}
    blocks["token_lse"], blocks["value_norm"] = np.zeros((2, 16), np.float32), np.full((2, 16), -1, np.float32)
    made.writer.put(0, 0, "cond", 1, blocks)
    made.writer.commit(1, evaluation=1, timestep=1.0, sigma=1.0, scheduler_step=1)
    made.writer.finish()
    assert any("norms of values" in finding.problem for finding in verify(made.path).findings)


def test_asking_for_what_was_not_recorded_says_how_to(made: Synthetic) -> None:
    trace = open_trace(made.path)
    with pytest.raises(UnknownSelection, match=r"layer unet.up.attn2 has no values; record them with values='norms'"):
        trace.value_norms("*up*")
    for ask in (trace.values, trace.output_projection, trace.residual_norms):
        with pytest.raises(UnknownSelection, match=r"layer unet.down.attn2 has norms of values only; record them with values='full'"):
            ask("*down*")


def test_traces_without_values_say_nothing_of_them(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "run.zarr")
    assert not {"values", "value_dim", "output_dim", "gain", "residual"} & set(made.trace.to_json()["layers"][0])
    assert TraceRecord.from_json(made.trace.to_json()) == made.trace
    assert b"value" not in (made.path / "journal.jsonl").read_bytes()
    assert not any("value" in plan.path or "output" in plan.path for plan in layout(made.trace))


def test_records_say_of_values_what_they_hold(made: Synthetic) -> None:
    assert TraceRecord.from_json(made.trace.to_json()) == made.trace
    assert set(data_plans(made.trace, 0)) == {"query", "key", "value_norm"}
    assert set(data_plans(made.trace, 1)) == {"query", "key", "value", "residual_norm"}
    assert set(fixed_layout(made.trace, 1)) == {"output"}


@pytest.mark.parametrize(
    "fields",
    [
        {"values": "some"},
        {"values": "full"},
        {"values": "full", "value_dim": 4},
        {"values": "norms", "value_dim": 4},
        {"gain": 2.0},
        {"residual": True},
    ],
)
def test_layers_that_contradict_themselves_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="values"):
        dataclasses.replace(default_layers()[0], **fields)


def test_channels_are_bounded(made: Synthetic) -> None:
    layer = dataclasses.replace(made.trace.layers[1], output_dim=2**21)
    with pytest.raises(InvalidInput, match="positions on one axis"):
        require_bounded(dataclasses.replace(made.trace, layers=(layer,)))


def test_an_output_projection_comes_with_full_values_and_only_then(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "run.zarr", status="recording")
    layer: Layer = dataclasses.replace(LAYERS[1], path="unet.other.attn2")
    with pytest.raises(InvalidInput, match="as its output projection does with values in full"):
        made.writer.add_layer(layer)
    with pytest.raises(InvalidInput, match="layers/003/output takes float32"):
        made.writer.add_layer(layer, output=np.zeros((4, 5, 7), np.float32))


def test_residual_norms_of_a_video_come_back_from_every_layout(tmp_path: Path) -> None:
    layers = (reference_layer("unet.mid.attn2", (4, 3), frames=6, **FULL, residual=True), reference_layer("unet.up.attn2", (4, 3), **FULL))
    made = synthetic_trace(tmp_path / "run.zarr", layers=layers, encoding="factors", steps=3)
    pack(made.path, tmp_path / "packed.zarr.zip", chunk_steps=2)
    for path in (made.path, tmp_path / "packed.zarr.zip"):
        found = open_trace(path).residual_norms("*mid*")
        assert found.dims == ("sample", "branch", "step", "frame", "y", "x")
        np.testing.assert_array_equal(found.values, made.residual[0])
        np.testing.assert_array_equal(
            found.isel(frame=slice(1, 5, 2), x=2, step=[2, 0]).values, made.residual[0][:, :, [2, 0]][..., 1:5:2, :, 2]
        )
        assert verify(path).ok
    with pytest.raises(UnknownSelection, match=r"layer unet.up.attn2 has no norms of the residual stream.*gates"):
        open_trace(made.path).residual_norms("*up*")
