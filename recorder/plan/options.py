"""What to record: which modules, evaluations, branches, keys and probes, as the caller writes it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from ...schema.arrays.sums import KeptSums
from ...schema.codec import MANTISSA
from ...schema.errors import InvalidInput
from ...schema.messages import option, parse_bytes
from ...schema.record import BRANCHES, NAME
from ...schema.selection import Layers, Positions, match_layers, pick_positions, read_positions, write_positions
from ...schema.trace import Codec, Layer, Role
from ...schema.truth.files import read_truth

KEYS: Final = ("auto", "all", "reference", "text", "self")
ENCODINGS_WANTED: Final = ("probabilities", "factors", "auto")
KEPT: Final = ("attention", "maps")
VALUES_WANTED: Final = ("auto", "none", "norms", "full")
USUAL: Final = {"encoding": ("probabilities", "auto"), "keep_bits": (MANTISSA,), "values": ("auto", "none"), "probes": ()}
"""Options that say how attention is kept, and what maps alone leave them at."""
RESERVED: Final = ("text", "reference", "self")
"""What token groups of the run itself are called."""


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


def keep_maps(layer: Layer, token_maps: int) -> Layer:
    """A layer with sums in place of its attention, of which the first tokens of each text, and those of a reference that has few, have maps
    of their own; a resampler's attention is kept, since it is small and carries maps back to patches."""
    if layer.is_resampler:
        return layer
    own = [range(g.start, min(g.start + token_maps, g.stop)) for g in layer.groups if g.role == "text" or g.tokens <= token_maps]
    sums = KeptSums(tuple(token for tokens in own for token in tokens))
    return dataclasses.replace(layer, encoding="sums", values="none", value_dim=0, output_dim=0, gain=1.0, residual=False, sums=sums)


def select_branches(branches: str) -> tuple[str, ...]:
    """`cond`, `uncond` or `both` as the branch axis.

    Raises   InvalidInput otherwise
    """
    _choice("branches", branches, (*BRANCHES, "both"))
    return BRANCHES if branches == "both" else (branches,)


@dataclass(frozen=True, slots=True)
class Probe:
    """One named set of texts, or of pictures."""

    name: str
    items: tuple[Any, ...]
    role: Role
    """`text`, or `reference` for pictures."""
    whole: bool = False
    """Whether a text's padding is kept too."""

    def labels(self) -> tuple[str, ...]:
        """Names of its token groups: one for all texts, one for each picture."""
        if self.role == "text" or len(self.items) == 1:
            return (self.name,)
        return tuple(f"{self.name}_{index}" for index in range(len(self.items)))

    def to_json(self) -> str | list[str]:
        """Its texts; of pictures, what they are."""
        if self.role == "text":
            return self.items[0] if self.whole else list(self.items)
        return [str(item) if isinstance(item, Path) else f"{type(item).__name__} {index}" for index, item in enumerate(self.items)]


