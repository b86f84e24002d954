"""(b) Bytes on disk over raw float16 bytes, for each encoding and codec, on the trained attention of the demo model.

python benchmarks/packing.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from measure import machine, size_on_disk, table
from recording import demo

from i2am.recorder import record

WAYS = [(encoding, codec, level) for encoding in ("probabilities", "factors") for codec, level in (("lz4", 5), ("zstd", 3))]


@click.command()
@click.option("--steps", default=50, show_default=True)
def main(steps: int) -> None:
    """Print the share of disk that each way needs."""
    pipeline, call = demo(steps)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for encoding, codec, level in WAYS:
            path = Path(folder) / f"{encoding}-{codec}.zarr"
            record(pipeline, path, encoding=encoding, codec=codec, level=level, progress=False, **call)
            rows.append((encoding, f"{codec}-{level}", size_on_disk(path / "layers"), raw_bytes(path)))
    click.echo(f"{machine()}\n")
    cells = [(e, c, f"{size / raw:.2f}", f"{size / 1e6:.1f}") for e, c, size, raw in rows]
    click.echo(
        table(f"Demo model, {steps} steps, trained attention", ("encoding", "codec", "disk over raw float16 attention", "MB"), cells)
    )


def raw_bytes(path: Path) -> int:
    """Bytes of the whole attention as plain float16."""
    from i2am.analyzer import open_trace

    trace = open_trace(path)
    per_step = sum(layer.heads * layer.grid[0] * layer.grid[1] * layer.tokens for layer in trace.record.layers)
    return 2 * per_step * trace.record.steps * trace.record.samples * len(trace.record.branches)


if __name__ == "__main__":
    main()
