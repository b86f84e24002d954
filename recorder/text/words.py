"""Words of a text as spans of tokens, from the characters that each token covers."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from ...schema.text import Word

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""First and last (exclusive) character of each token; equal where a token stands for no part of the text, as specials do."""

MARKS: Final = (("", "</w>"), ("▁", ""), ("Ġ", ""), ("##", ""))
"""What tokenizers put before or after a token's letters to say where words begin or end."""


def find_words(text: str, spans: Spans) -> tuple[Word, ...]:
    """The words of a text as tokens: letters and digits, or punctuation; words that share a token are one.

    A word that no token stands for, because the text was cut before it, is left out.
    """
    found: list[tuple[int, int, int, int]] = []
    for first, last in _stretches(text):
        inside = [i for i, (start, stop) in enumerate(spans) if start < last and stop > first]
        if not inside:
            continue
        token = inside[0]
        if found and token < found[-1][3]:
            first, _, token, _ = found.pop()
        found.append((first, last, token, inside[-1] + 1))
    return tuple(Word(text[first:last], start, stop) for first, last, start, stop in found)


def align(text: str, tokens: Sequence[str]) -> Spans:
    """Where tokens lie in a text, for tokenizers that do not tell: each behind the one before, spaces between, case aside."""
    lower, place, spans = text.lower(), 0, []
    if len(lower) != len(text):  # letters whose lower case is longer: places would be wrong
        return ((0, 0),) * len(tokens)
    for token in tokens:
        piece = strip_marks(token).lower()
        start = place + len(lower[place:]) - len(lower[place:].lstrip())
        there = bool(piece) and lower.startswith(piece, start)
        spans.append((start, start + len(piece)) if there else (0, 0))
        place = spans[-1][1] if there else place
    return tuple(spans)


def lettered(tokens: Sequence[str], spans: Spans) -> Spans:
    """The same places, but none for a token that is a mark alone: before a text's first word it stands for no character."""
    return tuple(span if strip_marks(token) else (0, 0) for token, span in zip(tokens, spans, strict=True))


def strip_marks(token: str) -> str:
    """A token's letters alone."""
    for before, after in MARKS:
        token = token.removeprefix(before).removesuffix(after) if len(token) > len(before + after) or before + after != token else ""
    return token


def _stretches(text: str) -> Iterator[tuple[int, int]]:
    """Stretches of letters, and stretches of punctuation, in order."""
    for kind, group in itertools.groupby(enumerate(text), lambda item: _kind(item[1])):
        places = [place for place, _ in group]
        if kind:
            yield places[0], places[-1] + 1


def _kind(character: str) -> str:
    if character.isspace():
        return ""
    # Combining marks are parts of letters in many scripts.
    return "letter" if character.isalnum() or character == "_" or unicodedata.category(character).startswith("M") else "mark"
