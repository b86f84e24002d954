"""One page about a trace: is it sound, where did the picture come from, how well does that agree with the masks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from dask.base import compute
from PIL.Image import Image

from ....schema.errors import CorruptTrace
from ....schema.messages import size_text
from ....schema.trace import Image as ImageRecord
from ....schema.trace import ImageRole
from ...aggregation.selection import Select, Selection, choose, has_places
from ...evaluation.metric_table import IMACS, Judgement, plan_metrics
from ...facts import MapFacts
from ...inspection.patches import PATCHES, Cell, choose_cells
from ...inspection.truth import find_truth
from ...inspection.verify import verify
from ...maps.attribution import g2r, r2g, sram
from ...metrics.placement import normalize
from ...metrics.pointing import Truth
from ...numerics.resize import middle
from ...output.files import Output, check_output, save
from ...output.illustration import illustrate, provenance
from ...output.sheets import Mark, compose, patch_mark, show, stack
from ...trace.reader import Trace, open_trace

TIME_GROUPS: Final = 5
COLUMNS: Final = 5
PLACED: Final = {"r2g": "R2G", "g2r": "G2R", "g2r_masked": "G2R of the masked positions"}
"""Maps of which the numbers are given, and what each is called."""
ROW: Final[tuple[ImageRole, ...]] = ("input", "mask", "reference", "reference_mask", "generated")
"""Pictures as they are shown: what was given, then what came out."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a trace says to the questions of the page."""

    trace: Trace
    truth: Truth | None
    cells: list[Cell]
    """Patches of which SRAM is shown; none where tokens have no place."""
    maps: dict[str, xr.DataArray]
    scores: dict[str, float | None]


