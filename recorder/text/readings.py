"""Token strings and words of a run's prompts, proven: the vectors that a denoiser is given are looked up among those that the
text encoders made, and their tokens among those that the tokenizers made.

So templates that a pipeline drops, encoders that it joins, prompts that it repeats, and embeddings that it was given all come out
right, or not at all.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from ...schema.text import Text, Word
from ..capture.wrapping import only_here, replaced

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""First and last (exclusive) character of each token; equal where a token stands for no part of the text, as specials do."""

CHANNELS: Final = 16
"""Leading channels of a token's vector that are compared."""
ENCODERS: Final = "text_encoder"
"""What the names of a pipeline's text encoders begin with."""
FINAL_NORM: Final = "final_layer_norm"
"""Pipelines that skip an encoder's last layers call this module by itself."""
MARKS: Final = (("", "</w>"), ("▁", ""), ("Ġ", ""), ("##", ""))
"""What tokenizers put before or after a token's letters to say where words begin or end."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One text as its tokenizer cut it."""

    text: str
    tokens: tuple[str, ...]
    words: tuple[Word, ...]
    kept: tuple[bool, ...]
    """Whether each token is more than padding."""
    tokenizer: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens of one reading that lie one behind another among a denoiser's."""

    reading: Reading
    first: int
    """Of the reading's tokens."""
    start: int
    """Of the denoiser's."""
    count: int

    @property
    def kept(self) -> tuple[bool, ...]:
        """Whether each token is more than padding."""
        return self.reading.kept[self.first : self.first + self.count]

    def text(self, group: str, first: int = 0, count: int | None = None, start: int | None = None) -> Text:
        """These tokens, or some of them, as the trace keeps them."""
        begin = self.first + first
        end = self.first + self.count if count is None else begin + count
        inside = [word for word in self.reading.words if word.start >= begin and word.stop <= end]
        words = tuple(replace(word, start=word.start - begin, stop=word.stop - begin) for word in inside)
        place = self.start + first if start is None else start
        return Text(group, self.reading.text, self.reading.tokens[begin:end], words, place, tokenizer=self.reading.tokenizer)


@dataclass(frozen=True, slots=True)
class _Place:
    """A token that an encoder made, and what it is looked up in."""

    reading: Reading
    made: list[bytes]
    wanted: list[bytes]
    token: int = 0

    def run(self, start: int) -> int:
        """How many tokens agree from here on; where padding was set to 0, the tokens go on."""
        pairs = zip(self.wanted[start:], self.made[self.token :], strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] in (pair[1], bytes(len(pair[0]))), pairs))


