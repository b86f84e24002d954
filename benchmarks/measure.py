"""How the benchmarks measure: everything that is compared runs in one process, in turn, and medians are divided."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path


def interleave(
    candidates: Mapping[str, Callable[[], object]], repeats: int, warm_up: bool = True, prepare: Callable[[str], object] = lambda name: None
) -> dict[str, float]:
    """Median wall seconds of each candidate, all run in turn so that a slow spell of the machine hits every one.

    `prepare` is called with a candidate's name before each of its runs, outside of the clock.

    Units    seconds
    """
    if warm_up:
        for name, run in candidates.items():
            prepare(name)
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            prepare(name)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> str:
    """One line that names the machine: processor, cores, system."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")] or [
        platform.processor()
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0]}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def peak_memory() -> float:
    """Largest resident size of this process so far, in GB."""
    # Not getrusage: its maximum survives exec, so a child would report its parent's.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def size_on_disk(path: Path) -> int:
    """Bytes of every file below `path`."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table, ready for the README."""
    head = list(columns)
    lines = [f"**{title}**", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""])
