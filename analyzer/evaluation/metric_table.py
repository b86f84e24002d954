"""Metrics as rows: which map each judges, against what, and with which function; and all that are asked of a trace in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import xarray as xr
from dask.base import compute

from ...schema.errors import InvalidInput
from ...schema.messages import guess, option
from ...schema.trace import ImageRole
from ..facts import MapFacts
from ..inspection.truth import require_truth
from ..maps.attribution import g2r, r2g
from ..maps.looks import looks, row_entropy
from ..methods.recipes import get_recipe
from ..metrics.boxes import box_iou
from ..metrics.entropy import concentration, entropy
from ..metrics.imacs import imacs
from ..metrics.masks import binarize, fit_mask
from ..metrics.overlap import iou, miou
from ..metrics.pointing import attention_variation, pck, pointing_error
from ..metrics.results import over_frames
from ..trace.images import find_mask, load_mask
from ..trace.reader import Trace

Of: TypeAlias = Literal["r2g", "g2r", "g2r_masked", "looks", "rows"]
"""What is judged: R2G; G2R of all positions; G2R of those in the mask (v1, Eq. 17); SRAM of every patch; rows of P, call by call."""
Against: TypeAlias = Literal["", "mask", "reference_mask", "truth"]
"""What it is held against: nothing, a mask of the generated image or of the reference, the true place of every patch."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number for each map."""

    name: str
    of: Of
    against: Against
    function: Callable[..., xr.DataArray]
    """(map, what it is held against if anything) -> one number for each kept axis."""
    better: Literal["higher", "lower", ""]
    """Which way agreement lies; empty where there is no better or worse."""
    meaning: str


METRICS: Final = {
    row.name: row
    for row in (
        Metric("imacs_g", "r2g", "mask", imacs, "higher", "R2G against the mask"),
        Metric("imacs_r", "g2r_masked", "reference_mask", imacs, "higher", "G2R of masked positions against the reference mask"),
        Metric("imacs_r_plain", "g2r", "reference_mask", imacs, "higher", "G2R of all positions against the reference mask"),
        Metric("iou_g", "r2g", "mask", iou, "higher", "overlap of R2G above 0.4 and the mask"),
        Metric("iou_r", "g2r_masked", "reference_mask", iou, "higher", "overlap of masked G2R above 0.4 and the reference mask"),
        Metric("miou_g", "r2g", "mask", miou, "higher", "mean overlap of R2G and the mask over thresholds 0.3, 0.4, 0.5"),
        Metric("miou_r", "g2r_masked", "reference_mask", miou, "higher", "mean overlap of masked G2R and the reference mask"),
        Metric("box_iou_g", "r2g", "mask", box_iou, "higher", "overlap of the boxes of R2G and of the mask"),
        Metric("box_iou_r", "g2r_masked", "reference_mask", box_iou, "higher", "overlap of the boxes of masked G2R and its mask"),
        Metric("pck", "looks", "truth", pck, "higher", "patches that look most at where they truly come from"),
        Metric("pointing_error", "looks", "truth", pointing_error, "lower", "mean distance of where a patch looks from the truth"),
        Metric("attention_variation", "looks", "mask", attention_variation, "", "how far apart neighbouring masked patches look"),
        Metric("entropy_g", "r2g", "", entropy, "", "evenness of R2G over the generated image"),
        Metric("entropy_r", "g2r", "", entropy, "", "evenness of G2R over the reference"),
        Metric("concentration_g", "r2g", "", concentration, "", "share of R2G in its strongest tenth"),
        Metric("concentration_r", "g2r", "", concentration, "", "share of G2R in its strongest tenth"),
        Metric("row_entropy", "rows", "", lambda rows: rows, "", "evenness of single patches' attention over the reference"),
    )
}


def metric(name: str) -> Metric:
    """The row of that name.

    Raises   InvalidInput listing the names there are, the nearest one first
    """
    if isinstance(name, str) and name in METRICS:
        return METRICS[name]
    raise InvalidInput(f"there is no metric {name!r}; {guess(str(name), METRICS)}there are {', '.join(METRICS)}")


