"""The laws of R2G, G2R and SRAM: equal to the oracle however computed, additive, alike in both encodings, never flipped, one pass."""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import dask
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import AT, DIRECTIONS, KEEPS, LATENT, LAYERS, ask, assert_close, attribution_trace, oracle

from i2am.analyzer import g2r, open_trace, r2g, sram
from i2am.analyzer.storage import folder
from i2am.recorder.store.writer import Writer
from i2am.schema.codec import encode_probability
from i2am.schema.errors import CorruptTrace
from i2am.schema.trace import Layer, TraceRecord
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return attribution_trace(tmp_path_factory.mktemp("attribution") / "run.zarr", request.param)


# Law 3


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("keep", KEEPS)
def test_maps_equal_the_oracle(made: Synthetic, direction: str, keep: tuple[str, ...]) -> None:
    found = ask(open_trace(made.path), direction, keep=keep, sample=1, branch="uncond")
    assert found.dims == (*keep, *(("y", "x") if direction == "r2g" else ("ref_y", "ref_x")))
    assert found.attrs["calls"] == 12
    assert_close(found, oracle(made, direction, keep, at=(1, 1)))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    direction=st.sampled_from(DIRECTIONS),
    keep=st.sampled_from(KEEPS),
    steps=st.lists(st.integers(0, 3), min_size=1, unique=True).map(sorted),
    layers=st.lists(st.integers(0, 2), min_size=1, unique=True).map(sorted),
    heads=st.lists(st.integers(0, 1), min_size=1, unique=True).map(sorted),
    scheduler=st.sampled_from(["synchronous", "threads"]),
    workers=st.integers(1, 4),
)
def test_any_selection_and_scheduler_equals_the_oracle(
    made: Synthetic,
    direction: str,
    keep: tuple[str, ...],
    steps: list[int],
    layers: list[int],
    heads: list[int],
    scheduler: str,
    workers: int,
) -> None:
    found = ask(open_trace(made.path), direction, keep=keep, steps=steps, layers=layers, heads=heads)
    truth = oracle(made, direction, keep, steps=steps, layers=layers, heads=heads)
    if direction != "r2g" and layers == [2]:  # the largest reference grid among what is selected
        assert found.shape[-2:] == (2, 3)
        return
    assert_close(found.compute(scheduler=scheduler, num_workers=workers), truth)


