"""Token strings of a text, and which tokens make up each word."""

from __future__ import annotations

from dataclasses import dataclass

from .record import BRANCHES, NAME, require


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a text, as its tokens: a word of several pieces has several, a word that comes twice is there twice."""

    text: str
    start: int
    """First token, counted in the text's own tokens."""
    stop: int
    """Last token, exclusive."""


@dataclass(frozen=True, slots=True)
class Text:
    """What one stretch of a text group, or of a text probe, says."""

    group: str
    """Name of the token group, or of the probe."""
    text: str
    tokens: tuple[str, ...]
    """Token strings, specials and padding included."""
    words: tuple[Word, ...]
    start: int = 0
    """The group's token that the first of these is."""
    sample: int | None = None
    """None is every sample."""
    branch: str | None = None
    """None is every branch."""
    tokenizer: str = ""
    """Class of the tokenizer."""

    def __post_init__(self) -> None:
        require(bool(NAME.fullmatch(self.group)), f"text of group {self.group!r}: the name is not made of letters, digits, _ . -")
        require(self.start >= 0, f"text of group {self.group} starts at token {self.start}; it must not be negative")
        require(self.branch is None or self.branch in BRANCHES, f"text of group {self.group} is of branch {self.branch!r}")
        outside = [word.text for word in self.words if not 0 <= word.start < word.stop <= len(self.tokens)]
        require(not outside, f"text of group {self.group}: words {outside} lie outside its {len(self.tokens)} tokens")
