"""What becomes of recordings and traces under attack: the figures of docs/reliability.md.

    python benchmarks/attacks.py                  # thousands of seeded cases, some minutes
    python benchmarks/attacks.py --cases 100

The same attacks run in the tests, some hundred cases each.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
from measure import machine, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/support"))

from attacks import Tally, documents, swaps
from faults import LAYERS as OF_FAULTS
from faults import faults
from powercut import power_cuts

from traces import default_layers, reference_layer, synthetic_trace

LAYERS = (*default_layers()[:2], reference_layer("unet.b.attn2", (8, 6), encoding="factors"))


@click.command()
@click.option("--cases", default=2000, show_default=True, help="Of each attack.")
@click.option("--seed", default=1, show_default=True)
def main(cases: int, seed: int) -> None:
    """Attack, count, print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = [
            synthetic_trace(folder / f"{i}.zarr", layers=LAYERS, encoding=None, steps=3, seed=i, branches=("cond", "uncond")).path
            for i in range(2)
        ]
        cut = synthetic_trace(folder / "cut.zarr", layers=LAYERS, encoding=None, steps=2, planned=4, seed=3, status="interrupted").path
        good = synthetic_trace(folder / "good.zarr", layers=OF_FAULTS, encoding=None, steps=4, planned=6, seed=9).path
        attacks: dict[str, Callable[[], Tally]] = {
            "a file of the same size in another's place": lambda: swaps(whole, folder / "x.zarr", seed, cases),
            "a value of a complete trace's documents changed": lambda: documents(whole[0], folder / "x.zarr", seed, cases),
            "the same of an unfinished one": lambda: documents(cut, folder / "x.zarr", seed, cases),
            "power cut, unsynced writes reordered": lambda: power_cuts(folder, seed, cases),
            "power cut, a recording of fewer steps than planned": lambda: power_cuts(folder, seed, cases, 7),
            "no space, or an error of the disk, at any call": lambda: faults(good, folder / "y.zarr", seed, cases),
        }
        rows = []
        for name, attack in attacks.items():
            tally = attack()
            other = Counter({what: n for what, n in tally.results.items() if what not in ("right", "refused in words")})
            rows.append([name, cases, tally.results["right"], tally.results["refused in words"], other.total()])
            for line in tally.wrong[:5]:
                click.echo(f"{name}: {line}", err=True)
    click.echo(table(machine(), ["attack", "cases", "right", "refused in words", "anything else"], rows))


if __name__ == "__main__":
    main()