@pytest.mark.parametrize("rows", [16, 48, 4096])
def test_the_size_of_blocks_does_not_matter(made: Synthetic, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("i2am.analyzer.trace.calls.BLOCK_BYTES", 4 * 6 * 20 * rows // 6)
    monkeypatch.setattr("i2am.analyzer.trace.softmax.ROW_BYTES", 4 * 20 * rows // 6)
    trace = open_trace(made.path)
    assert_close(r2g(trace), oracle(made, "r2g"))
    assert_close(g2r(trace), oracle(made, "g2r"))


def test_files_and_chunks_of_any_size_give_the_same_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = import_module("i2am.schema.arrays.array")
    found = []
    for shard, chunk in ((2**26, 2**20), (2**11, 2**8), (2**12, 2**12)):
        monkeypatch.setattr(plan, "SHARD_BYTES", shard)
        monkeypatch.setattr(plan, "CHUNK_BYTES", (chunk, chunk))
        made = synthetic_trace(tmp_path / f"{shard}.zarr", layers=LAYERS, steps=2, latent_grid=LATENT)
        trace = open_trace(made.path)
        found.append([ask(trace, direction).values for direction in DIRECTIONS] + [trace.probabilities(0).values])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6)


def test_tasks_travel_to_other_processes(made: Synthetic) -> None:
    lazy = [r2g(open_trace(made.path)), g2r(open_trace(made.path), query_mask=np.eye(*LATENT)), sram(open_trace(made.path), AT)]
    for map in lazy:
        copy = pickle.loads(pickle.dumps(map))
        np.testing.assert_array_equal(copy.compute(scheduler="synchronous").values, map.values)


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
def test_scores_too_far_apart_for_float32_are_summed_in_float64(tmp_path: Path, encoding: str) -> None:
    layer = reference_layer("a", (8, 6), head_dim=4)
    made = synthetic_trace(tmp_path / "t.zarr", layers=[layer], steps=1, encoding=encoding, sharpness=60, latent_grid=LATENT)
    truth = made.generated[0][0, 0, 0].mean(-1).mean(0)
    found = r2g(open_trace(made.path)).values
    assert np.isfinite(found).all()
    if encoding == "factors":
        assert_close(found, truth)
    else:
        assert_close(found, oracle(made, "r2g", steps=[0], layers=[0], heads=[0, 1]))
    assert_close(g2r(open_trace(made.path)), oracle(made, "g2r", steps=[0], layers=[0], heads=[0, 1]))


# Law 4


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("keep", KEEPS[1:])
def test_keeping_an_axis_and_averaging_it_equals_not_keeping_it(made: Synthetic, direction: str, keep: tuple[str, ...]) -> None:
    """Time is summed, the others averaged over (layer, head) pairs, whose number stands beside each map."""
    trace = open_trace(made.path)
    kept = ask(trace, direction, keep=keep).compute()
    for axis in keep:
        rest = tuple(a for a in keep if a != axis)
        direct = ask(trace, direction, keep=rest).values
        if axis == "time":
            np.testing.assert_allclose(kept.sum("time", skipna=False).values, direct, rtol=1e-12)
        else:
            mean = (kept.fillna(0) * kept.pairs).sum(axis) / kept.pairs.sum(axis)
            np.testing.assert_allclose(mean.values, direct, rtol=1e-12)


def test_time_groups_are_disjoint_and_start_with_the_noisiest(made: Synthetic) -> None:
    trace = open_trace(made.path)
    groups = r2g(trace, keep="time", time_groups=3)
    assert groups.first_step.values.tolist() == [0, 2, 3]
    assert groups.last_step.values.tolist() == [1, 2, 3]
    assert groups.timestep.values.tolist() == [995.0, 980.0, 970.0]
    assert_close(groups, oracle(made, "r2g", ("time",), groups=[[0, 1], [2], [3]]))
    np.testing.assert_allclose(groups.sum("time"), r2g(trace), rtol=1e-12)


# Law 5


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_both_encodings_give_the_same_maps(tmp_path: Path, direction: str) -> None:
    found = []
    for encoding in ("probabilities", "factors"):
        made = synthetic_trace(tmp_path / f"{encoding}.zarr", layers=LAYERS, encoding=encoding, latent_grid=LATENT)
        found.append(ask(open_trace(made.path), direction, keep=("layer",)).values)
    assert_close(found[0], found[1], 1e-3)


# Law 6


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_bright_corner_stays_in_its_corner(tmp_path: Path, encoding: str, corner: tuple[int, int]) -> None:
    """The generated corner looks at the reference's opposite corner, on grids that are neither square nor alike."""
    other = (-1 - corner[0], -1 - corner[1])
    layers = [reference_layer("a", (8, 6), heads=1, head_dim=2), reference_layer("b", (4, 3), heads=1, head_dim=2)]
    corner_trace(tmp_path / "t.zarr", layers, encoding, corner, other)
    trace = open_trace(tmp_path / "t.zarr")
    bright = {"r2g": corner, "g2r": other, "sram": other}
    at = tuple(c % n for c, n in zip(corner, LATENT, strict=True))
    for direction, place in bright.items():
        map = sram(trace, at) if direction == "sram" else ask(trace, direction)  # type: ignore[arg-type]
        peak = np.unravel_index(map.values.argmax(), map.shape)
        assert peak == tuple(p % n for p, n in zip(place, map.shape, strict=True)), direction


def corner_trace(path: Path, layers: Sequence[Layer], encoding: str, corner: tuple[int, int], other: tuple[int, int]) -> None:
    """Scores are 0 but for one pair: q and k are unit vectors where they meet and nothing elsewhere."""
    record = TraceRecord("00000000-0000-4000-8000-00000000c0de", "recording", 1, ("cond",), 1, latent_grid=LATENT)
    writer = Writer(path, record)
    for index, plain in enumerate(layers):
        layer = dataclasses.replace(plain, encoding=encoding)
        query = np.zeros((1, *layer.grid, 2), np.float32)
        key = np.zeros((1, layer.tokens, 2), np.float32)
        query[0, corner[0], corner[1], 0] = 6
        picture = key[0, 1:].reshape(3, 5, 2)
        picture[other[0], other[1], 0] = 2
        scores = np.einsum("hyxc,htc->hyxt", query, key).astype(np.float64) * layer.scale
        a, b = np.log(np.exp(scores).sum(-1)), np.log(np.exp(scores).sum((1, 2)))
        blocks = {"query": query, "key": key}
        if encoding == "probabilities":
            stored = encode_probability(np.exp(scores - a[..., None]))
            blocks = {"probability": stored, "query_lse": a.astype(np.float32), "token_lse": b.astype(np.float32)}
        writer.add_layer(layer)
        writer.put(index, 0, "cond", 0, blocks)
    writer.commit(0, evaluation=0, timestep=1.0, sigma=float("nan"), scheduler_step=0)
    writer.finish()


# One pass


def test_maps_computed_together_read_each_file_once(made: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = open_trace(made.path)
    lazy = [
        r2g(trace),
        r2g(trace, keep=("time", "layer", "head")),
        r2g(trace, specials=False, steps=[0, 1], time_groups=2, keep="time"),
        r2g(trace, group="text"),
        g2r(trace, keep="head"),
        g2r(trace, query_mask="mask"),
        g2r(trace, query_mask=made.images["mask"]),
    ]
    reads: Counter[str] = Counter()
    read_part = folder.read_part
    monkeypatch.setattr(folder, "read_part", lambda file, *part: (reads.update([file.name]), read_part(file, *part))[1])
    together = dask.compute(*lazy)
    reads = Counter({name: n for name, n in reads.items() if "/images/" not in name})
    keys = {name: n for name, n in reads.items() if "/key/" in name}
    assert max(n for name, n in reads.items() if name not in keys) == 1
    assert len(reads) == (3 if made.trace.layers[0].encoding == "probabilities" else 2) * 4 * 4
    for one, alone in zip(together, lazy, strict=True):
        np.testing.assert_array_equal(one, alone.values)


def test_a_changed_block_is_an_error_that_names_file_layer_and_step(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", layers=LAYERS, steps=2, latent_grid=LATENT)
    shard = next(made.path.glob("layers/001/probability/c.0.0.1*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    trace = open_trace(made.path)
    for map in (r2g(trace), g2r(trace), sram(trace, AT)):
        with pytest.raises(CorruptTrace, match=r"layers/001/probability/c\.0\.0\.1.* layer mid\.attn2, step 1"):
            map.compute()
    r2g(trace, steps=0).compute()
