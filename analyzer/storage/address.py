"""A trace at an address: ranges of bytes that lie near each other are one request, requests run side by side and are tried again."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from ...schema.errors import NoAnswer
from ...schema.layout import ROOT
from .cache import cache
from .server import Answer, FileSystem, Server, Temporary, scheme_of, shown
from .storage import Bytes, Listing, Part, Storage
from .web import Hub, Web

GAP: Final = 2**16
"""Bytes between two parts that are read along rather than asked for apart."""
REQUEST_BYTES: Final = 2**23
"""Most bytes of a request for several parts."""
REQUESTS: Final = 8
AHEAD_BYTES: Final = 2**24
"""What one reader may ask for before it takes what came: requests, and bytes of them."""
THREADS: Final = 16
"""Requests that a process makes at a time."""
SMALL: Final = 2**18
"""Files of up to so many bytes are read whole."""
KEPT: Final = 2**20
"""Parts of up to so many bytes are kept in memory for a while."""
MEMORY_BYTES: Final = 2**26
ATTEMPTS: Final = 4
BACKOFF_SECONDS: Final = 0.5
"""Before the second attempt; then twice as long each time."""
PATIENCE_SECONDS: Final = 60.0
"""The longest wait that a server may ask for."""

T = TypeVar("T")


class Memory:
    """What was read last, in this process."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._lock, self._blocks = threading.Lock(), OrderedDict[tuple[object, ...], Bytes]()

    def get(self, key: tuple[object, ...]) -> Bytes | None:
        """The bytes under a key, if they are still here."""
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def put(self, key: tuple[object, ...], data: Bytes) -> None:
        """Keep bytes; what was used least recently goes."""
        with self._lock:
            before = self._blocks.pop(key, None)
            self._blocks[key] = data
            self._held += len(data) - (0 if before is None else len(before))
            while self._held > self._most:
                self._held -= len(self._blocks.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._blocks.clear()
            self._held = 0


MEMORY: Final = Memory(MEMORY_BYTES)
_NUMBERS: Final = count()


@dataclass(slots=True)
class _Request:
    """Parts of one file that are asked for together."""

    name: str
    start: int = -1
    stop: int = -1
    held: int = 0
    """Bytes of parts that are there already."""
    parts: list[tuple[Part, Part, Bytes | None]] = field(default_factory=list)
    """What was asked, what is read for it, and its bytes if they are there already."""
    answer: Future[Bytes] | None = None

    def takes(self, part: Part, data: Bytes | None) -> bool:
        """Whether a part belongs to this request."""
        if data is not None:
            return self.held + len(data) <= REQUEST_BYTES
        near = self.start <= part.offset <= self.stop + GAP
        end = max(self.stop, part.offset + part.length)
        return self.start < 0 or (part.name == self.name and near and end - self.start <= REQUEST_BYTES)

    def add(self, asked: Part, part: Part, data: Bytes | None) -> None:
        """Add a part that `takes` allows."""
        self.parts.append((asked, part, data))
        if data is not None:
            self.held += len(data)
            return
        self.name, self.start = part.name, part.offset if self.start < 0 else self.start
        self.stop = max(self.stop, part.offset + part.length)


class Address(Storage):
    """The files below an address, or beside each other in one folder of it."""

    small = SMALL

    def __init__(self, address: str) -> None:
        self._address = address
        self._server = serve(address)
        self._known: dict[str, tuple[int, str]] = {}
        self._sizes: dict[str, int] = {}
        self._number = next(_NUMBERS)

    @property
    def place(self) -> str:
        return shown(self._address)

    @property
    def identity(self) -> str:
        return self._address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self._address == other._address

    def __hash__(self) -> int:
        return hash(self._address)

    def __reduce__(self) -> tuple[object, ...]:
        return reopen, (self._address,)

    def describe(self) -> str:
        return f"there is no {ROOT} at {self}"

    def size(self, name: str) -> int:
        if name not in self._sizes:
            self.read_tail(name, SMALL)
        return self._sizes[name]

    def list_files(self) -> Listing | None:
        listing = attempt(self._address, lambda: self._server.list_files(self._address))
        if listing is not None:
            self._sizes.update(listing.sizes)
        return listing

    def read_tail(self, name: str, most: int) -> tuple[int, Bytes]:
        tail = MEMORY.get(self._tail_key(name))
        if tail is None:
            answer = attempt(self._at(name), lambda: self._server.get_tail(self._at(name), most))
            self._learn(name, answer)
            tail = answer.data
            MEMORY.put(self._tail_key(name), tail)
        elif len(tail) < min(most, self._sizes[name]):
            tail = self.read(name, max(self._sizes[name] - most, 0), min(most, self._sizes[name]))
            MEMORY.put(self._tail_key(name), tail)
        return self._sizes[name], tail[max(len(tail) - most, 0) :]

    def fetch(self, parts: Iterable[Part]) -> Iterator[Bytes]:
        asked: deque[_Request] = deque()
        try:
            for request in self._requests(parts):
                asked.append(request)
                self._ask(request)
                while len(asked) > REQUESTS or sum(each.stop - each.start + each.held for each in asked) > AHEAD_BYTES:
                    yield from self._take(asked.popleft())
            while asked:
                yield from self._take(asked.popleft())
        finally:
            for request in asked:
                if request.answer is not None:
                    request.answer.cancel()

    def _requests(self, parts: Iterable[Part]) -> Iterator[_Request]:
        """Parts that are near each other, together."""
        now = _Request("")
        for asked in parts:
            total = self._sizes.get(asked.name, -1)
            if 0 <= total < asked.offset + asked.length:
                raise ValueError(f"it ends {asked.offset + asked.length - total} bytes early")
            part = Part(asked.name, 0, total) if 0 <= total <= SMALL else asked
            data = self._kept(part)
            if now.parts and not now.takes(part, data):
                yield now
                now = _Request("")
            now.add(asked, part, data)
        if now.parts:
            yield now

    def _kept(self, part: Part) -> Bytes | None:
        """The bytes of a part that are in memory, or on disk."""
        if not part.length:
            return np.empty(0, np.uint8)
        tail = MEMORY.get(self._tail_key(part.name))
        if tail is not None and part.offset >= (start := self._sizes[part.name] - len(tail)):
            return tail[part.offset - start : part.offset - start + part.length]
        found = MEMORY.get(self._key(part))
        if found is None and (kept := cache()) is not None and (key := self._disk_key(part)):
            found = kept.get(key)
        return found if found is not None and len(found) == part.length else None

    def _ask(self, request: _Request) -> None:
        if request.start >= 0:
            request.answer = _pool(os.getpid()).submit(self._read, request)

    def _read(self, request: _Request) -> Bytes:
        """The bytes of a request; those at the file's end that are in memory are not read again."""
        name, start, stop = request.name, request.start, request.stop
        tail = MEMORY.get(self._tail_key(name))
        edge = stop if tail is None else min(stop, self._sizes[name] - len(tail))
        address = self._at(name)
        answer = attempt(address, lambda: self._server.get(address, start, edge - start))
        self._learn(name, answer)
        skip = start - answer.start
        if skip < 0 or len(answer.data) - skip < edge - start:
            raise ValueError(f"it ends {start + (edge - start) - answer.start - len(answer.data)} bytes early")
        if answer.start == 0 and len(answer.data) == answer.total:  # a server without ranges sent all of it
            MEMORY.put(self._tail_key(name), answer.data)
        data = answer.data[skip : skip + edge - start]
        data = data if tail is None or edge == stop else np.concatenate([data, tail[: stop - edge]])
        self._keep(request, data)
        return data

    def _take(self, request: _Request) -> Iterator[Bytes]:
        whole = np.empty(0, np.uint8) if request.answer is None else request.answer.result()
        for asked, part, kept in request.parts:
            data = whole[part.offset - request.start :][: part.length] if kept is None else kept
            yield data[asked.offset - part.offset :][: asked.length]

    def _keep(self, request: _Request, whole: Bytes) -> None:
        for _, part, kept in request.parts:
            data = whole[part.offset - request.start :][: part.length]
            if kept is None and part.length <= KEPT:
                MEMORY.put(self._key(part), data.copy())
            if kept is None and (disk := cache()) is not None and (key := self._disk_key(part)):
                disk.put(key, data)

    def _key(self, part: Part) -> tuple[object, ...]:
        """Under which a part is kept in memory; of a file without a version, for this reader alone."""
        return (*self._tail_key(part.name), part.offset, part.length)

    def _tail_key(self, name: str) -> tuple[object, ...]:
        version = self._known.get(name, (-1, ""))[1]
        return self._at(name), version or self._number

    def _disk_key(self, part: Part) -> str:
        """Under which a part is kept on disk; empty for a file of which nobody can say whether it changed."""
        total, version = self._known.get(part.name, (-1, ""))
        return f"{self._at(part.name)} {version} {total} {part.offset} {part.length}" if version else ""

    def _learn(self, name: str, answer: Answer) -> None:
        """Compare an answer with those before it."""
        total, version = self._known.setdefault(name, (answer.total, answer.version))
        other_size = -1 not in (total, answer.total) and total != answer.total
        if other_size or ("" not in (version, answer.version) and version != answer.version):
            self._known.pop(name)
            self._sizes.pop(name, None)
            raise NoAnswer(f"{shown(self._at(name))} was replaced while it was read; open it again")
        if answer.total >= 0:
            self._known[name] = answer.total, version or answer.version
            self._sizes[name] = answer.total

    def _at(self, name: str) -> str:
        """The address of a file."""
        if scheme_of(self._address) not in ("http", "https"):
            return f"{self._address.rstrip('/')}/{name}"
        parts = urlsplit(self._address)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def serve(address: str) -> Server:
    """What answers at an address."""
    scheme = scheme_of(address)
    if scheme == "hf" and not address.startswith("hf://buckets/"):
        return Hub(address)
    return Web(address) if scheme in ("http", "https") else FileSystem(address)


@lru_cache(maxsize=64)
def reopen(address: str) -> Address:
    """The address that was opened elsewhere, opened once in this process."""
    return Address(address)


def attempt(address: str, ask: Callable[[], T], what: str = "read", way: str = "try again later, or copy the trace here first") -> T:
    """Ask again while it may help, after a pause that grows, or that the server asks for.

    Raises   NoAnswer
    """
    for number in range(ATTEMPTS):
        try:
            return ask()
        except Temporary as error:
            pause = BACKOFF_SECONDS * 2**number * random.uniform(0.5, 1.0) if error.wait is None else error.wait
            if number == ATTEMPTS - 1 or pause > PATIENCE_SECONDS:
                asked = f" and asks to wait {pause:.0f} s" if pause > PATIENCE_SECONDS else f" ({ATTEMPTS} attempts)"
                raise NoAnswer(f"{shown(address)} cannot be {what}: {error}{asked}; {way}") from error
            time.sleep(pause)
    raise AssertionError


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of this process that wait for answers."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="i2am-address")
