"""The wording that all messages share: options as their reader types them, lists cut short, guesses, sizes, pip commands."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, TypeAlias

from .errors import AlreadyExists, InvalidInput, MissingExtra

Reader: TypeAlias = Literal["python", "shell", "toml"]
"""Who set the options that a message speaks of: a caller from Python, a command line, or a TOML file."""

SHOWN: Final = 12
"""Names that a message or a summary lists before it says how many more there are."""
EXTRAS: Final = {
    "record": ("torch", "diffusers", "transformers", "accelerate", "safetensors"),
    "netcdf": ("h5netcdf", "h5py"),
    "parquet": ("pyarrow",),
    "cluster": ("distributed",),
    "remote": ("aiohttp", "s3fs", "huggingface_hub"),
    "plot": ("matplotlib",),
}
"""Extra of the package -> the modules that it installs."""

_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([kmgt])(i?))?b?\s*", re.IGNORECASE)

_reader: ContextVar[Reader] = ContextVar("reader", default="python")


def option(name: str, value: object = None) -> str:
    """The option of this Python name as the reader would write it; without a value, just which one it is."""
    match _reader.get():
        case "python":
            return f"{name}={'' if value is None else repr(value)}"
        case "toml":
            return name if value is None else f"{name} = {json.dumps(value, default=str)}"
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None or isinstance(value, bool) else f"{flag} {shlex.quote(str(value))}"


def is_for_shell() -> bool:
    """Whether messages are for the command line; work in other processes has to be told."""
    return _reader.get() == "shell"


@contextmanager
def for_reader(reader: Reader) -> Iterator[None]:
    """Name options as this reader spells them in every message of this block."""
    before = _reader.set(reader)
    try:
        yield
    finally:
        _reader.reset(before)


def for_shell() -> AbstractContextManager[None]:
    """Name options as the command line spells them in every message of this block."""
    return for_reader("shell")


def plain(text: str) -> str:
    """Somebody's text as it may go to a terminal: control characters, and those that turn the direction of writing, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def listed(names: Iterable[str]) -> str:
    """Names for a message: all of them, or the first few and how many more."""
    found = list(names)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (", ".join(found[:SHOWN]) or "none") + more


def guess(name: str, known: Iterable[str]) -> str:
    """`did you mean X? `, or nothing where no known name is near."""
    folded = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(name.casefold(), folded, 1)
    return f"did you mean {folded[close[0]]}? " if close else ""


def size_text(nbytes: float) -> str:
    """Bytes for people: three digits in a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def parse_bytes(name: str, written: int | str | None) -> int | None:
    """What an option of this name says: `5GB`, `500 MB`, `1.5GiB` or a number of bytes; None stays None.

    Raises   InvalidInput for what is no size above 0
    """
    if written is None:
        return None
    match = None if isinstance(written, bool) else _SIZE.fullmatch(str(written))
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index((match[2] or " ").lower())) if match else 0
    if size <= 0:
        raise InvalidInput(f"{option(name, written)} is no size; use a number with a unit, such as 5GB or 500MB")
    return size


def refuse_taken(path: Path, overwrite: bool) -> None:
    """Raise AlreadyExists if there is something at an output path, unless it may be replaced."""
    if not overwrite and (path.exists() or path.is_symlink()):
        raise AlreadyExists(f"{path} exists already; choose another path, or add {option('overwrite', True)} to replace it")


def missing_extra(module: str, who: str, otherwise: str = "") -> MissingExtra | None:
    """The error that names the pip command, if a module that is not installed belongs to an extra."""
    extra = next((name for name, modules in EXTRAS.items() if module in modules), None)
    if extra is None:
        return None
    return MissingExtra(f'{who} needs {module}, which is not installed; install it: pip install "i2am[{extra}]"{otherwise}', name=module)


def require_extra(modules: Iterable[str], who: str, otherwise: str = "") -> None:
    """Raise MissingExtra, and name the other way there is, for the first module of an extra that is not installed."""
    for module in modules:
        if find_spec(module) is None and (error := missing_extra(module, who, otherwise)):
            raise error
