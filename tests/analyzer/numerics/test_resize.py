"""Resampling: laws that need no torch. `test_resize_torch.py` holds it against torch itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analyzer.numerics.resize import matrix, resize, taps
from i2am.schema.errors import InvalidInput

pytestmark = pytest.mark.analyzer

LENGTH = st.integers(1, 24)
MODE = st.sampled_from(["bicubic", "bilinear", "nearest"])


@settings(deadline=None)
@given(LENGTH, LENGTH, MODE)
def test_weights_sum_to_one_and_stay_inside(source: int, target: int, mode: str) -> None:
    places, weights = taps(source, target, mode)
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-12)
    assert places.min() >= 0
    assert places.max() < source


@settings(deadline=None)
@given(LENGTH, MODE)
def test_the_same_length_is_the_identity(length: int, mode: str) -> None:
    np.testing.assert_allclose(matrix(length, length, mode), np.eye(length), atol=1e-12)


@settings(deadline=None)
@given(LENGTH, LENGTH, MODE)
def test_nothing_is_mirrored(source: int, target: int, mode: str) -> None:
    weights = matrix(source, target, mode)
    if mode == "nearest":  # picks the pixel to the left of a tie, so only its order can be asked for
        assert (np.diff(weights.argmax(1)) >= 0).all()
    else:
        np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 20), st.integers(1, 20), MODE)
def test_rows_and_columns_are_resampled_apart(rows: int, columns: int, height: int, width: int, mode: str) -> None:
    picture = np.random.default_rng(0).normal(size=(2, rows, columns))
    expected = np.einsum("iy,jx,nyx->nij", matrix(rows, height, mode), matrix(columns, width, mode), picture)
    np.testing.assert_allclose(resize(picture, (height, width), mode), expected, atol=1e-12)


def test_a_bright_corner_stays_in_its_corner() -> None:
    picture = np.zeros((3, 5))
    picture[0, -1] = 1
    for mode in ("bicubic", "bilinear", "nearest"):
        enlarged = resize(picture, (12, 25), mode)
        assert np.unravel_index(enlarged.argmax(), enlarged.shape)[0] < 4
        assert np.unravel_index(enlarged.argmax(), enlarged.shape)[1] >= 20


def test_nearest_keeps_what_is_not_finite_in_its_place() -> None:
    picture = np.array([[np.nan, 1.0], [2.0, 3.0]])
    assert np.isnan(resize(picture, (4, 4), "nearest")).sum() == 4


def test_float32_stays_and_integers_become_float64() -> None:
    assert resize(np.ones((2, 2), np.float32), (3, 3)).dtype == np.float32
    assert resize(np.ones((2, 2), np.uint8), (3, 3)).dtype == np.float64


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: resize(np.ones((2, 2)), (3, 3), "lanczos"), "unknown resampling 'lanczos'; there are bicubic, bilinear, nearest"),
        (lambda: resize(np.ones((2, 2)), (0, 3)), "length 2 to 0"),
        (lambda: resize(np.ones((2, 2)), (0, 3), "nearest"), "length 2 to 0"),
        (lambda: resize(np.ones(2), (3, 3)), r"shape \(2,\)"),
    ],
)
def test_bad_input_is_said_in_one_line(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidInput, match=words):
        call()
