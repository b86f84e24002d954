"""What is asked beside a run: texts and pictures that it is not given, whose keys are kept. Reading this needs no torch.

probes = {
    "concepts": ["a mouse, the animal", "a computer mouse"],   # each text from its start to its end token, without padding
    "scene": "a mouse beside a keyboard",                      # one text, padding included: softmax runs over all its tokens
    "fabric": [PIL.Image.open("fabric.png")],                  # pictures, through the pipeline's own image encoder
}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.record import NAME
from ...schema.trace import Role

RESERVED: Final = ("text", "reference", "self")
"""What token groups of the run itself are called."""


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
    """Probes as a caller writes them: name -> one text, a list of texts, one picture, or a list of pictures.

    Raises   InvalidInput for a name that cannot be one, an empty probe, or texts among pictures
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        form = "a dict, name -> texts or images, such as {'concepts': ['a dog', 'a cat']}"
        raise InvalidInput(f"{option('probes')} takes {form}; got {given!r}")
    probes = tuple(_read(name, value) for name, value in given.items())
    labels = [label for probe in probes for label in probe.labels()]
    for label in labels:
        if labels.count(label) > 1:
            raise InvalidInput(f"two probes come to the name {label!r}; give them names that stay apart")
    return probes


def _read(name: Any, value: Any) -> Probe:
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
    twice = next((item for index, item in enumerate(items) if all(texts) and item in items[:index]), None)
    if twice is not None:
        raise InvalidInput(f"probe {name!r} has the text {twice!r} twice; remove one")
    for item in items:
        # Whether it is a picture, the recorder says once torch is there; that these are none is plain.
        if isinstance(item, (bool, int, float, bytes, Mapping, list, tuple, set)):
            raise InvalidInput(f"probe {name!r} holds {item!r}; it takes texts or images")
    return Probe(name, items, "text" if all(texts) else "reference", all(texts) and not several)
