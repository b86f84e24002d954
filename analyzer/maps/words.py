"""Maps of words: those of the prompt, as the recorder saw it cut into tokens, those of probes, which the run never saw, and concepts, which
ran beside it.

list_words(trace)                         every word, with its tokens
word_map(trace, "dog")                    where "dog" is attended to: the mean over its tokens, and over all times it comes
word_map(trace, "dog", occurrence=2)      the second "dog" alone; "dog#2" says the same
word_map(trace, "red dog")                a phrase
word_map(trace, "zebra", probe="concepts")a word of a probe
concept_map(trace, "cat")                 the share of a concept among all concepts, by what attention gives it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, Unpack

import numpy as np
import xarray as xr

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import guess, listed, option, plain
from ...schema.selection import Selector, whole
from ...schema.text import Text
from ..aggregation.selection import MapOptions, Positions, find_branch, pick_positions
from ..facts import MapFacts, picture_facts
from ..methods.recipes import get_recipe
from ..trace.images import find_image
from ..trace.reader import Trace
from .attribution import token_map

Among: TypeAlias = Literal["text", "probe"]

AMONG: Final[tuple[Among, ...]] = ("text", "probe")
CONCEPT_AXES: Final = ("time", "layer")
"""Axes that a map of a concept may keep."""


@dataclass(frozen=True, slots=True)
class WordSpan:
    """A word, or a phrase, one time that it comes."""

    word: str
    occurrence: int
    """From 1, among the same words in the same group, branch and sample, case aside."""
    tokens: tuple[int, ...]
    """Positions in the token group, or in the probe."""
    pieces: tuple[str, ...]
    """These tokens as the tokenizer writes them."""
    text: str
    """The whole text."""
    group: str
    """Token group, or probe."""
    branch: str | None
    sample: int | None
    """None is every one."""

    def to_json(self) -> dict[str, Any]:
        """The word as plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def word_map(
    trace: Trace,
    word: str,
    *,
    occurrence: int | None = None,
    probe: str | None = None,
    text: str | None = None,
    among: Among = "text",
    **options: Unpack[MapOptions],
) -> xr.DataArray:
    """Where on the generated image a word or phrase is attended to.

    A word of several tokens is their mean, as the recipe says; a word that comes several times is all of them unless `occurrence`
    (from 1; "dog#2" says the same) tells which. With `probe`, the words are that probe's, and the softmax runs over the tokens of the
    word's own text, its padding only if the recipe counts it, or `among="probe"` over all that the probe has. `text` is the one that
    is meant where a probe has several. The recipe is `daam`, or `ovam` for a probe, where none is named; the other options are those
    of `token_map`.

    Dims     kept axes in the order time, layer, head, then (y, x); lazy, float64
    Range    >= 0; NaN where no call is left to average
    Raises   UnknownSelection listing the words there are, InvalidInput
    Source   Tang et al., DAAM, ACL 2023; of probes: Marcos-Manchon et al., OVAM, CVPR 2024
    """
    if among not in AMONG:
        raise InvalidInput(f"among is {among!r}; the softmax over a probe's tokens runs over those of the word's own text or of the probe")
    row, sample = get_recipe(options.get("recipe") or ("ovam" if probe else "daam")), options.get("sample") or 0
    branch = None if probe else trace.record.branches[find_branch(trace, options.get("branch"), row.branch)]
    texts = _texts(trace, probe, options.get("group"), sample, branch, text)
    found = _choose(word, occurrence, texts)
    beside = _beside(found, texts, among, row.padding) if probe else None
    tokens = sorted({token for one in found for token in one.tokens})
    own: MapOptions = {**options, "group": None if probe else texts[0].group, "sample": sample, "recipe": row}
    made = token_map(trace, tokens, probe=probe, among=beside, **own)
    return made.assign_attrs(
        long_name=f"attention to {plain(found[0].word)!r}",
        word=plain(found[0].word),
        occurrences=[one.occurrence for one in found],
        pieces=plain(" ".join(piece for one in found for piece in one.pieces)),
    )


