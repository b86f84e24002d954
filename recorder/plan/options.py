"""What to record: which modules, evaluations, branches and keys, as the caller writes it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from ...schema.codec import MANTISSA
from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.record import BRANCHES
from ...schema.selection import Layers, Positions, match_layers, pick_positions, read_positions, write_positions
from ...schema.trace import Codec, Layer
from .probes import read_probes

KEYS: Final = ("auto", "all", "reference", "text")
ENCODINGS_WANTED: Final = ("probabilities", "factors", "auto")
SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([kmgt])(i?))?b?\s*", re.IGNORECASE)


def select_layers(layers: Layers, paths: Sequence[str]) -> list[str]:
    """Module paths chosen by names, globs (`*up_blocks*`) or regular expressions (`re:...`, searched).

    Raises   InvalidInput for a position or a bad expression, UnknownSelection for a pattern that matches no module
    """
    return [paths[index] for index in match_layers(layers, paths, "this pipeline", numbered=False)]


def select_steps(steps: Positions, evaluations: int, planned: bool = True) -> list[int]:
    """Ordinals of denoiser evaluations, in order; unless the run is `planned`, `evaluations` are only the most there can be.

    Raises   InvalidInput for what is no choice of positions or selects none, UnknownSelection for an evaluation that there is not
    """
    asked = read_positions(steps, "step")
    ends = (asked.start, asked.stop, asked.step) if isinstance(asked, slice) else asked
    if not planned and any(end is not None and end < 0 for end in ends):
        unknown = "counts from the end of a run whose number of evaluations is not known"
        raise InvalidInput(f"{option('steps', steps)} {unknown}; say it with {option('evaluations')}, or count from 0")
    return list(pick_positions(steps, evaluations, "step", "this run"))


def select_heads(heads: Positions, count: int, where: str) -> list[int]:
    """Numbers of a layer's heads, in order, of the `count` that it has.

    Raises   InvalidInput for what is no choice of positions or selects none, UnknownSelection for a head that the layer does not have
    """
    hint = f"; leave it out, or choose modules that have it with {option('layers')}"
    return list(pick_positions(heads, count, "head", where, hint=hint))


def keep_heads(layer: Layer, heads: Positions) -> Layer:
    """A layer with those of its heads that were asked for."""
    chosen = select_heads(heads, layer.heads, layer.name)
    if len(chosen) == layer.heads:
        return layer
    return dataclasses.replace(layer, heads=len(chosen), head_numbers=tuple(chosen), call_heads=layer.heads)


def select_branches(branches: str) -> tuple[str, ...]:
    """`cond`, `uncond` or `both` as the branch axis.

    Raises   InvalidInput otherwise
    """
    _choice("branches", branches, (*BRANCHES, "both"))
    return BRANCHES if branches == "both" else (branches,)


def parse_bytes(written: int | str | None) -> int | None:
    """`5GB`, `500 MB`, `1.5GiB` or a number of bytes; None stays None.

    Raises   InvalidInput for what is no size above 0
    """
    if written is None:
        return None
    match = None if isinstance(written, bool) else SIZE.fullmatch(str(written))
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index((match[2] or " ").lower())) if match else 0
    if size <= 0:
        raise InvalidInput(f"{option('max_bytes', written)} is no size; use a number with a unit, such as 5GB or 500MB")
    return size


@dataclass(frozen=True, slots=True)
class Options:
    """What a recording is asked to keep, checked before any run; layers, steps and heads are kept as JSON would."""

    layers: Layers = None
    """Names, globs or `re:` expressions of attention modules; None is all."""
    steps: Positions = None
    """Denoiser evaluations, such as `::5`, `10:40:5` or `0,10,49`; None is all."""
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
    heads: Positions = None
    """Heads of each layer, such as `::2`, `0:4` or `0,3`; None is all."""
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
        object.__setattr__(self, "steps", write_positions(self.steps, "step"))
        object.__setattr__(self, "heads", write_positions(self.heads, "head"))
        if isinstance(self.layers, Iterable) and not isinstance(self.layers, str):
            object.__setattr__(self, "layers", list(self.layers))
        _choice("encoding", self.encoding, ENCODINGS_WANTED)
        _choice("keys", self.keys, KEYS)
        Codec(self.codec, self.level, self.keep_bits)  # type: ignore[arg-type]
        if self.keep_bits < MANTISSA and self.encoding == "factors":
            exact = f"{option('keep_bits', self.keep_bits)} rounds probabilities, but factors are kept exactly"
            raise InvalidInput(f"{exact}; use {option('encoding', 'probabilities')} or auto")
        if read_probes(self.probes) and self.encoding != "factors":
            raise InvalidInput(
                f"probes are asked of queries, which {option('encoding', self.encoding)} does not keep in every layer; "
                f"record with {option('encoding', 'factors')}"
            )
        parse_bytes(self.max_bytes)
        if not isinstance(self.queue_mb, (int, float)) or not self.queue_mb > 0:
            raise InvalidInput(f"{option('queue_mb', self.queue_mb)} is no size; give a number of MiB above 0")
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
        probes = {probe.name: probe.to_json() for probe in read_probes(self.probes)}
        return {**{name: getattr(self, name) for name in names}, "probes": probes}


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidInput(f"{option(name, value)}; use {', '.join(choices[:-1])} or {choices[-1]}")
