"""What to record: which modules, evaluations, branches and keys, as the caller writes it."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, TypeAlias

from ..schema.errors import InvalidInput, UnknownSelection
from ..schema.trace import BRANCHES, Codec

Layers: TypeAlias = str | Sequence[str] | None
Steps: TypeAlias = str | Sequence[int] | None

KEYS: Final = ("all", "reference", "text")
ENCODINGS_WANTED: Final = ("probabilities", "factors", "auto")
EVERY: Final = re.compile(r"every=(\d+)")
SLICE: Final = re.compile(r"(\d*):(\d*)(?::(\d*))?")


def shorten(names: Iterable[str], most: int = 8) -> str:
    """A list of names for an error message, cut after `most`."""
    names = list(names)
    rest = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def select_layers(layers: Layers, paths: Sequence[str]) -> list[str]:
    """Module paths chosen by globs (`*up_blocks*`), regular expressions (`re:...`, searched) or exact names.

    Raises   InvalidInput for a bad expression, UnknownSelection for a pattern that matches no module
    """
    if layers is None:
        return list(paths)
    chosen: set[str] = set()
    for pattern in [layers] if isinstance(layers, str) else layers:
        matches = _matcher(pattern)
        found = {path for path in paths if matches(path)}
        if not found:
            raise UnknownSelection(f"layers={pattern!r} matches no cross-attention module of this pipeline; it has {shorten(paths)}")
        chosen |= found
    if not chosen:
        raise UnknownSelection(f"layers={layers!r} names no module; this pipeline has {shorten(paths)}")
    return [path for path in paths if path in chosen]


def _matcher(pattern: str) -> Callable[[str], bool]:
    if not pattern.startswith("re:"):
        return lambda path: path == pattern or fnmatch.fnmatchcase(path, pattern)
    try:
        expression = re.compile(pattern[3:])
    except re.error as error:
        raise InvalidInput(f"layers={pattern!r} is not a regular expression: {error}") from error
    return lambda path: expression.search(path) is not None


def select_steps(steps: Steps, evaluations: int) -> list[int]:
    """Ordinals of denoiser evaluations, in order: `every=N`, `start:stop:step`, a list of ordinals, or None for all.

    Raises   InvalidInput for what is none of these, UnknownSelection if no evaluation is left
    """
    chosen = _ordinals(steps, evaluations)
    if not chosen:
        raise UnknownSelection(f"steps={steps!r} selects nothing; this run has denoiser evaluations 0 to {evaluations - 1}")
    return chosen


def _ordinals(steps: Steps, evaluations: int) -> list[int]:
    if steps is None:
        return list(range(evaluations))
    if isinstance(steps, str):
        return list(range(evaluations)[_slice(steps)])
    ordinals = [s for s in steps if isinstance(s, int) and not isinstance(s, bool) and s >= 0] if isinstance(steps, Sequence) else []
    if not isinstance(steps, Sequence) or len(ordinals) != len(steps):
        raise InvalidInput(f'steps={steps!r}; use "every=5", "10:40:5" or a list of evaluation ordinals from 0')
    beyond = [s for s in ordinals if s >= evaluations]
    if beyond and evaluations > 1:
        raise UnknownSelection(f"steps={shorten(map(str, beyond))} do not exist; this run has denoiser evaluations 0 to {evaluations - 1}")
    return sorted({s for s in ordinals if s < evaluations})


def _slice(text: str) -> slice:
    if every := EVERY.fullmatch(text.replace(" ", "")):
        bounds: tuple[int | None, int | None, int | None] = (None, None, int(every[1]))
    elif (match := SLICE.fullmatch(text.replace(" ", ""))) is not None:
        start, stop, stride = (int(part) if part else None for part in match.groups())
        bounds = (start, stop, stride)
    else:
        raise InvalidInput(f'steps={text!r} is not understood; use "every=5", "10:40:5" or a list of evaluation ordinals')
    if bounds[2] == 0:
        raise InvalidInput(f"steps={text!r}: a stride of 0 goes nowhere; use 1 or more")
    return slice(*bounds)


def select_branches(branches: str) -> tuple[str, ...]:
    """`cond`, `uncond` or `both` as the branch axis.

    Raises   InvalidInput otherwise
    """
    if branches == "both":
        return BRANCHES
    if branches not in BRANCHES:
        raise InvalidInput(f"branches={branches!r}; use cond, uncond or both")
    return (branches,)


@dataclass(frozen=True, slots=True)
class Options:
    """What a recording is asked to keep, checked before any run."""

    layers: Layers = None
    """Globs, `re:` expressions or names of attention modules; None is all."""
    steps: Steps = None
    """`every=5`, `10:40:5` or ordinals of denoiser evaluations; None is all."""
    branches: str = "cond"
    """`cond`, `uncond` or `both`."""
    encoding: str = "probabilities"
    """`probabilities`, `factors` or `auto`."""
    keys: str = "all"
    """`all`, `reference` or `text`."""
    codec: str = "lz4"
    level: int = 5
    queue_mb: float = 512
    """Most that waits to be written, in MiB."""
    overwrite: bool = False
    progress: bool = True
    reference_mask: Any = None
    """Where the reference shows what matters; kept with the images."""
    facts: Mapping[str, Any] | None = None
    """Anything JSON can say, kept under provenance."""

    def __post_init__(self) -> None:
        select_branches(self.branches)
        _ordinals(self.steps, 1)
        _choice("encoding", self.encoding, ENCODINGS_WANTED)
        _choice("keys", self.keys, KEYS)
        Codec(self.codec, self.level)  # type: ignore[arg-type]
        if not isinstance(self.queue_mb, (int, float)) or not self.queue_mb > 0:
            raise InvalidInput(f"queue_mb={self.queue_mb!r}; give a number of MiB above 0")
        if self.facts is not None:
            try:
                json.dumps(dict(self.facts), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise InvalidInput(f"facts cannot be kept as JSON: {error}; give numbers, text, lists and dicts") from error

    @property
    def axis(self) -> tuple[str, ...]:
        """The branch axis of the trace."""
        return select_branches(self.branches)

    def to_json(self) -> dict[str, Any]:
        """The options as provenance keeps them."""
        names = [f.name for f in fields(self) if f.name not in ("reference_mask", "facts")]
        values = ((name, getattr(self, name)) for name in names)
        return {name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value for name, value in values}


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidInput(f"{name}={value!r}; use {', '.join(choices[:-1])} or {choices[-1]}")
