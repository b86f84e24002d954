"""Synthetic try-on pairs in which the place on the reference is known for every pixel of the torso.

A person (background, legs, arms, neck, head) wears a garment under a random rotation, scale and shift. The reference
shows that garment alone on a flat background. Colours and pattern are drawn per pair, so nothing but the reference says
what belongs into the masked torso; neck, arms, legs and the outline of the mask say where and how it lies there.

Everything is drawn in garment coordinates: the reference image *is* the garment frame [-1, 1]^2 (x right, y down), and a
pixel of the person is coloured by what lies at its position in that frame. That position is the ground truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Point = tuple[float, float]
Pattern = Callable[[Float], Float]
"""Garment positions (..., xy) -> colours (..., rgb)."""

PATTERNS = ("stripes", "checks", "dots", "logo")
SIDES = (-1, 1)
SUPERSAMPLING = 2
HELD_OUT = 2**31
"""Seeds from here on are never trained on."""
FILL = 0.5
"""Grey that hides the torso in the agnostic image; 0 after the pipeline has brought [0, 1] to [-1, 1]."""


@dataclass(frozen=True, slots=True)
class Pose:
    """Similarity transform from the garment frame to the person image: p = scale * R(angle) @ g + shift."""

    angle: float
    """Radians, clockwise on the screen because y points down."""
    scale: float
    """Size on the person over size on the reference, both images [-1, 1]."""
    shift: tuple[float, float]
    """(x, y) of the garment's centre on the person image, in [-1, 1] units."""

    def to_garment(self, positions: Float) -> Float:
        """Person-image positions -> garment positions.

        Dims     (..., xy) -> (..., xy)
        """
        x = (positions[..., 0] - self.shift[0]) / self.scale
        y = (positions[..., 1] - self.shift[1]) / self.scale
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Pair:
    """One try-on example with its ground truth; images (y, x, rgb) float32 in [0, 1]."""

    seed: int
    pattern: str
    """One of PATTERNS."""
    pose: Pose
    person: Float
    """The answer: the person wearing the garment."""
    agnostic: Float
    """The person with the torso filled with grey."""
    mask: Mask
    """(y, x), True on the torso, where the garment is to be painted."""
    reference: Float
    """The garment alone on a flat background."""
    reference_mask: Mask
    """(y, x), True on the garment in the reference."""
    position: Float
    """(y, x, xy): where each person pixel's centre lies on the reference, [-1, 1] inside its frame; means something only under mask."""


def pixel_centres(height: int, width: int) -> Float:
    """Centres of a grid's cells in [-1, 1]^2.

    Dims     -> (y, x, xy), x right and y down
    """
    y = (2 * np.arange(height, dtype=np.float32) + 1) / height - 1
    x = (2 * np.arange(width, dtype=np.float32) + 1) / width - 1
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1).astype(np.float32)


def draw_pair(seed: int, size: int = 64) -> Pair:
    """Draw the try-on pair of a seed; the same seed is the same scene at every size.

    Raises   ValueError if size is not positive
    """
    if size < 1:
        raise ValueError(f"size: expected a positive number of pixels, got {size}")
    rng = np.random.default_rng(seed)
    pose = draw_pose(rng)
    silhouette = draw_silhouette(rng)
    body = draw_body(rng)
    flat = rng.uniform(0.75, 1.0, 3).astype(np.float32)
    name = PATTERNS[int(rng.integers(len(PATTERNS)))]
    pattern = DRAW[name](rng)

    fine = pixel_centres(size * SUPERSAMPLING, size * SUPERSAMPLING)
    worn = pose.to_garment(fine)
    torso, garment = silhouette(worn), silhouette(fine)
    person = shrink(np.where(torso[..., None], pattern(worn), body(fine, worn)))
    reference = shrink(np.where(garment[..., None], pattern(fine), flat))
    # Any coverage at all: a half-covered pixel left outside would leak the garment's colour into the agnostic image.
    mask = shrink(torso.astype(np.float32)) > 0
    return Pair(
        seed=seed,
        pattern=name,
        pose=pose,
        person=person,
        agnostic=np.where(mask[..., None], np.float32(FILL), person),
        mask=mask,
        reference=reference,
        reference_mask=shrink(garment.astype(np.float32)) >= 0.5,
        position=pose.to_garment(pixel_centres(size, size)),
    )


