"""Reads the JSON documents of a trace strictly: no field unknown, missing, of another type, or out of bounds, whoever wrote them."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Hashable
from typing import Any, Final, Literal, Never, TypeAlias, TypeVar, Union, cast, get_args, get_origin

from .errors import CorruptTrace, InvalidInput

FORMAT_VERSION: Final = 1
"""The version of the trace format of recorded attention; `schema/README.md` is its norm."""
MAPS_VERSION: Final = 2
"""That of traces of which some layer keeps sums in place of attention; earlier releases refuse it."""

JSON: TypeAlias = bool | int | float | str | list[Any] | dict[str, Any] | None

BRANCHES: Final = ("cond", "uncond")
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
MOST_INTEGER: Final = 2**31 - 1
"""Largest whole number in a field of ours; the tables of a trace hold no larger one."""
MOST_DEPTH: Final = 32
"""Deepest nesting of the free-form objects, such as `inputs`."""

MOST_NESTED: Final = 2**20
"""Most lists and objects in one document; counted before it is parsed, because in memory they are many times their text."""
MOST_ITEMS: Final = 2**14
"""Longest list in a record."""

_CHANGED: Final = "the file was changed after the recording"
_KINDS: Final[dict[Any, str]] = {
    int: f"a whole number of at most {MOST_INTEGER} either way",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    types.NoneType: "null",
}
Record = TypeVar("Record")


def require(condition: bool, message: str) -> None:
    """Raise InvalidInput with `message` unless `condition` holds."""
    if not condition:
        raise InvalidInput(message)


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object, refusing what JSON leaves open: two fields of one name, NaN, a byte order mark, half a surrogate pair.

    Raises   CorruptTrace
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ValueError("two fields have one name")
        return fields

    def constant(name: str) -> Never:
        raise ValueError(f"{name[:60]} is no number")

    def finite(text: str) -> float:
        return value if math.isfinite(value := float(text)) else constant(text)

    if data.count(b"[") + data.count(b"{") > MOST_NESTED:
        raise CorruptTrace(f"{where} holds more lists and objects than any of ours; {_CHANGED}")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant, parse_float=finite)
        if _depth(document) > 2 * MOST_DEPTH:
            raise RecursionError
        if b"\\u" in data:
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise CorruptTrace(f"{where} is not JSON ({_reason(error)}); {_CHANGED}") from error
    if not isinstance(document, dict):
        raise CorruptTrace(f"{where} is not a JSON object; {_CHANGED}")
    return document


def as_json(value: Any) -> Any:
    """Lists and objects of a record as JSON has them, where tuples are lists."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def canonical(document: JSON) -> str:
    """The one text of a JSON value, of which checksums are taken."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def decode(kind: type[Record], doc: JSON, where: str) -> Record:
    """A record of a dataclass, each field as its annotation says: no truth value for a number, no float for a whole one.

    Raises   CorruptTrace naming the field and the place
    """
    try:
        return cast("Record", _decode_record(kind, doc, where))
    except InvalidInput as error:
        raise CorruptTrace(f"{where} is not valid: {error}") from error


def _decode_record(kind: type[Any], doc: JSON, where: str) -> Any:
    if not isinstance(doc, dict):
        raise CorruptTrace(f"{where} should be a JSON object, but is {_show(doc)}; {_CHANGED}")
    hints, needed = _fields(cast(Hashable, kind))
    unknown, missing = sorted(set(doc) - set(hints)), sorted(needed - set(doc))
    if unknown or missing:
        what = f"unknown {', '.join(map(_show, unknown[:9]))}" if unknown else f"missing {', '.join(missing)}"
        raise CorruptTrace(f"{where} has {what}; a format {FORMAT_VERSION} trace does not, so its metadata was changed")
    return kind(**{name: _decode_value(hints[name], value, f"{where}, {name},") for name, value in doc.items()})


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], set[str]]:
    """The annotations of a record's fields, and the names of those without a default."""
    fields = dataclasses.fields(kind)
    needed = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields}, needed


def _decode_value(hint: Any, value: JSON, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _decode_value(next(a for a in inner if a is not types.NoneType), value, where)
    if dataclasses.is_dataclass(hint):
        return _decode_record(cast("type[Any]", hint), value, where.rstrip(","))
    if origin is tuple and isinstance(value, list) and len(value) <= MOST_ITEMS:
        each = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(each) == len(value):
            return tuple(
                _decode_value(kind, item, f"{where.rstrip(',')}, item {i},") for i, (kind, item) in enumerate(zip(each, value, strict=True))
            )
    elif origin is dict and isinstance(value, dict):
        if inner[1] is not Any:
            return {key: _decode_value(inner[1], item, f"{where} {_show(key)},") for key, item in value.items()}
        if _depth(value) <= MOST_DEPTH:
            return value
    elif (origin is Literal and isinstance(value, str) and value in inner) or (hint in _KINDS and _fits(hint, value)):
        return float(cast(float, value)) if hint is float else value
    raise CorruptTrace(f"{where} should be {_describe(hint)}, but is {_show(value)}; {_CHANGED}")


def _fits(kind: Any, value: JSON) -> bool:
    """Whether a JSON value is a number, text or truth value of this kind."""
    if kind is float and type(value) is float:
        return math.isfinite(value)
    if kind in (int, float):
        return type(value) is int and abs(value) <= MOST_INTEGER
    return type(value) is kind


def _describe(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin is tuple:
        return (
            f"a list of at most {MOST_ITEMS}, each {_describe(inner[0])}"
            if inner[-1] is Ellipsis
            else f"a list of {len(inner)}, each {_describe(inner[0])}"
        )
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(each) for each in inner)
    return f"an object nested at most {MOST_DEPTH} deep" if origin is dict else _KINDS.get(hint, "an object")


def _depth(value: JSON) -> int:
    """How deep lists and objects nest, counted no further than twice the bound."""
    level: list[Any] = [value]
    for depth in range(2 * MOST_DEPTH + 1):
        if not level:
            return depth
        level = [item for each in level if isinstance(each, (dict, list)) for item in (each.values() if isinstance(each, dict) else each)]
    return 2 * MOST_DEPTH + 1


def _show(value: JSON) -> str:
    """A value as JSON in ASCII, shortened: it may be a stranger's."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 99:
        return f"a number of {value.bit_length()} bits"
    text = json.dumps(value if not isinstance(value, str) else value[:60])
    return text if not isinstance(value, str) or len(value) <= 60 else f'{text[:-1]}..."'


def _reason(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