def list_words(
    trace: Trace,
    *,
    probe: str | None = None,
    group: str | None = None,
    sample: int | None = None,
    branch: str | None = None,
    text: str | None = None,
) -> list[WordSpan]:
    """Every word of a trace's texts in order, one by one; None of an option is all.

    Raises   UnknownSelection, InvalidInput where the trace does not say what its tokens are
    """
    texts = _texts(trace, probe, group, sample, branch, text)
    rows: list[WordSpan] = []
    before: Counter[tuple[Any, ...]] = Counter()
    for said in _together(texts):
        times: Counter[tuple[Any, ...]] = Counter()
        for part in said:
            mine = before.copy()
            for word in part.words:
                key = (part.group, part.branch, part.sample, word.text.casefold())
                mine[key] += 1
                rows.append(_one(part, word.text, mine[key], range(word.start, word.stop)))
            times |= mine
        before = times
    return rows


def _texts(trace: Trace, probe: str | None, group: str | None, sample: int | None, branch: str | None, text: str | None) -> list[Text]:
    """The texts that are asked about."""
    if probe is not None and group is not None:
        raise InvalidInput(f"words are those of a group or a probe; leave out {option('group')} or {option('probe')}")
    probes = {one.name: one.role for layer in trace.layers for one in layer.probes}
    if probe is not None and probe not in probes:
        there = (
            f"there are {listed(probes)}"
            if probes
            else f"it was recorded without any; record with {option('encoding', 'factors')} and {option('probes')}"
        )
        raise UnknownSelection(f"the trace has no probe {probe!r}; {there}")
    find_branch(trace, branch)
    wanted = probe if probe is not None else group
    found = [one for one in trace.record.texts if (one.group == wanted if wanted else one.group not in probes)]
    if not found:
        raise _unsaid(trace, probe, probes, wanted)
    here = [one for one in found if sample is None or one.sample in (None, sample)]
    here = [one for one in here if branch is None or one.branch in (None, branch)]
    if not here:
        which = f"sample {sample}" if branch is None else f"sample {sample or 0}, branch {branch}"
        there = listed(dict.fromkeys(f"sample {'any' if one.sample is None else one.sample}, {one.branch}" for one in found))
        raise UnknownSelection(f"the trace does not say what the tokens of {which} are; it does of {there}")
    chosen = [one for one in here if text is None or one.text == text]
    if not chosen:
        raise UnknownSelection(f"there is no text {text!r}; there are {listed(dict.fromkeys(repr(one.text) for one in here))}")
    return chosen


def _unsaid(trace: Trace, probe: str | None, probes: Mapping[str, str], wanted: str | None) -> Exception:
    if probe is not None and probes[probe] != "text":
        way = f"token_map maps its tokens ({option('tokens')} with {option('probe', probe)})"
        return InvalidInput(f"the probe {probe!r} is of pictures and has no words; {way}")
    if wanted and wanted not in (names := dict.fromkeys(group.name for layer in trace.layers for group in layer.groups)) and probe is None:
        return UnknownSelection(f"the trace has no token group {wanted!r}; it has {listed(names)}")
    notes = [note for note in trace.record.provenance.get("notes", []) if isinstance(note, str) and "tokens say" in note]
    why = f" ({notes[0]})" if notes else ": the run was given embeddings, no text reached its layers, or these were not recorded"
    return InvalidInput(f"the trace does not say what its text tokens are{why}; token_map takes tokens by number")


