"""Metrics as rows: which map each judges, against what, and with which function; and all that are asked of a trace in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeAlias, Unpack, get_args

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import guess, option
from ...schema.trace import Image
from ..aggregation.selection import MapOptions, Select, Selection, SelectOptions, choose, has_places
from ..inspection.info import caution
from ..inspection.truth import find_truth, require_truth
from ..maps.attribution import g2r, r2g
from ..maps.copying import find_painted, repaint
from ..maps.heatmap import scored_picture
from ..maps.looks import looks, row_entropy
from ..methods.recipes import Recipe, Weight, get_recipe
from ..metrics.boxes import box_iou, random_box_iou, whole_box_iou
from ..metrics.copying import score_copies
from ..metrics.entropy import concentration, entropy
from ..metrics.masks import binarize, fit_mask
from ..metrics.overlap import ImacsOptions, imacs, iou, miou
from ..metrics.placement import over_frames
from ..metrics.pointing import attention_variation, pck, pointing_error
from ..trace.images import find_image, key_image, load_mask, own_mask, own_reference_mask
from ..trace.reader import Trace

Need: TypeAlias = Literal["mask", "reference_mask", "truth", "places", "image", "tokens", "painted", "attention", "unsigned"]
"""What a trace must have: a mask, the truth, tokens with a place that the recipe maps, an image and no video, two tokens or more,
pictures of what was generated and of the reference, attention, not maps alone, and a recipe whose maps have one sign."""
MASKS: Final = ("mask", "reference_mask")
Of: TypeAlias = Literal["r2g", "g2r", "g2r_masked", "looks", "copies", "rows"]
"""What is judged: R2G; G2R of all positions; G2R of those in the mask (v1, Eq. 17); SRAM of every patch; the colours of where each
patch looked; rows of P, call by call."""
Against: TypeAlias = Literal["", "mask", "reference_mask", "truth", "painted"]
"""What it is held against: nothing, a mask of the generated image or of the reference, the true place or the colour of every patch."""

NEEDS: Final[dict[Of, tuple[Need, ...]]] = {
    "r2g": (),
    "g2r": ("places",),
    "g2r_masked": ("places", "mask"),
    "looks": ("places", "image", "attention"),
    "copies": ("places", "image", "attention"),
    "rows": ("tokens", "attention"),
}


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
    settings: tuple[str, ...] = ()
    """What can be set."""
    cut: bool = False
    """Whether it scores the recipe's picture as it is drawn, cut at the recipe's threshold; the others have thresholds of their own."""
    unsigned: bool = False
    """Whether it takes the map for a distribution, which has no numbers under 0."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the trace must have."""
        return (*NEEDS[self.of], *([self.against] if self.against else []), *(("unsigned",) if self.unsigned else ()))


IMACS: Final = ("imacs_g", "imacs_r", "imacs_r_plain")
IMACS_R: Final = ("penalty", "threshold", "pre_mask")
METRICS: Final = {
    row.name: row
    for row in (
        Metric("imacs_g", "r2g", "mask", imacs, "higher", "R2G against the mask", ("penalty", "threshold")),
        Metric("imacs_r", "g2r_masked", "reference_mask", imacs, "higher", "G2R of masked positions against the reference mask", IMACS_R),
        Metric("imacs_r_plain", "g2r", "reference_mask", imacs, "higher", "G2R of all positions against the reference mask", IMACS_R),
        Metric("iou_g", "r2g", "mask", iou, "higher", "overlap of R2G above 0.4 and the mask"),
        Metric("iou_r", "g2r_masked", "reference_mask", iou, "higher", "overlap of masked G2R above 0.4 and the reference mask"),
        Metric("miou_g", "r2g", "mask", miou, "higher", "mean overlap of R2G and the mask over thresholds 0.3, 0.4, 0.5"),
        Metric("miou_r", "g2r_masked", "reference_mask", miou, "higher", "mean overlap of masked G2R and the reference mask"),
        Metric("box_iou_g", "r2g", "mask", box_iou, "higher", "overlap of the boxes of R2G and of the mask", cut=True),
        Metric("box_iou_r", "g2r_masked", "reference_mask", box_iou, "higher", "overlap of the boxes of masked G2R and its mask", cut=True),
        Metric("whole_box_iou", "r2g", "mask", whole_box_iou, "", "overlap of the whole picture and the box of the mask"),
        Metric("random_box_iou", "r2g", "mask", random_box_iou, "", "mean overlap of random boxes and that of the mask"),
        Metric("pck", "looks", "truth", pck, "higher", "patches that look most at where they truly come from"),
        Metric("pointing_error", "looks", "truth", pointing_error, "lower", "mean distance of where a patch looks from the truth"),
        Metric("attention_variation", "looks", "mask", attention_variation, "", "how far apart neighbouring masked patches look"),
        Metric("copy_score", "copies", "painted", score_copies, "higher", "colours of where patches looked against those they have"),
        Metric("copy_control", "copies", "painted", partial(score_copies, control="turned"), "", "the same by chance: copies turned"),
        Metric("entropy_g", "r2g", "", entropy, "", "evenness of R2G over the generated image", unsigned=True),
        Metric("entropy_r", "g2r", "", entropy, "", "evenness of G2R over the reference", unsigned=True),
        Metric("concentration_g", "r2g", "", concentration, "", "share of R2G in its strongest tenth", unsigned=True),
        Metric("concentration_r", "g2r", "", concentration, "", "share of G2R in its strongest tenth", unsigned=True),
        Metric("row_entropy", "rows", "", lambda rows: rows, "", "evenness of single patches' attention over the reference"),
    )
}
"""Metrics that `judge` and `evaluate` know, by name."""


