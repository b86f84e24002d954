"""What a disk may hold after a power cut: every write, rename, removal and sync of a recording, replayed with the unsynced ones reordered.

The model is POSIX's: a file's bytes are safe after fsync of the file, a name after fsync of its folder; before that either may be on the
disk or not, in any order, and a file that was not synced may be there whole, empty, cut or full of zeros.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from attacks import Tally
from faults import LAYERS

from i2am.analyzer import open_trace
from i2am.recorder.store import files
from i2am.schema.errors import TraceError
from traces import synthetic_trace


@dataclass
class Log:
    """The calls of one recording that change the disk, in order."""

    root: Path
    events: list[tuple[str, str, bytes]] = field(default_factory=list)
    """What was done, `data`, `sync`, `rename`, `unlink` or `folder`; the path, of a rename both; the bytes that a file has then."""


@contextmanager
def logged(monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[Log]:
    """Notes what is written while the block runs, with one worker so that the order is that of the calls."""
    log = Log(root)
    write_all, sync, replace, unlink, folder, truncate = (
        files.write_all, files._sync, os.replace, Path.unlink, files.sync_folder, os.truncate,
    )  # fmt: skip

    def path_of(handle: int) -> str:
        return os.readlink(f"/proc/self/fd/{handle}")

    def seen(handle: int, data: bytes) -> None:
        write_all(handle, data)
        log.events.append(("data", path_of(handle), Path(path_of(handle)).read_bytes()))

    def synced(handle: int) -> None:
        sync(handle)
        log.events.append(("sync", path_of(handle), b""))

    def renamed(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        replace(source, target)
        log.events.append(("rename", f"{source}\0{target}", b""))

    def removed(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        log.events.append(("unlink", str(path), b""))

    def folder_synced(path: Path) -> None:
        folder(path)
        log.events.append(("folder", str(path), b""))

    def cut(path: os.PathLike[str], length: int) -> None:
        truncate(path, length)
        log.events.append(("data", str(path), Path(path).read_bytes()))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", seen)
        patch.setattr(files, "_sync", synced)
        patch.setattr(os, "fsync", lambda handle: synced(handle) if os.path.isfile(path_of(handle)) else None)
        patch.setattr(os, "replace", renamed)
        patch.setattr(os, "truncate", cut)
        patch.setattr(Path, "unlink", removed)
        for module in (files, __import__("i2am.recorder.store.completion", fromlist=["x"])):
            patch.setattr(module, "sync_folder", folder_synced)
        yield log


def after_cut(log: Log, end: int, chance: random.Random, target: Path) -> int:
    """Make at `target` one of the states that a disk may be in when the power fails after `end` events; how many steps were journalled."""
    inodes: dict[int, tuple[bytes, bytes | None]] = {}
    names: dict[str, int] = {}
    pending: list[tuple[str, int | None, int | None]] = []
    durable: dict[str, int] = {}
    made, committed = 0, 0
    for kind, path, data in log.events[:end]:
        if kind == "data":
            if path not in names:
                made += 1
                names[path] = made
                pending.append((path, None, made))
                inodes[made] = (b"", None)
            inodes[names[path]] = (data, inodes[names[path]][1])
        elif kind == "sync" and path in names:
            inodes[names[path]] = (inodes[names[path]][0],) * 2
            committed = inodes[names[path]][0].count(b"\n") if path.endswith("journal.jsonl") else committed
        elif kind == "rename":
            source, to = path.split("\0")
            pending += [(source, names[source], None), (to, names.get(to), names[source])]
            names[to] = names.pop(source)
        elif kind == "unlink" and path in names:
            pending.append((path, names.pop(path), None))
        elif kind == "folder":
            durable |= {name: inode or 0 for name, _, inode in pending if os.path.dirname(name) == path}
            pending = [change for change in pending if os.path.dirname(change[0]) != path]
    on_disk = {name: inode for name, inode in durable.items() if inode}
    for name, _, inode in pending:  # names that were not synced: each may have reached the disk, the later ones first
        if chance.random() < 0.5:
            if inode:
                on_disk[name] = inode
            else:
                on_disk.pop(name, None)
    for name, inode in on_disk.items():
        place = target / os.path.relpath(name, log.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        data, safe = inodes[inode]
        if safe != data:
            partly = data[: chance.randrange(len(data) + 1)]
            data = chance.choice([data, b"", partly, bytes(len(data))]) if safe is None else chance.choice([data, safe])
        place.write_bytes(data)
    # The first line is acknowledged once the journal's name is durable too.
    return committed if str(log.root / "journal.jsonl") in durable else 0


def power_cuts(folder: Path, seed: int, cases: int, planned: int | None = None) -> Tally:
    """What the journal committed is read after a cut anywhere in a recording of 4 steps, a third of the cuts in its closing."""
    chance, tally = random.Random(seed), Tally()
    with logged(pytest.MonkeyPatch(), folder / "run") as log:
        made = synthetic_trace(folder / "run", layers=LAYERS, encoding=None, steps=4, planned=planned, workers=1, overwrite=True)
    expected = open_trace(made.path).probabilities(0).values
    for case in range(cases):
        end = chance.randrange(0 if case % 3 else len(log.events) * 3 // 4, len(log.events) + 1)
        committed = after_cut(log, end, chance, folder / "after")
        tally.add(f"cut after event {end}", partial(_read_after, folder / "after", committed, expected))
        shutil.rmtree(folder / "after", ignore_errors=True)
    return tally


def _read_after(path: Path, committed: int, expected: np.ndarray) -> str:
    try:
        trace = open_trace(path, partial=True)
    except TraceError as error:
        return f"lost {committed} steps: {error}" if committed else "right"
    if len(trace.present) < committed:
        return f"lost {committed - len(trace.present)} steps"
    same = not committed or np.array_equal(trace.probabilities(0).values[:, :, :committed], expected[:, :, :committed])
    return "right" if same else "silent and wrong"
