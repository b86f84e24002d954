"""Runs every pipeline class that diffusers exports under the recorder, and keeps what became of each in tests/data/pipelines.json:

python tests/support/every_row.py           # all of them, some minutes
python tests/support/every_row.py "Flux*"   # those that match

`pipelines_table.py` prints them into docs/pipelines.md.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import warnings
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from every_pipeline import absence, build, exported, kit_of
from memory import MemoryWriter
from repository import ROOT

from i2am.recorder import record
from i2am.recorder.session import run
from i2am.schema.errors import TraceError
from i2am.schema.trace import Layer

DATA = ROOT / "tests" / "data" / "pipelines.json"
Row = tuple[str, str, str]
"""(recorded, refused or not run; what its layers are, or why not; branches)."""


def row_of(name: str) -> Row:
    """What becomes of a class under the recorder."""
    if kit_of(name) is None:
        return "not run", absence(name), ""
    pipeline, call = build(name)
    run.Writer, writer = MemoryWriter, run.Writer  # type: ignore[misc, assignment]
    try:
        record(pipeline, Path("nowhere.zarr"), branches="both", progress=False, **call())
    except TraceError as error:
        return "refused", str(error).partition(";")[0], ""
    except Exception as error:
        return "fails", f"{type(error).__name__}: {error}".partition("\n")[0], ""
    finally:
        run.Writer = writer  # type: ignore[misc]
    found = {branch for _, _, branch, _ in MemoryWriter.last.blocks}
    return "recorded", layers(MemoryWriter.last.trace.layers), ", ".join(name for name in ("cond", "uncond") if name in found)


def layers(found: tuple[Layer, ...]) -> str:
    """How many layers have which token groups, in words."""
    counts = Counter((tuple(group_of(group) for group in layer.groups), layer.partial_keys, layer.frames) for layer in found)
    return "; ".join(
        f"{count} x {' + '.join(groups)}{' beside its own tokens' * shared}{f', {frames} frames' * bool(frames)}"
        for (groups, shared, frames), count in counts.items()
    )


def group_of(group: Any) -> str:
    """A token group in words."""
    tokens = f"(CLS, {group.tokens - group.specials})" if group.specials else str(group.tokens)
    grid = "" if group.grid is None else f" as {group.grid[0]} x {group.grid[1]}"
    return f"{group.name} {tokens}{grid}{f' of `{group.image}`' if group.image else ''}"


def version() -> str:
    """Of diffusers, whose classes they are."""
    return importlib.metadata.version("diffusers")


def load() -> dict[str, Row]:
    """The rows as they are kept, by class name."""
    return {name: tuple(row) for name, row in json.loads(DATA.read_text()).items()}


def main(globs: list[str]) -> None:
    """Run the classes that match, and write their rows into the file."""
    warnings.simplefilter("ignore")
    kept = load() if DATA.exists() else {}
    for name in exported():
        if not globs or any(fnmatchcase(name, glob) for glob in globs):
            kept[name] = row_of(name)
            print(name, *kept[name], sep=" | ", flush=True)
    lines = (f"{json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(set(kept) & set(exported())))
    DATA.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
