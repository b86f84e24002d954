"""The traces that paths, folders and patterns name, and what each is called in a table."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from ...schema.errors import CorruptTrace, InvalidInput, NotATrace
from ...schema.layout import JOURNAL, MANIFEST, ROOT
from ..storage.location import describe_location, is_archive, is_pattern, list_address, locate, settle
from ..storage.server import scheme_of
from .files import read_json

Source: TypeAlias = str | os.PathLike[str]

SUFFIX: Final = ".zarr"
ARCHIVE: Final = ".zarr.zip"
MOST_DEPTH: Final = 8
"""Folders within folders at an address that are looked into."""


@dataclass(frozen=True, slots=True)
class Member:
    """One trace of a dataset, not yet opened."""

    name: str
    """Its file name without .zarr or .zarr.zip; where two would have the same, the path below the folder that holds them all."""
    path: Path | str
    """Where it lies; an address is text."""

    @property
    def place(self) -> str:
        """The same for messages and tables, without what may be a key."""
        return describe_location(self.path) if isinstance(self.path, str) else str(self.path)


def find_traces(sources: Source | Iterable[Source]) -> list[Member]:
    """Traces in the order in which they are named, those of a folder or pattern sorted; each once.

    A folder stands for the traces anywhere below it, zip files called .zarr.zip among them. What lies there and is something else, such
    as a saved map, is passed over; a folder called .zarr that nothing can be read from is not: it may be what is left of a trace.

    Raises   NotATrace if a path does not exist or no trace is found, InvalidInput for no paths
    """
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    if not given:
        raise InvalidInput("no traces were given; name some, or a folder that holds them")
    found = [path for source in given for path in _expand(source)]
    if not found:
        where = ", ".join(describe_location(source) for source in given)
        raise NotATrace(f"there is no trace in {where}; expected what `i2am record` or `i2am pack` wrote, such as run.zarr or run.zarr.zip")
    folders: dict[Path, str] = {}
    once: dict[str, Path | str] = {}
    for path in found:
        if isinstance(path, str):
            once.setdefault(path, path)
            continue
        parent = folders.get(path.parent) or folders.setdefault(path.parent, os.path.realpath(path.parent))
        plain = path.name not in ("", "..") and not path.is_symlink()
        once.setdefault(os.path.join(parent, path.name) if plain else os.path.realpath(path), path)
    paths = list(once.values())
    return [Member(name, path) for name, path in zip(_names(paths), paths, strict=True)]


def is_dataset(sources: Iterable[Source]) -> bool:
    """Whether more is meant than one trace: several paths, a pattern, or a folder that holds traces."""
    given = list(sources)
    if len(given) != 1:
        return True
    path = settle(given[0])
    if isinstance(path, str):
        return _expand(path) != [path]
    return (path.is_dir() and not (path / ROOT).exists() and any(_below(path))) or (not path.exists() and glob.has_magic(str(path)))


def _expand(source: Source) -> Sequence[Path | str]:
    path = settle(source)
    if isinstance(path, str):
        return list(_at_address(path))
    if path.is_dir():
        return [path] if (path / ROOT).exists() or path.suffix == SUFFIX else sorted(_below(path))
    if path.exists() or not glob.has_magic(str(path)):
        # Opening it says what it is instead, or that it is not there.
        return [path]
    return [found for name in sorted(glob.glob(str(path), recursive=True)) for found in _expand(name)]


def _at_address(address: str, depth: int = 0) -> Iterator[str]:
    """Traces that an address stands for: itself, those below it, or those that match it."""
    pattern = is_pattern(address)
    if not pattern and (is_archive(address) or address.rstrip("/").endswith(SUFFIX) or scheme_of(address) in ("http", "https")):
        yield address
        return
    found = list_address(address)
    if not pattern and any(name.endswith(f"/{ROOT}") for name, _ in found):
        yield address
        return
    for name, folder in found:
        if name.endswith((SUFFIX, ARCHIVE)):
            yield name
        elif folder and depth < MOST_DEPTH and not name.rpartition("/")[2].startswith("."):
            yield from _at_address(name, depth + 1)


def _below(folder: Path) -> Iterator[Path]:
    """Traces under a folder; what is inside a trace is not looked at."""
    with os.scandir(folder) as entries:
        for entry in entries:
            # A name with a dot in front is something half written, or somebody's own business.
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if not (path.is_dir() if entry.is_symlink() else entry.is_dir()):
                if entry.name.endswith(ARCHIVE) and path.is_file():
                    yield path
            elif os.path.exists(os.path.join(path, ROOT)):
                if _may_be_trace(path):
                    yield path
            elif path.suffix == SUFFIX:
                yield path
            elif not entry.is_symlink():
                yield from _below(path)


def _may_be_trace(path: Path) -> bool:
    """Whether a Zarr group is a trace, or too broken to say; one that has a trace's ledger is not opened."""
    if any(os.path.exists(os.path.join(path, ledger)) for ledger in (JOURNAL, MANIFEST)):
        return True
    try:
        return "i2am" in read_json(locate(path), ROOT)["attributes"]
    except (KeyError, TypeError):
        return False
    except CorruptTrace:
        return True


def name_of(path: Path | str) -> str:
    """A trace's file name without .zarr or .zarr.zip."""
    return _stem(path.name if isinstance(path, Path) else describe_location(path).rstrip("/").rpartition("/")[2])


def _names(paths: Sequence[Path | str]) -> list[str]:
    short = [name_of(path) for path in paths]
    if max(Counter(short).values()) == 1:
        return short
    places = [describe_location(path if isinstance(path, str) else path.resolve()).rstrip("/").split("/") for path in paths]
    differs = (i for i, column in enumerate(zip(*places, strict=False)) if len(set(column)) > 1)
    top = next(differs, min(map(len, places)) - 1)
    return [_stem("/".join(place[top:])) for place in places]


def _stem(name: str) -> str:
    return name.removesuffix(".zip").removesuffix(SUFFIX)
