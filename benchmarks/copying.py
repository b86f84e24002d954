"""Whether the copy score tells heads that point at known truth from others, beside turned copies and random weights as controls.

    python benchmarks/copying.py --cache out/truth

A head points if it sends more than half of the mask's patches to their true place (PCK). Recordings are shared with truth.py.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from measure import machine
from recordings import pipelines, recordings
from scipy.stats import rankdata

from i2am.analyzer import copy_score, head_accuracy, open_trace

POINTS = 0.5


def score_heads(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copy score, its control and pointing accuracy of each head of a recording, in the same order."""
    trace = open_trace(path)
    scores, control = (copy_score(trace, keep=("layer", "head"), control=each) for each in (None, "turned"))
    accuracy = head_accuracy([trace]).sel(layer=scores["layer_name"].values)
    there = np.isfinite(accuracy.values)
    return scores.values[there], control.values[there], accuracy.values[there]


def separate(high: np.ndarray, low: np.ndarray) -> float:
    """Area under the ROC curve: how often a score of `high` is above one of `low`."""
    ranks = rankdata(np.concatenate([high, low]))[: high.size]
    return float((ranks.sum() - high.size * (high.size + 1) / 2) / (high.size * low.size))


def describe(scores: np.ndarray) -> str:
    """How many scores, and the range from their 5th to their 95th percentile."""
    low, high = np.percentile(scores, (5, 95))
    return f"{scores.size:4} of them, 5 to 95 %: {low:5.2f} to {high:5.2f}; least {scores.min():5.2f}, greatest {scores.max():5.2f}"


@click.command()
@click.option("--pairs", default=12, show_default=True)
@click.option("--steps", default=10, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("out/truth"), show_default=True, help="Folder of the recordings.")
def main(pairs: int, steps: int, cache: Path) -> None:
    """Print the copy scores of pointing heads, the same of copies turned, of other heads, and of heads with random weights."""
    found = {
        name: tuple(
            map(np.concatenate, zip(*(score_heads(path) for _, path in recordings(model, cache / name, pairs, steps)), strict=True))
        )
        for name, model in pipelines().items()
    }
    copied, control, accuracy = found["trained"]
    points = accuracy > POINTS
    print(f"{machine()}; {pairs} held-out pairs, {steps} steps")
    print(f"pointing heads          {describe(copied[points])}")
    print(f"the same, copies turned {describe(control[points])}")
    print(f"other heads             {describe(copied[~points])}")
    print(f"heads of random weights {describe(found['random'][0])}")
    print(f"area under the ROC curve, pointing against other heads: {separate(copied[points], copied[~points]):.3f}")


if __name__ == "__main__":
    main()
