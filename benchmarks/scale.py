"""(l) What traces cost by the number: bytes, files, requests and seconds of each, and of ten to ten million.

    python benchmarks/scale.py --traces 16

Records the demo model as factors, packs each trace into one zip file, and evaluates IMACS of all of them: from folders and from zip
files, in one process and in one for each core, and from zip files on a loopback web server that counts what it is asked. Totals are
these numbers times the number of traces; what is said of a run of Stable Diffusion 1.5 is its raw size times the share that the demo's
attention packs to.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from dataset import command
from measure import interleave, machine, size_on_disk, table
from recordings import pipelines, record_pair

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/support"))
from webserver import Web, serving

from i2am.analyzer import open_trace
from i2am.analyzer.inspection.info import raw_bytes
from i2am.recorder.demo.pairs import HELD_OUT, draw_pair

NUMBERS = (10, 1_000, 100_000, 10_000_000)
SD15_BYTES = 50 * 2 * 8 * 257 * (5 * 64**2 + 5 * 32**2 + 5 * 16**2 + 8**2)
"""Raw float16 attention of 16 layers at 512 x 512, 257 keys, 8 heads, 50 steps, one branch."""


def make(folder: Path, count: int, steps: int) -> dict[str, Path]:
    """Recordings of both encodings, and the same packed, by what they are called in the table."""
    trained = pipelines()["trained"]
    places = {name: folder / name for name in ("factors", "packed factors", "probabilities", "packed probabilities")}
    for place in places.values():
        place.mkdir()
    for index in range(count):
        for encoding in ("factors", "probabilities") if index == 0 else ("factors",):
            recorded = places[encoding] / f"{index:03d}.zarr"
            record_pair(trained, draw_pair(HELD_OUT + index, trained.size), steps, recorded, encoding)
            command("pack", recorded, "-o", places[f"packed {encoding}"] / f"{index:03d}.zarr.zip")
    return places


def sizes(places: dict[str, Path]) -> dict[str, tuple[int, int]]:
    """Bytes and files of the first trace of each kind."""
    found = {}
    for name, place in places.items():
        first = sorted(place.iterdir())[0]
        files = [first] if first.is_file() else [file for file in first.rglob("*") if file.is_file()]
        found[name] = first.stat().st_size if first.is_file() else size_on_disk(first), len(files)
    return found


def count_requests(web: Web, address: str) -> tuple[int, int]:
    """Requests and bytes of one evaluation at an address, from a fresh process without a cache."""
    web.reset()
    command("evaluate", address, "--cache", "none", "--json")
    return web.requests, web.nbytes


@click.command()
@click.option("--traces", default=16, show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def main(traces: int, steps: int, repeats: int) -> None:
    """Print what one trace costs, and many."""
    with tempfile.TemporaryDirectory() as scratch:
        places = make(Path(scratch), traces, steps)
        raw = raw_bytes(open_trace(sorted(places["factors"].iterdir())[0]))
        disk = sizes(places)
        with serving(places["packed factors"]) as web:
            zips = [f"{web.address}/{path.name}" for path in sorted(places["packed factors"].iterdir())]
            requests, fetched = count_requests(web, zips[0])
            seconds = interleave(
                {
                    "folders, one process": lambda: command("evaluate", places["factors"], "--jobs", 1),
                    "folders, a process a core": lambda: command("evaluate", places["factors"]),
                    "zip files, a process a core": lambda: command("evaluate", places["packed factors"]),
                    "zip files on a loopback web server, a process a core": lambda: command("evaluate", *zips, "--cache", "none"),
                },
                repeats,
            )
    click.echo(f"{machine()}; demo model, {steps} steps, {traces} traces\n")
    rows = [(name, f"{size / 1e6:.1f}", f"{size / raw:.2f}", files) for name, (size, files) in disk.items()]
    click.echo(table("One trace", ("kept as", "MB", "of raw float16 attention", "files"), rows))
    base = seconds["folders, one process"]
    times = [(name, f"{each / traces:.2f}", f"{each / base:.2f}") for name, each in seconds.items()]
    click.echo(table("IMACS of many, start of the command included", ("from", "seconds a trace", "over the first"), times))
    click.echo(f"One evaluation of a packed trace at an address: {requests} requests, {fetched / 1e6:.1f} MB.\n")
    each = seconds["folders, a process a core"] / traces
    totals = [
        (
            f"{number:,}",
            nbytes(number * disk["packed factors"][0]),
            nbytes(number * SD15_BYTES * disk["packed probabilities"][0] / raw),
            f"{number * disk['factors'][1]:,}",
            f"{number * requests:,}",
            duration(number * each),
        )
        for number in NUMBERS
    ]
    heads = (
        "traces",
        "demo, packed factors",
        "SD 1.5, packed probabilities",
        "files as folders (zip files: 1 each)",
        "requests to evaluate once",
    )
    click.echo(table("Totals", (*heads, "to evaluate once on this machine"), totals))


def nbytes(count: float) -> str:
    """Bytes in the largest unit that leaves at least one of it."""
    return in_units(count, {"PB": 1e15, "TB": 1e12, "GB": 1e9, "MB": 1e6})


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves at least one of it."""
    return in_units(seconds, {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1})


def in_units(value: float, units: dict[str, float]) -> str:
    """A value in the first unit of which it is at least one, or the last."""
    unit = next((unit for unit, size in units.items() if value >= size), list(units)[-1])
    return f"{value / units[unit]:.1f} {unit}"


if __name__ == "__main__":
    main()