def draw_pose(rng: np.random.Generator) -> Pose:
    """Lean up to 23 degrees, 55 to 75 % of the reference's size, centred within 0.12 of a point below the middle."""
    x, y = rng.uniform(-0.12, 0.12, 2)
    return Pose(float(rng.uniform(-0.4, 0.4)), float(rng.uniform(0.55, 0.75)), (float(x), float(y) + 0.12))


def draw_silhouette(rng: np.random.Generator) -> Callable[[Float], Mask]:
    """A shirt with short sleeves and a round neckline, in garment coordinates."""
    half, flare = rng.uniform(0.46, 0.58), rng.uniform(-0.06, 0.08)
    sleeve, neck = rng.uniform(0.80, 0.92), rng.uniform(0.18, 0.26)

    def inside(at: Float) -> Mask:
        x, y = np.abs(at[..., 0]), at[..., 1]
        trunk = (x <= half + flare * y) & (y <= 0.88)
        # Sleeves hang from the shoulder line and end where their lower edge meets it again.
        sleeves = (x <= sleeve) & (y >= 0.9 * (x - half) - 0.85) & (y <= 0.55 * (x - half) - 0.22)
        shoulders = y >= -0.88 + 0.22 * x
        hole = x**2 + (y + 0.86) ** 2 <= neck**2
        return np.asarray((trunk | sleeves) & shoulders & ~hole)

    return inside


def draw_body(rng: np.random.Generator) -> Callable[[Float, Float], Float]:
    """Background, legs, arms, neck and head: a function of (image positions, garment positions) -> colours."""
    wall = rng.uniform(0.1, 0.95, (2, 3)).astype(np.float32)
    skin = np.array([0.95, 0.78, 0.65], np.float32) * rng.uniform(0.4, 1.0)
    hair, trousers = rng.uniform(0.0, 0.6, (2, 3)).astype(np.float32)
    hands = [(rng.uniform(0.75, 1.15), rng.uniform(-0.15, 0.75)) for _ in SIDES]
    feet = [(rng.uniform(0.22, 0.5), rng.uniform(2.2, 2.4)) for _ in SIDES]

    def colours(image: Float, at: Float) -> Float:
        rise = (image[..., 1:] + 1) / 2
        picture: Float = wall[0] * (1 - rise) + wall[1] * rise
        for side, hand, foot in zip(SIDES, hands, feet, strict=True):
            picture[limb(at, (0.27 * side, 0.8), (foot[0] * side, foot[1]), 0.21)] = trousers
            picture[limb(at, (0.66 * side, -0.55), (hand[0] * side, hand[1]), 0.11)] = skin
        picture[limb(at, (0, -0.75), (0, -1.1), 0.14)] = skin
        head = (at[..., 0] / 0.27) ** 2 + ((at[..., 1] + 1.25) / 0.33) ** 2 <= 1
        picture[head] = skin
        picture[head & (at[..., 1] < -1.35)] = hair
        return picture

    return colours