class Texts:
    """Watches a pipeline's tokenizers and text encoders."""

    def __init__(self, pipeline: Any) -> None:
        parts = dict(getattr(pipeline, "components", {}))
        self._encoders = [part for name, part in parts.items() if name.startswith(ENCODERS) and isinstance(part, nn.Module)]
        held = {type(one) for part in parts.values() for one in (part, getattr(part, "tokenizer", None))}
        self._tokenizers = {cls for cls in held if hasattr(cls, "convert_ids_to_tokens")}
        self._readings: dict[tuple[int, ...], Reading] = {}
        self._rows: list[tuple[int, ...]] = []
        self._made: list[tuple[tuple[int, ...], Tensor]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        with ExitStack() as stack:
            for cls in self._tokenizers:
                stack.enter_context(replaced(cls, "__call__", self._wrap))
            for encoder in self._encoders:
                for handle in self._hooks(encoder):
                    stack.callback(handle.remove)
            yield

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Forget afterwards what was encoded meanwhile, and do not take what was encoded before for it."""
        before, self._made = self._made, []
        try:
            yield
        finally:
            self._made = before

    @property
    def read(self) -> bool:
        """Whether any text was encoded."""
        return bool(self._made)

    def find(self, vectors: Tensor) -> tuple[Stretch, ...]:
        """What each token of one row of a denoiser's text is; nothing unless all are known.

        Dims     (token, channel)
        """
        leading = vectors[:, :CHANNELS].detach().to("cpu")
        made = [(self._readings[row], values.to(leading.dtype)) for row, values in self._made if row in self._readings]
        wanted = {width: _prints(leading[:, :width]) for width in {values.shape[1] for _, values in made}}
        places: dict[bytes, list[_Place]] = {}
        for reading, values in made:
            place = _Place(reading, _prints(values), wanted[values.shape[1]])
            for token, one in enumerate(place.made):
                places.setdefault(one, []).append(replace(place, token=token))
        found: list[Stretch] = []
        start = 0
        while start < len(leading):
            candidates = [place for prints in wanted.values() for place in places.get(prints[start], ())]
            if not candidates:
                return ()
            best = max(candidates, key=lambda place: place.run(start))
            found.append(Stretch(best.reading, best.token, start, best.run(start)))
            start += best.run(start)
        return tuple(found)

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def tokenize(tokenizer: Any, *args: Any, **kwargs: Any) -> Any:
            output = original(tokenizer, *args, **kwargs)
            given = args[0] if args else kwargs.get("text")
            texts = [given] if isinstance(given, str) else given
            if isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts) and isinstance(output, Mapping):
                self._remember(tokenizer, texts, output)
            return output

        return tokenize

    def _remember(self, tokenizer: Any, texts: Sequence[str], output: Mapping[str, Any]) -> None:
        ids, encodings = _rows(output.get("input_ids")), getattr(output, "encodings", None)
        masks = _rows(output.get("attention_mask")) or [()] * len(ids)
        if len(ids) != len(texts) or len(masks) != len(ids) or (encodings and len(encodings) != len(ids)):
            return  # texts in pairs, or cut into several windows
        for index, (text, row, mask) in enumerate(zip(texts, ids, masks, strict=True)):
            tokens = tuple(str(token) for token in tokenizer.convert_ids_to_tokens(list(row)))
            if encodings:
                spans = tuple((a, b) for a, b in encodings[index].offsets)
            else:
                specials = set(tokenizer.all_special_ids)
                spans = align(text, ["" if one in specials else token for one, token in zip(row, tokens, strict=True)])
            kept = tuple(map(bool, mask)) or tuple(one != tokenizer.pad_token_id for one in row)
            words = find_words(text, lettered(tokens, spans)) if len(spans) == len(tokens) else ()
            self._readings[row] = Reading(text, tokens, words, kept, type(tokenizer).__name__)

    def _hooks(self, encoder: nn.Module) -> list[Any]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._rows = _rows(kwargs.get("input_ids", args[0] if args else None))

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            shape = len(self._rows), len(self._rows[0]) if self._rows else 0
            for values in tensors(output):
                if values.ndim == 3 and values.shape[:2] == shape:
                    few = values[..., :CHANNELS].detach().to("cpu", copy=True)
                    self._made += [(row, few[index]) for index, row in enumerate(self._rows)]

        handles = [encoder.register_forward_pre_hook(only_here(enter), with_kwargs=True), encoder.register_forward_hook(only_here(leave))]
        norms = [module for path, module in encoder.named_modules() if path.rpartition(".")[2] == FINAL_NORM]
        return [*handles, *(norm.register_forward_hook(only_here(leave)) for norm in norms)]


def _rows(ids: Any) -> list[tuple[int, ...]]:
    """Rows of numbers, whatever holds them; none if it is something else."""
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(ids, (list, tuple)) or not ids:
        return []
    rows = ids if isinstance(ids[0], (list, tuple)) else [ids]
    return [tuple(row) for row in rows]


def tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in what a module or a method gives, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from tensors(value)


def _prints(vectors: Tensor) -> list[bytes]:
    return [row.tobytes() for row in vectors.contiguous().view(torch.uint8).numpy()]


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
