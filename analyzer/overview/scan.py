"""The one pass over a trace that an overview takes: sums of a layer's calls in one time group, and rows of sampled patches.

What is summed over all positions comes from `scan`, as under maps; rows are gathered from the same blocks while these are in cache.
Nothing grows with the number of steps but one row of statistics for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...schema.arrays.sums import token_segments
from ...schema.trace import Softmax
from ..numerics.products import product
from ..numerics.resize import bring
from ..numerics.statistics import row_evenness
from ..trace.calls import At, Calls
from ..trace.scan import Sums, scan
from ..trace.softmax import Columns
from .measures import MEASURES, Targets, measure_call, score_copied

Values: TypeAlias = NDArray[Any]

PENDING_BYTES: Final = 2**21
"""Rows that are gathered before they are worked on, in bytes."""


@dataclass(frozen=True, slots=True)
class Probed:
    """Words of one text of a probe, which the queries of the run meet only here."""

    among: tuple[int, ...]
    """The text's tokens on the axis of the probes."""
    own: Values
    """Those of all its words, among them."""
    starts: Values
    """Where those of each word begin."""
    first: int
    """The first word's number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is collected of one token group in one layer."""

    group: slice
    """Its tokens on the key axis."""
    kept: slice
    """Those that rows and G2R show."""
    grid: tuple[int, int] | None
    """Rows and columns of these, if they have places."""
    counted: slice
    """Those that count in R2G."""
    cells: tuple[Values, Values] | None
    """First row and column of each cell that keys are summed to; None leaves them as they are."""
    samples: Values
    """Positions whose rows are gathered, in order."""
    keys: int
    """Keys of a row that is kept; 0 where rows are only measured."""
    targets: Targets
    words: tuple[Values, Values] | None
    """Tokens of all words in the group, and where those of each begin."""
    probes: tuple[Probed, ...]
    word_sizes: Values
    """Tokens of each word, those of probes behind the others; NaN for what this layer does not know."""
    latent: tuple[int, int, int]
    """Common grid of R2G."""
    reference: tuple[int, int, int] | None
    """Common grid of G2R."""
    resize: str
    clamp: bool


@dataclass(slots=True)
class Part:
    """What the calls of one layer in one time group add up to, of one token group; zeros where there is none."""

    calls: int
    r2g: Values
    """(head, frame, y, x), summed over steps."""
    latent: Values
    """The same on the common grid."""
    g2r: Values
    """(weighting, head, token)"""
    reference: Values
    """(head, y, x): the last of these on the common grid of the reference."""
    stats: Values
    """(step, head, measure)"""
    rows: Values
    """(head, patch, key): rows of P, summed."""
    special: Values
    """(head, patch): attention to the specials, summed."""
    copied: Values
    """(head, patch, 4): colours of the keys times attention to them, and all such attention, summed."""
    words: Values
    """(head, patch, word): attention to the tokens of each word, summed."""

    @classmethod
    def empty(cls, calls: Calls, look: Look, steps: int, weightings: int) -> Part:
        """Nothing added yet."""
        heads, places = calls.layer.heads, (max(calls.layer.frames, 1), *calls.layer.grid)
        return cls(
            calls=steps,
            r2g=np.zeros((heads, *places)),
            latent=np.zeros((heads, *look.latent)),
            g2r=np.zeros((weightings, heads, look.kept.stop - look.kept.start)),
            reference=np.zeros((heads, *(look.reference or (1, 0, 0))[1:])),
            stats=np.full((steps, heads, len(MEASURES)), np.nan),
            rows=np.zeros((heads, len(look.samples), look.keys), np.float32),
            special=np.zeros((heads, len(look.samples))),
            copied=np.zeros((heads, len(look.samples), 4 if look.targets.colours is not None else 0)),
            words=np.zeros((heads, len(look.samples), len(look.word_sizes)), np.float32),
        )


