"""What a user names a trace with, and the storage behind it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from .folder import Folder
from .storage import Storage

Location: TypeAlias = str | os.PathLike[str]
"""A path."""


def locate(location: Location | Storage) -> Storage:
    """The storage at a path or address; nothing is read yet."""
    return location if isinstance(location, Storage) else Folder(Path(location))
