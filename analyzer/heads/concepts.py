"""Visual concepts as words: the published 34 x 10, or a caller's own."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeAlias

from ...schema.errors import InvalidInput

Concepts: TypeAlias = dict[str, tuple[str, ...]]
"""Words of each concept, in order."""

FORM = 'expected a TOML file of the form\n[concepts]\nAnimals = ["Dog", "Cat"]\nColor = ["Red", "Blue"]'


def load_concepts(given: Mapping[str, Iterable[str]] | str | os.PathLike[str] | None = None) -> Concepts:
    """The concepts of a TOML file or a mapping, checked; None is the published list of 34 with 10 words each.

    Raises   InvalidInput for what is no such list
    Source   Park et al. 2025 (HRV), `descriptions/340_final_text_list.csv` of the released repository
    """
    if not isinstance(given, Mapping):
        given = _read(files(__package__).joinpath("data", "hrv.toml") if given is None else Path(given))
    found: Concepts = {}
    for name, words in given.items():
        listed = None if isinstance(words, (str, bytes)) or not isinstance(words, Iterable) else tuple(words)
        if not isinstance(name, str) or not listed or not all(isinstance(word, str) and word.strip() for word in listed):
            raise InvalidInput(f"concept {name!r} has the words {words!r}; expected a name and a list of one or more words")
        if len(set(listed)) < len(listed):
            raise InvalidInput(f"concept {name!r} has a word twice, of {', '.join(listed)}; each is drawn as often as the others")
        found[name] = listed
    if len(found) < 2:
        raise InvalidInput(f"{len(found)} concepts; a head is counted for the one of several that it attends to most, so give two or more")
    return found


def _read(path: Traversable) -> Mapping[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path} is not TOML ({error}); {FORM}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as a list of concepts ({error}); {FORM}") from error
    if not isinstance(document.get("concepts"), dict):
        raise InvalidInput(f"{path} has no table [concepts]; {FORM}")
    found: Mapping[str, Any] = document["concepts"]
    return found


def concept_words(given: Mapping[str, Iterable[str]] | str | os.PathLike[str] | None = None) -> list[str]:
    """Every word of the concepts once, in order: what to record as probes.

    `recording(..., encoding="factors", probes={"concepts": concept_words()})`
    """
    return list(dict.fromkeys(word for words in load_concepts(given).values() for word in words))
