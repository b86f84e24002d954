"""What a user names a trace with, and the storage behind it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from .archive import Archive
from .folder import Folder
from .storage import Storage

Location: TypeAlias = str | os.PathLike[str]
"""A path."""


def locate(location: Location | Storage) -> Storage:
    """The storage at a path or address; nothing is read yet."""
    if isinstance(location, Storage):
        return location
    path = Path(location)
    if not path.is_file():
        return Folder(path)
    file = path.resolve()  # a link that the user names is followed, as one to a folder is
    return Archive(Folder(file.parent), file.name, path)
