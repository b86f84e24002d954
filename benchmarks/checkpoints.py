"""Does IMACS tell how good a picture is? Over the checkpoints of a training run, and over the pairs of one model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dask
import numpy as np
from recordings import recordings
from scipy.stats import rankdata
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from i2am.analyzer import g2r, imacs, looks, open_trace, pck, r2g
from i2am.analyzer.inspection.truth import require_truth
from i2am.recorder.demo.pairs import Pair
from i2am.recorder.demo.pipeline import TryOnPipeline, load_shipped

SCORES: Final = ("imacs_g", "imacs_r", "pck", "pck_layer")
QUALITIES: Final = ("psnr", "ssim")
RESAMPLES: Final = 2000


def quality(image: np.ndarray, pair: Pair) -> dict[str, float]:
    """PSNR of the painted pixels, and mean SSIM there.

    Dims     image (y, x, rgb) in [0, 1]
    """
    truth, painted = pair.person.astype(np.float64), np.asarray(image, np.float64)
    psnr = peak_signal_noise_ratio(truth[pair.mask], painted[pair.mask], data_range=1)
    _, local = structural_similarity(truth, painted, channel_axis=-1, data_range=1, full=True)
    return {"psnr": float(psnr), "ssim": float(local[pair.mask].mean())}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one moment of a training run paints, and what its attention is worth: of all layers, and of the layer that points best."""

    step: int
    values: dict[str, np.ndarray]
    """(pair,) by name of score or quality."""


def find_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Weights that a training run kept on the way, and those it ended with.

    `python examples/train_demo/train.py --keep 14 --out FOLDER` leaves them under FOLDER/checkpoints and in FOLDER.
    """
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    found = {int(path.name.removeprefix("step-")): path for path in inside.glob("step-*") if (path / "model_index.json").is_file()}
    log = folder / "log.jsonl"
    if log.is_file() and (folder / "model_index.json").is_file():
        found[int(json.loads(log.read_text().splitlines()[-1])["step"])] = folder
    if len(found) < 2:
        raise SystemExit(f"{folder} holds {len(found)} checkpoints; expected folders step-NNNNNN, at least 2")
    return sorted(found.items())


def follow(folder: Path, cache: Path, pairs: int, steps: int) -> list[Checkpoint]:
    """Record the pairs with every checkpoint, and score them."""
    found = []
    for step, weights in find_checkpoints(folder):
        kept = cache / f"step-{step:06d}-{pairs}-{steps}.npz"
        if not kept.exists():
            np.savez(kept, **_score(load_shipped(weights), cache / f"step-{step:06d}", pairs, steps))
        with np.load(kept) as arrays:
            found.append(Checkpoint(step, dict(arrays)))
    return found


def _score(pipeline: TryOnPipeline, cache: Path, pairs: int, steps: int) -> dict[str, np.ndarray]:
    rows: list[dict[str, float]] = []
    layers: list[np.ndarray] = []
    for pair, path in recordings(pipeline, cache, pairs, steps):
        trace = open_trace(path)
        thin = {"steps": list(range(0, steps, max(1, steps // 5)))}
        generated, reference, places = dask.compute(
            r2g(trace, **thin), g2r(trace, query_mask="mask", **thin), looks(trace, keep="layer", **thin)
        )
        layers.append(pck(places, require_truth(trace)).values)
        rows.append(
            {
                "imacs_g": float(imacs(generated, trace.image("mask"))),
                "imacs_r": float(imacs(reference, trace.image("reference_mask"))),
                "pck": float(pck(places.mean("layer", keep_attrs=True), require_truth(trace))),
                **quality(trace.image("generated_0") / 255, pair),
            }
        )
    every = np.array(layers)  # (pair, layer)
    best = every[:, every.mean(0).argmax()]
    return {**{name: np.array([row[name] for row in rows]) for name in rows[0]}, "pck_layer": best}


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rank correlation and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation, 0 where one of them does not vary at all."""
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0


def resampled(value: float, again: Callable[[np.random.Generator], float]) -> Correlation:
    """The value, and where it lies when what it was computed from is drawn again, with replacement."""
    rng = np.random.default_rng(0)
    low, high = np.percentile([again(rng) for _ in range(RESAMPLES)], (2.5, 97.5))
    return Correlation(value, float(low), float(high))


def over_pairs(first: np.ndarray, second: np.ndarray) -> Correlation:
    """Of two numbers of each pair."""

    def again(rng: np.random.Generator) -> float:
        drawn = rng.integers(0, len(first), len(first))
        return spearman(first[drawn], second[drawn])

    return resampled(spearman(first, second), again)


def over_checkpoints(run: Sequence[Checkpoint], score: str, of: str) -> Correlation:
    """Of the checkpoints' means; both checkpoints and pairs are drawn again."""
    a, b = (np.stack([each.values[name] for each in run]) for name in (score, of))  # (checkpoint, pair)

    def again(rng: np.random.Generator) -> float:
        rows, columns = (rng.integers(0, n, n) for n in a.shape)
        return spearman(*(values[rows][:, columns].mean(1) for values in (a, b)))

    return resampled(spearman(a.mean(1), b.mean(1)), again)


def within_checkpoints(run: Sequence[Checkpoint], score: str, of: str) -> Correlation:
    """Mean over checkpoints of the correlation over pairs: what is left when training itself is taken out."""
    a, b = (np.stack([each.values[name] for each in run]) for name in (score, of))

    def mean(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.mean([spearman(x, y) for x, y in zip(first, second, strict=True)]))

    def again(rng: np.random.Generator) -> float:
        drawn = rng.integers(0, a.shape[1], a.shape[1])
        return mean(a[:, drawn], b[:, drawn])

    return resampled(mean(a, b), again)