def find_metrics(names: Iterable[str]) -> tuple[Metric, ...]:
    """The rows of those names.

    Raises   InvalidInput listing the names there are, the nearest one first
    """
    asked = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in asked if not isinstance(name, str) or name not in METRICS]:
        raise InvalidInput(f"there is no metric {unknown[0]!r}; {guess(str(unknown[0]), METRICS)}there are {', '.join(METRICS)}")
    if not asked:
        raise InvalidInput(f"no metric was asked for; there are {', '.join(METRICS)}")
    return tuple(METRICS[name] for name in asked)


@dataclass(frozen=True, slots=True)
class Grounds:
    """What the maps of a trace can be held against: its own masks unless the caller names others, and its truth."""

    trace: Trace
    select: Select
    row: Recipe
    named: Mapping[str, str | None]
    """Masks that the caller names, by role."""

    @property
    def chosen(self) -> Selection:
        """The calls of R2G; raises as `choose`."""
        return choose(self.trace, self.select, recipe=self.row)

    @property
    def on_reference(self) -> Selection:
        """The calls of maps on the reference, for which some recipes take other layers; raises as `choose`."""
        return choose(self.trace, self.select, recipe=self.row, on_reference=True)

    @property
    def places(self) -> bool:
        """Whether there are maps on the reference: the tokens have places, and the recipe maps them."""
        return self.row.g2r != "none" and has_places(self.on_reference)

    @property
    def note(self) -> str | None:
        """What to read before trusting R2G, if anything."""
        return caution(self.trace, self.chosen.layers, columns=self.row.r2g == "generated")

    def image(self, role: str) -> Image | None:
        """The picture that a mask of this role is of."""
        if role == "mask":
            return find_image(self.trace, f"generated_{self.select.sample}", "generated")
        return key_image(self.trace, self.on_reference.groups[0], self.select.sample)

    def mask(self, role: str) -> str | None:
        """Name of the mask of a role; None if there is none.

        Raises   UnknownSelection if the trace has several and none is named
        """
        if self.named[role]:
            return self.named[role]
        if role == "mask" or self.on_reference.groups[0].role == "self":
            return own_mask(self.trace, self.select.sample)
        image = self.image(role)
        return own_reference_mask(self.trace, image.name if image else None)

    def load(self, role: str) -> NDArray[np.uint8]:
        """The mask of a role.

        Dims     (row, column), 0 to 255
        Raises   InvalidInput if there is none; as `mask` and `load_mask`
        """
        name = self.mask(role)
        if name is None:
            what = "mask of the generated image" if role == "mask" else "mask of the reference"
            raise InvalidInput(f"{self.trace.path} holds no {what}, which the metric needs; give one with {option(role)}")
        return load_mask(self.trace, name)

    def fits(self, role: str) -> bool:
        """Whether there is a mask of a role that can be used: of its picture's size, neither empty nor full."""
        image = self.image(role)
        try:
            shape = binarize(self.load(role)).shape
        except (InvalidInput, UnknownSelection):
            return False
        return image is None or shape == (image.height, image.width)

    def has(self, need: Need) -> bool:
        """Whether the trace has what a metric needs; a mask need not fit."""
        if need in MASKS:
            return self.mask(need) is not None
        if need == "truth":
            truth = find_truth(self.trace)
            return truth is not None and bool(truth.known.any())
        if need == "tokens":
            return all(group.tokens - group.specials > 1 for group in choose(self.trace, self.select).groups)
        if need == "unsigned":
            return self.row.weight != "contribution"
        if need == "attention":
            return not self.trace.record.maps_only
        if need == "painted":
            return self.image("mask") is not None and self.image("reference_mask") is not None
        return self.places if need == "places" else not self.trace.latent_frames


@dataclass(frozen=True, slots=True)
class Judgement:
    """Metrics of a trace, unread: the lazy maps they need, each once, and what these are held against."""

    rows: tuple[Metric, ...]
    maps: dict[Of, xr.DataArray]
    """Compute them together: `dask.compute(judgement.maps)`; they share one pass over the trace."""
    targets: dict[Against, Any]
    settings: ImacsOptions
    grounds: Grounds

    def scores(self, computed: Mapping[Any, xr.DataArray]) -> dict[str, xr.DataArray]:
        """Each metric of the computed maps; of a video the mean over its frames.

        A mask scores the picture that the recipe makes of the map, anything else the map.

        Dims     -> (kept axes), by name of metric
        Raises   InvalidInput if the trace has no mask for any of them
        """
        if not self.rows:
            which = f"{option('mask')} and {option('reference_mask')}, pictures of the sizes that `i2am info` shows"
            raise InvalidInput(f"{self.grounds.trace.path} holds no masks that can be used; give {which}")
        found = {}
        for row in self.rows:
            map, against = computed[row.of], [self.targets[row.against]] if row.against else []
            settings: dict[str, Any] = {name: value for name, value in self.settings.items() if name in row.settings}
            if row.against in MASKS and row.of != "looks":
                map = scored_picture(map, *against, pre_mask=settings.pop("pre_mask", False), cut=row.cut)
            found[row.name] = over_frames(row.function(map, *against, **settings))
        return found


