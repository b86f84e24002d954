"""The views of an overview: one for each sample, branch and token group, with the layers that see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import numpy as np

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import listed
from ...schema.text import Text
from ...schema.trace import Image, Layer, TokenGroup
from ..inspection.truth import find_truth
from ..metrics.masks import binarize
from ..numerics.resize import middle
from ..numerics.window import Window
from ..trace.calls import Calls
from ..trace.images import find_image, key_image, own_mask, own_reference_mask
from ..trace.reader import Trace
from ..trace.tables import BLOCK

MOST_FRAMES: Final = 8
MOST_PROBED: Final = 64
"""Words of probes, each text of which takes a softmax of its own."""


@dataclass(frozen=True, slots=True)
class ShownWord:
    """A word of a text, or a token that is no part of a word, such as the start, the end and the padding."""

    text: str
    tokens: tuple[int, ...]
    """Positions in the token group, or in the probe."""
    kind: str
    """`word`, `token`, or `probe` for a word that the run never saw."""
    probe: str = ""
    among: tuple[int, ...] = ()
    """Of a probe: the tokens that the softmax over keys runs over, those of the word's own text without padding."""

    def to_json(self) -> dict[str, Any]:
        """The word as plain JSON."""
        found = {"text": self.text, "tokens": list(self.tokens), "kind": self.kind}
        return found | {"probe": self.probe} if self.probe else found


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """One layer as a view sees it."""

    index: int
    """Number in the trace."""
    layer: Layer
    group: TokenGroup
    """The view's tokens in this layer."""
    frames: tuple[int, ...]
    """Which of the layer's frames are shown; an image is one frame."""
    short: str
    block: str

    @property
    def places(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the layer's queries."""
        return (max(self.layer.frames, 1), *self.layer.grid)

    @property
    def kept(self) -> slice:
        """The tokens that rows and G2R show: those with a place, or all where none has one."""
        return slice(self.group.start + (self.group.specials if self.group.grid else 0), self.group.stop)

    @property
    def keys(self) -> int:
        """How many these are."""
        return self.group.tokens - (self.group.specials if self.group.grid else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One token group as one branch of one sample sees it."""

    path: str
    sample: int
    branch: int
    """Position on the branch axis."""
    group: str
    role: str
    layers: tuple[LayerView, ...]
    generated: Image | None
    reference: Image | None
    mask: str | None
    """Names of the masks that can be used."""
    reference_mask: str | None
    ref_grid: tuple[int, int] | None
    words: tuple[ShownWord, ...]

    @property
    def window(self) -> list[float] | None:
        """(top, left, bottom, right) as shares of the reference image."""
        if self.reference is None:
            return None
        size = (self.reference.height, self.reference.width)
        window = Window.of(self.reference.window, size)
        return [window.top / size[0], window.left / size[1], window.bottom / size[0], window.right / size[1]]


def list_views(
    trace: Trace, *, group: str | None = None, sample: int | None = None, branch: str | None = None
) -> tuple[list[View], list[str]]:
    """The views of what is selected, by default of all, and notes for people.

    Raises   UnknownSelection for what the trace does not have, InvalidInput for a trace without any view
    """
    _require(trace, group, sample, branch)
    layers = [(i, layer) for i, layer in enumerate(trace.layers) if not layer.is_resampler]
    notes: list[str] = []
    if len(layers) < len(trace.layers):
        notes.append(
            f"{len(trace.layers) - len(layers)} layers make tokens of an adapter from others; they are not shown, `carry` uses them"
        )
    names = dict.fromkeys(found.name for _, layer in layers for found in layer.groups)
    shorts = _shorten([layer.name for _, layer in layers])
    views: list[View] = []
    for s in range(trace.record.samples) if sample is None else (sample,):
        for b in range(len(trace.record.branches)) if branch is None else (trace.record.branches.index(branch),):
            for name in names if group is None else (group,):
                found = tuple(
                    _layer_view(trace, i, layer, one, short)
                    for (i, layer), short in zip(layers, shorts, strict=True)
                    for one in layer.groups
                    if one.name == name and (Calls.of(trace, i).where[s, b] >= 0).any()
                )
                if found:
                    views.append(_view(trace, len(views), (s, b), found, notes))
    if not views:
        raise InvalidInput(f"{trace.path} has no attention that an overview could show: no layer was called")
    return views, notes


def _require(trace: Trace, group: str | None, sample: int | None, branch: str | None) -> None:
    if sample is not None and not 0 <= sample < trace.record.samples:
        raise UnknownSelection(f"the trace has no sample {sample}; it has {trace.record.samples}, counted from 0")
    if branch is not None and branch not in trace.record.branches:
        raise UnknownSelection(f"the trace has no branch {branch!r}; it has {', '.join(trace.record.branches)}")
    there = dict.fromkeys(one.name for layer in trace.layers if not layer.is_resampler for one in layer.groups)
    if group is not None and group not in there:
        raise UnknownSelection(f"the trace has no token group {group!r}; there are {listed(there)}")


def _layer_view(trace: Trace, index: int, layer: Layer, group: TokenGroup, short: str) -> LayerView:
    count = max(layer.frames, 1)
    shown = min(max(trace.latent_frames, 1), MOST_FRAMES)
    block = BLOCK.search(layer.path)
    name = block[0].replace("_blocks", "").replace("_block", "") if block else short
    frames = tuple(int(i) for i in middle(count, shown))
    return LayerView(index=index, layer=layer, group=group, frames=frames, short=short, block=name)


def _view(trace: Trace, number: int, at: tuple[int, int], layers: tuple[LayerView, ...], notes: list[str]) -> View:
    group, (sample, branch) = layers[0].group, at
    generated = find_image(trace, f"generated_{sample}", "generated")
    reference = None if group.role == "text" else key_image(trace, group, sample)
    grids = [one.group.grid for one in layers]
    whole = [grid for grid in grids if grid is not None]
    mask = _usable(trace, generated, lambda: own_mask(trace, sample), notes)
    reference_mask = mask if group.role == "self" else None
    if group.role == "reference" and reference is not None:
        reference_mask = _usable(trace, reference, lambda: own_reference_mask(trace, reference.name), notes)
    return View(
        path=f"views/{number:03d}",
        sample=sample,
        branch=branch,
        group=group.name,
        role=group.role,
        layers=layers,
        generated=generated,
        reference=reference,
        mask=mask,
        reference_mask=reference_mask,
        ref_grid=max(whole, key=lambda grid: (grid[0] * grid[1], grid)) if len(whole) == len(grids) else None,
        words=_words(trace, group, min(one.group.tokens for one in layers), at, notes),
    )


def _usable(trace: Trace, image: Image | None, find: Callable[[], str | None], notes: list[str]) -> str | None:
    """Name of a mask that can score maps of its picture: one picture of its size, neither empty nor full."""
    try:
        name = find()
        pixels = np.zeros(0) if name is None else trace.image(name)[..., 0]
        return name if image is not None and pixels.ndim == 2 and binarize(pixels).shape == (image.height, image.width) else None
    except (UnknownSelection, InvalidInput) as error:
        notes.append(str(error))
        return None


def _words(trace: Trace, group: TokenGroup, most: int, at: tuple[int, int], notes: list[str]) -> tuple[ShownWord, ...]:
    """What the tokens of a text say, each of them part of a word or standing for itself; and behind them the words of probes."""
    if group.role != "text":
        return ()
    mine = [text for text in trace.record.texts if text.sample in (None, at[0]) and text.branch in (None, trace.record.branches[at[1]])]
    said = [word for text in mine if text.group == group.name for word in _spell(text, most)]
    probes = {one.name for layer in trace.layers if layer.encoding == "factors" for one in layer.probes}
    asked = [word for text in mine if text.group in probes for word in _ask(text)]
    if len(asked) > MOST_PROBED:
        notes.append(f"{len(asked) - MOST_PROBED} words of probes are not shown; `i2am map --word` draws each")
    return (*said, *asked[:MOST_PROBED])


def _ask(text: Text) -> list[ShownWord]:
    """The words of one text of a probe. Behind the last one its end is one token, the rest is padding."""
    stop = min(len(text.tokens), text.words[-1].stop + 1) if text.words else 0
    among = tuple(range(text.start, text.start + stop))
    return [ShownWord(word.text, among[word.start : word.stop], "probe", text.group, among) for word in text.words]


def _spell(text: Text, most: int) -> list[ShownWord]:
    spans = {word.start: word for word in text.words}
    found: list[ShownWord] = []
    token = 0
    while token < min(len(text.tokens), most - text.start):
        if (word := spans.get(token)) and text.start + word.stop <= most:
            found.append(ShownWord(word.text, tuple(range(text.start + token, text.start + word.stop)), "word"))
            token = word.stop
            continue
        alike = token + 1
        while alike < len(text.tokens) and alike not in spans and text.tokens[alike] == text.tokens[token]:
            alike += 1
        stop = min(alike, most - text.start)
        found.append(ShownWord(text.tokens[token], tuple(range(text.start + token, text.start + stop)), "token"))
        token = stop
    return found


def _shorten(names: Sequence[str]) -> list[str]:
    """Paths without the parts at either end that all of them share."""
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts)) - 1
    lead = len(list(takewhile(lambda i: len({part[i] for part in parts}) == 1, range(shortest))))
    tail = len(list(takewhile(lambda i: len({part[-1 - i] for part in parts}) == 1, range(shortest - lead))))
    return [".".join(part[lead : len(part) - tail]) for part in parts]


def shown_frames(trace: Trace) -> list[int]:
    """Frames of the latent that are shown."""
    count = max(trace.latent_frames, 1)
    return [int(i) for i in middle(count, min(count, MOST_FRAMES))]


def known_truth(trace: Trace, views: Sequence[View]) -> dict[str, Any]:
    """Where patches of the latent truly come from, for the only view of a reference that says so, by path.

    Dims     (frame, y, x, 2)
    """
    truth = find_truth(trace)
    if truth is None or not truth.known.any() or trace.latent_frames:
        return {}
    about = [view for view in views if view.role == "reference" and view.ref_grid is not None]
    if len({view.group for view in about}) != 1 or trace.record.samples != 1:
        return {}
    return {view.path: np.asarray(truth.position, np.float32)[None] for view in about}