@dataclass(frozen=True, slots=True)
class Judgement:
    """Metrics of a trace, unread: the lazy maps they need, each once, and what these are held against."""

    rows: tuple[Metric, ...]
    maps: dict[Of, xr.DataArray]
    """Compute them together: `dask.compute(judgement.maps)`; they share one pass over the trace."""
    targets: dict[Against, Any]

    def scores(self, computed: Mapping[Of, xr.DataArray]) -> dict[str, xr.DataArray]:
        """Each metric of the computed maps; of a video the mean over its frames.

        Dims     -> (kept axes), by name of metric
        """
        against = {row.name: [self.targets[row.against]] if row.against else [] for row in self.rows}
        return {row.name: over_frames(row.function(computed[row.of], *against[row.name])) for row in self.rows}


def plan_metrics(
    trace: Trace, names: Iterable[str], *, mask: str | None = None, reference_mask: str | None = None, **selection: Any
) -> Judgement:
    """Find what the metrics need of a trace before anything of it is read; selection as of maps: keep, recipe, layers and the rest.

    Masks are the trace's own unless others are named.

    Raises   InvalidInput for an unknown metric, a metric whose mask or truth the trace does not have, masks of another size;
             UnknownSelection
    """
    rows = tuple(metric(name) for name in ([names] if isinstance(names, str) else names))
    if not rows:
        raise InvalidInput(f"no metric was asked for; there are {', '.join(METRICS)}")
    wanted = {row.of for row in rows}
    needed: set[Against] = {row.against for row in rows} | ({"mask"} if "g2r_masked" in wanted else set())
    pictures: dict[Against, Any] = {}
    if "mask" in needed:
        pictures["mask"] = load_mask(trace, mask or _own_mask(trace, "mask", f"mask_{selection.get('sample', 0)}", "mask"))
    maps: dict[Of, xr.DataArray] = {of: ASK[of](trace, pictures.get("mask"), dict(selection)) for of in sorted(wanted)}
    if "reference_mask" in needed:
        drawn_on = next(maps[row.of] for row in rows if row.against == "reference_mask")
        own = (f"{MapFacts.of(drawn_on).image}_mask", "reference_mask")
        pictures["reference_mask"] = load_mask(trace, reference_mask or _own_mask(trace, "reference_mask", *own))
    targets: dict[Against, Any] = {"truth": require_truth(trace)} if "truth" in needed else {}
    for row in rows:
        if row.against in pictures:
            # Looks lie on the reference with their last axes, but the mask is of the patches that look.
            targets[row.against] = binarize(pictures["mask"]) if row.of == "looks" else fit_mask(maps[row.of], pictures[row.against])
    return Judgement(rows, maps, targets)


def judge(trace: Trace, names: Iterable[str], **options: Any) -> dict[str, xr.DataArray]:
    """Metrics of a trace, all from one pass; options as `plan_metrics`.

    Raises   as `plan_metrics`
    """
    plan = plan_metrics(trace, names, **options)
    computed = compute(plan.maps)[0]  # type: ignore[no-untyped-call]
    return plan.scores(computed)


def available(trace: Trace, **selection: Any) -> list[str]:
    """Names of the metrics whose masks and truth the trace itself brings; selection as of `plan_metrics`."""
    found = []
    for name in METRICS:
        try:
            plan_metrics(trace, [name], **selection)
        except (InvalidInput, LookupError):
            continue
        found.append(name)
    return found


def _rows(trace: Trace, mask: Any, selection: dict[str, Any]) -> xr.DataArray:
    selection.pop("recipe", None)  # rows of P are the model's own, whatever maps are made of them
    return row_entropy(trace, **selection)


ASK: Final[dict[Of, Callable[[Trace, Any, dict[str, Any]], xr.DataArray]]] = {
    "r2g": lambda trace, mask, selection: r2g(trace, **selection),
    "g2r": lambda trace, mask, selection: g2r(
        trace, **{**selection, "recipe": get_recipe(selection.get("recipe", "i2am"), query_mask=False)}
    ),
    "g2r_masked": lambda trace, mask, selection: g2r(trace, query_mask=mask, **selection),
    "looks": lambda trace, mask, selection: looks(trace, **selection),
    "rows": _rows,
}


def _own_mask(trace: Trace, role: ImageRole, *preferred: str) -> str:
    name = find_mask(trace, role, *preferred)
    if name is None:
        what = "mask of the generated image" if role == "mask" else "mask of the reference"
        raise InvalidInput(f"{trace.path} holds no {what}, which the metric needs; give one with {option(role)}")
    return name
