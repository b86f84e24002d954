"""The files of a trace as they lie on disk: read within bounds, listed without links, compared with what is promised of them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

from ...schema.errors import CorruptTrace, NotATrace
from ...schema.journal import FileSums
from ...schema.layout import JOURNAL, MANIFEST, ROOT

MOST_BYTES: Final = 2**28
"""Largest document or ledger that is parsed."""
LITTER: Final = (".DS_Store", "Thumbs.db", "desktop.ini")


def read_root(root: Path) -> dict[str, Any]:
    """The root's document, if it is that of a trace.

    Raises   NotATrace, CorruptTrace if a ledger beside it says that it was one
    """
    if not root.exists():
        raise NotATrace(f"there is no {root}; a trace is a folder that `i2am record` or `i2am demo` wrote")
    if not (root / ROOT).is_file():
        what = "a folder without zarr.json" if root.is_dir() else "a file"
        raise NotATrace(f"{root} is {what}, not a trace; a trace is a folder that `i2am record` or `i2am demo` wrote")
    ours = (root / MANIFEST).is_file() or (root / JOURNAL).is_file()
    document = read_json(root, ROOT) if ours else _foreign(root)
    attributes = document.get("attributes")
    if (
        document.get("zarr_format") != 3
        or document.get("node_type") != "group"
        or not isinstance(attributes, dict)
        or "i2am" not in attributes
    ):
        text = f"{root} is a Zarr store but not a trace: its zarr.json is not a format-3 group with the attribute `i2am`"
        raise (
            CorruptTrace(f"{text}, though a trace's ledger lies beside it; the file was changed, copy the trace again")
            if ours
            else NotATrace(text)
        )
    return document


def _foreign(root: Path) -> dict[str, Any]:
    try:
        return read_json(root, ROOT)
    except CorruptTrace as error:
        raise NotATrace(f"{root} is not a trace: its zarr.json cannot be read as JSON") from error


def read_file(root: Path, name: str) -> bytes:
    """A document or ledger, whole.

    Raises   CorruptTrace if it cannot be read, or is larger than any of ours
    """
    path = root / name
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise CorruptTrace(f"{name} of the trace {root} has {size} bytes; a trace's own stays under {MOST_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise CorruptTrace(
            f"{name} of the trace {root} cannot be read ({error.strerror}); copy the trace again, all files of it"
        ) from error


def read_json(root: Path, name: str) -> dict[str, Any]:
    """A document as a JSON object.

    Raises   CorruptTrace
    """
    try:
        document = json.loads(read_file(root, name))
    except (ValueError, RecursionError) as error:
        raise CorruptTrace(
            f"{name} of the trace {root} is not JSON; the file was changed after the recording, copy the trace again"
        ) from error
    if not isinstance(document, dict):
        raise CorruptTrace(
            f"{name} of the trace {root} is not a JSON object; the file was changed after the recording, copy the trace again"
        )
    return document


def is_litter(name: str) -> bool:
    """Whether a file of this name is one that desktops leave in any folder they show or copy; none of a trace's own is called so."""
    return name in LITTER or name.startswith("._")


def list_files(root: Path) -> dict[str, int]:
    """Every file in the trace and its size, but for litter; a link is refused, since it may lead anywhere."""
    sizes: dict[str, int] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as found:
            for item in found:
                name = f"{folder}{item.name}"
                if item.is_symlink():
                    raise CorruptTrace(
                        f"{name} in the trace {root} is a link; a trace is plain files. Copy it with its links resolved: cp -rL"
                    )
                if is_litter(item.name) and item.is_file():
                    continue
                if item.is_dir():
                    folders.append(f"{name}/")
                else:
                    sizes[name] = item.stat().st_size
    return sizes


def require_files(root: Path, files: FileSums, listing: dict[str, int]) -> None:
    """Raise CorruptTrace unless every file that is promised is there with its size."""
    for name, (size, _) in files.items():
        if name not in listing:
            raise CorruptTrace(f"{name} is missing from the trace {root}; copy the trace again, all files of it, or record again")
        if listing[name] != size:
            raise CorruptTrace(
                f"{name} of the trace {root} has {listing[name]} bytes where {size} were written; copy it again, or record again"
            )


def require_sums(root: Path, files: FileSums) -> None:
    """Raise CorruptTrace unless these files have their recorded hashes."""
    for name, (_, digest) in files.items():
        if hashlib.sha256(read_file(root, name)).hexdigest() != digest:
            raise CorruptTrace(
                f"{name} of the trace {root} was changed after the recording: its sha256 is not the recorded one; copy it again"
            )


def require_equal(root: Path, name: str, found: dict[str, Any], planned: dict[str, Any]) -> None:
    """Raise CorruptTrace unless a document is the one that the layout plans."""
    if found != planned:
        keys = [key for key in sorted({*found, *planned}) if found.get(key) != planned.get(key)]
        raise CorruptTrace(
            f"{name} of the trace {root} is not what the layout plans: {', '.join(keys)} differ; the trace was changed, copy it again"
        )


def require_known(root: Path, missing: list[str]) -> None:
    """Raise CorruptTrace for the first of the files that neither the folder nor its ledger has."""
    if missing:
        raise CorruptTrace(
            f"{missing[0]} is missing from the trace {root} and from its list of files; copy the trace again, all files of it"
        )