def _choose(word: str, occurrence: int | None, texts: Sequence[Text]) -> list[WordSpan]:
    """Where a word or phrase comes, all times or the one that is meant."""
    found = _find(word, texts)
    if not found and "#" in word:
        plain, _, number = word.rpartition("#")
        if number.isascii() and number.isdigit() and plain:
            if occurrence is not None and occurrence != int(number):
                raise InvalidInput(f"{word!r} and {option('occurrence', str(occurrence))} name two different times that it comes; give one")
            word, occurrence, found = plain, int(number), _find(plain, texts)
    if not found:
        there = dict.fromkeys(one.text for text in texts for one in text.words)
        raise UnknownSelection(f"there is no word {word!r} in {texts[0].group}; {guess(word, there)}there are {listed(there)}")
    if occurrence is None:
        return found
    times = max(one.occurrence for one in found)
    if isinstance(occurrence, bool) or not isinstance(occurrence, int) or not 1 <= occurrence <= times:
        often = "once" if times == 1 else f"{times} times"
        raise UnknownSelection(f"{word!r} comes {often}, counted from 1; there is no occurrence {occurrence!r}")
    return [one for one in found if one.occurrence == occurrence]


def _find(word: str, texts: Sequence[Text]) -> list[WordSpan]:
    """Every time a word or phrase comes; what two tokenizers made of one text counts once, with the tokens of both."""
    parts = word.casefold().split()
    found: list[WordSpan] = []
    number = 0
    for said in _together(texts):
        times = 0
        for part in said:
            spans = list(_matches(parts, part))
            times = max(times, len(spans))
            found += [_one(part, word, number + nth, tokens) for nth, tokens in enumerate(spans, 1)]
        number += times
    return found


def _matches(parts: Sequence[str], text: Text) -> Iterable[range]:
    """Tokens of each stretch of words that spells the parts, one after another; words of one part join without a space."""
    spelled = [word.text.casefold() for word in text.words]
    first = 0
    while parts and first < len(spelled):
        last = first
        for part in parts:
            joined = ""
            while last < len(spelled) and len(joined) < len(part):
                joined, last = joined + spelled[last], last + 1
            if joined != part:
                break
        else:
            yield range(text.words[first].start, text.words[last - 1].stop)
            first = last - 1
        first += 1


def _together(texts: Iterable[Text]) -> list[list[Text]]:
    """Texts that say the same to the same sample and branch, as where two text encoders are joined."""
    found: dict[tuple[Any, ...], list[Text]] = {}
    for text in texts:
        found.setdefault((text.group, text.text, text.branch, text.sample), []).append(text)
    return list(found.values())


def _one(text: Text, word: str, occurrence: int, tokens: range) -> WordSpan:
    places = tuple(text.start + token for token in tokens)
    return WordSpan(word, occurrence, places, tuple(text.tokens[t] for t in tokens), text.text, text.group, text.branch, text.sample)


def _beside(found: Sequence[WordSpan], texts: Sequence[Text], among: Among, padding: bool) -> list[int] | None:
    """The tokens that a softmax over a probe runs over; None is all. Behind a text's last word its end is one token, the rest padding."""
    said = dict.fromkeys(one.text for one in found)
    if among == "probe":
        return None
    if len(said) > 1:
        raise InvalidInput(
            f"{found[0].word!r} comes in {len(said)} texts of the probe, each with a softmax of its own: {listed(map(repr, said))}; "
            f"say which with {option('text')}, or let them share one with {option('among', 'probe')}"
        )
    own = [text for text in texts if text.text in said]
    counts = [len(text.tokens) if padding else min(len(text.tokens), text.words[-1].stop + 1) for text in own]
    return [token for text, count in zip(own, counts, strict=True) for token in range(text.start, text.start + count)]


