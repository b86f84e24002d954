"""The figures of docs/gallery.md: the commands that the page shows, and the pictures they make.

python tests/support/gallery.py TRACES   makes the pictures anew; the folder holds run.zarr, pair-0.zarr ... of `i2am demo`
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from PIL import Image
from repository import ROOT
from scene import CONCEPTS, scene_trace

from i2am.analyzer import head_relevance, save_heads
from i2am.analyzer.cli.main import run

PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "gallery"
DPI = 144


def figures() -> list[list[str]]:
    """Arguments of every command of the page that makes a figure."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("i2am figure ")]


def name_of(arguments: list[str]) -> str:
    """The name of a figure's file, without its ending."""
    return Path(arguments[arguments.index("-o") + 1]).stem


def make(arguments: list[str], out: Path, dpi: int) -> int:
    """Make a figure of the page as a PNG, in the folder of its traces; the exit code."""
    at = arguments.index("-o")
    return run([*arguments[:at], "-o", str(out), *arguments[at + 2 :], "--dpi", str(dpi)])


def add_scene(folder: Path) -> None:
    """The drawn scene, and scores of its heads."""
    scene_trace(folder / "scene.zarr")
    save_heads(head_relevance(folder / "scene.zarr", concepts=CONCEPTS), folder / "hrv.nc")


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    if not Path("scene.zarr").exists():
        add_scene(Path())
    PICTURES.mkdir(exist_ok=True)
    for arguments in figures():
        path = PICTURES / f"{name_of(arguments)}.png"
        path.unlink(missing_ok=True)
        if make(arguments, path, DPI):
            sys.exit(1)
        Image.open(path).convert("RGB").save(path, optimize=True)  # no palette: it would draw steps into the heat
