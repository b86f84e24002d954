"""Measure what each failure signature says of healthy attention and of its control: the ranges of `i2am diagnose`.

    python benchmarks/ranges.py --pairs 64 --cache out -o analyzer/diagnosis/ranges.toml

Healthy is the shipped model on held-out pairs. The control shows what failure looks like: the same network with random weights
where that fails by itself; for inconsistency, maps of other pairs; for a sink, all attention on one token.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
from recordings import pipelines, record_pair, recordings

from i2am.analyzer import open_trace
from i2am.analyzer.diagnosis.evidence import Evidence, gather
from i2am.analyzer.diagnosis.signatures import SIGNATURES
from i2am.analyzer.numerics.statistics import correlation
from i2am.recorder.demo.pairs import Pair
from i2am.recorder.demo.pipeline import TryOnPipeline
from i2am.schema.trace import LOSSY

RANDOM = ("uniform", "outside_mask", "outside_reference", "mismatch")
"""Signatures that random weights have."""
SINKS = ("special_sink", "token_sink")
PERCENT = (5, 50, 95)


def measure(evidence: Evidence) -> dict[str, float]:
    """Every signature's number; NaN where there is none."""
    found = {signature.key: signature.measure(evidence) for signature in SIGNATURES}
    return {key: each[0] if each else np.nan for key, each in found.items()}


def unlike(first: Evidence, second: Evidence) -> float:
    """1 - the least correlation of two pairs' maps of the same steps."""
    found = [
        1 - correlation(a, b)
        for name in ("r2g_time", "g2r_time")
        for a, b in zip(first.maps[name].values, second.maps[name].values, strict=True)
    ]
    return float(max(found))


def limit(healthy: np.ndarray, control: np.ndarray) -> float:
    """Half way between the worst healthy pair and the mildest control; as far beyond the healthy ones as they spread if these overlap."""
    worst, mildest = healthy.max(), control.min()
    return float((worst + mildest) / 2 if mildest > worst else worst + np.ptp(healthy))


def ranges(healthy: dict[str, np.ndarray], control: dict[str, np.ndarray], pairs: int, steps: int) -> str:
    """The file that `i2am diagnose` reads."""
    lines = [
        "# What each failure signature measures on healthy recordings and on its control: 5, 50, 95 % of the pairs, and a limit between.",
        "# Measured and written by `python benchmarks/ranges.py -o analyzer/diagnosis/ranges.toml`; more is worse, of every one.",
        f"pairs = {pairs}",
        f"steps = {steps}",
    ]
    for signature in SIGNATURES:
        key = signature.key
        inside, beyond = (np.percentile(each[key], PERCENT) for each in (healthy, control))
        found = LOSSY if key == "lost_columns" else limit(healthy[key], control[key])
        lines += ["", f"[{key}]", f"healthy = {_list(inside)}", f"control = {_list(beyond)}"]
        lines += [f'control_is = "{kind(key)}"', f"limit = {found:.4g}"]
    return "\n".join(lines) + "\n"


def kind(key: str) -> str:
    """What the control of a signature is."""
    if key in RANDOM:
        return "random weights"
    return {"inconsistent": "maps of other pairs", "lost_columns": "recorded as float16 probabilities"}.get(
        key, "all attention on one token"
    )


def _list(values: Iterable[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def columns_lost(pipeline: TryOnPipeline, pair: Pair, steps: int, path: Path) -> float:
    """What recording the same pair as probabilities loses."""
    with warnings.catch_warnings():  # it says what is measured here
        warnings.simplefilter("ignore", UserWarning)
        record_pair(pipeline, pair, steps, path, encoding="probabilities")
    return max(layer.column_mass_lost for layer in open_trace(path).layers)


@click.command()
@click.option("--pairs", default=64, show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("out/pairs"), show_default=True, help="Folder of the recordings.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write; printed without it.")
def main(pairs: int, steps: int, cache: Path, out: Path | None) -> None:
    """Measure the ranges of every signature."""
    models = pipelines()
    healthy, control, before, lost = [], [], None, []
    sets = [recordings(models[name], cache / name, pairs, steps) for name in ("trained", "random")]
    for index, ((pair, path), (_, other)) in enumerate(zip(*sets, strict=True)):
        evidence = gather(open_trace(path))
        healthy.append(measure(evidence))
        found = measure(gather(open_trace(other)))
        control.append({**found, **dict.fromkeys(SINKS, 1.0), "inconsistent": unlike(evidence, before) if before else np.nan})
        before = evidence
        if index < 4:  # the loss hardly varies, and each takes a recording
            with tempfile.TemporaryDirectory() as folder:
                lost.append(columns_lost(models["trained"], pair, steps, Path(folder) / "run.zarr"))
    inside, beyond = ({key: np.array([row[key] for row in rows]) for key in healthy[0]} for rows in (healthy, control))
    beyond["inconsistent"] = beyond["inconsistent"][1:]
    beyond["lost_columns"] = np.array(lost)
    text = ranges(inside, beyond, pairs, steps)
    click.echo(text)
    if out:
        out.write_text(text)


if __name__ == "__main__":
    main()
