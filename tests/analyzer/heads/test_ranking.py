"""Heads in order, the ones that are taken, and the files they are kept in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from probed import CONCEPTS, LAYERS, ORDER, trace_of

from i2am.analyzer import head_relevance, load_heads, open_trace, rank_heads, save_heads, select_heads
from i2am.analyzer.heads.ranking import published_vector
from i2am.analyzer.trace.heads import head_coordinates
from i2am.schema.errors import AlreadyExists, InvalidInput, MissingExtra, UnknownSelection
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return trace_of(tmp_path_factory.mktemp("ranking") / "t.zarr")


@pytest.fixture(scope="module")
def found(made: Synthetic) -> xr.DataArray:
    return head_relevance(made.path, concepts=CONCEPTS, draws=3)


def scores_of(values: list[float]) -> xr.DataArray:
    """One score for each of the nine heads, given in the published order."""
    layers = [LAYERS[1], LAYERS[3], LAYERS[0]]
    coords = head_coordinates(layers)
    table = np.full((3, 4), np.nan)
    table[np.array(coords["position"][1]) >= 0] = values
    return xr.DataArray(table, dims=("layer", "head"), coords=coords, attrs={"traces": []})


FLAT = [
    (ORDER[0], 0),
    (ORDER[0], 1),
    (ORDER[0], 2),
    (ORDER[0], 3),
    (ORDER[1], 0),
    (ORDER[1], 1),
    (ORDER[1], 2),
    (ORDER[2], 0),
    (ORDER[2], 1),
]


@given(st.lists(st.integers(0, 3), min_size=9, max_size=9))
@settings(deadline=None)
def test_heads_are_ranked_and_equals_keep_the_published_order(values: list[int]) -> None:
    ranked = rank_heads(scores_of([float(v) for v in values]))
    assert ranked == sorted(FLAT, key=lambda head: -values[FLAT.index(head)])


@given(st.lists(st.integers(0, 3), min_size=9, max_size=9), st.integers(1, 8))
@settings(deadline=None)
def test_top_and_bottom_share_all_heads(values: list[int], count: int) -> None:
    scores = scores_of([float(v) for v in values])
    top, rest = select_heads(scores, top=count), select_heads(scores, bottom=9 - count)
    taken = [(layer, head) for part in (top, rest) for layer, numbers in part.items() for head in numbers]
    assert sorted(taken) == sorted(FLAT)
    assert list(top) == [layer for layer in ORDER if layer in top], "layers stay in the published order"


def test_selected_heads_are_those_of_the_concept(found: xr.DataArray, made: Synthetic) -> None:
    best = rank_heads(found, "Color")[:2]
    assert [float(found.sel(concept="Color", layer=layer, head=head)) for layer, head in best] == sorted(
        found.sel(concept="Color").values[np.isfinite(found.sel(concept="Color").values)], reverse=True
    )[:2]
    chosen = select_heads(found, "Color", top=2, trace=open_trace(made.path))
    assert sorted((layer, head) for layer, numbers in chosen.items() for head in numbers) == sorted(best)


def test_the_published_vector_is_flat(found: xr.DataArray) -> None:
    flat = published_vector(found)
    assert flat.dims == ("concept", "position") and flat.shape == (3, 9)
    assert list(zip(flat["layer"].values.tolist(), flat["head"].values.tolist(), strict=True)) == FLAT
    np.testing.assert_allclose(flat.sum("position"), 9)


def test_heads_that_were_never_called_are_not_ranked() -> None:
    values = [0.5] * 9
    values[4] = float("nan")
    assert rank_heads(scores_of(values)) == [head for head in FLAT if head != FLAT[4]]


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
@pytest.mark.parametrize("keep", [(), "time"])
def test_files_bring_everything_back(tmp_path: Path, made: Synthetic, suffix: str, keep: Any) -> None:
    scores = head_relevance(made.path, concepts=CONCEPTS, keep=keep)
    save_heads(scores, tmp_path / f"h{suffix}")
    back = load_heads(tmp_path / f"h{suffix}")
    xr.testing.assert_identical(back, scores)
    assert {name: axis.dtype for name, axis in back.coords.items()} == {name: axis.dtype for name, axis in scores.coords.items()}
    if not keep:
        assert select_heads(back, "Size", bottom=3, trace=open_trace(made.path)) == select_heads(scores, "Size", bottom=3)
    with pytest.raises(AlreadyExists):
        save_heads(scores, tmp_path / f"h{suffix}")
    save_heads(scores, tmp_path / f"h{suffix}", overwrite=True)


def test_what_cannot_be_selected_says_why(found: xr.DataArray, made: Synthetic) -> None:
    timed = head_relevance(made.path, concepts=CONCEPTS, keep="time")
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: select_heads(found, "Animal", top=3), UnknownSelection, "no concept 'Animal'; there are Animals, Color, Size"),
        (lambda: select_heads(found, top=3), InvalidInput, "say which concept, with concept=: Animals, Color, Size"),
        (lambda: select_heads(found, "Size"), InvalidInput, "say how many heads: just one of top= and bottom=, such as top='30'"),
        (lambda: select_heads(found, "Size", top=1, bottom=1), InvalidInput, "just one of top= and bottom="),
        (lambda: select_heads(found, "Size", top=10), UnknownSelection, "cannot take 10 heads; the scores rank 9"),
        (lambda: select_heads(found, "Size", bottom=0), UnknownSelection, "cannot take 0 heads"),
        (lambda: select_heads(found, "Size", top=1.5), InvalidInput, "1.5 is not a number of heads"),  # type: ignore[arg-type]
        (lambda: select_heads(timed, "Size", top=1), InvalidInput, "for each time apart; select one with isel"),
        (lambda: select_heads(scores_of([1.0] * 9), "Size", top=1), InvalidInput, "heads alone, not of concepts; leave out concept='Size'"),
        (lambda: rank_heads(xr.DataArray([[1.0]], dims=("layer", "head"))), InvalidInput, "no scores of heads: they lack head, layer, pos"),
    ]  # fmt: skip
    for ask, error, message in cases:
        with pytest.raises(error, match=message):
            ask()


def test_heads_of_another_model_are_refused(found: xr.DataArray, tmp_path: Path) -> None:
    moved = synthetic_trace(tmp_path / "moved.zarr", layers=[reference_layer("transformer.blocks.0.attn")]).path
    fewer = [reference_layer(layer.path, heads=2) for layer in LAYERS]
    shape = synthetic_trace(tmp_path / "shape.zarr", layers=fewer).path
    with pytest.raises(
        InvalidInput, match=r"vector of synthetic has the layer unet\.down_blocks\.0\.attn2, which the trace .* does not have"
    ):
        select_heads(found, "Size", top=1, trace=open_trace(moved))
    with pytest.raises(InvalidInput, match=r"has 4 heads of 4 channels in the layer unet\.down_blocks\.0\.attn2, the trace .* 2 of 8"):
        select_heads(found, "Size", top=1, trace=open_trace(shape))


def test_some_heads_of_the_same_model_are_the_same_model(found: xr.DataArray, tmp_path: Path) -> None:
    some = [reference_layer(x.path, heads=1, head_dim=x.head_dim, head_numbers=(1,), call_heads=x.heads) for x in LAYERS]
    trace = open_trace(synthetic_trace(tmp_path / "some.zarr", layers=some).path)
    assert select_heads(found, "Size", top=2, trace=trace) == select_heads(found, "Size", top=2)


def test_files_of_something_else_are_refused(tmp_path: Path, found: xr.DataArray) -> None:
    plain = tmp_path / "plain.nc"
    xr.DataArray([1.0], name="x").to_netcdf(plain, engine="h5netcdf")
    empty = tmp_path / "empty.nc"
    empty.write_bytes(b"nothing")
    folder = tmp_path / "folder.zarr"
    folder.mkdir()
    damaged = tmp_path / "damaged.zarr"
    save_heads(found.drop_vars("position"), damaged)
    for path, message in (
        (tmp_path / "nowhere.nc", "there is no .*nowhere.nc; scores of heads are a .nc or .zarr that `i2am heads -o` wrote"),
        (plain, r"holds no scores of heads \(its attributes lack i2am_heads = 1\)"),
        (empty, "empty.nc cannot be read as scores of heads"),
        (
            synthetic_trace(tmp_path / "run.zarr", steps=1).path,
            "run.zarr is a trace and holds no scores of heads",
        ),
        (folder, "folder.zarr cannot be read as scores of heads"),
        (damaged, "damaged.zarr is damaged: it lacks what tells one head from another"),
    ):
        with pytest.raises(InvalidInput, match=message):
            load_heads(path)
    with pytest.raises(InvalidInput, match=r"cannot keep the names of layers and concepts in 'h.npy'; end it in .nc or .zarr"):
        save_heads(found, tmp_path / "h.npy")


def test_a_missing_library_is_named_before_anything_is_counted(
    found: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_heads(found, tmp_path / "h.nc")
    monkeypatch.setattr("i2am.schema.messages.find_spec", lambda name: None)
    for ask in (lambda: save_heads(found, tmp_path / "other.nc"), lambda: load_heads(tmp_path / "h.nc")):
        with pytest.raises(MissingExtra, match=r'pip install "i2am\[netcdf\]", or take .zarr'):
            ask()
