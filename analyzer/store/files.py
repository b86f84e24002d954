"""The files of a trace as they lie on disk: opened without following links, read within bounds, compared with what is promised of them."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...schema.errors import CorruptTrace, NotATrace
from ...schema.journal import FileSum, FileSums
from ...schema.layout import JOURNAL, MANIFEST, MOST_DOCUMENT_BYTES, MOST_ROOT_BYTES, ROOT
from ...schema.messages import plain
from ...schema.record import parse_json

LITTER: Final = (".DS_Store", "Thumbs.db", "desktop.ini")
BESIDE: Final = ("README.md", "LICENSE", ".gitattributes", ".gitignore", ".cache", ".git", ".huggingface")
"""What repositories and their tools keep beside the files of a trace that is shared by one; never opened."""
TEMPORARY: Final = ".partial"
"""How the name of a file ends that is still being written."""
_AGAIN: Final = "copy the trace again, all files of it"
# Never waits for a pipe, never follows a link, never hands the file on to a child process.
_FLAGS: Final = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))
_HUB_BLOB: Final = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a trace, but for what desktops and repositories leave beside them."""

    sizes: dict[str, int] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    """Files that are links into the cache of a model hub, and what that calls the file that they stand for: mostly its sha256."""
    ignored: list[str] = field(default_factory=list)
    temporary: list[str] = field(default_factory=list)
    """Names under which files were written; after a power cut one may be there beside the file that it became."""


def open_file(root: str | Path, name: str) -> io.FileIO:
    """A regular file of the trace, open for reading; a link is followed only inside the cache of a model hub.

    Raises   OSError, also for a pipe, a device or a folder
    """
    path = Path(root, name)
    try:
        handle = os.open(path, _FLAGS)
    except OSError as error:
        blob = _hub_blob(Path(root), path) if error.errno in (errno.ELOOP, errno.EMLINK) else None
        if blob is None:
            raise
        handle = os.open(blob, _FLAGS)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return io.FileIO(os.fspath(path), opener=lambda *_: handle)


def hash_file(root: Path, name: str, expected: int | None = None) -> FileSum:
    """Size and sha256 of a file, read in pieces; a file that has not the expected size is not read, and has no sha256."""
    with open_file(root, name) as file:
        size = os.fstat(file.fileno()).st_size
        wanted = expected is None or size == expected
        return FileSum(size, hashlib.file_digest(file, "sha256").hexdigest() if wanted else "")


def read_file(root: Path, name: str, most: int) -> bytes:
    """A document or ledger of at most `most` bytes, whole.

    Raises   CorruptTrace if it cannot be read, or is larger
    """
    try:
        with open_file(root, name) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise CorruptTrace(f"{name} of the trace {root} has {size} bytes; expected at most {most}. The file was changed; {_AGAIN}")
            return file.read(size)
    except OSError as error:
        raise CorruptTrace(f"{name} of the trace {root} cannot be read ({error.strerror}); {_AGAIN}") from error


def read_json(root: Path, name: str) -> dict[str, Any]:
    """A document as a JSON object.

    Raises   CorruptTrace
    """
    most = MOST_ROOT_BYTES if name == ROOT else MOST_DOCUMENT_BYTES
    return parse_json(read_file(root, name, most), f"{name} of the trace {root}")


def read_root(root: Path) -> dict[str, Any]:
    """The root's document, if it is that of a trace.

    Raises   NotATrace, CorruptTrace if a ledger beside it says that it was one
    """
    expected = "a trace is a folder that `i2am record` or `i2am demo` wrote"
    if not os.path.lexists(root):
        raise NotATrace(f"there is no {root}; {expected}")
    if not os.path.lexists(root / ROOT):
        raise NotATrace(f"{root} is {'a folder without zarr.json' if root.is_dir() else 'a file'}, not a trace; {expected}")
    ours = os.path.lexists(root / MANIFEST) or os.path.lexists(root / JOURNAL)
    try:
        document = read_json(root, ROOT)
    except CorruptTrace as error:
        if ours:
            raise
        raise NotATrace(f"{root} is not a trace: its zarr.json cannot be read as JSON") from error
    attributes = document.get("attributes")
    group = document.get("zarr_format") == 3 and document.get("node_type") == "group"
    if not group or not isinstance(attributes, dict) or "i2am" not in attributes:
        text = f"{root} is a Zarr store but not a trace: its zarr.json is not a format-3 group with the attribute `i2am`"
        raise CorruptTrace(f"{text}, though a trace's ledger lies beside it; the file was changed, {_AGAIN}") if ours else NotATrace(text)
    return document


