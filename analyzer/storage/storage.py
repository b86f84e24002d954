"""A storage: the files of one trace, listed with their sizes and read in pieces, wherever they lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]

LITTER: Final = (".DS_Store", "Thumbs.db", "desktop.ini")
BESIDE: Final = ("README.md", "LICENSE", ".gitattributes", ".gitignore", ".cache", ".git", ".huggingface")
"""What repositories and their tools keep beside the files of a trace that is shared by one; never opened."""
TEMPORARY: Final = ".partial"
"""How the name of a file ends that is still being written."""


class Part(NamedTuple):
    """A stretch of a file."""

    name: str
    """From the trace's root."""
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a trace, in the order in which they lie, but for what desktops and repositories leave beside them."""

    sizes: dict[str, int] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    """Files that are links into the cache of a model hub, and what that calls the file that they stand for: mostly its sha256."""
    ignored: list[str] = field(default_factory=list)
    temporary: list[str] = field(default_factory=list)
    """Names under which files were written; after a power cut one may be there beside the file that it became."""


class Storage(ABC):
    """The files of one trace. Equal to what is made of its address again, and pickled as no more than that.

    What cannot be read raises OSError, and FileNotFoundError where there is no such file; the caller says which trace it was. A server that
    does not answer is NoAnswer, which says all of it.
    """

    small: int = 0
    """Files of up to so many bytes are read whole rather than in parts."""

    def __str__(self) -> str:
        return str(self.place)

    @property
    @abstractmethod
    def place(self) -> Path | str:
        """The path or address by which it is found again."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells these files from those at any other place: an absolute path, a full address."""

    @abstractmethod
    def describe(self) -> str:
        """What lies at a place that has no trace's root, as the beginning of a message."""

    @abstractmethod
    def list_files(self) -> Listing | None:
        """Every file and its size; None where there is nobody to ask, as on most web servers.

        Raises   CorruptTrace for what no trace has, such as a link, a pipe or two files of one name
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def fetch(self, parts: Iterable[Part]) -> Iterator[Bytes]:
        """The bytes of each part, in order, each whole or not at all. Those that lie together may be read together, and ahead.

        Raises   ValueError also for a file that ends before a part does
        """

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str, offset: int, length: int) -> Bytes:
        """One part."""
        return next(iter(self.fetch([Part(name, offset, length)])))

    def read_tail(self, name: str, most: int) -> tuple[int, Bytes]:
        """Bytes of a file, and those at its end, at most so many."""
        size = self.size(name)
        return size, self.read(name, max(size - most, 0), min(size, most))


def sort_name(name: str, found: Listing) -> bool:
    """Whether a file is one of the trace's; what desktops and repositories leave, and what is being written, is put into the listing."""
    file = name.rpartition("/")[2]
    if name.split("/")[0] in BESIDE or file in LITTER or file.startswith("._"):
        found.ignored.append(name)
        return False
    if file.endswith(TEMPORARY):
        found.temporary.append(name)
        return False
    return True
