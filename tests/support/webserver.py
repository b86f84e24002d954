"""A loopback web server that knows ranges, counts what it is asked for, and misbehaves in chosen ways."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Web:
    """What is served, how, and what was asked."""

    root: Path
    address: str = ""
    mode: str = ""
    after: int = 0
    """Requests that are answered well before the mode sets in."""
    times: int = 10**9
    """Requests that it spoils."""
    delay: float = 0.0
    where: str = ""
    """Where redirects lead."""
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    """Path, first byte and the one after the last of each answer."""
    seen: list[dict[str, str]] = field(default_factory=list)
    """Headers of each request, named in small letters."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def nbytes(self) -> int:
        """Bytes of all answers."""
        return sum(stop - start for _, start, stop in self.asked)

    @property
    def requests(self) -> int:
        return len(self.seen)

    def reset(self, mode: str = "", **fields: object) -> None:
        """Forget what was asked, and behave in another way."""
        self.asked.clear()
        self.seen.clear()
        for name, value in {"mode": mode, "after": 0, "times": 10**9, "delay": 0.0, **fields}.items():
            setattr(self, name, value)

    def twice(self) -> int:
        """Bytes that were sent more than once."""
        again = 0
        for path in {path for path, _, _ in self.asked}:
            end = 0
            for start, stop in sorted((a, b) for name, a, b in self.asked if name == path):
                again += max(min(stop, end) - start, 0)
                end = max(end, stop)
        return again

    def spoiled(self) -> str:
        """The mode, if it is this request's turn."""
        with self.lock:
            number = len(self.seen) - 1
        return self.mode if self.after <= number < self.after + self.times else ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    web: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        with self.web.lock:
            self.web.seen.append({name.lower(): value for name, value in self.headers.items()})
        mode = self.web.spoiled()
        time.sleep(self.web.delay)
        path = unquote(urlsplit(self.path).path)
        file = self.web.root / path.lstrip("/")
        if mode in ANSWERS:
            status, more = ANSWERS[mode]
            return self.say(status, b"no", **{k: v.replace("HERE", self.web.where) for k, v in more.items()})
        if not file.is_file():
            return self.say(404, b"no")
        total, tag = file.stat().st_size, f'"{file.stat().st_ino}-{file.stat().st_mtime_ns}"'
        if mode == "another tag":
            tag = f'"{len(self.web.seen)}"'
        span = self.span(total)
        if span is None or mode in ("no ranges", "no ranges, no length"):
            self.web.asked.append((path, 0, total))
            return self.say(200, file.read_bytes(), length=mode != "no ranges, no length", ETag=tag)
        start, stop = span
        if start >= stop:
            return self.say(416, b"", **{"Content-Range": f"bytes */{total}"})
        self.web.asked.append((path, start, stop))
        with open(file, "rb") as opened:
            opened.seek(start)
            body, said = opened.read(stop - start), f"bytes {start}-{stop - 1}/{total}"
        if mode == "wrong bytes":
            body = bytes(len(body))
        if mode == "wrong range":
            said = f"bytes {start + 1}-{stop}/{total + 1}"
        if mode == "wrong length":
            body, said = body[:-1], f"bytes {start}-{stop - 2}/{total}"
        if mode == "more":
            body += b"more"
        if mode == "no content range":
            return self.say(206, body, ETag=tag)
        if mode == "unknown total":
            said = said.rpartition("/")[0] + "/*"
        headers = {"Content-Range": said, **({} if mode == "no tag" else {"ETag": tag})}
        if mode in ("cut", "lie"):
            return self.cut(body, headers, mode)
        if mode == "endless":
            return self.endless(headers)
        if mode == "encoded":
            headers["Content-Encoding"] = "gzip"
        self.say(206, body, **headers)

    def span(self, total: int) -> tuple[int, int] | None:
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if found is None:
            return None
        if not found[1]:
            return max(total - int(found[2]), 0), total
        return int(found[1]), min(int(found[2]) + 1, total)

    def say(self, status: int, body: bytes, length: bool = True, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
        self.end_headers()
        self.push(body)

    def cut(self, body: bytes, headers: dict[str, str], mode: str) -> None:
        """Close in the middle; the length is that of all, or a lie."""
        self.send_response(206)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) * (100 if mode == "lie" else 1)))
        self.end_headers()
        self.push(body if mode == "lie" else body[: len(body) // 2])
        self.close_connection = True

    def endless(self, headers: dict[str, str]) -> None:
        self.send_response(206)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        while self.push(bytes(2**16)):
            pass

    def push(self, body: bytes) -> bool:
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True
            return False
        return True


ANSWERS: dict[str, tuple[int, dict[str, str]]] = {
    "429": (429, {}),
    "429 later": (429, {"Retry_After": "0"}),
    "429 much later": (429, {"Retry_After": "3600"}),
    "429 on a date": (429, {"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "503": (503, {}),
    "503 later": (503, {"Retry_After": "0"}),
    "500": (500, {}),
    "401": (401, {}),
    "403": (403, {}),
    "404": (404, {}),
    "418": (418, {}),
    "redirect": (302, {"Location": "HERE"}),
}
"""Modes that are one answer."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Whoever hung up has its reasons."""


@contextmanager
def serving(root: Path) -> Iterator[Web]:
    """A server of the files under a folder."""
    web = Web(root)
    handler: Callable[..., BaseHTTPRequestHandler] = type("Handler", (_Handler,), {"web": web})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