def concept_map(
    trace: Trace,
    concept: str | None = None,
    *,
    keep: Iterable[str] | str = (),
    steps: Positions = None,
    layers: Selector | Iterable[Selector] | None = None,
    sample: int = 0,
    branch: str | None = None,
) -> xr.DataArray:
    """Where on the generated image a concept lies, among all that were recorded with it.

        concept_map(open_trace("run.zarr"), "cat", layers="re:transformer_blocks.1[5-8]\\.")

    In each step and layer the softmax over concepts of their products with a position, heads summed; then the mean over steps and layers.
    Without `concept`, each has a map. `keep` takes time and layer; `layers` are all that have concepts if None. What else `r2g` takes
    means the same here.

    Dims     kept axes in the order time, layer, concept where none is named, then (y, x); lazy, float64
    Range    [0, 1], sums to 1 over concepts; NaN where no call is left to average
    Raises   UnknownSelection, InvalidInput
    Source   Helbling et al., ConceptAttention, ICML 2025; its pictures scale all concepts together by their least and greatest value
    """
    kept = (keep,) if isinstance(keep, str) else tuple(keep)
    if unknown := [axis for axis in kept if axis not in CONCEPT_AXES]:
        raise InvalidInput(f"cannot keep {unknown[0]!r}; a map of a concept keeps any of {', '.join(CONCEPT_AXES)}")
    chosen = _with_concepts(trace, layers)
    names = trace.layers[chosen[0]].concepts
    if concept is not None and concept not in names:
        raise UnknownSelection(f"{trace.path} has no concept {plain(str(concept))!r}; {guess(str(concept), names)}it has {listed(names)}")
    at, place = find_branch(trace, branch, "cond"), whole(sample, "a sample")
    if not 0 <= place < trace.record.samples:
        raise UnknownSelection(f"there is no sample {place}; the trace has {trace.record.samples}, counted from 0")
    positions = list(pick_positions(steps, len(trace.present), "step"))
    shares = _shares(trace, chosen, {"sample": place, "branch": at, "step": positions})
    means = shares.mean([axis for axis in CONCEPT_AXES if axis not in kept], skipna=True)
    picked: xr.DataArray = means if concept is None else means.isel(concept=names.index(concept), drop=True)
    image = find_image(trace, f"generated_{place}", "generated")
    facts = MapFacts(direction="concept", trace=trace.record.id, sample=place, branch=trace.record.branches[at], group=concept).to_attrs()
    what = "share of each concept" if concept is None else f"share of the concept {plain(concept)!r}"
    attrs = {**facts, **picture_facts(image), "long_name": what, "units": "share among concepts", "concepts": list(names)}
    ordered: xr.DataArray = picked.transpose(*(axis for axis in (*CONCEPT_AXES, "concept") if axis in picked.dims), ...)
    return ordered.rename("concept").assign_attrs(attrs)


def _shares(trace: Trace, chosen: tuple[int, ...], at: dict[str, Any]) -> xr.DataArray:
    """The softmax over concepts of each call.

    Dims     (layer, time, concept, [frame,] y, x)
    """
    scores = [trace.concept_scores(index).isel(at, drop=True) for index in chosen]
    found = xr.concat(scores, "layer", coords="minimal", compat="override", join="override", combine_attrs="drop").astype(np.float64)
    powers: xr.DataArray = xr.apply_ufunc(np.exp, found - found.max("concept"), dask="allowed")
    shares: xr.DataArray = powers / powers.sum("concept", skipna=False)
    return shares.rename(step="time").assign_coords(layer=("layer", [trace.layers[index].name for index in chosen]))


def _with_concepts(trace: Trace, layers: Selector | Iterable[Selector] | None) -> tuple[int, ...]:
    """The layers that are selected and have concepts.

    Raises   UnknownSelection if none has, InvalidInput if they have not one grid
    """
    chosen = tuple(index for index in trace.select(layers) if trace.layers[index].concepts)
    if not chosen:
        selected = "no layer" if layers is None else "no selected layer"
        raise UnknownSelection(f"{selected} of {trace.path} has concepts; record double blocks of Flux with {option('concepts', '...')}")
    if len({(trace.layers[index].places, trace.layers[index].concepts) for index in chosen}) > 1:
        raise InvalidInput(f"layers with concepts lie on different grids; choose some of one grid with {option('layers')}")
    return chosen
