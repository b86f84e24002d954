"""Which concept each head attends to most, call by call: the counts that head relevance vectors are made of.

At each trace, step and layer one word (or picture) of every concept is drawn. The keys of the first word's specials and of all the drawn
words stand beside each other, and the softmax of the image's queries over them is averaged over positions and over each word's tokens.
The concept with the most of it is counted for that head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.trace import Layer, TokenGroup, TraceRecord
from ..numerics.products import weighted_sum
from ..trace.calls import Calls, FactorCalls
from ..trace.reader import Trace
from ..trace.softmax import Values, score_rows

Counts: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Span:
    """Where one text lies among a layer's probe keys."""

    lead: tuple[int, ...]
    """Specials before its first word, such as CLIP's start of text."""
    tokens: tuple[int, ...]
    """All pieces of its words."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How words are drawn."""

    seed: int
    draws: int
    """Words of each concept for each call."""


def is_of(group: TokenGroup, probe: str) -> bool:
    """Whether a group is a probe, or one picture of a probe of several."""
    name, _, number = group.name.rpartition("_")
    return group.name == probe or (name == probe and number.isdecimal() and group.role != "text")


def find_spans(record: TraceRecord, layer: Layer, probe: str) -> dict[str, Span]:
    """Every text of a probe by what it says, every picture by its name; a text that two tokenizers cut has the tokens of both."""
    groups = {group.name: group for group in layer.probes if is_of(group, probe)}
    found = {}
    for group in (group for group in groups.values() if group.role != "text"):
        first = group.start + min(group.specials, group.tokens - 1)  # a picture of one token is that token
        found[group.name] = Span(tuple(range(group.start, first)), tuple(range(first, group.stop)))
    for text in record.texts:
        if text.group not in groups or not text.words:
            continue
        start, first, stop = groups[text.group].start + text.start, min(w.start for w in text.words), max(w.stop for w in text.words)
        before = found.get(text.text, Span((), ()))
        lead = before.lead if before.tokens else tuple(range(start, start + first))
        found[text.text] = Span(lead, (*before.tokens, *range(start + first, start + stop)))
    return found


def count_layer(trace: Trace, index: int, spans: Sequence[Sequence[Span]], branch: int, drawing: Drawing) -> Counts:
    """Task: how often each concept wins each head of a layer, over all samples and draws.

    Dims     spans (concept, word) -> (step, concept, head); 0 where the call is absent
    Raises   CorruptTrace if a file was changed
    """
    calls, layer = Calls.of(trace, index), trace.layers[index]
    assert isinstance(calls, FactorCalls)  # only these have probes
    key = np.asarray(trace.probe_key(index))  # (head, probe token, channel)
    counts = np.zeros((calls.where.shape[2], len(spans), layer.heads), np.int64)
    heads = np.arange(layer.heads)
    for sample, step in np.argwhere(calls.where[:, branch] >= 0).tolist():
        rng = generator(drawing.seed, trace.id, layer.name, sample, step)
        ((query, keys),) = calls.factors((sample, branch), (step,), key)
        for _ in range(drawing.draws):
            drawn = draw(rng, spans)
            counts[step, winners(query, keys, drawn), heads] += 1
    return counts


def generator(seed: int, trace: str, layer: str, sample: int, step: int) -> np.random.Generator:
    """The random numbers of one call. They depend on the call alone, so neither order nor workers matter."""
    facts = f"{seed}/{trace}/{layer}/{sample}/{step}".encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(facts).digest()))


def draw(rng: np.random.Generator, spans: Sequence[Sequence[Span]]) -> list[Span]:
    """One word of each concept, each of its words as likely."""
    picked = rng.integers([len(words) for words in spans])
    return [words[i] for words, i in zip(spans, picked, strict=True)]


def winners(query: Values, key: Values, drawn: Sequence[Span]) -> NDArray[np.intp]:
    """The concept whose drawn word each head attends to most; of equals, the first.

    Dims     query (head, position, channel) with the scale in it, key (head, probe token, channel) -> (head,)
    """
    lead = drawn[0].lead
    tokens = np.array([*lead, *(token for word in drawn for token in word.tokens)])
    lengths = [len(word.tokens) for word in drawn]
    cuts = np.cumsum([len(lead), *lengths[:-1]])
    attention = np.stack([_attention(query[head], key[head][tokens]) for head in range(len(query))])
    return np.asarray((np.add.reduceat(attention, cuts, axis=1) / lengths).argmax(1))


def _attention(query: Values, key: Values) -> Values:
    """Softmax over the keys, averaged over positions.

    Dims     (position, channel), (token, channel) -> (token,), float64
    """
    total = np.zeros(len(key))
    for _, scores in score_rows(query, key):
        scores -= scores.max(1, keepdims=True)
        weights = np.exp(scores, out=scores)
        total += weighted_sum(1 / weights.sum(1), weights)
    return total / len(query)
