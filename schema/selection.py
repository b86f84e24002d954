"""Selections as users write them, the same when recording and when asking: positions on an axis, and layers.

Positions are `5`, `0,3,7`, `0:20` or `::5`; negative ones count from the end. Layers are positions, names, globs (`*up_blocks*`) or
`re:` and a regular expression; several stand with commas between, but for an expression, which is one as a whole.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from .errors import InvalidInput, UnknownSelection
from .messages import listed, option

Positions: TypeAlias = int | slice | str | Iterable[int] | None
"""Positions on an axis: one, a range, several, a boolean each, or their text; None is all."""
Selector: TypeAlias = int | slice | str
"""Layers: a position, a range of them, a name, a glob, or `re:` and a regular expression."""
Layers: TypeAlias = Selector | Iterable[Selector] | None
"""Layers that any selector means; None is all."""

EXPRESSION: Final = "re:"
NUMBERS: Final = re.compile(r"[\s\d:-]+")


def read_positions(wanted: Positions, what: str) -> slice | list[Any]:
    """A range, or the list of what is named one by one, from any way to write positions on the axis of `what`s.

    Raises   InvalidInput for what is none
    """
    if isinstance(wanted, str):
        wanted = _parse(wanted, what)
    if wanted is None or isinstance(wanted, slice):
        try:
            range(0)[wanted or slice(None)]
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"{wanted} is no range of {what}s: {error}") from error
        return wanted or slice(None)
    if not isinstance(wanted, Iterable) or (isinstance(wanted, np.ndarray) and wanted.ndim == 0):
        return [whole(wanted, f"a {what}")]
    given: list[Any] = list(wanted)
    return given if _is_mask(given) else [whole(i, f"a {what}") for i in given]


def _parse(text: str, what: str) -> slice | list[int]:
    try:
        if ":" in text:
            ends = [int(part) if part.strip() else None for part in text.split(":")]
            range(0)[slice(*ends)]
            return slice(*ends)
        return [int(part) for part in text.split(",")]
    except (ValueError, TypeError):
        stride = re.fullmatch(r"\s*every\s*=\s*(\d+)\s*", text)
        way = f"::{stride[1]}" if stride else f"5, or 0,3,7, or 0:20, or ::5 for every fifth {what}"
        raise InvalidInput(f"{option(f'{what}s', text)} is no choice of {what}s; write {way}") from None


def _is_mask(given: list[Any]) -> bool:
    return bool(given) and all(isinstance(i, (bool, np.bool_)) for i in given)


def pick_positions(
    wanted: Positions, length: int, what: str, where: str = "the trace", *, kept: Sequence[int] | None = None, hint: str = ""
) -> tuple[int, ...]:
    """Positions in order, each once; a range or None takes those `kept`, or all.

    Raises   InvalidInput for what is no choice of positions or selects none, UnknownSelection with `hint` for one that is not there
    """
    asked = read_positions(wanted, what)
    if isinstance(asked, slice):
        found = {i for i in range(length)[asked] if kept is None or i in kept}
    elif _is_mask(asked):
        if len(asked) != length:
            raise InvalidInput(f"the mask of {what}s has {len(asked)} values; expected one for each of {length} {what}s")
        found = {i for i, there in enumerate(asked) if there}
    else:
        if bad := [i for i in asked if not -length <= i < length]:
            raise UnknownSelection(f"{where} has no {what} {bad[0]}; it has {extent(length)}{hint}")
        found = {i % length for i in asked}
    if not found:
        raise InvalidInput(f"the selection of {what}s is empty; {where} has {extent(length)}")
    return tuple(sorted(found))


def write_positions(wanted: Positions, what: str) -> str | list[int] | None:
    """Positions as JSON keeps them: a range as its text, others as a list."""
    if wanted is None:
        return None
    asked = read_positions(wanted, what)
    if not isinstance(asked, slice):
        return [bool(i) for i in asked] if _is_mask(asked) else asked
    ends = ["" if end is None else str(end) for end in (asked.start, asked.stop, asked.step)]
    return ":".join(ends if ends[2] else ends[:2])


def extent(length: int) -> str:
    """The positions of an axis, for a message."""
    return f"0 to {length - 1}" if length > 1 else "only 0" if length else "none"


def whole(number: Any, what: str) -> int:
    """The number if it is a whole one, and neither a truth value nor a fraction that would be cut off.

    Raises   InvalidInput
    """
    try:
        if not isinstance(number, (bool, np.bool_)):
            return operator.index(number)
    except TypeError:
        pass
    raise InvalidInput(f"{number!r} is not {what}; expected a whole number")


def match_layers(wanted: Layers, names: Sequence[str], where: str = "the trace", numbered: bool = True) -> tuple[int, ...]:
    """Positions in `names` of all layers that any selector means, in order; None is all. Unless `numbered`, positions are refused.

    Raises   UnknownSelection for a selector that means none, InvalidInput for none at all or for what cannot be one
    """
    if wanted is None:
        return tuple(range(len(names)))
    selectors = _split(wanted, names)
    if not selectors:
        raise InvalidInput(f"the layer selection is empty; {where} has {listed(names)}")
    for selector in selectors:
        if not numbered and _is_position(selector, names):
            way = f"only a trace's layers have positions; write a name, a glob or {EXPRESSION} and a regular expression"
            raise InvalidInput(f"{option('layers', selector)} is a position, and {way}; {where} has {listed(names)}")
    return tuple(sorted({index for selector in selectors for index in _match(selector, names, where)}))


def is_numbered(wanted: Layers) -> bool:
    """Whether any layers are meant by position, which tells nothing of another trace."""
    return wanted is not None and any(_is_position(selector) for selector in _split(wanted))


def _split(wanted: Selector | Iterable[Selector], names: Sequence[str] = ()) -> list[Selector]:
    """Every selector by itself: a text may have several, unless it is an expression or a name."""
    if isinstance(wanted, str):
        one = wanted in names or wanted.startswith(EXPRESSION)
        return [wanted] if one else [part.strip() for part in wanted.split(",") if part.strip()]
    if isinstance(wanted, Iterable):
        return [part for item in wanted for part in (_split(item, names) if isinstance(item, str) else [item])]
    return [wanted]


def _is_position(selector: Selector, names: Sequence[str] = ()) -> bool:
    return not isinstance(selector, str) or (selector not in names and NUMBERS.fullmatch(selector) is not None)


def _match(selector: Selector, names: Sequence[str], where: str) -> Iterable[int]:
    if _is_position(selector, names):
        if not isinstance(selector, (str, slice)) and not hasattr(selector, "__index__"):
            raise InvalidInput(f"{selector!r} names no layer; expected a position from 0, a name, or a pattern of names")
        return pick_positions(selector, len(names), "layer", where)
    assert isinstance(selector, str)
    if selector in names:
        return [names.index(selector)]
    try:
        glob = rf"\A{fnmatch.translate(selector)}"
        search = re.compile(selector.removeprefix(EXPRESSION) if selector.startswith(EXPRESSION) else glob).search
    except re.error as error:
        raise InvalidInput(f"{selector!r} is not a regular expression: {error}") from error
    found = [index for index, name in enumerate(names) if search(name)]
    if not found:
        raise UnknownSelection(f"no layer of {where} matches {selector!r}; it has {listed(names)}")
    return found
