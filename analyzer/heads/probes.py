"""Words of concepts among the keys of a probe, found in every trace before anything is counted, so that a mistake costs seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import is_for_shell, listed, option
from ...schema.selection import Selector
from ...schema.text import Text
from ...schema.trace import Layer, TokenGroup
from ..trace.heads import published_order
from ..trace.reader import Trace
from .concepts import Concepts
from .counting import Span, find_spans, is_of

Spans: TypeAlias = list[list[Span]]
"""(concept, word)."""

PROBE: Final = "concepts"


def how_to_record(probe: str) -> str:
    """How a recording comes to hold the concepts' words."""
    made = f'[probes] {probe} = {{ lines = "words.txt" }}, a file that `i2am concepts --words` prints'
    words = made if is_for_shell() else f'{option("probes")}{{"{probe}": concept_words()}}'
    return f"record with {option('encoding', 'factors')} and {words}"


class ProbeWords:
    """Words of concepts, asked of one probe in the same layers of any number of traces of one model."""

    def __init__(self, first: Trace, words: Concepts, probe: str, layers: Selector | Iterable[Selector] | None, branch: str | None) -> None:
        self.words, self.probe, self.branch = words, probe, branch
        self.path = first.path
        """Of the trace that the others are compared with."""
        self.layers: list[Layer] = [first.layers[index] for index in _layers(first, layers, probe)]
        """In published order."""
        self._texts: tuple[Text, ...] = ()
        self._spans: dict[tuple[TokenGroup, ...], Spans] = {}

    def rows(self, trace: Trace) -> list[tuple[int, Spans]]:
        """Each layer's position in this trace, and where the words lie among its probe's keys.

        Raises   InvalidInput for a trace of another model, UnknownSelection for words that it does not have
        """
        return [(index, self._find(trace, index)) for index in self._same_layers(trace)]

    def _same_layers(self, trace: Trace) -> list[int]:
        known = {layer.name: index for index, layer in enumerate(trace.layers) if _has(layer, self.probe)}
        for layer in self.layers:
            other = trace.layers[known[layer.name]] if layer.name in known else None
            if other is None or _shape(other) != _shape(layer) or other.encoding != "factors":
                have = "none" if other is None else f"{_write(other)} as {other.encoding}"
                raise InvalidInput(
                    f"{trace.path} and {self.path} cannot be counted together: of layer {layer.name} with the probe {self.probe!r} "
                    f"the second has {_write(layer)} as factors, the first {have}"
                )
        return [known[layer.name] for layer in self.layers]

    def _find(self, trace: Trace, index: int) -> Spans:
        """Shared by all layers and traces whose probes are the same: thousands of traces hold one list, not one each."""
        layer, texts = trace.layers[index], trace.record.texts
        if texts is not self._texts and texts != self._texts:
            self._spans = {}
        self._texts = texts
        if layer.probes not in self._spans:
            known = find_spans(trace.record, layer, self.probe)
            missing = [word for each in self.words.values() for word in each if word not in known]
            if missing:
                raise UnknownSelection(
                    f"the probe {self.probe!r} of {trace.path} lacks {len(missing)} of the concepts' words: {listed(missing)}; it has "
                    f"{listed(known)}. Give its own concepts with {option('concepts')}, or {how_to_record(self.probe)}"
                )
            self._spans[layer.probes] = [[known[word] for word in each] for each in self.words.values()]
        return self._spans[layer.probes]


def _write(layer: Layer) -> str:
    return f"heads {listed(map(str, layer.heads_kept))} of {layer.head_dim} channels"


def _has(layer: Layer, probe: str) -> bool:
    return any(is_of(group, probe) for group in layer.probes)


def _layers(trace: Trace, layers: Selector | Iterable[Selector] | None, probe: str) -> list[int]:
    """Layers of the first trace that hold the probe, in published order."""
    selected = trace.select(layers)
    found = [index for index in selected if _has(trace.layers[index], probe)]
    if not found:
        there = dict.fromkeys(group.name for index in selected for group in trace.layers[index].probes)
        if all(trace.layers[index].encoding == "probabilities" for index in selected):
            raise InvalidInput(
                f"{trace.path} was recorded as probabilities, which no other keys can be held against, and has no probe {probe!r}: "
                f"{how_to_record(probe)}"
            )
        raise UnknownSelection(
            f"no selected layer of {trace.path} has a probe {probe!r}; it has {listed(there)}. To have one, {how_to_record(probe)}"
        )
    for layer in (trace.layers[index] for index in found):
        if layer.encoding != "factors":
            raise InvalidInput(
                f"layer {layer.name} of {trace.path} was recorded as probabilities, which no other keys can be held against; "
                f"{how_to_record(probe)}, or leave it out with {option('layers')}"
            )
    return [found[i] for i in published_order(trace.layers[index].name for index in found)]


def _shape(layer: Layer) -> tuple[object, ...]:
    return layer.heads_kept, layer.model_heads, layer.head_dim
