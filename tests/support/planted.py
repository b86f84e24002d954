"""Recordings whose attention is drawn by hand: healthy, or with one failure planted. 8 x 6 patches look at 8 x 6 tokens and CLS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from i2am.recorder.store.writer import Writer
from i2am.schema.trace import TraceRecord
from traces import Synthetic, _blocks, _images, _logsumexp, reference_layer

GRID = (8, 6)
INSIDE = (slice(2, 6), slice(1, 5))
"""Cells of both masks."""
STEPS = 10
SHARP = 9.0

Scores = np.ndarray
"""S of one layer: (step, head, y, x, token); token 0 is CLS."""


def picture(cell: tuple[int, int] = (8, 8)) -> np.ndarray:
    """The mask of both pictures."""
    mask = np.zeros(GRID, np.uint8)
    mask[INSIDE] = 255
    return np.kron(mask, np.ones(cell, np.uint8))[..., None]


def healthy(rng: np.random.Generator) -> Scores:
    """Each patch looks at its own place: those of the mask sharply, the others less so; head 1 less than head 0."""
    scores = 0.1 * rng.standard_normal((STEPS, 2, *GRID, 1 + GRID[0] * GRID[1]))
    scores[..., 0] -= 3
    inside = np.zeros(GRID, bool)
    inside[INSIDE] = True
    for y, x in np.ndindex(GRID):
        scores[:, :, y, x, 1 + y * GRID[1] + x] += np.array([SHARP, SHARP - 2]) / (1 if inside[y, x] else 2)
    return scores


def uniform(scores: Scores) -> None:
    scores *= 0.01


def outside_mask(scores: Scores) -> None:
    """The patches around the mask look sharply, those inside everywhere."""
    turned = np.roll(scores, (4, 3), axis=(2, 3))
    outer = np.ones(GRID, bool)
    outer[INSIDE] = False
    scores[:, :, INSIDE[0], INSIDE[1], 1:] = 0
    scores[:, :, outer, 1:] = turned[:, :, outer, 1:] * 1.0
    scores[:, :, 0, :, 1:] += np.eye(48)[:6] * 9
    scores[:, :, 7, :, 1:] += np.eye(48)[42:] * 9


def outside_reference(scores: Scores) -> None:
    """Patches of the mask look at the reference's rim."""
    scores[..., 1:] = np.roll(scores[..., 1:].reshape(*scores.shape[:4], *GRID), (4, 3), axis=(4, 5)).reshape(scores[..., 1:].shape)


def inconsistent(scores: Scores) -> None:
    """In the third fifth of the steps all is somewhere else."""
    scores[4:6] = scores[4:6, :, ::-1, ::-1] * 0.2
    scores[4:6, :, :2] += np.linspace(0, 9, 49)


def mismatch(scores: Scores) -> None:
    """One patch outshines all others in every column, though each still looks at its own place."""
    scores[:, :, 3, 3] += 20


def special_sink(scores: Scores) -> None:
    scores[..., 0] += 14


def token_sink(scores: Scores) -> None:
    scores[..., 1 + 3 * GRID[1] + 3] += 14


def lost_columns(scores: Scores) -> None:
    """Nobody looks at one token: float16 cannot say how little."""
    scores[..., 5] -= 60


PLANTS: dict[str, Callable[[Scores], None]] = {
    plant.__name__: plant
    for plant in (uniform, outside_mask, outside_reference, inconsistent, mismatch, special_sink, token_sink, lost_columns)
}


def planted_trace(path: Path, plant: Callable[[Scores], None] | None = None, seed: int = 0, layers: int = 2) -> Path:
    """Write the recording."""
    rng = np.random.default_rng(seed)
    record = TraceRecord(
        f"00000000-0000-4000-8000-{seed:012d}", "recording", 1, ("cond",), STEPS, latent_grid=GRID, created="2026-01-01T00:00:00+00:00"
    )
    made = Synthetic(path, record, Writer(path, record))
    for index in range(layers):
        layer = reference_layer(f"unet.up_blocks.{index}.attn2", GRID, reference=GRID)
        scores = healthy(rng)
        if plant:
            plant(scores)
        _add(made, scores)
        made.writer.add_layer(layer)
        for step in range(STEPS):
            blocks, lost = _blocks(made, index, layer, (0, 0, step))
            made.writer.put(index, 0, "cond", step, blocks, lost=lost)
    for step in range(STEPS):
        made.writer.commit(step, evaluation=step, timestep=1000.0 - 10 * step, sigma=1.0, scheduler_step=step)
    pixels = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    pictures = {"generated_0": pixels, "reference": pixels, "mask": picture(), "reference_mask": picture()}
    made.writer.finish(images=_images(pictures), model={"pipeline": "planted"}, inputs={"seed": seed})
    return path


def _add(made: Synthetic, scores: Scores) -> None:
    s = scores[None, None]
    a, b = _logsumexp(s, (-1,)), _logsumexp(s, (-3, -2))
    made.scores.append(s)
    made.probabilities.append(np.exp(s - a))
    made.generated.append(np.exp(s - b))
    made.query_lse.append(a[..., 0])
    made.token_lse.append(b[..., 0, 0, :])
