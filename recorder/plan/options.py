"""What to record: which modules, evaluations, branches and keys, as the caller writes it."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, TypeAlias

from ...schema.codec import MANTISSA
from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.record import BRANCHES
from ...schema.trace import Codec, Layer
from .probes import read_probes
from .sizes import parse_bytes

Layers: TypeAlias = str | Sequence[str] | None
Steps: TypeAlias = str | Sequence[int] | None
Heads: TypeAlias = str | Sequence[int] | None

KEYS: Final = ("auto", "all", "reference", "text")
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
    chosen = _ordinals(steps, evaluations, "steps")
    beyond = [] if steps is None or isinstance(steps, str) else [s for s in steps if s >= evaluations]
    if beyond and evaluations > 1:
        raise UnknownSelection(f"steps={shorten(map(str, beyond))} do not exist; this run has denoiser evaluations 0 to {evaluations - 1}")
    if not chosen:
        raise UnknownSelection(f"steps={steps!r} selects nothing; this run has denoiser evaluations 0 to {evaluations - 1}")
    return chosen


def _ordinals(chosen: Steps, count: int, name: str) -> list[int]:
    if chosen is None:
        return list(range(count))
    if isinstance(chosen, str):
        return list(range(count)[_slice(chosen, name)])
    ordinals = [s for s in chosen if isinstance(s, int) and not isinstance(s, bool) and s >= 0] if isinstance(chosen, Sequence) else []
    if not isinstance(chosen, Sequence) or len(ordinals) != len(chosen):
        raise InvalidInput(f'{name}={chosen!r}; use "every=5", "10:40:5" or a list of ordinals from 0')
    return sorted({s for s in ordinals if s < count})


def _slice(text: str, name: str) -> slice:
    if every := EVERY.fullmatch(text.replace(" ", "")):
        bounds: tuple[int | None, int | None, int | None] = (None, None, int(every[1]))
    elif (match := SLICE.fullmatch(text.replace(" ", ""))) is not None:
        start, stop, stride = (int(part) if part else None for part in match.groups())
        bounds = (start, stop, stride)
    else:
        raise InvalidInput(f'{name}={text!r} is not understood; use "every=5", "10:40:5" or a list of ordinals from 0')
    if bounds[2] == 0:
        raise InvalidInput(f"{name}={text!r}: a stride of 0 goes nowhere; use 1 or more")
    return slice(*bounds)


def select_heads(heads: Heads, count: int, where: str) -> list[int]:
    """Numbers of a layer's heads, in order: `every=N`, `start:stop:step` or a list from 0; None is all of its `count`.

    Raises   InvalidInput for what is none of these, UnknownSelection for a head that the layer does not have
    """
    chosen = _ordinals(heads, count, "heads")
    have = f"{where} has heads 0 to {count - 1}"
    if not isinstance(heads, str) and heads is not None and max(heads, default=0) >= count:
        raise UnknownSelection(f"heads={max(heads)} does not exist: {have}; leave it out, or choose modules that have it through layers=")
    if not chosen:
        raise UnknownSelection(f"heads={heads!r} selects nothing: {have}")
    return chosen


def keep_heads(layer: Layer, heads: Heads) -> Layer:
    """A layer with those of its heads that were asked for."""
    chosen = select_heads(heads, layer.heads, layer.name)
    if len(chosen) == layer.heads:
        return layer
    return dataclasses.replace(layer, heads=len(chosen), head_numbers=tuple(chosen), call_heads=layer.heads)


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
    keys: str = "auto"
    """`reference`, `text`, `all` (both), or `auto`: both, but of a softmax shared with the image's own tokens the reference alone."""
    codec: str = "lz4"
    level: int = 5
    queue_mb: float = 512
    """Most that waits to be written, in MiB."""
    heads: Heads = None
    """`every=2`, `0:4` or numbers of heads, as each layer has them; None is all."""
    keep_bits: int = MANTISSA
    """Mantissa bits, of float16's 10, that probabilities are rounded to so that they pack better."""
    max_bytes: int | str | None = None
    """Most that the trace may hold before compression, such as `5GB`; None sets no limit."""
    overwrite: bool = False
    progress: bool = True
    reference_mask: Any = None
    """Where the reference shows what matters; kept with the images."""
    reference_image: Any = None
    """Pictures of references that the pipeline is given as embeddings, as Flux Redux is; kept with the images."""
    facts: Mapping[str, Any] | None = None
    """Anything JSON can say, kept under provenance."""
    probes: Mapping[str, Any] | None = None
    """Texts and pictures that the run is not given, by name; their keys are kept."""

    def __post_init__(self) -> None:
        select_branches(self.branches)
        _ordinals(self.steps, 1, "steps")
        _ordinals(self.heads, 1, "heads")
        _choice("encoding", self.encoding, ENCODINGS_WANTED)
        _choice("keys", self.keys, KEYS)
        Codec(self.codec, self.level, self.keep_bits)  # type: ignore[arg-type]
        if self.keep_bits < MANTISSA and self.encoding == "factors":
            raise InvalidInput('keep_bits rounds probabilities, but factors are kept exactly; use encoding="probabilities" or "auto"')
        if read_probes(self.probes) and self.encoding != "factors":
            raise InvalidInput(
                f'probes are asked of queries, which encoding="{self.encoding}" does not keep in every layer; '
                'record with encoding="factors"'
            )
        parse_bytes(self.max_bytes)
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
        names = [f.name for f in fields(self) if f.name not in ("reference_mask", "reference_image", "facts", "probes")]
        values = ((name, getattr(self, name)) for name in names)
        plain = {name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value for name, value in values}
        return {**plain, "probes": {probe.name: probe.to_json() for probe in read_probes(self.probes)}}


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidInput(f"{name}={value!r}; use {', '.join(choices[:-1])} or {choices[-1]}")