def limb(at: Float, start: Point, end: Point, radius: float) -> Mask:
    """True within radius of the segment from start to end.

    Dims     at (..., xy) -> (...)
    """
    dx, dy = end[0] - start[0], end[1] - start[1]
    x, y = at[..., 0] - start[0], at[..., 1] - start[1]
    along = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
    return np.asarray((x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius**2)


def shrink(fine: Float) -> Float:
    """Average the supersamples of every pixel.

    Dims     (y*s, x*s, ...) -> (y, x, ...)
    """
    s = SUPERSAMPLING
    total = sum(fine[dy::s, dx::s] for dy in range(s) for dx in range(s))
    return np.asarray(total / np.float32(s * s), dtype=np.float32)


def draw_palette(rng: np.random.Generator, count: int) -> Float:
    """Colours at least 0.5 apart in RGB, so that a wrong one costs.

    Dims     -> (colour, rgb), range [0, 1]
    """
    colours: list[NDArray[np.float64]] = []
    while len(colours) < count:
        candidate = rng.uniform(0.02, 0.98, 3)
        if all(np.linalg.norm(candidate - other) >= 0.5 for other in colours):
            colours.append(candidate)
    return np.array(colours, dtype=np.float32)


def draw_stripes(rng: np.random.Generator) -> Pattern:
    """Straight bands in any direction, no two neighbours alike."""
    palette, angle = draw_palette(rng, 4), rng.uniform(0, np.pi)
    width, offset = rng.uniform(0.32, 0.5), rng.uniform(0, 1)
    order = np.cumsum(rng.integers(1, 4, 16)) % 4
    across = (float(np.cos(angle)), float(np.sin(angle)))

    def colours(at: Float) -> Float:
        band = np.floor((at[..., 0] * across[0] + at[..., 1] * across[1]) / width + offset).astype(np.int64) % 16
        return palette[order[band]]

    return colours


def draw_checks(rng: np.random.Generator) -> Pattern:
    """A board of squares, each of a colour of its own choice."""
    palette, width = draw_palette(rng, 4), rng.uniform(0.38, 0.55)
    offset = rng.uniform(0, 1, 2).astype(np.float32)
    board = rng.integers(0, 4, (8, 8))

    def colours(at: Float) -> Float:
        cell = np.floor(at / np.float32(width) + offset).astype(np.int64) % 8
        return np.asarray(palette[board[cell[..., 1], cell[..., 0]]])

    return colours


def draw_dots(rng: np.random.Generator) -> Pattern:
    """Large dots of several colours, scattered over one ground."""
    palette, radius = draw_palette(rng, 4), rng.uniform(0.17, 0.25)
    nodes = pixel_centres(4, 4).reshape(-1, 2) * np.float32(0.9)
    centres = nodes + rng.uniform(-0.1, 0.1, nodes.shape).astype(np.float32)
    chosen = rng.permutation(len(nodes))[:10]
    dye = rng.integers(1, 4, len(chosen))

    def colours(at: Float) -> Float:
        picture = np.full((*at.shape[:-1], 3), palette[0])
        for centre, colour in zip(centres[chosen], palette[dye], strict=True):
            x, y = at[..., 0] - centre[0], at[..., 1] - centre[1]
            picture[x * x + y * y <= radius**2] = colour
        return picture

    return colours


def draw_logo(rng: np.random.Generator) -> Pattern:
    """One large two-coloured emblem on a ground that changes colour at a line below or above it."""
    palette, size = draw_palette(rng, 4), rng.uniform(0.34, 0.46)
    centre = rng.uniform([-0.2, -0.45], [0.2, 0.4]).astype(np.float32)
    power, inner, line = (1.0, 2.0, 6.0)[rng.integers(3)], rng.uniform(0.45, 0.6), rng.uniform(-0.5, 0.6)

    def colours(at: Float) -> Float:
        # |x|^p + |y|^p: a diamond, a disc or a rounded square.
        x, y = np.abs(at[..., 0] - centre[0]) / size, np.abs(at[..., 1] - centre[1]) / size
        away = x**power + y**power
        picture = palette[(at[..., 1] >= line).astype(np.int64)]
        picture[away <= 1] = palette[2]
        picture[away <= inner**power] = palette[3]
        return picture

    return colours


DRAW = {"stripes": draw_stripes, "checks": draw_checks, "dots": draw_dots, "logo": draw_logo}
