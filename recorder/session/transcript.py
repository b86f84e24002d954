"""What the text of each sample and branch says, gathered while a run goes on and told to its trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from torch import Tensor

from ...schema.text import Text
from ...schema.trace import TraceRecord
from ..labels.rows import Row
from ..text.readings import Stretch, Texts

GROUP: Final = "text"
"""The token group that a prompt's tokens are."""
UNKNOWN: Final = "what the {branch} text's tokens say is not known: {why}"


class Transcript:
    """Reads each row of text that a denoiser is given, once."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._found: dict[str, dict[int, tuple[Stretch, ...]]] = {}
        self._seen: set[tuple[str, int]] = set()
        self._told = False
        self.notes: list[str] = []
        """Why some text is left out."""

    def hear(self, context: Any, rows: Iterable[Row]) -> None:
        """A denoiser is given `context`, of which these rows are kept."""
        if not isinstance(context, Tensor) or context.ndim != 3 or context.device.type == "meta":
            return
        for row in rows:
            if (row.branch, row.sample) in self._seen:
                continue
            self._seen.add((row.branch, row.sample))
            if self._texts.read and bool(context[row.index].any()):  # some models are guided away from zeros, which say nothing
                self._found.setdefault(row.branch, {})[row.sample] = self._texts.find(context[row.index])

    def tell(self, trace: TraceRecord) -> tuple[Text, ...]:
        """The texts of a trace that has layers by now; none where they have been told already."""
        sizes = {group.tokens for layer in trace.layers for group in layer.groups if group.name == GROUP and not layer.is_resampler}
        if self._told or not sizes:
            return ()
        self._told = True
        texts: list[Text] = []
        for branch in trace.branches:
            found = self._found.get(branch, {})
            if len(sizes) > 1:
                self._note(branch, f"layers have {' and '.join(map(str, sorted(sizes)))} of them")
                continue
            samples = {sample: _cut(stretches, min(sizes)) for sample, stretches in found.items()}
            if not all(samples.values()):
                self._note(branch, "no text encoder made them as they are, or fewer of them")
            same = len(samples) == trace.samples and len(set(samples.values())) == 1
            for sample, said in sorted(samples.items())[: 1 if same else None]:
                texts += [replace(text, branch=branch, sample=None if same else sample) for text in said]
        return tuple(texts)

    def _note(self, branch: str, why: str) -> None:
        self.notes.append(UNKNOWN.format(branch=branch, why=why))


def _cut(stretches: tuple[Stretch, ...], tokens: int) -> tuple[Text, ...]:
    """The first `tokens` tokens, which in some models a reference's come after; none if there are fewer."""
    if sum(stretch.count for stretch in stretches) < tokens:
        return ()
    return tuple(s.text(GROUP, count=min(s.count, tokens - s.start)) for s in stretches if s.start < tokens)
