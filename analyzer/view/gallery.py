"""The gallery of many traces: a card each, with its picture, its R2G and its scores; what cannot be read says why."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from typing import Any, Final, Unpack

import numpy as np
import xarray as xr
from dask.base import compute
from PIL.Image import Image
from tqdm import tqdm

from ...schema.errors import UnknownSelection
from ...schema.messages import plain
from ..aggregation.selection import Select, SelectOptions
from ..datasets.dataset import DatasetScores, remarks
from ..datasets.rows import DatasetRequest, TraceScores, failed
from ..evaluation.metric_table import IMACS, METRICS, available, plan_metrics
from ..numerics.resize import middle
from ..output.illustration import picture
from ..output.sheets import overlay, show
from ..progress import hidden
from ..store.discovery import Member
from ..trace.reader import Trace, open_trace

SHOWN: Final = (*IMACS, "concentration_g", "entropy_g")
"""Scores on a card, of those that a trace can give."""
THUMBNAIL: Final = 240
"""Pixels of a picture's long side."""
QUALITY: Final = 85
ROLES: Final = ("reference", "text", "self")


@dataclass(frozen=True, slots=True)
class Card:
    """What a gallery shows of one trace."""

    member: Member
    row: TraceScores
    facts: str = ""
    images: dict[str, str] = field(default_factory=dict)
    """Small pictures by what they show, as addresses that hold their bytes."""

    def to_json(self, href: str | None) -> dict[str, Any]:
        """The card as the page takes it; `href` is where a click leads."""
        row = self.row
        scores = {name: value if np.isfinite(value) else None for name, value in row.values.items()}
        error = plain(row.error) if row.error else None
        return {
            "name": self.member.name, "href": None if row.error else href, "facts": self.facts, "images": self.images, "scores": scores,
            "error": error,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gallery:
    """The cards of a dataset, in the order of its traces."""

    title: str
    cards: list[Card]

    def to_json(self, hrefs: Mapping[int, str]) -> dict[str, Any]:
        """The gallery as the page takes it; `hrefs` says where a click on a card leads, by its position."""
        request = DatasetRequest(metrics=SHOWN)
        scores = DatasetScores(request, [card.member for card in self.cards], [card.row for card in self.cards])
        metrics = [
            {"name": name, "meaning": METRICS[name].meaning, "better": METRICS[name].better, "count": mean.count}
            | {key: value if np.isfinite(value) else None for key, value in (("mean", mean.mean), ("low", mean.low), ("high", mean.high))}
            for name, mean in scores.means().items()
            if mean.count
        ]
        cards = [card.to_json(hrefs.get(index)) for index, card in enumerate(self.cards)]
        note = "; ".join(remarks(scores)) or None
        return {"i2am": version("i2am"), "title": self.title, "metrics": metrics, "cards": cards, "note": note}


def make_gallery(members: Sequence[Member], title: str, *, partial: bool = False, **options: Unpack[SelectOptions]) -> Gallery:
    """Ask every trace for its card; one that cannot be read gets a card that says why."""
    with tqdm(members, desc="traces", unit="trace", leave=False, disable=hidden()) as bar:
        return Gallery(title, [make_card(member, partial=partial, **options) for member in bar])


def make_card(member: Member, *, partial: bool = False, **options: Unpack[SelectOptions]) -> Card:
    """The card of one trace, from one scan; whatever is wrong with the trace becomes part of it."""
    try:
        trace = open_trace(member.path, partial=partial)
        chosen: SelectOptions = {**options, "group": options.get("group") or first_group(trace)}
        there = available(trace, **chosen)
        plan = plan_metrics(trace, [name for name in SHOWN if name in there], **chosen)
        (computed,) = compute(plan.maps)  # type: ignore[no-untyped-call]
        values = {name: float(score) for name, score in plan.scores(computed).items()}
        row = TraceScores(trace.id, values, note=plan.grounds.note)
        return Card(member, row, _facts(trace), _images(trace, computed["r2g"], Select.of(chosen).sample))
    except Exception as error:  # one trace must not cost the others their cards
        return Card(member, failed(error))


def first_group(trace: Trace) -> str:
    """The token group that a card is of where none is named: a reference, else a text.

    Raises   UnknownSelection if no layer has any
    """
    groups = [group for layer in trace.layers for group in layer.groups]
    found = sorted(groups, key=lambda group: ROLES.index(group.role))
    if not found:
        raise UnknownSelection(f"no layer of {trace.path} has tokens that are named, so there is nothing to draw")
    return found[0].name


def _facts(trace: Trace) -> str:
    steps = (
        f"{len(trace.present)} steps" if trace.complete else f"{len(trace.present)} of {trace.record.steps} steps, {trace.record.status}"
    )
    heads = sum(layer.heads for layer in trace.layers)
    return plain(f"{trace.record.model.get('pipeline', 'unknown')} · {steps} · {len(trace.layers)} layers, {heads} heads")


def _images(trace: Trace, r2g: xr.DataArray, sample: int) -> dict[str, str]:
    frames = r2g.sizes.get("frame", 0)
    map = r2g.isel(frame=middle(frames, 1)[0]) if frames else r2g
    generated = picture(trace, f"generated_{sample}")
    drawn = {"generated": None if generated is None else show(generated), "r2g": overlay(map, generated)}
    return {name: _address(image) for name, image in drawn.items() if image is not None}


def _address(image: Image) -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
