"""Makes the overview of a trace: plans it, scans once, and writes what the scan found."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from dask.base import get_scheduler
from dask.threaded import get as threaded
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ...schema.layout import MANIFEST
from ...schema.messages import listed, option, parse_bytes, size_text
from ..aggregation.selection import split, whole
from ..aggregation.weights import query_weights
from ..inspection.info import caution
from ..methods.recipes import Recipe, get_recipe
from ..storage.server import shown
from ..trace.calls import Calls, require_attention
from ..trace.images import masks
from ..trace.reader import Trace
from .group import VERSION, GroupWriter, Overview
from .layers import LayerResult, finish_layer, make_grounds, make_look, pack_rows
from .measures import MEASURES, SCORES, add_totals
from .pictures import SHARE, Pictures, write_images
from .plan import BUDGET, TIMES, Packed, Plan, Sampling, distinct, expect_bytes, ladder, measured_grid
from .scan import scan_calls
from .views import LayerView, View, known_truth, list_views, shown_frames

Values: TypeAlias = NDArray[Any]
Graph: TypeAlias = dict[Any, Any]

SHARED: Final = ("time", "step", "frame", "word", "measure")
"""Axes that all layers of a view have alike; behind the others stands the layer's number."""


def make_overview(
    trace: Trace,
    *,
    budget: int | str = BUDGET,
    time_groups: int = TIMES,
    recipe: str | Recipe = "i2am",
    group: str | None = None,
    sample: int | None = None,
    branch: str | None = None,
) -> Overview:
    """Small arrays that a page can show whole: maps, rows of sampled patches, statistics and scores, in at most `budget` bytes.

    Everything is from one scan, whose memory the budget bounds. Where it does not fit, the plan says what was left out. `group`,
    `sample` and `branch` are all if None.

    Raises   UnknownSelection; InvalidInput for a budget in which nothing fits, a recipe of other maps, a trace without attention
    """
    row, count = _require_recipe(recipe), len(trace.present)
    require_attention(trace.layers, "an overview")
    if not count:
        raise InvalidInput(f"{trace.path} holds no evaluation yet, so there is nothing to see")
    views, notes = list_views(trace, group=group, sample=sample, branch=branch)
    times = len(split(range(count), min(whole(time_groups, "a number of time groups"), count)))
    most = parse_bytes("budget", budget) or 0
    pictures = write_images(trace, views, SHARE * most)
    plans, packed = distinct(ladder(most, times), views), pack_rows(trace, views)
    while plans:
        while len(plans) > 1 and expect_bytes(plans[0], views, count, pictures.nbytes, packed) > most:
            plans.pop(0)
        plan = plans.pop(0)
        pictures = pictures if plans else write_images(trace, views, 0)
        made = _Making(trace, row, views, plan, count).make(pictures, notes)
        if made.nbytes <= most:
            return made
        off = made.nbytes / max(expect_bytes(plan, views, count, pictures.nbytes, packed), 1)
        packed = Packed(packed.single * off, packed.mean * off)
    digit = 10 ** (len(str(made.nbytes)) - 2)
    least = size_text((made.nbytes // digit + 1) * digit).replace(" ", "")
    raise InvalidInput(
        f"{trace.path} does not fit, even as maps of whole layers: {option('budget')} is {size_text(most)}; "
        f"give it more, {option('budget', least)}, or show less with {option('group')}, {option('sample')} or {option('branch')}"
    )


def _require_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe whose R2G is a mean over tokens and a sum over time, and whose G2R is of the model's own softmax."""
    row = get_recipe(recipe)
    made = (row.tokens, row.queries, row.time, row.heads, row.g2r, row.weight)
    if made != ("mean", "mean", "sum", "mean", "keys", "attention") or row.renormalize or row.shared_ends:
        raise InvalidInput(
            f"an overview shows maps as recipe i2am makes them, and {row.label} makes others; `i2am map --recipe` draws those"
        )
    return row


@dataclass(frozen=True, slots=True)
class _Making:
    """One overview while it is made."""

    trace: Trace
    row: Recipe
    views: Sequence[View]
    plan: Plan
    count: int

    def make(self, pictures: Pictures, notes: list[str]) -> Overview:
        """Scan, and write what was found."""
        trace, views, plan = self.trace, self.views, self.plan
        times = split(range(self.count), plan.times)
        results = self._compute(times)
        writer = GroupWriter()
        for name, pixels in pictures.pixels.items():
            writer.add(f"images/{name}", pixels, tuple(f"{name}_{dim}" for dim in ("frame", "y", "x", "c")))
        writer.add("timestep", np.asarray(trace.steps["timestep"], np.float32), ("step",))
        writer.add("time_of_step", np.repeat(np.arange(len(times)), [len(t) for t in times]).astype(np.int32), ("step",))
        truth = known_truth(trace, views)
        heads = self._choose_heads(results)
        rows = []
        for v, view in enumerate(views):
            mine = [results[v, i] for i in range(len(view.layers))]
            self._write_view(writer, view, mine, heads[v])
            if view.path in truth:
                writer.add(f"{view.path}/truth", truth[view.path], ("frame", "latent_y", "latent_x", "place"))
            rows.append(self._view_facts(view, heads[v], times, view.path in truth))
        facts = self._facts(pictures, [*notes, *self._notes()], len(times)) | {"views": rows}
        return Overview(writer.finish(facts))

    def _compute(self, times: tuple[tuple[int, ...], ...]) -> dict[tuple[int, int], LayerResult]:
        """The result of each (view, layer of the view)."""
        graph: Graph = {}
        wanted: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for v, view in enumerate(self.views):
            graph["grounds", v] = (make_grounds, self.trace, view, self.row)
            for i, one in enumerate(view.layers):
                wanted.setdefault((one.index, view.sample, view.branch), []).append((v, i))
        for (index, sample, branch), users in wanted.items():
            calls, mask = Calls.of(self.trace, index), self.views[users[0][0]].mask
            names = [image.name for image in masks(self.trace)]
            which = [0] if mask is None else [0, 1 + names.index(mask)]
            plans = tuple(self.trace.arrays[f"images/{name}"] for name in names)
            weights = query_weights(self.trace.storage, plans, None, calls.layer.places)[which]
            looks = tuple(make_look(self.trace, self.views[v], self.views[v].layers[i], self.plan, self.row) for v, i in users)
            called = [[step for step in steps if calls.where[sample, branch, step] >= 0] for steps in times]
            keys = []
            for t, steps in enumerate(called):
                keys.append(("scan", index, sample, branch, t))
                graph[keys[-1]] = (scan_calls, calls, (sample, branch), tuple(steps), self.row.r2g, self.row.g2r, weights, looks)
            for n, (v, i) in enumerate(users):
                one = self.views[v].layers[i]
                graph["layer", v, i] = (finish_layer, one, self.plan, looks[n], ("grounds", v), called, self.count, n, keys)
        targets = [(v, i) for v, view in enumerate(self.views) for i in range(len(view.layers))]
        get = get_scheduler() or threaded  # type: ignore[no-untyped-call]
        found = get(graph, [("layer", v, i) for v, i in targets])
        return dict(zip(targets, found, strict=True))

    def _choose_heads(self, results: Mapping[tuple[int, int], LayerResult]) -> list[list[list[int] | None]]:
        """Of each layer of each view, the heads whose rows are kept: those whose rows copy best or, where that is unknown, are sharpest."""
        chosen: list[list[list[int] | None]] = []
        for v, view in enumerate(self.views):
            if self.plan.heads is None:
                chosen.append([None] * len(view.layers))
                continue
            table = [results[v, i].scores[:-1] for i in range(len(view.layers))]
            copy, even = (np.concatenate([rows[:, SCORES.index(name)] for rows in table]) for name in ("copy", "evenness"))
            ranked = np.argsort(-np.nan_to_num(copy if np.isfinite(copy).any() else -even, nan=-np.inf), kind="stable")
            best = np.zeros(len(ranked), bool)
            best[ranked[: self.plan.heads]] = True
            ends = np.cumsum([0, *map(len, table)])
            chosen.append([np.flatnonzero(best[a:b]).tolist() for a, b in itertools.pairwise(ends)])
        return chosen

    def _write_view(self, writer: GroupWriter, view: View, results: Sequence[LayerResult], heads: Sequence[list[int] | None]) -> None:
        for i, (result, kept) in enumerate(zip(results, heads, strict=True)):
            for name, values, dims in result.arrays:
                chosen = name.startswith("rows_heads") and kept is not None
                found = values[kept] if chosen else values
                if found.size:
                    stem, end = name.removesuffix("_max"), "_max" if name.endswith("_max") else ""
                    writer.add(f"{view.path}/{stem}_{i:03d}{end}", found, tuple(d if d in SHARED else f"{d}_{i:03d}" for d in dims))
        totals = add_totals([result.totals for result in results])
        last = make_grounds(self.trace, view, self.row).score(totals)
        parts = [*(result.scores[:-1] for result in results), *(result.scores[-1:] for result in results), last]
        writer.add(f"{view.path}/scores", np.concatenate(parts), ("selection", "score"))

    def _view_facts(self, view: View, heads: Sequence[list[int] | None], times: Sequence[Sequence[int]], truth: bool) -> dict[str, Any]:
        def named(image: Any) -> str | None:
            return None if image is None else str(image.name)

        images = {"generated": named(view.generated), "reference": named(view.reference), "mask": view.mask}
        return {
            "path": view.path,
            "sample": view.sample,
            "branch": self.trace.record.branches[view.branch],
            "group": view.group,
            "role": view.role,
            "images": images | {"reference_mask": view.reference_mask},
            "window": view.window,
            "ref_grid": None if view.ref_grid is None else list(view.ref_grid),
            "specials": max(one.group.specials for one in view.layers),
            "words": [word.to_json() for word in view.words],
            "truth": truth,
            "layers": [self._layer_facts(view, one, kept, times) for one, kept in zip(view.layers, heads, strict=True)],
        }

    def _layer_facts(self, view: View, one: LayerView, kept: list[int] | None, times: Sequence[Sequence[int]]) -> dict[str, Any]:
        where = Calls.of(self.trace, one.index).where[view.sample, view.branch]
        sampling = Sampling.of(self.plan, one)
        return {
            "index": one.index,
            "name": one.layer.name,
            "short": one.short,
            "block": one.block,
            "heads": one.layer.heads,
            "head_numbers": list(one.layer.heads_kept),
            "grid": list(one.layer.grid),
            "row_grid": None if sampling is None else list(sampling.rows),
            "key_grid": None if sampling is None or sampling.keys is None else list(sampling.keys),
            "keys": 0 if sampling is None else sampling.count,
            "row_heads": kept,
            "word_grid": list(measured_grid(self.plan, one)) if view.words and self.plan.words else None,
            "calls": [int((where[list(steps)] >= 0).sum()) for steps in times],
        }

    def _left_out(self) -> list[str]:
        """Token groups that have no rows though the plan keeps some."""
        gone = {one.keys: view.group for view in self.views for one in view.layers if Sampling.of(self.plan, one) is None}
        if self.plan.rows == "none" or not gone:
            return []
        return [
            f"rows over the {max(gone)} tokens of {listed(dict.fromkeys(gone.values()))}: without places they cannot be summed to cells"
        ]

    def _notes(self) -> list[str]:
        """What else a reader must know."""
        said, layers = caution(self.trace), [one.index for view in self.views for one in view.layers]
        partly = [i for i in dict.fromkeys(layers) if not self.trace.present[:, i].all()]
        missing = f"{len(partly)} of {len(set(layers))} layers were not called in every evaluation, such as {{}}"
        named = [missing.format(self.trace.layers[partly[0]].name)] if partly else []
        return [*self.trace.notes, *([said.removeprefix("note: ")] if said else []), *named]

    def _facts(self, pictures: Pictures, notes: Sequence[str], times: int) -> dict[str, Any]:
        trace, plan = self.trace, self.plan.to_json()
        return {
            "version": VERSION,
            "i2am": version("i2am"),
            "trace": {
                "id": trace.id,
                "manifest": manifest_sum(trace),
                "name": Path(shown(str(trace.path))).name,
                "model": str(trace.record.model.get("pipeline", "unknown")),
                "steps": self.count,
                "planned": trace.record.steps,
                "status": trace.record.status,
            },
            "recipe": self.row.label,
            "plan": plan | {"dropped": [*plan["dropped"], *self._left_out(), *pictures.dropped]},
            "notes": list(dict.fromkeys(notes)),
            "latent_grid": list(trace.latent_grid),
            "frames": shown_frames(trace),
            "images": pictures.images,
            "steps": self.count,
            "times": times,
            "measures": list(MEASURES),
            "scores": list(SCORES),
        }


def manifest_sum(trace: Trace) -> str | None:
    """sha256 of the trace's manifest; None where the recording did not finish."""
    if not trace.storage.has(MANIFEST):
        return None
    return hashlib.sha256(trace.storage.read(MANIFEST, 0, trace.storage.size(MANIFEST)).tobytes()).hexdigest()
