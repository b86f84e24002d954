"""What answers at an address: asked for ranges of bytes, one attempt at a time; any file system of fsspec is one."""

from __future__ import annotations

import importlib.util
import re
from abc import ABC, abstractmethod
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from ...schema.errors import InvalidInput, MissingExtra, NoAnswer
from ...schema.messages import missing_extra, plain
from .storage import Bytes, Listing, sort_name

SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?=://)")
"""The first part of s3://bucket/run.zarr; a drive has one letter."""
_NEEDS: Final = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs", "hf": "huggingface_hub"}
_VERSIONS: Final = ("ETag", "etag", "generation", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created")


class Temporary(Exception):
    """An attempt failed, and another one may not."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait
        """Seconds that the server asks to wait."""


class Answer(NamedTuple):
    """Bytes of a file at an address."""

    data: Bytes
    start: int
    """Where they lie in it."""
    total: int
    """Bytes of the file; -1 if the answer does not say."""
    version: str
    """What a server changes with the file, such as an ETag; empty if there is nothing of the kind."""


class Server(ABC):
    """Answers for files at addresses. Each request is one attempt.

    Raises   FileNotFoundError, Temporary, NoAnswer where another attempt would get the same
    """

    @abstractmethod
    def get(self, address: str, offset: int, length: int) -> Answer:
        """A stretch of a file, or more of it."""

    @abstractmethod
    def get_tail(self, address: str, most: int) -> Answer:
        """The end of a file, with its size."""

    @abstractmethod
    def list_files(self, address: str) -> Listing | None:
        """The files below an address; None if it cannot be asked for them."""

    @abstractmethod
    def expand(self, address: str) -> list[tuple[str, bool]]:
        """What is in a folder, or matches a pattern: addresses, sorted, and whether each is a folder."""


class FileSystem(Server):
    """Any file system of fsspec, such as an object store."""

    def __init__(self, address: str) -> None:
        self._address, self._scheme = address, scheme_of(address)
        open_file_system(address)

    @property
    def _fs(self) -> Any:
        return open_file_system(self._address)  # fsspec has one for each process

    def get(self, address: str, offset: int, length: int) -> Answer:
        data = self._ask("cat_file", address, start=offset, end=offset + length)
        if len(data) != length:
            raise Temporary(f"{len(data)} bytes came where {length} were asked for")
        return Answer(np.frombuffer(data, np.uint8), offset, -1, "")

    def get_tail(self, address: str, most: int) -> Answer:
        facts = self._ask("info", address)
        total, version = facts.get("size"), next((str(facts[name]) for name in _VERSIONS if facts.get(name)), "")
        if facts.get("type") != "file" or not isinstance(total, int):
            raise FileNotFoundError(2, "is no file", shown(address))
        start = max(total - most, 0)
        data = self.get(address, start, total - start).data if total else np.empty(0, np.uint8)
        return Answer(data, start, total, version)

    def list_files(self, address: str) -> Listing | None:
        found = Listing()
        root = self._strip(address)
        for path, facts in self._ask("find", address, detail=True).items():
            name = str(path).removeprefix(root).lstrip("/")
            if name and sort_name(name, found):
                found.sizes[name] = facts["size"] if isinstance(facts.get("size"), int) else -1
        return found

    def expand(self, address: str) -> list[tuple[str, bool]]:
        if any(c in address for c in "*?["):
            found = list(self._ask("glob", address, detail=True).values())
        else:
            found = self._ask("ls", address, detail=True)
        named = {str(facts["name"]).strip("/"): facts["type"] == "directory" for facts in found}
        return [(f"{self._scheme}://{name}", folder) for name, folder in sorted(named.items())]

    def _strip(self, address: str) -> str:
        return str(self._fs._strip_protocol(address)).rstrip("/")

    def _ask(self, what: str, address: str, **options: Any) -> Any:
        try:
            return getattr(self._fs, what)(self._strip(address), **options)
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise NoAnswer(f"{shown(address)} is not for everybody ({why(error)}); {CREDENTIALS}") from error
        except OSError as error:
            raise Temporary(why(error)) from error
        except NotImplementedError as error:
            raise NoAnswer(f"{shown(address)} cannot be asked for this ({why(error)})") from error
        except Exception as error:  # each library has its own
            raise NoAnswer(f"{shown(address)} cannot be read ({why(error)}); {CREDENTIALS}") from error


CREDENTIALS: Final = "credentials are taken from the environment: see docs/remote.md"


def open_file_system(address: str) -> Any:
    """The file system of fsspec that is behind an address.

    Raises   InvalidInput for a scheme that nobody knows, MissingExtra
    """
    import fsspec

    scheme = scheme_of(address)
    need = _NEEDS.get(scheme, "fsspec")
    if importlib.util.find_spec(need) is None:
        raise missing_extra(need, f"an address such as {scheme}://", "") or MissingExtra(f"{scheme}:// needs {need}")
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("http", "https") and "client_kwargs" not in fsspec.config.conf.get(scheme, {}):
        options["client_kwargs"] = {"trust_env": True}  # proxies, and keys in ~/.netrc
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise MissingExtra(f"the address {shown(address)} needs another package: {why(error)}", name=error.name) from error
    except Exception as error:
        raise InvalidInput(
            f"{shown(address)} cannot be opened ({why(error)}); expected an address such as https://, s3:// or hf://"
        ) from error


def scheme_of(address: str) -> str:
    """The scheme of an address, in small letters; empty for a path."""
    found = SCHEME.match(address)
    return found.group().lower() if found else ""


def shown(address: str) -> str:
    """An address for messages and tables: without what may be a key, such as the query of a signed one."""
    if scheme_of(address) in ("http", "https"):
        parts = urlsplit(address)
        address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return plain(address)


def why(error: BaseException) -> str:
    """An error in one line, addresses in it cut like all that are shown."""
    text = " ".join(str(error).split()) or type(error).__name__
    return plain(re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\")]*", r"\1", text)[:300])
