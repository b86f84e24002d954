"""The documents and ledgers of a trace, read within bounds, and its files compared with what is promised of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from ...schema.errors import CorruptTrace, NoAnswer, NotATrace
from ...schema.journal import FileSum, FileSums
from ...schema.layout import JOURNAL, MANIFEST, MOST_DOCUMENT_BYTES, MOST_ROOT_BYTES, ROOT
from ...schema.messages import plain
from ...schema.record import parse_json
from ..storage.storage import Listing, Part, Storage

PIECE_BYTES: Final = 2**22
"""What is hashed at once."""
_AGAIN: Final = "copy the trace again, all files of it"
_TRIES: Final = 100


def hash_file(storage: Storage, name: str, expected: int | None = None) -> FileSum:
    """Size and sha256 of a file, read in pieces; a file that has not the expected size is not read, and has no sha256."""
    size = storage.size(name)
    if expected is not None and size != expected:
        return FileSum(size, "")
    digest = hashlib.sha256()
    for piece in storage.fetch(_pieces(name, size)):
        digest.update(piece.data)
    return FileSum(size, digest.hexdigest())


def _pieces(name: str, size: int) -> Iterator[Part]:
    return (Part(name, start, min(PIECE_BYTES, size - start)) for start in range(0, size, PIECE_BYTES))


def read_file(storage: Storage, name: str, most: int) -> bytes:
    """A document or ledger of at most `most` bytes, whole, also where the recorder replaces it meanwhile by one of another size.

    Raises   CorruptTrace if it cannot be read, or is larger
    """
    try:
        for _ in range(_TRIES):
            size = storage.size(name)
            if size > most:
                raise CorruptTrace(
                    f"{name} of the trace {storage} has {size} bytes; expected at most {most}. The file was changed; {_AGAIN}"
                )
            try:
                data = storage.read(name, 0, size).tobytes()
            except ValueError:  # it ends before its size, unless the recorder has put a shorter one in its place
                if storage.size(name) == size:
                    raise
                continue
            if storage.size(name) == size:
                return data
        raise ValueError("it changes while it is read")
    except NoAnswer:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(storage, name, error) from error


def read_json(storage: Storage, name: str) -> dict[str, Any]:
    """A document as a JSON object.

    Raises   CorruptTrace
    """
    most = MOST_ROOT_BYTES if name == ROOT else MOST_DOCUMENT_BYTES
    return parse_json(read_file(storage, name, most), f"{name} of the trace {storage}")


def read_root(storage: Storage) -> dict[str, Any]:
    """The root's document, if it is that of a trace.

    Raises   NotATrace, CorruptTrace if a ledger beside it says that it was one
    """
    if not storage.has(ROOT):
        raise NotATrace(f"{storage.describe()}; a trace is a folder that `i2am record` wrote, or a zip file of one")
    try:
        document = read_json(storage, ROOT)
    except CorruptTrace as error:
        if _has_ledger(storage):
            raise
        raise NotATrace(f"{storage} is not a trace: its zarr.json cannot be read as JSON") from error
    attributes = document.get("attributes")
    group = document.get("zarr_format") == 3 and document.get("node_type") == "group"
    if not group or not isinstance(attributes, dict) or "i2am" not in attributes:
        text = f"{storage} is a Zarr store but not a trace: its zarr.json is not a format-3 group with the attribute `i2am`"
        if _has_ledger(storage):
            raise CorruptTrace(f"{text}, though a trace's ledger lies beside it; the file was changed, {_AGAIN}")
        raise NotATrace(text)
    return document


def _has_ledger(storage: Storage) -> bool:
    return storage.has(MANIFEST) or storage.has(JOURNAL)


def require_files(storage: Storage, files: FileSums, listing: Listing | None) -> None:
    """Raise CorruptTrace unless every file that is promised is there with its size; without a listing, reading them will tell."""
    for name, given in files.items() if listing is not None else ():
        assert listing is not None
        size = listing.sizes.get(name)
        if size is None:  # a folder that is written to while it is listed may leave out a name
            try:
                size = storage.size(name)
            except NoAnswer:
                raise
            except OSError:
                raise CorruptTrace(f"{name} is missing from the trace {storage}; {_AGAIN}, or record again") from None
        if size != given.nbytes:
            raise CorruptTrace(f"{name} of the trace {storage} has {size} bytes where {given.nbytes} were written; {_AGAIN}")


def require_sums(storage: Storage, files: FileSums) -> dict[str, dict[str, Any]]:
    """The documents among these files, all of which must have their recorded hashes.

    Raises   CorruptTrace for the first that has not
    """
    for name, given in files.items():
        if name.endswith(ROOT) and given.nbytes > (MOST_ROOT_BYTES if name == ROOT else MOST_DOCUMENT_BYTES):
            raise CorruptTrace(f"{name} of the trace {storage} has {given.nbytes} bytes, more than a document has; {_AGAIN}")
    found: dict[str, dict[str, Any]] = {}
    data = storage.fetch(part for name, given in files.items() for part in _pieces(name, given.nbytes))
    for name, given in files.items():
        digest, pieces = hashlib.sha256(), []
        try:
            for _ in _pieces(name, given.nbytes):
                piece = next(data)
                digest.update(piece.data)
                if name.endswith(ROOT):
                    pieces.append(piece.tobytes())
        except NoAnswer:
            raise
        except (OSError, ValueError) as error:
            raise _unreadable(storage, name, error) from error
        if digest.hexdigest() != given.sha256:
            raise CorruptTrace(
                f"{name} of the trace {storage} was changed after the recording: its sha256 is not the recorded one; copy it again"
            )
        if pieces:
            found[name] = parse_json(b"".join(pieces), f"{name} of the trace {storage}")
    return found


def _unreadable(storage: Storage, name: str, error: OSError | ValueError) -> CorruptTrace:
    why = getattr(error, "strerror", None) or error
    return CorruptTrace(f"{name} of the trace {storage} cannot be read ({why}); {_AGAIN}")


def require_equal(storage: Storage, name: str, found: dict[str, Any], planned: dict[str, Any]) -> None:
    """Raise CorruptTrace unless a document is the one that the layout plans."""
    if found != planned:
        keys = [key for key in sorted({*found, *planned}) if found.get(key) != planned.get(key)]
        raise CorruptTrace(
            f"{name} of the trace {storage} is not what the layout plans: {plain(', '.join(keys)[:200])} differ; it was changed, "
            "copy it again"
        )


def require_known(storage: Storage, missing: list[str]) -> None:
    """Raise CorruptTrace for the first of the files that neither the folder nor its ledger has."""
    if missing:
        raise CorruptTrace(f"{missing[0]} is missing from the trace {storage} and from its list of files; {_AGAIN}")
