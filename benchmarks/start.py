"""How long a command takes before it does anything: `i2am --help`, and what the analyzer loads on first use.

    python benchmarks/start.py

Each run is a fresh interpreter; times are over that of one that does nothing, run in turn.
"""

from __future__ import annotations

import subprocess
import sys

import click
from measure import interleave, machine, table

STARTS = {
    "an interpreter that does nothing": "pass",
    "`import numpy`": "import numpy",
    "`i2am --help`": "from i2am.analyzer.cli.main import run; run(['--help'])",
    "`i2am map --help`": "from i2am.analyzer.cli.main import run; run(['map', '--help'])",
    "`from i2am.analyzer import open_trace`": "from i2am.analyzer import open_trace",
    "`from i2am.analyzer import r2g`": "from i2am.analyzer import r2g",
}
"""What is started, and the code that does it."""


def start(code: str) -> None:
    """Run it in a fresh interpreter."""
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


@click.command()
@click.option("--repeats", default=20, show_default=True)
def main(repeats: int) -> None:
    """Print times of fresh processes."""
    seconds = interleave({what: lambda code=code: start(code) for what, code in STARTS.items()}, repeats)
    empty = next(iter(seconds.values()))
    rows = [(what, f"{found:.3f}", f"{found / empty:.1f}") for what, found in seconds.items()]
    click.echo(f"{machine()}\n")
    click.echo(table("Start", ("what", "seconds", "ratio"), rows))


if __name__ == "__main__":
    main()