def plan_metrics(
    trace: Trace,
    names: Iterable[str],
    *,
    mask: str | None = None,
    reference_mask: str | None = None,
    truth: Any = None,
    settings: ImacsOptions | None = None,
    optional: bool = False,
    recipe: str | Recipe = "i2am",
    weight: Weight | None = None,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    **options: Unpack[SelectOptions],
) -> Judgement:
    """Find what the metrics need of a trace before anything of it is read.

    Masks and truth are the trace's own unless others are given. `settings` are those of IMACS. With `optional`, metrics whose masks or
    places the trace does not have are left out.

    Raises   InvalidInput for an unknown metric, a metric whose mask or truth the trace does not have, masks of another size;
             UnknownSelection
    """
    rows = find_metrics(names)
    named = {"mask": mask, "reference_mask": reference_mask}
    grounds = Grounds(trace, Select.of(options), get_recipe(recipe, weight=weight), named)
    asked: MapOptions = {"recipe": grounds.row, "weight": None, "keep": keep, "time_groups": time_groups, **grounds.select.options()}
    if optional:
        if reference_mask is not None and not grounds.places:
            name = grounds.chosen.groups[0].name
            raise InvalidInput(f"the {name} tokens have no place on a picture, so no mask of it can score them; leave it out")
        rows = tuple(row for row in rows if all(grounds.has(need) for need in row.needs))
    pixels = {role: grounds.load(role) for role in MASKS if any(role in row.needs for row in rows)}
    maps: dict[Of, xr.DataArray] = {}
    targets: dict[Against, Any] = {}
    for row in rows:
        if row.of not in maps:
            maps[row.of] = ASK[row.of](trace, pixels.get("mask"), asked)
        if row.against == "truth":
            targets["truth"] = require_truth(trace, truth)
        elif row.against == "painted":
            targets["painted"] = find_painted(trace, grounds.select.sample, mask)
        elif row.against:
            # Looks lie on the reference with their last axes, but the mask is of the patches that look.
            mine = pixels[row.against]
            targets[row.against] = binarize(mine) if row.of == "looks" else fit_mask(maps[row.of], mine)
    return Judgement(rows, maps, targets, settings or {}, grounds)


def judge(
    trace: Trace,
    names: Iterable[str],
    *,
    mask: str | None = None,
    reference_mask: str | None = None,
    truth: Any = None,
    settings: ImacsOptions | None = None,
    **options: Unpack[MapOptions],
) -> dict[str, xr.DataArray]:
    """Metrics of a trace, all from one pass.

    Raises   InvalidInput for an unknown metric, a metric whose mask or truth the trace does not have, masks of another size;
             UnknownSelection
    """
    plan = plan_metrics(trace, names, mask=mask, reference_mask=reference_mask, truth=truth, settings=settings, **options)
    computed = compute(plan.maps)[0]  # type: ignore[no-untyped-call]
    return plan.scores(computed)


def available(trace: Trace, recipe: str | Recipe = "i2am", weight: Weight | None = None, **options: Unpack[SelectOptions]) -> list[str]:
    """Names of the metrics whose masks, places and truth the trace itself brings.

    Raises   InvalidInput for options that no trace can answer
    """
    grounds = Grounds(trace, Select.of(options), get_recipe(recipe, weight=weight), dict.fromkeys(MASKS))
    try:
        there = {need for need in get_args(Need) if (grounds.fits(need) if need in MASKS else grounds.has(need))}
    except UnknownSelection:  # it has nothing of what is selected
        return []
    return [row.name for row in METRICS.values() if there.issuperset(row.needs)]


ASK: Final[dict[Of, Callable[[Trace, Any, Any], xr.DataArray]]] = {
    "r2g": lambda trace, mask, options: r2g(trace, **options),
    "g2r": lambda trace, mask, options: g2r(trace, **{**options, "recipe": get_recipe(options["recipe"], query_mask=False)}),
    "g2r_masked": lambda trace, mask, options: g2r(trace, query_mask=mask, **options),
    "looks": lambda trace, mask, options: looks(trace, **options),
    "copies": lambda trace, mask, options: repaint(trace, **options),
    # Rows of P are the model's own, whatever maps are made of them; only their weight is the recipe's.
    "rows": lambda trace, mask, options: row_entropy(
        trace, **{**{name: value for name, value in options.items() if name != "recipe"}, "weight": options["recipe"].weight}
    ),
}
"""The map that a metric judges, from the trace, the mask of the generated image, and the keyword arguments of maps."""
