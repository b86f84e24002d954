"""IMACS and what it is made of: laws first, then the oracle in plain loops, then what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from i2am.analyzer.metrics.masks import binarize
from i2am.analyzer.metrics.overlap import imacs
from i2am.analyzer.metrics.placement import normalize, place, threshold, upsample
from i2am.analyzer.numerics.resize import resize
from i2am.schema.errors import InvalidInput

pytestmark = pytest.mark.analyzer

shapes = st.tuples(st.integers(2, 7), st.integers(2, 7))


@st.composite
def maps_and_masks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(shapes)
    mask = draw(arrays(bool, shape).filter(lambda m: 0 < m.sum() < m.size))
    # 64ths are exact in binary, so an affine change moves no value across the threshold by rounding.
    return draw(arrays(np.float64, shape, elements=st.integers(0, 64).map(lambda n: n / 64))), mask


def oracle(values: np.ndarray, mask: np.ndarray, penalty: float, above: float) -> float:
    """The formula, one pixel at a time."""
    low, high = min(values.flat), max(values.flat)
    inside, outside = [], []
    for value, there in zip(values.flat, mask.flat, strict=True):
        m = (value - low) / (high - low) if high > low else 0.0
        (inside if there else outside).append(m if m > above else 0.0)
    return sum(inside) / len(inside) - penalty * sum(outside) / len(outside)


@given(maps_and_masks(), st.floats(0, 10))
@settings(max_examples=60, deadline=None)
def test_imacs_lies_between_minus_the_penalty_and_one(case: tuple[np.ndarray, np.ndarray], penalty: float) -> None:
    assert -penalty - 1e-9 <= float(imacs(*case, penalty=penalty)) <= 1 + 1e-9


@given(maps_and_masks(), st.floats(0, 10), st.floats(0, 0.99))
@settings(max_examples=60, deadline=None)
def test_imacs_is_its_formula(case: tuple[np.ndarray, np.ndarray], penalty: float, above: float) -> None:
    assert float(imacs(*case, penalty=penalty, threshold=above)) == pytest.approx(oracle(*case, penalty, above), abs=1e-12)


@given(maps_and_masks())
@settings(max_examples=60, deadline=None)
def test_a_perfect_map_scores_one_and_its_inverse_the_penalty(case: tuple[np.ndarray, np.ndarray]) -> None:
    mask = case[1]
    assert float(imacs(mask.astype(float), mask)) == 1
    assert float(imacs(1.0 - mask, mask)) == -3


@given(maps_and_masks(), st.integers(1, 8), st.integers(-8, 8))
@settings(max_examples=60, deadline=None)
def test_an_affine_change_of_the_map_changes_no_score(case: tuple[np.ndarray, np.ndarray], gain: int, offset: int) -> None:
    values, mask = case
    assert float(imacs(gain * values + offset, mask)) == pytest.approx(float(imacs(values, mask)), abs=1e-12)


@given(maps_and_masks())
@settings(max_examples=40, deadline=None)
def test_every_kind_of_mask_says_the_same(case: tuple[np.ndarray, np.ndarray]) -> None:
    values, mask = case
    kinds = [
        mask.astype(np.uint8),
        mask.astype(np.uint8) * 255,
        mask.astype(np.float32),
        mask[..., None],
        xr.DataArray(mask, dims=("y", "x")),
    ]
    assert {float(imacs(values, kind)) for kind in kinds} == {float(imacs(values, mask))}


@given(arrays(np.float64, shapes, elements=st.floats(-1e6, 1e6)))
@settings(max_examples=60, deadline=None)
def test_normalised_maps_fill_the_unit_interval(values: np.ndarray) -> None:
    out = normalize(values).values
    tells = np.ptp(values) > 1e-6 * np.abs(values).max()
    assert (out.min(), out.max()) == ((0, 1) if tells else (0, 0))


@given(arrays(np.float64, shapes, elements=st.floats(-1, 1)), st.floats(1e-3, 1e3), st.sampled_from([-1, 1]))
@settings(max_examples=60, deadline=None)
def test_a_map_that_is_constant_up_to_rounding_scores_nothing(noise: np.ndarray, level: float, sign: int) -> None:
    map = sign * level * (1 + 4e-7 * noise)
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:7] = True
    assert not normalize(map).values.any()
    assert not place(map, (8, 9)).values.any()
    assert float(imacs(map, mask)) == 0


def test_maps_of_kept_axes_are_treated_one_by_one() -> None:
    rng = np.random.default_rng(0)
    values, mask = rng.random((3, 2, 5, 4)), np.zeros((10, 8), bool)
    mask[2:6, 1:5] = True
    coords = {"head": [0, 1, 2], "layer": ["a", "b"]}
    map = xr.DataArray(values, dims=("head", "layer", "y", "x"), coords=coords, attrs={"trace": "t"})
    scores = imacs(map, mask)
    assert scores.dims == ("head", "layer")
    assert list(scores.layer.values) == ["a", "b"]
    assert scores.attrs["trace"] == "t"
    for h in range(3):
        for k in range(2):
            assert scores.values[h, k] == pytest.approx(oracle(resize(values[h, k], (10, 8)), mask, 3, 0.4), abs=1e-12)


def test_float16_maps_are_summed_exactly() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((64, 96)).astype(np.float16)
    mask = rng.random((64, 96)) > 0.5
    assert float(imacs(values, mask)) == pytest.approx(oracle(values.astype(np.float64), mask, 3, 0.4), abs=1e-12)


def test_a_reference_map_is_zero_outside_its_window() -> None:
    map = xr.DataArray(np.ones((2, 2)), dims=("ref_y", "ref_x"), attrs={"window": (1.0, 2.0, 5.0, 6.0), "image_shape": (6, 8)})
    map[0, 0] = 3.0
    placed = place(map, (6, 8)).values
    inner = resize(map.values, (4, 4))
    inner = (inner - inner.min()) / np.ptp(inner)
    expected = np.zeros((6, 8))
    expected[1:5, 2:6] = inner
    np.testing.assert_allclose(placed, expected, atol=1e-12)
    mask = np.zeros((6, 8), bool)
    mask[1:5, 2:6] = True
    assert float(imacs(map, mask)) == pytest.approx(np.where(inner > 0.4, inner, 0).mean(), abs=1e-12)


def test_a_window_over_the_edge_shows_what_lies_on_the_picture() -> None:
    map = xr.DataArray(
        np.arange(16.0).reshape(4, 4), dims=("ref_y", "ref_x"), attrs={"window": (-1.0, 0.0, 3.0, 4.0), "image_shape": (3, 4)}
    )
    np.testing.assert_allclose(place(map, (3, 4)).values, (map.values[1:] - 4) / 11)


def test_threshold_keeps_what_is_strictly_greater() -> None:
    np.testing.assert_array_equal(threshold(np.array([[0.4, 0.41], [0.1, 1.0]])).values, [[0, 0.41], [0, 1]])


def test_upsampling_keeps_names_and_gives_centres() -> None:
    map = xr.DataArray(
        np.random.default_rng(2).random((2, 3, 4)),
        dims=("head", "y", "x"),
        coords={"head": [3, 7], "y": [0.2, 0.5, 0.8]},
        attrs={"trace": "t"},
    )
    up = upsample(map, (6, 8))
    assert (up.dims, up.shape, up.attrs) == (map.dims, (2, 6, 8), map.attrs)
    assert list(up["head"].values) == [3, 7]
    np.testing.assert_allclose(up.y, (np.arange(6) + 0.5) / 6)
    np.testing.assert_array_equal(up.values, resize(map.values, (6, 8)))
    assert upsample(map, (3, 4), "nearest").equals(upsample(map, (3, 4)))


def test_a_mask_of_another_picture_is_refused_with_both_sizes() -> None:
    map = xr.DataArray(np.eye(4), dims=("y", "x"), attrs={"image_shape": (64, 48), "image": "generated_0"})
    mask = np.zeros((48, 64), bool)
    mask[0] = True
    for wrong in (mask, np.ones((48, 64))):
        with pytest.raises(InvalidInput, match=r"mask is 48 x 64 .* generated_0, which is 64 x 48"):
            imacs(map, wrong)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((4, 4), bool), "empty"),
        (np.ones((4, 4), bool), "full"),
        (np.full((4, 4), 255, np.uint8), "full"),
        (np.full((4, 4), 100, np.uint8), "empty"),
        (np.zeros((4, 4, 3), np.uint8), "one channel"),
        (np.zeros(4, bool), "one channel"),
        (np.full((4, 4), np.nan), "values from nan"),
        (np.full((4, 4), -1.0), "values from -1"),
        (np.full((4, 4), "a"), "one channel"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(mask: np.ndarray, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        binarize(mask)


@pytest.mark.parametrize(
    ("map", "options", "reason"),
    [
        (np.array([[np.nan, 1.0], [0.0, 1.0]]), {}, "NaN"),
        (np.ones(4), {}, "no rows and columns"),
        (np.eye(2), {"penalty": -1}, "penalty"),
        (np.eye(2), {"penalty": float("nan")}, "penalty"),
        (np.eye(2), {"threshold": 1.0}, "threshold"),
    ],
)
def test_maps_and_settings_that_cannot_be_scored_are_refused(map: np.ndarray, options: dict[str, float], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        imacs(map, np.eye(2, dtype=bool), **options)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(InvalidInput, match="positive"):
        upsample(np.eye(3), (0, 4))
