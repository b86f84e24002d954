"""A server for this machine's browser: GET only, behind a token, and no path is ever the name of a file."""

from __future__ import annotations

import errno
import os
import secrets
import threading
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

from ...schema.errors import InvalidInput, TraceError
from ...schema.messages import for_shell, option, plain
from .document import SERVED_POLICY

HOST: Final = "127.0.0.1"
MOST_FIELDS: Final = 16
"""Fields of a query that are read."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent back."""

    body: bytes
    kind: str
    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


Answer: TypeAlias = Callable[[Mapping[str, str]], Reply]
"""From the fields of a query to what is sent back."""
Find: TypeAlias = Callable[[str], Answer | None]
"""From a path below the token to what answers there."""


def refuse(status: HTTPStatus, text: str) -> Reply:
    """A sentence in place of an answer."""
    return Reply(plain(text).encode(), "text/plain; charset=utf-8", status)


class Server(ThreadingHTTPServer):
    """Listens on this machine alone; `url` has the token without which nothing is answered."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0) -> None:
        self.find: Find = lambda path: None
        self.token = secrets.token_urlsafe(16)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is taken" if isinstance(error, OSError) and error.errno == errno.EADDRINUSE else "may not be used"
            raise InvalidInput(f"port {port} of this machine {why}; choose another with {option('port')}, or leave it out") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def run(self, find: Find) -> None:
        """Answer until Ctrl-C."""
        self.find = find
        with suppress(KeyboardInterrupt):
            self.serve_forever()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is no event."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Answer a request that names this machine and the token."""
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):  # a name that somebody else's DNS points here
            return self.reply(refuse(HTTPStatus.FORBIDDEN, "this server is for this machine alone"))
        place, _, query = self.path.partition("?")
        token, slash, path = place.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            return self.reply(refuse(HTTPStatus.FORBIDDEN, "open the address that i2am printed"))
        answer = self.server.find(path) if slash else None
        if answer is None:
            return self.reply(refuse(HTTPStatus.NOT_FOUND, "there is nothing of this name"))
        self.reply(_attempt(answer, query))

    do_HEAD = do_GET

    def reply(self, found: Reply) -> None:
        """Send an answer; nothing keeps it, and no other site may read it."""
        self.send_response(found.status)
        headers = {
            "Content-Type": found.kind,
            "Content-Length": str(len(found.body)),
            "Content-Security-Policy": SERVED_POLICY,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in {**headers, **found.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no GET and no HEAD, or no HTTP, gets one line."""
        self.close_connection = True
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.reply(Reply(b"only GET and HEAD", "text/plain; charset=utf-8", status, {"Allow": "GET, HEAD", "Connection": "close"}))

    def version_string(self) -> str:
        """What the header Server says."""
        return "i2am"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed."""


def _attempt(answer: Answer, query: str) -> Reply:
    """An answer, or the sentence that says why there is none."""
    try:
        fields = parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        return refuse(HTTPStatus.BAD_REQUEST, f"a question has at most {MOST_FIELDS} fields")
    try:
        with for_shell():
            return answer(dict(fields))
    except TraceError as error:
        return refuse(HTTPStatus.BAD_REQUEST, str(error))
    except Exception as error:
        return refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"unexpected {type(error).__name__}: {error}")


def open_browser(url: str) -> bool:
    """Show an address in the user's browser; False where there is none with windows of its own."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    if type(browser) is webbrowser.GenericBrowser and not os.environ.get("BROWSER"):  # one for terminals would take this one
        return False
    threading.Thread(target=browser.open, args=(url,), daemon=True).start()
    return True
