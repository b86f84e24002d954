"""Factors of one head against the definitions: norms, projections, and keys that are left out of a softmax for real."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analyzer.influence.factors import directions, knock_outs, norms

pytestmark = pytest.mark.analyzer


def dropped(scores: np.ndarray, value: np.ndarray, output: np.ndarray, token: int) -> np.ndarray:
    """|change of o W| when a key is left out of the softmax: (position,)."""
    full, less = (np.exp(each - each.max(1, keepdims=True)) for each in (scores, np.delete(scores, token, 1)))
    full, less = full / full.sum(1, keepdims=True), less / less.sum(1, keepdims=True)
    return np.linalg.norm((full @ value - less @ np.delete(value, token, 0)) @ output, axis=1)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), sharpness=st.sampled_from([0.1, 1.0, 10.0, 100.0]), tokens=st.integers(2, 30), total=st.floats(0.9, 1.1))
def test_a_knock_out_is_what_dropping_the_key_changes(seed: int, sharpness: float, tokens: int, total: float) -> None:
    rng = np.random.default_rng(seed)
    scores = sharpness * rng.standard_normal((9, tokens))
    value, output = rng.standard_normal((tokens, 5)), rng.standard_normal((5, 7))
    probability = np.exp(scores - scores.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    effects = knock_outs(total * probability, value, output @ output.T)  # a stored row does not sum to 1 exactly
    truth = np.stack([dropped(scores, value, output, token) for token in range(tokens)], 1)
    scale = np.linalg.norm(value @ output, axis=1).max()
    np.testing.assert_allclose(probability * effects, truth, atol=1e-7 * scale)
    assert effects.max() <= 2 * scale * (1 + 1e-9)  # a mean of differences of values


def test_a_key_with_nothing_beside_it_has_no_effect() -> None:
    value, gram = np.ones((1, 3)), np.eye(3)
    assert knock_outs(np.ones((4, 1)), value, gram).tolist() == [[0]] * 4
    alone = knock_outs(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 0, 0], [0, 2, 0]]), gram)
    np.testing.assert_allclose(alone, [[0, np.sqrt(5)], [0, 0]])


def test_a_key_that_has_nearly_all_is_as_far_from_the_others_as_they_are() -> None:
    value, output = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), np.eye(2)
    probability = np.array([[1 - 4e-14, 1e-14, 3e-14]])
    effect = knock_outs(probability, value, output)[0, 0]
    assert effect == pytest.approx(np.hypot(1, 2.5), rel=1e-12)


def test_contributions_add_up_to_the_length_of_the_output() -> None:
    rng = np.random.default_rng(0)
    probability, value, output = rng.random((3, 6, 4)), rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 5, 7))
    toward = directions(probability @ value, output)
    whole = np.einsum("hxr,hrc,hco->xo", probability, value, output)
    np.testing.assert_allclose(np.einsum("hxr,hxc,hrc->x", probability, toward, value), np.linalg.norm(whole, axis=1))
    assert not directions(np.zeros((3, 2, 5)), output).any()


def test_norms_are_of_each_value_through_its_head() -> None:
    rng = np.random.default_rng(1)
    value, output = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((3, 5, 7))
    truth = [[[np.linalg.norm(v @ W) for v in head] for head, W in zip(call, output, strict=True)] for call in value]
    np.testing.assert_allclose(norms(value, output), truth)
