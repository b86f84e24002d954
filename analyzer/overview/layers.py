"""One layer of a view: what is collected of it, and the arrays and scores that its time groups become."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..methods.recipes import Recipe
from ..numerics.cells import cell_means, covered_cells
from ..numerics.resize import middle
from ..numerics.window import Window
from ..trace.calls import Calls
from ..trace.reader import Trace
from .group import encode_maps, encode_rows, pack
from .measures import Grounds, Targets, Totals, add_totals
from .plan import Packed, Plan, Sampling, cell_starts, measured_grid, sampled_places
from .scan import Look, Part, Probed
from .views import LayerView, ShownWord, View

Values: TypeAlias = NDArray[Any]
Array: TypeAlias = tuple[str, Values, tuple[str, ...]]
"""Name without the layer's number, values, and axes."""

PACKED_LAYERS: Final = 8
PACKED_SIDE: Final = 16
"""Layers in which packing is tried, and patches a side."""


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One layer of a view, as it is written, and what it adds to the scores of all layers."""

    arrays: tuple[Array, ...]
    scores: Values
    """(head, score), and behind them the row of the layer."""
    totals: Totals


def make_grounds(trace: Trace, view: View, recipe: Recipe) -> Grounds:
    """What the maps of a view are scored with."""
    mask = None if view.mask is None else trace.image(view.mask)[..., 0]
    return Grounds(
        recipe=recipe.label,
        generated=view.generated,
        reference=view.reference,
        mask=mask,
        reference_mask=None if view.reference_mask is None else trace.image(view.reference_mask)[..., 0],
        inside=None if mask is None else covered_cells(mask, Window.of(None, mask.shape), trace.latent_grid),
    )


def make_look(trace: Trace, view: View, one: LayerView, plan: Plan, recipe: Recipe) -> Look:
    """What is collected of one layer."""
    sampling, group = Sampling.of(plan, one), one.group
    rows = measured_grid(plan, one)
    down, across = (sampled_places(n, m) for n, m in zip(one.layer.grid, rows, strict=True))
    places = one.places
    samples = np.ravel_multi_index(np.ix_(np.array(one.frames), down, across), places).ravel()
    cells = None
    if sampling is not None and sampling.keys is not None and group.grid is not None and sampling.keys != group.grid:
        cells = (cell_starts(group.grid[0], sampling.keys[0]), cell_starts(group.grid[1], sampling.keys[1]))
    words = view.words if plan.words else ()
    said = [word for word in words if not word.probe]
    probes = _probed(words, one, len(said))
    known = {*range(len(said)), *(n for probed in probes for n in range(probed.first, probed.first + len(probed.starts)))}
    return Look(
        group=slice(group.start, group.stop),
        kept=one.kept,
        grid=group.grid,
        counted=slice(group.start + (0 if recipe.specials or group.specials == group.tokens else group.specials), group.stop),
        cells=cells,
        samples=samples,
        keys=0 if sampling is None else sampling.count,
        targets=_targets(trace, view, one, samples, (len(one.frames), *rows)),
        words=_columns([word.tokens for word in said]) if said else None,
        probes=probes,
        word_sizes=np.array([len(word.tokens) if n in known else np.nan for n, word in enumerate(words)]),
        latent=(max(trace.latent_frames, 1), *trace.latent_grid),
        reference=None if view.ref_grid is None else (1, *view.ref_grid),
        resize=recipe.resize,
        clamp=recipe.clamp,
    )


def _columns(words: Sequence[Sequence[int]]) -> tuple[Values, Values]:
    """Tokens of all words, and where those of each begin."""
    return np.array([token for tokens in words for token in tokens], np.intp), np.cumsum([0, *map(len, words[:-1])])


def _probed(words: Sequence[ShownWord], one: LayerView, first: int) -> tuple[Probed, ...]:
    """The texts of probes whose words are shown, behind the `first` others, as far as this layer has their keys."""
    starts = {group.name: group.start for group in one.layer.probes} if one.layer.encoding == "factors" else {}
    found = []
    for (probe, among), group in itertools.groupby(words[first:], lambda word: (word.probe, word.among)):
        mine = list(group)
        if probe in starts:
            own = _columns([[token - among[0] for token in word.tokens] for word in mine])
            found.append(Probed(tuple(starts[probe] + token for token in among), *own, first))
        first += len(mine)
    return tuple(found)


def _targets(trace: Trace, view: View, one: LayerView, samples: Values, rows: tuple[int, int, int]) -> Targets:
    places, count = one.places, math.prod(one.places)
    inside = painted = colours = outside = None
    if view.mask is not None:
        mask = trace.image(view.mask)[..., 0]
        inside = np.broadcast_to(covered_cells(mask, Window.of(None, mask.shape), places[1:]), places)
    if view.generated is not None and view.reference is not None and one.group.grid is not None:
        pixels = trace.image(view.generated.name) / 255
        frames = pixels[middle(len(pixels), places[0])] if pixels.ndim == 4 else pixels[None]
        means = np.stack([cell_means(frame, Window.of(None, frame.shape[:2]), places[1:]) for frame in frames])
        painted = np.broadcast_to(means, (*places, 3)).reshape(count, 3)[samples]
        colours = _colours(trace, view, one.group.grid)
    if view.reference_mask is not None and one.group.grid is not None and view.reference is not None:
        mask = trace.image(view.reference_mask)[..., 0]
        outside = ~covered_cells(mask, Window.of(view.reference.window, mask.shape), one.group.grid).ravel()
    return Targets(
        rows=rows,
        patches=np.ones(len(samples), bool) if inside is None else inside.reshape(-1)[samples],
        painted=painted if colours is not None else None,
        colours=colours,
        inside=inside,
        outside=outside,
    )


def _colours(trace: Trace, view: View, grid: tuple[int, int]) -> Values | None:
    """The colour of each key, and 1 behind it; None for a reference of one colour.

    Dims     (token, 4), float32
    """
    assert view.reference is not None  # asked before
    pixels = trace.image(view.reference.name) / 255
    picture = pixels[len(pixels) // 2] if pixels.ndim == 4 else pixels
    found = cell_means(picture, Window.of(view.reference.window, picture.shape[:2]), grid).reshape(-1, 3)
    return np.concatenate([found, np.ones((len(found), 1))], 1).astype(np.float32)


def pack_rows(trace: Trace, views: Sequence[View]) -> Packed:
    """How well rows pack, tried on some patches of one call in a few layers."""
    sizes = np.zeros((2, 2))
    called = [(view, one) for view in views for one in view.layers]
    for view, one in called[:: -(-len(called) // PACKED_LAYERS)]:
        calls, at = Calls.of(trace, one.index), (view.sample, view.branch)
        steps = np.flatnonzero(calls.where[at] >= 0)
        down, across = (sampled_places(n, min(n, PACKED_SIDE)) for n in one.layer.grid)
        rows = calls.region("probability", at, (int(steps[len(steps) // 2]),), rows=down, columns=across)[0][..., one.kept]
        for i, each in enumerate((rows, rows.mean(0))):
            codes = encode_rows(each)[0]
            sizes[i] += len(pack(codes.tobytes())), codes.size
    return Packed(*(sizes[:, 0] / sizes[:, 1]).tolist())


def finish_layer(
    one: LayerView,
    plan: Plan,
    look: Look,
    grounds: Grounds,
    called: Sequence[Sequence[int]],
    count: int,
    which: int,
    scans: Sequence[Sequence[Part]],
) -> LayerResult:
    """Task: the arrays and scores of one layer, from the scan of each time group, of which it is the part `which`.

    `called` are the evaluations of each, of `count` in all.
    """
    parts = [scan[which] for scan in scans]
    stats = np.full((count, *parts[0].stats.shape[1:]), np.nan, np.float32)
    stats[[step for steps in called for step in steps]] = np.concatenate([part.stats for part in parts])
    timed = [*_maps(one, plan, parts), *(_rows(one, plan, look, parts) if look.keys else ()), *_words(look, parts)]
    absent = [not steps for steps in called]
    for _, values, dims in timed:
        if dims[0] == "time" and values.dtype == np.float32:
            values[absent] = np.nan
    heads = _totals(look, parts)
    whole = add_totals([heads])
    scores = np.concatenate([grounds.score(heads, plan.single), grounds.score(whole)])
    return LayerResult((("stats", stats, ("step", "head", "measure")), *timed), scores, whole)


def _maps(one: LayerView, plan: Plan, parts: Sequence[Part]) -> list[Array]:
    r2g = np.stack([part.r2g[:, list(one.frames)] for part in parts])
    g2r = np.stack([part.g2r for part in parts], 1)
    if not plan.single:
        r2g, g2r = r2g.mean(1, keepdims=True), g2r.mean(2, keepdims=True)
    maps = {"r2g": (r2g, ("frame", "y", "x")), **dict(zip(("g2r", "g2r_masked"), ((each, ("token",)) for each in g2r), strict=False))}
    found: list[Array] = []
    for name, (values, places) in maps.items():
        codes, top = encode_maps(values, len(places))
        lead = ("time", "head" if plan.single else "all_heads")
        found += [(name, codes, (*lead, *places)), (f"{name}_max", top, lead)]
    return found


def _rows(one: LayerView, plan: Plan, look: Look, parts: Sequence[Part]) -> list[Array]:
    """Rows of P as the plan keeps them, and what of the softmax goes to the specials."""
    places, axes = look.targets.rows, ("frame", "row_y", "row_x")
    means = [(part.rows, max(part.calls, 1)) for part in parts]
    kept: dict[str, tuple[Values, tuple[str, ...]]] = {}
    if plan.rows == "full":
        kept["rows"] = np.stack([rows / count for rows, count in means]), ("time", "head")
    else:
        over_time = np.sum([rows for rows, _ in means], 0, dtype=np.float64) / max(sum(part.calls for part in parts), 1)
        by_time = np.stack([rows.mean(0, dtype=np.float64) / count for rows, count in means])
        kept |= {"rows_heads": (np.asarray(over_time), ("row_head",)), "rows_times": (by_time, ("time",))}
    found: list[Array] = []
    for name, (values, lead) in kept.items():
        codes, top = encode_rows(values.reshape(*values.shape[: len(lead)], *places, look.keys))
        found += [(name, codes, (*lead, *axes, "key")), (f"{name}_max", top, (*lead, *axes))]
    if one.kept.start > one.group.start:
        special = np.stack([part.special / max(part.calls, 1) for part in parts])
        found.append(("special", special.reshape(*special.shape[:2], *places).astype(np.float32), ("time", "head", *axes)))
    return found


def _words(look: Look, parts: Sequence[Part]) -> list[Array]:
    if not len(look.word_sizes):
        return []
    means = np.stack([part.words.mean(0).T / max(part.calls, 1) for part in parts])
    codes, top = encode_rows(means)
    maps = codes.reshape(*codes.shape[:2], *look.targets.rows)
    peaks = (top / look.word_sizes).astype(np.float32)
    return [("words", maps, ("time", "word", "frame", "row_y", "row_x")), ("words_max", peaks, ("time", "word"))]


def _totals(look: Look, parts: Sequence[Part]) -> Totals:
    """What each head adds up to over all of time."""
    targets, g2r = look.targets, np.sum([part.g2r[-1] for part in parts], 0)
    even = np.concatenate([part.stats[..., 0] for part in parts])
    leaked = None
    if targets.outside is not None and len(parts[0].g2r) > 1:
        leaked = np.stack([g2r[:, targets.outside].sum(1), g2r.sum(1)], 1)
    return Totals(
        r2g=np.sum([part.latent for part in parts], 0),
        g2r=None if look.reference is None else np.sum([part.reference for part in parts], 0),
        leaked=leaked,
        copied=None if targets.colours is None else np.sum([part.copied for part in parts], 0),
        evenness=np.stack([np.nansum(even, 0), np.isfinite(even).sum(0)], 1),
        targets=targets,
    )
