"""The synthetic try-on pairs: reproducible, leak-free, and right about where every torso pixel comes from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from i2am.recorder.demo import pairs
from i2am.recorder.demo.pairs import FILL, HELD_OUT, PATTERNS, Float, Pair, Pose, draw_pair, pixel_centres
from i2am.recorder.demo.truth import painting_error, truth_grid

SEEDS = range(HELD_OUT, HELD_OUT + 16)


def sample(image: Float, positions: Float) -> Float:
    """Bilinear lookup; positions (n, xy) in [-1, 1]."""
    side = image.shape[0]
    at = np.clip((positions + 1) / 2 * side - 0.5, 0, side - 1 - 1e-4)
    low = np.floor(at).astype(int)
    fx, fy = (at - low).T[:, :, None]
    x, y = low.T
    upper = image[y, x] * (1 - fx) + image[y, x + 1] * fx
    lower = image[y + 1, x] * (1 - fx) + image[y + 1, x + 1] * fx
    return upper * (1 - fy) + lower * fy


def test_a_seed_is_a_pair() -> None:
    first, again, other = draw_pair(7), draw_pair(7), draw_pair(8)
    for field in dataclasses.fields(Pair):
        np.testing.assert_equal(getattr(first, field.name), getattr(again, field.name))
    assert not np.array_equal(first.person, other.person)
    assert {draw_pair(seed).pattern for seed in range(40)} == set(PATTERNS)


@pytest.mark.parametrize("seed", SEEDS)
def test_truth_warps_the_reference_onto_the_torso(seed: int) -> None:
    pair = draw_pair(seed)
    error = np.abs(sample(pair.reference, pair.position[pair.mask]) - pair.person[pair.mask]).mean(-1)
    # Only pixels that an edge of the pattern or of the torso runs through may differ.
    assert np.median(error) < 0.01
    assert error.mean() < 0.08
    mirrored = pair.position[pair.mask] * np.float32([-1, 1])
    assert np.abs(sample(pair.reference, mirrored) - pair.person[pair.mask]).mean() > error.mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_masks(seed: int) -> None:
    pair = draw_pair(seed)
    assert (pair.agnostic[pair.mask] == FILL).all()
    np.testing.assert_array_equal(pair.agnostic[~pair.mask], pair.person[~pair.mask])
    assert 0.08 < pair.mask.mean() < 0.4
    assert 0.3 < pair.reference_mask.mean() < 0.8
    # The garment lies inside its frame, so torso pixels come from inside the reference, up to half a torso pixel.
    assert np.abs(pair.position[pair.mask]).max() < 1
    for image in (pair.person, pair.agnostic, pair.reference):
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() <= 1


def test_agnostic_image_knows_nothing_of_the_garment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [draw_pair(seed) for seed in SEEDS]
    black = dict.fromkeys(PATTERNS, lambda rng: lambda at: np.zeros((*at.shape[:-1], 3), np.float32))
    monkeypatch.setattr(pairs, "DRAW", black)
    for pair in before:
        other = draw_pair(pair.seed)
        np.testing.assert_array_equal(other.agnostic, pair.agnostic)
        assert not np.array_equal(other.person, pair.person)


def test_pose_turns_clockwise_on_the_screen() -> None:
    pose = Pose(angle=np.pi / 2, scale=0.5, shift=(0.1, -0.2))
    # The garment's right-hand end hangs below its centre after a quarter turn.
    np.testing.assert_allclose(pose.to_garment(np.float32([[0.1, -0.2], [0.1, 0.3]])), [[0, 0], [1, 0]], atol=1e-6)


def test_truth_grid_averages_torso_pixels() -> None:
    pair = dataclasses.replace(draw_pair(0, size=8), position=pixel_centres(8, 8), mask=np.zeros((8, 8), bool))
    pair.mask[0, :2] = True
    positions, torso = truth_grid(pair, (4, 2))
    np.testing.assert_allclose(positions[0, 0], [-0.75, -0.875])
    assert torso[0, 0] == 0.25
    assert torso.sum() == 0.25
    assert np.isnan(positions[1:]).all()
    with pytest.raises(ValueError, match="sides that divide the image's 8 pixels, got 3 x 2"):
        truth_grid(pair, (3, 2))


def test_painting_error_of_truth_and_of_mean_colour() -> None:
    pair = draw_pair(3)
    assert painting_error(pair.person, pair)[0] == 0
    flat = np.broadcast_to(pair.person[pair.mask].mean(0), pair.person.shape)
    painted, plain = painting_error(flat, pair)
    assert painted == pytest.approx(plain)
    assert plain > 0.005


def test_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="size: expected a positive number of pixels, got 0"):
        draw_pair(0, size=0)