def list_files(root: Path) -> Listing:
    """Every file in the trace and its size; a link, pipe or device is refused, since nothing good can come of opening it.

    What vanishes while it is listed, as it does in a trace that is being recorded, is passed over.

    Raises   CorruptTrace
    """
    found = Listing()
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    _list(root, folder, entry, found, folders)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CorruptTrace(f"{plain(folder[:99])} in the trace {root} cannot be listed ({error.strerror}); {_AGAIN}") from error
    return found


def _list(root: Path, folder: str, entry: os.DirEntry[str], found: Listing, folders: list[str]) -> None:
    name = f"{folder}{entry.name}"
    if (not folder and entry.name in BESIDE) or entry.name in LITTER or entry.name.startswith("._"):
        found.ignored.append(name)
        return
    state = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(state.st_mode):
        folders.append(f"{name}/")
        return
    if stat.S_ISLNK(state.st_mode):
        blob = _hub_blob(root, root / name)
        if blob is None:
            raise CorruptTrace(f"{plain(name)} in the trace {root} is a link; a trace is plain files. Copy what it stands for: cp -rL")
        state, found.links[name] = blob.stat(), blob.name
    if stat.S_ISREG(state.st_mode) and name.endswith(TEMPORARY):
        found.temporary.append(name)
        return
    if not stat.S_ISREG(state.st_mode):
        raise CorruptTrace(f"{plain(name)} in the trace {root} is no regular file but a pipe, device or socket; do not use this trace")
    found.sizes[name] = state.st_size


def _hub_blob(root: Path, link: Path) -> Path | None:
    """The file that a link in the cache of a model hub stands for: REPOSITORY/snapshots/COMMIT/... -> REPOSITORY/blobs/HASH."""
    target, parents = Path(os.path.realpath(link)), Path(os.path.realpath(root)).parents
    repository = target.parent.parent
    inside = target.parent.name == "blobs" and any(parent == repository / "snapshots" for parent in parents)
    return target if inside and _HUB_BLOB.fullmatch(target.name) else None


def require_files(root: Path, files: FileSums, listing: Listing) -> None:
    """Raise CorruptTrace unless every file that is promised is there with its size."""
    for name, given in files.items():
        size = listing.sizes.get(name)
        if size is None:  # a folder that is written to while it is listed may leave out a name
            size = _plain_size(root / name)
        if size is None:
            raise CorruptTrace(f"{name} is missing from the trace {root}; {_AGAIN}, or record again")
        if size != given.nbytes:
            raise CorruptTrace(f"{name} of the trace {root} has {size} bytes where {given.nbytes} were written; {_AGAIN}")


def _plain_size(path: Path) -> int | None:
    """Bytes of a plain file; None where there is none."""
    try:
        state = path.lstat()
    except OSError:
        return None
    return state.st_size if stat.S_ISREG(state.st_mode) else None


def require_sums(root: Path, files: FileSums) -> None:
    """Raise CorruptTrace unless these files have their recorded hashes."""
    for name, given in files.items():
        try:
            sha256 = hash_file(root, name, given.nbytes).sha256
        except OSError as error:
            raise CorruptTrace(f"{name} of the trace {root} cannot be read ({error.strerror}); {_AGAIN}") from error
        if sha256 != given.sha256:
            raise CorruptTrace(
                f"{name} of the trace {root} was changed after the recording: its sha256 is not the recorded one; copy it again"
            )


def require_equal(root: Path, name: str, found: dict[str, Any], planned: dict[str, Any]) -> None:
    """Raise CorruptTrace unless a document is the one that the layout plans."""
    if found != planned:
        keys = [key for key in sorted({*found, *planned}) if found.get(key) != planned.get(key)]
        raise CorruptTrace(
            f"{name} of the trace {root} is not what the layout plans: {plain(', '.join(keys)[:200])} differ; it was changed, copy it again"
        )


def require_known(root: Path, missing: list[str]) -> None:
    """Raise CorruptTrace for the first of the files that neither the folder nor its ledger has."""
    if missing:
        raise CorruptTrace(f"{missing[0]} is missing from the trace {root} and from its list of files; {_AGAIN}")
