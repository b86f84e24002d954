"""TOML that a user wrote, read or refused in one line. Needs no torch."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ...schema.errors import InvalidInput


def read_toml(path: Path, what: str, expected: str) -> dict[str, Any]:
    """The document at `path`; `what` it is and what is `expected` are for the error.

    Raises   InvalidInput
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"cannot read the {what} {path}: {error.strerror}; give {expected}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not TOML: {error}") from error
