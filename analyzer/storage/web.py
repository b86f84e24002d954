"""Web servers, and model hubs behind them: ranges of bytes over HTTP, with everything checked that a server may answer wrongly."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Final
from urllib.parse import unquote

import numpy as np

from ...schema.errors import InvalidInput, NoAnswer
from ...schema.messages import size_text
from .server import CREDENTIALS, Answer, FileSystem, Server, Temporary, open_file_system, scheme_of, shown, why
from .storage import Listing

WHOLE_BYTES: Final = 2**24
"""Largest file that is taken whole from a server that knows no ranges."""
CONNECT_SECONDS: Final = 10
SILENCE_SECONDS: Final = 30
"""How long a server may take for the next bytes."""
SLOWEST: Final = 2**15
"""Bytes a second that an answer must come at, from a minute on."""
REDIRECTS: Final = 5
AGAIN: Final = (408, 425, 429, 500, 502, 503, 504)
"""Answers that another attempt may change."""
_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_NOTHING: Final = re.compile(r"bytes \*/(\d{1,18})")
_HUB: Final = re.compile(r"hf://(?:(datasets|spaces|models)/)?([^/@]+/[^/@]+)(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?/(.+)")


class Web(Server):
    """Files at http:// and https://."""

    def __init__(self, address: str) -> None:
        self._address = "https://" if scheme_of(address) == "hf" else address
        open_file_system(self._address)

    @property
    def _fs(self) -> Any:
        return open_file_system(self._address)  # fsspec has one for each process

    def get(self, address: str, offset: int, length: int) -> Answer:
        return self._request(address, f"bytes={offset}-{offset + length - 1}", offset, length)

    def get_tail(self, address: str, most: int) -> Answer:
        return self._request(address, f"bytes=-{most}", -most, most)

    def list_files(self, address: str) -> Listing | None:
        return None

    def expand(self, address: str) -> list[tuple[str, bool]]:
        raise InvalidInput(f"{shown(address)} is on a web server, which does not say what it holds; name each trace")

    def url(self, address: str) -> tuple[str, dict[str, str]]:
        """Where a file is asked for, and with which headers beside the user's own."""
        return address, {}

    def _request(self, address: str, wanted: str, offset: int, length: int) -> Answer:
        import aiohttp
        from fsspec.asyn import sync

        try:
            status, headers, data = sync(self._fs.loop, self._ask, address, wanted, length)
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, aiohttp.TooManyRedirects, aiohttp.ClientSSLError) as error:
            raise NoAnswer(f"{shown(address)} cannot be asked ({type(error).__name__}: {why(error)})") from error
        except (FileNotFoundError, NoAnswer):
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise Temporary(why(error) if str(error) else "no answer in time") from error
        version = headers.get("ETag") or headers.get("Last-Modified") or ""
        body = np.frombuffer(data, np.uint8)
        if status == 200:
            return Answer(body, 0, len(body), version)
        if status == 416 and (nothing := _NOTHING.fullmatch(headers.get("Content-Range", ""))):
            if offset < 0 and int(nothing[1]) == 0:
                return Answer(body[:0], 0, 0, version)
            raise ValueError(f"it has only {nothing[1]} bytes")
        return self._checked(body, headers.get("Content-Range", ""), offset, length, version)

    def _checked(self, body: Any, said: str, offset: int, length: int, version: str) -> Answer:
        """A part of a file, if it is the part that was asked for."""
        found = _RANGE.fullmatch(said)
        if found is None:
            raise Temporary(f"the server sent a part and said of it only {said[:60]!r}")
        first, last = int(found[1]), int(found[2])
        total = last + 1 if found[3] == "*" else int(found[3])
        begin, end = (max(total + offset, 0), total - 1) if offset < 0 else (offset, offset + length - 1)
        if offset >= 0 and last < end and last == total - 1 and first == begin:
            raise ValueError(f"it ends {end - last} bytes early")
        if (first, last) != (begin, end) or len(body) != last - first + 1:
            raise Temporary(f"the server sent {len(body)} bytes as {first}-{last} where {begin}-{end} were asked for")
        return Answer(body, first, -1 if found[3] == "*" and offset >= 0 else total, version)

    async def _ask(self, address: str, wanted: str, length: int) -> tuple[int, Any, bytearray]:
        import aiohttp

        url, headers = self.url(address)
        options = {name: value for name, value in self._fs.kwargs.items() if name not in ("headers", "timeout", "max_redirects")}
        headers = {**self._fs.kwargs.get("headers", {}), **headers, "Range": wanted, "Accept-Encoding": "identity"}
        limits = aiohttp.ClientTimeout(60 + length / SLOWEST, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        session = await self._fs.set_session()
        asked = session.get(self._fs.encode_url(url), headers=headers, timeout=limits, max_redirects=REDIRECTS, **options)
        async with asked as answer:
            if url.startswith("https:") and any(hop.url.scheme != "https" for hop in (*answer.history, answer)):
                raise NoAnswer(f"{shown(address)} leads to an address that is not encrypted; open that one, if you trust it")
            _require_status(address, answer.status, answer.headers)
            most = WHOLE_BYTES if answer.status == 200 else length
            return answer.status, answer.headers, await _read(address, answer, most)


class Hub(Web):
    """Files at hf://, asked for over HTTP as any others."""

    def url(self, address: str) -> tuple[str, dict[str, str]]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it is handed on lazily

        found = _HUB.fullmatch(address)
        if found is None:
            raise InvalidInput(f"{shown(address)} is no file on the hub; expected hf://datasets/WHO/WHAT/run.zarr.zip")
        kind = None if found[1] in (None, "models") else found[1].removesuffix("s")
        revision = unquote(found[3]) if found[3] else None
        return hf_hub_url(found[2], found[4], repo_type=kind, revision=revision), build_hf_headers()

    def list_files(self, address: str) -> Listing | None:
        return FileSystem(address).list_files(address)

    def expand(self, address: str) -> list[tuple[str, bool]]:
        return FileSystem(address).expand(address)


def _require_status(address: str, status: int, headers: Any) -> None:
    """Go on only with bytes, or where there are none."""
    if status in (404, 410):
        raise FileNotFoundError(2, "is not there", shown(address))
    if status in AGAIN:
        raise Temporary(f"the server answered {status}", _seconds(headers.get("Retry-After", "")))
    if status in (401, 403, 407):
        raise NoAnswer(f"{shown(address)} is not for everybody (the server answered {status}); {CREDENTIALS}")
    if status not in (200, 206, 416):
        raise NoAnswer(f"{shown(address)} cannot be read (the server answered {status})")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise NoAnswer(f"{shown(address)} is sent as {headers['Content-Encoding'][:20]!r}, of which no part can be read; serve it as it is")


async def _read(address: str, answer: Any, most: int) -> bytearray:
    """The bytes of an answer, if there are not more than were asked for."""
    data = bytearray()
    if answer.status == 416:
        return data
    if (answer.content_length or 0) <= most:
        async for block in answer.content.iter_any():
            data += block
            if len(data) > most:
                break
        else:
            return data
    if answer.status == 206:
        raise Temporary(f"the server sent more than the {most} bytes that were asked for")
    raise NoAnswer(
        f"{shown(address)} is on a server that sends a whole file whatever part is asked for, and this one has over {size_text(most)}; "
        "put it where ranges are known, or copy it here first"
    )


def _seconds(text: str) -> float | None:
    """Retry-After: seconds, or a date."""
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(parsedate_to_datetime(text).timestamp() - time(), 0.0)
    except ValueError:
        return None
