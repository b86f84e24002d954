"""Ground truth of the synthetic pairs, and scores of painted images and of attention against it. Needs numpy alone.

The scores: squared error under the mask, beside that of the garment's mean colour; and the number of torso patches whose
attention is strongest near the place that the garment there comes from.
"""

from __future__ import annotations

import numpy as np

from .pairs import HELD_OUT, Float, Pair, draw_pair, pixel_centres

NEAR = 0.25
"""A patch looks at the right place if it looks within this distance of it; images are [-1, 1]."""


def held_out_pairs(count: int, size: int = 64) -> list[Pair]:
    """The first pairs of the seeds that training never draws."""
    return [draw_pair(HELD_OUT + index, size) for index in range(count)]


def truth_grid(pair: Pair, grid: tuple[int, int]) -> tuple[Float, Float]:
    """Where the patches of an attention grid come from, and how much of each is torso.

    Dims     grid (h, w) -> positions (h, w, xy), torso (h, w)
    Range    positions [-1, 1] on the reference, the mean over the patch's torso pixels, NaN where it has none;
             torso [0, 1], the share of its pixels
    Raises   ValueError if the grid does not divide the image
    """
    size = pair.mask.shape[0]
    height, width = grid
    if size % height or size % width:
        raise ValueError(f"grid: expected sides that divide the image's {size} pixels, got {height} x {width}")
    cells = (height, size // height, width, size // width)
    weight = pair.mask.astype(np.float32).reshape(cells)
    total = (pair.position.reshape(*cells, 2) * weight[..., None]).sum((1, 3))
    pixels = weight.sum((1, 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        positions = total / pixels[..., None]
    return positions.astype(np.float32), weight.mean((1, 3))


def painting_error(image: Float, pair: Pair) -> tuple[float, float]:
    """Mean squared error under the mask, of an image and of painting the garment's mean colour there.

    Dims     image (y, x, rgb) in [0, 1]
    Range    both in [0, 1] squared intensity; the mean colour is that of the torso itself, the best single colour
    """
    truth = pair.person[pair.mask]
    painted = float(np.mean((np.asarray(image, np.float32)[pair.mask] - truth) ** 2))
    return painted, float(np.mean((truth.mean(0) - truth) ** 2))


def found(attention: Float, pair: Pair, reference_grid: tuple[int, int]) -> tuple[int, int]:
    """Count torso patches whose strongest attention lies near their true place.

    Dims     attention (h, w, patch)
    Range    (patches found, patches that are at least half torso)
    """
    truth, torso = truth_grid(pair, (attention.shape[0], attention.shape[1]))
    places = pixel_centres(*reference_grid).reshape(-1, 2)
    looked = places[attention.argmax(-1)]  # (h, w, xy)
    near = np.linalg.norm(looked - truth, axis=-1) <= NEAR
    patches = torso >= 0.5
    return int((near & patches).sum()), int(patches.sum())
