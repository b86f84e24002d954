"""Checks that all records of a trace share: JSON objects with known fields, valid from the moment they are made."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Final, TypeAlias

from .errors import CorruptTrace, InvalidInput

FORMAT_VERSION: Final = 1

JSON: TypeAlias = bool | int | float | str | list[Any] | dict[str, Any] | None

BRANCHES: Final = ("cond", "uncond")
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def require(condition: bool, message: str) -> None:
    """Raise InvalidInput with `message` unless `condition` holds."""
    if not condition:
        raise InvalidInput(message)


def pick(known: type[Any], doc: JSON, where: str) -> dict[str, Any]:
    """The fields of record class `known` in a JSON object, refusing missing and unknown ones.

    Raises   CorruptTrace naming the field and the place
    """
    if not isinstance(doc, dict):
        raise CorruptTrace(f"{where} should be a JSON object, but is {type(doc).__name__}; the trace's metadata was changed")
    fields = dataclasses.fields(known)
    unknown = sorted(set(doc) - {f.name for f in fields})
    missing = [
        f.name for f in fields if f.name not in doc and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if unknown or missing:
        what = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
        raise CorruptTrace(f"{where} has {what}; a format {FORMAT_VERSION} trace does not, so its metadata was changed")
    return doc