def report(
    path: Path,
    out: Path,
    *,
    group: str | None = None,
    sample: int = 0,
    partial: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Verify a trace, ask it for its main maps and scores, draw them on one sheet, and return the numbers.

    Tokens without a place have no G2R and no SRAM to draw; the rest is there.

    Raises   CorruptTrace if verifying finds anything, UnknownSelection for a group or sample that the trace does not have, and as
             `output.files.check_output`
    """
    started = time.perf_counter()
    check_output(out, "picture", overwrite=overwrite)
    trace = open_trace(path, partial=partial)
    # What cannot be asked is said before the long look at every file.
    chosen = choose(trace, Select(group=group, sample=sample))
    plan = plan_metrics(trace, IMACS, optional=True, group=group, sample=sample)
    checked = verify(path, partial=partial, progress=progress)
    if not checked.ok:
        raise CorruptTrace(f"{path} is corrupt: {checked.findings[0].where}: {checked.findings[0].problem} (`i2am verify {path}` says all)")
    answers = ask(trace, chosen, plan)
    save(Output(draw=lambda: (draw_report(answers), provenance(answers.maps["r2g"]))), out, overwrite=overwrite)
    maps = answers.maps
    return {
        "trace": trace.id,
        "path": str(path),
        "out": str(out),
        "group": chosen.groups[0].name,
        "looked_at": "generated image" if chosen.groups[0].role == "self" else "reference",
        "sample": chosen.sample,
        "samples": trace.record.samples,
        "verified": checked.to_json(),
        **{name: locate(maps[name]) if name in maps else None for name in PLACED},
        "sram": [patch_facts(maps[f"sram_{i}"], cell, answers.truth) for i, cell in enumerate(answers.cells)],
        **answers.scores,
        "way": carried(trace, chosen.groups[0].name),
        "note": plan.grounds.note,
        "seconds": time.perf_counter() - started,
    }


def carried(trace: Trace, group: str) -> str:
    """How tokens without a place are drawn all the same, where a resampler made them of patches."""
    made = any(layer.queries == group for layer in trace.layers)
    return f"; `i2am map {trace.path} --g2r --patches` draws the patches they were made of" if made else ""


def write_report(facts: dict[str, Any]) -> str:
    """The numbers as text for a terminal."""
    checked = facts["verified"]
    size = size_text(checked["nbytes"])
    lines = [f"verified   {checked['files']} files, {size}; {checked['rows']}"]
    if facts["samples"] > 1:
        lines.append(f"sample     {facts['sample']} of {facts['samples']}, from 0")
    lines += [
        _place(PLACED[name], facts["looked_at"] if name != "r2g" else "generated image", facts[name]) for name in PLACED if facts[name]
    ]
    if facts["g2r"] is None:
        lines.append(f"G2R, SRAM  none: the {facts['group']} tokens have no place on a picture{facts['way']}")
    for patch in facts["sram"]:
        truth = f"; truth {patch['truth'][0]:.2f}, {patch['truth'][1]:.2f}, {patch['distance']:.2f} away" if patch["truth"] else ""
        at, (y, x) = ",".join(map(str, patch["at"])), patch["peak"]
        lines.append(f"SRAM       patch {at} looked most at {y:.2f}, {x:.2f} of the {facts['looked_at']}{truth}")
    lines += [f"{name.upper():<14}{facts[name]:.4f}" for name in IMACS if facts[name] is not None]
    return "\n".join([*lines, f"picture    {facts['out']}"])


def ask(trace: Trace, chosen: Selection, plan: Judgement) -> Answers:
    """Every map of the page, in one pass over the trace."""
    truth = find_truth(trace)
    cells = choose_cells(trace, truth, plan.targets.get("mask")) if has_places(chosen) and not trace.record.maps_only else []
    which: dict[str, Any] = {"group": chosen.groups[0].name, "sample": chosen.sample}
    groups = min(TIME_GROUPS, max(len(trace.present), 1))
    lazy = {"r2g": r2g(trace, **which), "time": r2g(trace, **which, keep=("time",), time_groups=groups)}
    if has_places(chosen):
        lazy["g2r"] = g2r(trace, **which)
        if (mask := plan.grounds.mask("mask")) is not None:
            lazy["g2r_masked"] = g2r(trace, **which, query_mask=mask)
    lazy |= {f"sram_{i}": sram(trace, at=cell, **which) for i, cell in enumerate(cells)}
    maps: dict[str, xr.DataArray] = compute(lazy)[0]  # type: ignore[no-untyped-call]
    found = plan.scores(maps) if plan.rows else {}
    scores = {name: float(found[name]) if name in found else None for name in IMACS}
    return Answers(trace, truth, cells, maps, scores)


def draw_report(answers: Answers) -> Image:
    """The sheet: the pictures, then both directions and three patches, then the course of time."""
    trace, maps, cells, truth, scores = answers.trace, answers.maps, answers.cells, answers.truth, answers.scores
    whole = maps["r2g"]
    frames = [replace(patch_mark(cell, trace.latent_grid), label=str(i + 1)) for i, cell in enumerate(cells)]
    order = sorted(trace.images, key=lambda image: ROW.index(image.role))
    pictures = [tile for image in order for tile in _shown(trace, image, cells, frames if image.name == MapFacts.of(whole).image else ())]
    tiles = [(_titled("R2G", scores.get("imacs_g")), illustrate(trace, _spread(whole)))]
    if "g2r_masked" in maps:
        tiles.append((_titled(PLACED["g2r_masked"], scores.get("imacs_r")), illustrate(trace, maps["g2r_masked"])))
    elif "g2r" in maps:
        tiles.append((_titled("G2R", scores.get("imacs_r_plain")), illustrate(trace, maps["g2r"])))
    for i, cell in enumerate(cells):
        y, x = truth.position[cell].tolist() if truth else (np.nan, np.nan)
        known = [Mark(y, x, kind="truth")] if np.isfinite(y + x) else []
        tiles.append((f"SRAM of patch {i + 1}" + (", x: truth" if known else ""), illustrate(trace, maps[f"sram_{i}"], marks=known)))
    meaning = [f"R2G: what came from the {MapFacts.of(whole).group} tokens"]
    meaning += ["G2R: what of it was used"] if "g2r" in maps else []
    meaning += ["SRAM: where one patch looked"] if cells else []
    rows = [("Recorded", pictures), ("; ".join(meaning), tiles)]
    parts = [(heading, compose([i for _, i in row], COLUMNS, [c for c, _ in row])) for heading, row in rows if row]
    return stack([*parts, ("R2G over time, from noise to picture", illustrate(trace, _spread(maps["time"])))])


def _shown(trace: Trace, image: ImageRecord, cells: Sequence[Cell], marks: Sequence[Mark]) -> list[tuple[str, Image]]:
    """A picture with its marks; of a video, the frames that hold the patches, each with its own."""
    pixels = trace.image(image.name)
    if not image.frames:
        return [(image.name, show(pixels, marks))]
    picked = middle(image.frames, trace.latent_frames)[[cell[0] for cell in cells]] if cells else middle(image.frames, PATCHES)
    on = {frame: [mark for mark, at in zip(marks, picked, strict=False) if at == frame] for frame in picked.tolist()}
    return [(f"{image.name}, frame {frame}", show(pixels[frame], there)) for frame, there in on.items()]


def _spread(map: xr.DataArray) -> xr.DataArray:
    """A few frames of a video's map, spread over it: a sheet has no room for all."""
    if map.sizes.get("frame", 0) <= COLUMNS:
        return map
    picked = middle(map.sizes["frame"], COLUMNS).tolist()
    return map.isel(frame=picked).assign_attrs(frames=picked)


def _titled(name: str, score: float | None) -> str:
    return name if score is None else f"{name}, IMACS {score:.2f}"


def locate(map: xr.DataArray) -> dict[str, Any]:
    """Where a map is greatest and how spread out it is, in shares of the picture from its top left."""
    values = np.asarray(normalize(map.values.reshape(-1, map.shape[-1]))).reshape(map.shape)
    peak = np.unravel_index(int(values.argmax()), values.shape)
    total = values.sum()
    centre = [float((values * axis).sum() / total) if total else None for axis in np.ogrid[tuple(slice(n) for n in values.shape)]]
    return {
        "shape": list(values.shape),
        "least": float(map.min()),
        "greatest": float(map.max()),
        "peak": [(int(p) + 0.5) / n for p, n in zip(peak, values.shape, strict=True)],
        "centre": [None if c is None else (c + 0.5) / n for c, n in zip(centre, values.shape, strict=True)],
        "calls": MapFacts.of(map).calls,
    }


def patch_facts(map: xr.DataArray, at: Cell, truth: Truth | None) -> dict[str, Any]:
    """Where one patch looked most and, if known, how far that is from the truth in units of the reference's size."""
    facts = {"at": list(at), **locate(map), "truth": None, "distance": None}
    if truth is not None and np.isfinite(truth.position[at]).all():
        position = truth.position[at]
        facts |= {"truth": position.tolist(), "distance": float(np.hypot(*(np.array(facts["peak"]) - position)))}
    return facts


def _place(name: str, where: str, facts: dict[str, Any]) -> str:
    *frame, y, x = facts["peak"]
    where += f", frame {int(frame[0] * facts['shape'][0])} of {facts['shape'][0]}" if frame else ""
    values = f"{facts['least']:.3g} to {facts['greatest']:.3g} over {facts['calls']} calls"
    return f"{name:<10} peak at {y:.2f}, {x:.2f} of the {where} (down, right); {values}"