class Gatherer:
    """Rows of sampled patches of one call, collected from the blocks of a scan and worked on many at a time."""

    def __init__(self, heads: int, look: Look, part: Part) -> None:
        self.look, self.part, self.patches = look, part, len(look.samples)
        width, rows = look.group.stop - look.group.start, heads * self.patches
        count = min(max(1, PENDING_BYTES // (4 * width)), rows)
        self.pending, self.where, self.used = np.empty((count, width), np.float32), np.empty(count, np.intp), 0
        self.even, self.peak, self.copied = np.full(rows, np.nan), np.full(rows, np.nan), np.zeros((rows, part.copied.shape[-1]))
        self.asked = np.tile(look.targets.patches, heads)

    def add(self, head: int, positions: slice, block: Values, factor: float) -> None:
        """Take the sampled rows of a block."""
        look = self.look
        low, high = (int(i) for i in np.searchsorted(look.samples, (positions.start, positions.stop)))
        while low < high:
            take = min(high - low, len(self.pending) - self.used)
            new, first = slice(self.used, self.used + take), head * self.patches + low
            rows = block[_stretch(look.samples[low : low + take] - positions.start), look.group]
            np.multiply(rows, factor, out=self.pending[new], casting="same_kind")
            self.where[new] = np.arange(first, first + take)
            self.used, low = self.used + take, low + take
            if self.used == len(self.pending):
                self.flush()

    def flush(self) -> None:
        """Work on the rows that were gathered."""
        if not self.used:
            return
        look, part, at = self.look, self.part, _stretch(self.where[: self.used])
        rows, self.used = self.pending[: self.used], 0
        first = look.kept.start - look.group.start
        kept = rows[:, first:]
        asked = np.flatnonzero(self.asked[at])
        measured = kept[asked]
        self.even[self.where[asked]] = row_evenness(measured)
        with np.errstate(invalid="ignore"):  # of a row that gives these tokens nothing, no share is the greatest
            self.peak[self.where[asked]] = measured.max(1) / measured.sum(1)
        if first:
            part.special.reshape(-1)[at] += rows[:, :first].sum(1)
        if look.targets.colours is not None:
            self.copied[at] = product(kept, look.targets.colours)
        if look.words is not None:
            tokens, starts = look.words
            part.words.reshape(-1, part.words.shape[-1])[at, : len(starts)] += np.add.reduceat(rows[:, tokens], starts, axis=1)
        if look.keys:
            part.rows.reshape(-1, look.keys)[at] += kept if look.cells is None else sum_cells(kept, look.grid, look.cells)


def _stretch(places: Values) -> Any:
    """Places as a slice where they follow each other, which copies nothing."""
    first, count = int(places[0]), len(places)
    return slice(first, first + count) if places[-1] - first == count - 1 and (np.diff(places) == 1).all() else places


def sum_cells(rows: Values, grid: tuple[int, int] | None, cells: tuple[Values, Values]) -> Values:
    """Keys summed to cells.

    Dims     (row, token) -> (row, cell)
    """
    assert grid is not None  # only keys with places are summed
    tall = np.add.reduceat(rows.reshape(len(rows), *grid), cells[0], axis=1)
    return np.asarray(np.add.reduceat(tall, cells[1], axis=2).reshape(len(rows), -1))


def scan_calls(
    calls: Calls, at: At, steps: tuple[int, ...], r2g: Softmax, g2r: Softmax, weights: Values, looks: tuple[Look, ...]
) -> tuple[Part, ...]:
    """Task: what the calls of one layer in one time group add up to, of each token group.

    Dims     weights (weighting, [frame,] y, x)
    Raises   CorruptTrace if a file was changed
    """
    parts = tuple(Part.empty(calls, look, len(steps), len(weights)) for look in looks)
    done = 0
    for group in calls.groups(at, steps):
        gatherers = [[Gatherer(calls.layer.heads, look, part) for look, part in zip(looks, parts, strict=True)] for _ in group]

        def visit(i: int, head: int, positions: slice, block: Values, factor: float, mine: list[list[Gatherer]] = gatherers) -> None:
            for gatherer in mine[i]:
                gatherer.add(head, positions, block, factor)

        for i, sums in enumerate(scan(calls, at, group, r2g, g2r, weights, visit)):
            for gatherer in gatherers[i]:
                gatherer.flush()
                _finish(calls, gatherer, sums, done + i)
        for look, part in zip(looks, parts, strict=True):
            for probed in look.probes:
                _ask(calls, at, group, look, part, probed)
        done += len(group)
    return parts


def _ask(calls: Calls, at: At, steps: tuple[int, ...], look: Look, part: Part, probed: Probed) -> None:
    """Add the attention that sampled patches give the words of a probe's text."""
    columns, words = Columns("keys", probed.among, None, True), slice(probed.first, probed.first + len(probed.starts))
    for _, head, positions, values in calls.softmax_rows(at, steps, columns, tuple(range(calls.layer.heads))):
        low, high = np.searchsorted(look.samples, (positions.start, positions.stop))
        rows = values[look.samples[low:high] - positions.start][:, probed.own]
        if len(rows):
            part.words[head, low:high, words] += np.add.reduceat(rows, probed.starts, axis=1)


def _finish(calls: Calls, gatherer: Gatherer, sums: Sums, step: int) -> None:
    """Add the sums of one call, and its measures."""
    look, part, layer = gatherer.look, gatherer.part, calls.layer
    places = (max(layer.frames, 1), *layer.grid)
    segments = token_segments(calls.layer.groups)
    counted = [i for i, one in enumerate(segments) if look.counted.start <= one.start and one.stop <= look.counted.stop]
    used = sums.generated[counted].sum(0) / np.float32(look.counted.stop - look.counted.start)
    r2g = used.reshape(layer.heads, *places)
    positions = math.prod(places)
    g2r = sums.token[..., look.kept] / np.float32(positions)
    part.r2g += r2g
    part.latent += bring(r2g, look.latent, look.resize, look.clamp)
    part.g2r += g2r
    if look.grid is not None and look.reference is not None:
        part.reference += bring(g2r[-1].reshape(-1, 1, *look.grid), look.reference, look.resize, look.clamp)[:, 0]
    share = sums.token[0][:, look.group].sum(1, dtype=np.float64) / positions
    shape = (layer.heads, len(look.samples))
    even, peak, copied = (
        gatherer.even.reshape(shape),
        gatherer.peak.reshape(shape),
        gatherer.copied.reshape(*shape, gatherer.copied.shape[-1]),
    )
    score = None if look.targets.colours is None else score_copied(copied, look.targets)
    part.stats[step] = measure_call(look.targets, r2g, g2r, share, even, peak, score)
    part.copied += copied
