"""P, S and G as lazy arrays: what they are, for either encoding, and how little is read for a part of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from i2am.analyzer import open_trace
from i2am.analyzer.trace.calls import EXACT_SCORE, Calls
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LAYERS = (
    reference_layer("a.attn2", (6, 4), heads=2, text=3),
    reference_layer("b.attn2", (3, 2), heads=3, hidden=5),
    reference_layer("b.attn2", (3, 2), heads=3, call=1, reference=None, text=7),
)
VIEWS = ("probabilities", "scores", "generated_softmax")


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    path = tmp_path_factory.mktemp("attention") / "run.zarr"
    return synthetic_trace(
        path, layers=LAYERS, encoding=request.param, steps=3, samples=2, branches=("cond", "uncond"), absent={(1, 0)}, static_keys=False
    )


def expected(made: Synthetic, view: str, layer: int) -> np.ndarray:
    return {"probabilities": made.probabilities, "scores": made.scores, "generated_softmax": made.generated}[view][layer]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_views_equal_the_oracle(made: Synthetic, view: str, layer: int) -> None:
    found = getattr(open_trace(made.path), view)(layer)
    truth = expected(made, view, layer)
    assert found.dims == ("sample", "branch", "step", "head", "y", "x", "token")
    assert found.dtype == np.float32
    assert found.chunks is not None
    np.testing.assert_array_equal(np.isnan(found.values), np.isnan(truth))
    exact = made.trace.layers[layer].encoding == "factors"
    if view == "scores" and not exact:  # the relative error of a stored P is the absolute error of its logarithm; 2**-29 is where it grows
        kept = made.probabilities[layer] > 2.0**-28
        np.testing.assert_allclose(found.values[kept], truth[kept], atol=1e-3)
    else:
        np.testing.assert_allclose(found.values, truth, rtol=1e-5 if exact else 1e-3, atol=1e-6 if exact else 1e-5)


def test_coordinates_name_every_axis(made: Synthetic) -> None:
    found = open_trace(made.path).probabilities("a.attn2")
    assert found.branch.values.tolist() == ["cond", "uncond"]
    assert found.group.values.tolist() == ["text"] * 3 + ["reference"] * 16
    assert found.timestep.values.tolist() == [1000.0, 990.0, 980.0]
    np.testing.assert_allclose(found.y, (np.arange(6) + 0.5) / 6)
    assert found.attrs["layer"] == "a.attn2"
    assert found.sel(branch="uncond", step=2).sel(token=found.group == "text").sizes["token"] == 3


def test_rows_of_p_and_columns_of_g_sum_to_one(made: Synthetic) -> None:
    """Law 2."""
    trace = open_trace(made.path)
    rows = trace.probabilities(0).sum("token", skipna=False).values
    columns = trace.generated_softmax(0).sum(("y", "x"), skipna=False).values
    called = trace.present[:, 0]
    np.testing.assert_allclose(rows[:, :, called], 1, atol=1e-3)
    np.testing.assert_allclose(columns[:, :, called], 1, atol=1e-3)
    assert np.isnan(rows[:, :, ~called]).all()
    assert (trace.probabilities(1).sum("token").values < 1).all(), "keys that were not kept have their share of the softmax"


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_slicing_before_computing_equals_slicing_after(made: Synthetic, data: st.DataObject) -> None:
    trace = open_trace(made.path)
    found = getattr(trace, data.draw(st.sampled_from(VIEWS)))(data.draw(st.integers(0, 2)))
    index: dict[str, Any] = {}
    for dim, n in found.sizes.items():
        choice = st.one_of(st.slices(n), st.integers(0, n - 1), st.lists(st.integers(0, n - 1), min_size=1, max_size=3))
        if data.draw(st.booleans()):
            index[dim] = data.draw(choice)
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_allclose(found.isel(index).values, found.compute().isel(index).values, rtol=1e-6, atol=1e-7)


def test_one_patch_reads_one_inner_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = reference_layer(grid=(64, 48), heads=4, reference=(16, 16))
    made = synthetic_trace(tmp_path / "t.zarr", layers=[layer], steps=2, latent_grid=None)
    found = open_trace(made.path).probabilities(0).isel(sample=0, branch=0, step=1, y=40, x=7)
    from i2am.analyzer.store import chunks

    sizes: list[int] = []
    decode = chunks._decode
    monkeypatch.setattr(chunks, "_decode", lambda data, plan, out, crc: (sizes.append(out.nbytes), decode(data, plan, out, crc)))
    np.testing.assert_allclose(found.compute(scheduler="synchronous").values, made.probabilities[0][0, 0, 1, :, 40, 7], atol=1e-3)
    assert len(sizes) == 1
    plan = open_trace(made.path).blocks(0, "probability").plan
    assert plan.shards is not None
    assert sizes[:1] == [4 * plan.chunks[4] * 48 * 257 * 2]


def test_large_scores_are_computed_in_float64(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", layers=[reference_layer()], encoding="factors", steps=1, sharpness=40)
    assert np.abs(made.scores[0]).max() > EXACT_SCORE
    trace = open_trace(made.path)
    assert Calls.of(trace, 0).factors((0, 0), (0,))[0][0].dtype == np.float64
    np.testing.assert_allclose(trace.probabilities(0).values, made.probabilities[0], rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(trace.generated_softmax(0).values, made.generated[0], rtol=1e-5, atol=1e-30)


def test_normalizers_are_the_same_stored_and_computed(tmp_path: Path) -> None:
    found = []
    for encoding in ("probabilities", "factors"):
        made = synthetic_trace(tmp_path / f"{encoding}.zarr", layers=[LAYERS[0]], encoding=encoding, steps=1)
        found.append(Calls.of(open_trace(made.path), 0).normalizers((0, 0), (0,)))
    for stored, computed in zip(*found, strict=True):
        np.testing.assert_allclose(stored, computed, atol=1e-5)