def read_probes(given: Any) -> tuple[Probe, ...]:
    """Probes as a caller writes them, by name.

    probes = {
        "concepts": ["a mouse, the animal", "a computer mouse"],   # each text from its start to its end token, without padding
        "scene": "a mouse beside a keyboard",                      # one text, padding included: softmax runs over all its tokens
        "fabric": [PIL.Image.open("fabric.png")],                  # pictures, through the pipeline's own image encoder
    }

    Raises   InvalidInput for a name that cannot be one, an empty probe, or texts among pictures
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        form = "a dict, name -> texts or images, such as {'concepts': ['a dog', 'a cat']}"
        raise InvalidInput(f"{option('probes')} takes {form}; got {given!r}")
    probes = tuple(_read_probe(name, value) for name, value in given.items())
    labels = [label for probe in probes for label in probe.labels()]
    for label in labels:
        if labels.count(label) > 1:
            raise InvalidInput(f"two probes come to the name {label!r}; give them names that stay apart")
    return probes


def _read_probe(name: Any, value: Any) -> Probe:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidInput(f"probe name {name!r} is not made of letters, digits, _ . -")
    if any(name == word or name.startswith(f"{word}_") for word in RESERVED):
        raise InvalidInput(f"a probe cannot be called {name!r}, as the run's own tokens are; choose another name")
    several = isinstance(value, Sequence) and not isinstance(value, str)
    items = tuple(value) if several else (value,)
    if not items or any(item is None for item in items):
        raise InvalidInput(f"probe {name!r} is empty; give it texts or images")
    texts = [isinstance(item, str) for item in items]
    if any(texts) and not all(texts):
        raise InvalidInput(f"probe {name!r} has texts among images; make it two probes")
    if (twice := next((item for index, item in enumerate(items) if all(texts) and item in items[:index]), None)) is not None:
        raise InvalidInput(f"probe {name!r} has the text {twice!r} twice; remove one")
    for item in items:
        # Whether it is a picture, the recorder says once torch is there; that these are none is plain.
        if isinstance(item, (bool, int, float, bytes, Mapping, list, tuple, set)):
            raise InvalidInput(f"probe {name!r} holds {item!r}; it takes texts or images")
    return Probe(name, items, "text" if all(texts) else "reference", all(texts) and not several)


def read_concepts(given: Any) -> tuple[str, ...]:
    """Concepts as a caller writes them: several words, or texts.

    Raises   InvalidInput for anything else, an empty text, or one that comes twice
    """
    texts = () if given is None else tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    for text in texts:
        if not isinstance(text, str) or not text.strip() or not text.isprintable() or texts.count(text) > 1:
            wrong = "twice" if isinstance(text, str) and texts.count(text) > 1 else "which is no text of plain characters"
            raise InvalidInput(f"{option('concepts')} holds {text!r}, {wrong}; give different words, such as ['cat', 'sky']")
    if len(texts) == 1:
        raise InvalidInput(f"{option('concepts', texts[0])} is one concept, and their maps are shares among several; add another")
    return texts


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
    """`reference`, `text`, `self` (the image's own tokens), `all` of these, or `auto`: reference and text, but of a softmax that they share
    with the image's own tokens the reference alone."""
    self_grid: int = 32
    """Self-attention is kept of layers with at most this many times this many positions; 0 keeps none."""
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
    truth: Any = None
    """Where places of the image really come from: a file, pairs of places or a flow, as `schema.truth` reads them."""
    values: str = "auto"
    """What is kept of the values: `none`, `norms`, `full`, or `auto`: norms in layers that they make larger by 2 % at most."""
    probes: Mapping[str, Any] | None = None
    """Texts and pictures that the run is not given, by name; their keys are kept."""
    keep: str = "attention"
    """`attention`, or `maps`: sums of it alone, from which R2G, G2R and maps of tokens are made."""
    token_maps: int = 16
    """With maps, how many tokens of each text have maps of their own, from the first."""
    concepts: Sequence[str] = ()
    """Words that attend to the image in each double block and are not seen by it; how well each position agrees with each is kept."""

    def __post_init__(self) -> None:
        _choice("keep", self.keep, KEPT)
        self._check_maps()
        select_branches(self.branches)
        object.__setattr__(self, "steps", write_positions(self.steps, "step"))
        object.__setattr__(self, "heads", write_positions(self.heads, "head"))
        if isinstance(self.layers, Iterable) and not isinstance(self.layers, str):
            object.__setattr__(self, "layers", list(self.layers))
        _choice("encoding", self.encoding, ENCODINGS_WANTED)
        _choice("keys", self.keys, KEYS)
        _choice("values", self.values, VALUES_WANTED)
        if type(self.self_grid) is not int or self.self_grid < 0 or (self.keys == "self" and not self.self_grid):
            raise InvalidInput(f"{option('self_grid', self.self_grid)}; give the side of the largest grid whose self-attention is kept")
        Codec(self.codec, self.level, self.keep_bits)  # type: ignore[arg-type]
        if self.keep_bits < MANTISSA and self.encoding == "factors":
            exact = f"{option('keep_bits', self.keep_bits)} rounds probabilities, but factors are kept exactly"
            raise InvalidInput(f"{exact}; use {option('encoding', 'probabilities')} or auto")
        if read_probes(self.probes) and self.encoding != "factors":
            raise InvalidInput(
                f"probes are asked of queries, which {option('encoding', self.encoding)} does not keep in every layer; "
                f"record with {option('encoding', 'factors')}"
            )
        object.__setattr__(self, "concepts", read_concepts(self.concepts))
        if self.truth is not None:
            object.__setattr__(self, "truth", read_truth(self.truth))
        parse_bytes("max_bytes", self.max_bytes)
        if not isinstance(self.queue_mb, (int, float)) or not self.queue_mb > 0:
            raise InvalidInput(f"{option('queue_mb', self.queue_mb)} is no size; give a number of MiB above 0")
        if self.facts is not None:
            try:
                json.dumps(dict(self.facts), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise InvalidInput(f"facts cannot be kept as JSON: {error}; give numbers, text, lists and dicts") from error

    def _check_maps(self) -> None:
        count = self.token_maps
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise InvalidInput(f"{option('token_maps', count)} is no number of tokens; give 0 or more")
        if self.keep == "attention":
            return
        given = {name: getattr(self, name) for name in USUAL}
        if changed := [name for name, value in given.items() if value not in (None, {}, *USUAL[name])]:
            name = changed[0]
            raise InvalidInput(
                f"{option(name, given[name])} says how attention is kept, and with {option('keep', 'maps')} none is; leave one of them out"
            )

    @property
    def values_kept(self) -> str:
        """What is wanted of the values; with maps alone, nothing."""
        return self.values if self.keep == "attention" else "none"

    @property
    def wants_self(self) -> bool:
        """Whether self-attention is kept of any layer."""
        return self.keys in ("self", "all") and self.self_grid > 0

    @property
    def axis(self) -> tuple[str, ...]:
        """The branch axis of the trace."""
        return select_branches(self.branches)

    def to_json(self) -> dict[str, Any]:
        """The options as provenance keeps them."""
        names = [f.name for f in fields(self) if f.name not in ("reference_mask", "reference_image", "facts", "truth", "probes")]
        probes = {probe.name: probe.to_json() for probe in read_probes(self.probes)}
        return {**{name: getattr(self, name) for name in names}, "probes": probes, "concepts": list(self.concepts)}


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidInput(f"{option(name, value)}; use {', '.join(choices[:-1])} or {choices[-1]}")
