"""What a user names a trace with, and the storage behind it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit, urlunsplit

from ...schema.errors import InvalidInput
from .address import Address, attempt, serve
from .archive import Archive
from .folder import Folder
from .server import scheme_of, shown
from .storage import Storage

Location: TypeAlias = str | os.PathLike[str]
"""A path, or an address such as https://host/run.zarr.zip or s3://bucket/run.zarr; a folder or a zip file."""

_ZIP: Final = re.compile(r"\.zip($|[/?&#])")
_MANGLED: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


def locate(location: Location | Storage) -> Storage:
    """The storage at a path or address; nothing is read yet.

    Raises   InvalidInput for an address that cannot be one, MissingExtra
    """
    if isinstance(location, Storage):
        return location
    named = settle(location)
    if isinstance(named, str):
        return _at(named)
    if not named.is_file():
        return Folder(named)
    file = named.resolve()  # a link that the user names is followed, as one to a folder is
    return Archive(Folder(file.parent), file.name, named)


def settle(location: Location) -> Path | str:
    """A path, or an address as text: what a `Path` made of an address, with one slash, is one again."""
    text = os.fspath(location)
    if not isinstance(location, str):
        text = _MANGLED.sub(r"\1://", text, count=1)
    scheme = scheme_of(text)
    if scheme in ("file", "local"):
        return Path(unquote(text[len(scheme) + 3 :]))
    return text if scheme else Path(location)


def describe_location(location: Location) -> str:
    """A path or address for messages and tables, without what may be a key."""
    named = settle(location)
    return shown(named) if isinstance(named, str) else str(named)


def is_archive(address: str) -> bool:
    """Whether an address is that of a zip file, as its name says."""
    return _ZIP.search(address.partition("://")[2]) is not None


def list_address(address: str) -> list[tuple[str, bool]]:
    """What is in a folder at an address, or matches a pattern there: addresses, and whether each is a folder.

    Raises   InvalidInput where nobody can be asked, NoAnswer
    """
    server = serve(address)
    try:
        return attempt(address, lambda: server.expand(address))
    except FileNotFoundError:
        return []


def is_pattern(address: str) -> bool:
    """Whether an address stands for those that match it."""
    return any(c in address for c in ("*[" if scheme_of(address) in ("http", "https") else "*?["))


def _at(address: str) -> Storage:
    if "::" in address:
        raise InvalidInput(f"{shown(address)} is several addresses in one; give that of the folder or zip file alone, i2am reads both")
    if not is_archive(address):
        return Address(address)
    if scheme_of(address) in ("http", "https"):
        parts = urlsplit(address)
        folder, _, file = parts.path.rstrip("/").rpartition("/")
        return Archive(Address(urlunsplit(parts._replace(path=folder, fragment=""))), file, shown(address))
    folder, _, file = address.rstrip("/").rpartition("/")
    return Archive(Address(folder), file, shown(address))
