"""What the demo model's attention is worth against known truth: layers, heads, steps, methods, aggregations, metrics.

    python benchmarks/truth.py --cache out/truth                                        # 64 pairs, 50 steps
    python benchmarks/truth.py --cache out/truth --checkpoints out/run -o docs/truth.md # and a training run's checkpoints

Everything but what the pictures themselves are worth is computed from recorded traces. The control is the same network with random
weights. Checkpoints are those of `python examples/train_demo/train.py --keep 14 --out out/run`. With -o the tables go into a page, between
its marks; the words around them stay.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Final

import click
from checkpoints import follow
from extraction import FIFTHS, extract
from measure import machine
from recordings import pipelines, recordings
from truth_tables import Study, report

MARKS: Final = ("<!-- printed by benchmarks/truth.py: begin -->", "<!-- end -->")


def collect(cache: Path, pairs: int, steps: int, stride: int, checkpoints: Path | None, few: int, short: int) -> Study:
    """Record what is not in the cache yet, and extract it."""
    models = pipelines()
    sets = {
        name: [(pair, extract(path, stride)) for pair, path in recordings(model, cache / name, pairs, steps)]
        for name, model in models.items()
    }
    run = follow(checkpoints, cache, few, short) if checkpoints else []
    return Study([pair for pair, _ in sets["trained"]], *([finding for _, finding in sets[name]] for name in ("trained", "random")), run)


def write_page(page: Path, printed: str, marks: tuple[str, str] = MARKS) -> None:
    """Put what was printed between the marks of a page, which is made where there is none."""
    text = page.read_text() if page.exists() else "\n\n".join(["# Known truth", *marks]) + "\n"
    begin, end = (re.escape(mark) for mark in marks)
    replaced, count = re.subn(f"({begin}).*?({end})", lambda match: f"{match[1]}\n\n{printed}\n{match[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{page} has no place for the tables; it needs one line {marks[0]} and, below it, one line {marks[1]}")
    page.write_text(replaced)


@click.command()
@click.option("--pairs", default=64, show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--stride", default=5, show_default=True, help="Of so many steps one is looked at.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("out/truth"), show_default=True, help="Folder of the recordings.")
@click.option("--checkpoints", type=click.Path(path_type=Path, exists=True), help="Folder of a training run that kept its checkpoints.")
@click.option("--checkpoint-pairs", "few", default=16, show_default=True)
@click.option("--checkpoint-steps", "short", default=20, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Page to write the tables into; printed without it.")
def main(pairs: int, steps: int, stride: int, cache: Path, checkpoints: Path | None, few: int, short: int, out: Path | None) -> None:
    """Print what attention is worth against known truth."""
    study = collect(cache, pairs, steps, stride, checkpoints, few, short)
    printed = f"{conditions(pairs, steps, stride, (few, short) if checkpoints else None)}\n\n{report(study)}"
    if out:
        write_page(out, printed)
    else:
        click.echo(printed)


def conditions(pairs: int, steps: int, stride: int, run: tuple[int, int] | None) -> str:
    """One line: what was measured, and on what."""
    guidance = inspect.signature(pipelines()["trained"].__call__).parameters["guidance_scale"].default
    text = f"{machine()}; {pairs} held-out pairs, {steps} DDIM steps, of which every {stride}th is looked at, in {FIFTHS} groups; "
    checkpoints = f"; checkpoints: {run[0]} pairs, {run[1]} steps" if run else ""
    return f"{text}guidance {guidance}{checkpoints}"


if __name__ == "__main__":
    main()
