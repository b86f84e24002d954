"""Masks by name or file, and the scores that need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ..aggregation.select import Select
from ..aggregation.selection import choose, has_places
from ..facts import MapFacts
from ..inspection.precision import precision_note
from ..maps.attribution import g2r, r2g
from ..methods.recipes import get_recipe
from ..metrics.imacs import PENALTY, imacs
from ..metrics.masks import fit_mask
from ..metrics.placement import THRESHOLD
from ..trace.images import find_mask, load_mask
from ..trace.reader import Trace

SCORES: Final = ("imacs_g", "imacs_r", "imacs_r_plain")


@dataclass(frozen=True, slots=True)
class Scoring:
    """What IMACS needs of a trace, unread: lazy maps, and the mask that each is scored against."""

    maps: dict[str, xr.DataArray]
    """`imacs_g`: R2G; `imacs_r`: G2R of the positions in the mask (v1 Eq. 17); `imacs_r_plain`: G2R of all."""
    targets: dict[str, NDArray[np.bool_]]
    """By the same names; a map whose mask is missing is in neither."""
    facts: dict[str, Any]
    """Names of the masks, and what the maps are made of."""

    def scores(
        self, computed: dict[str, xr.DataArray], penalty: float = PENALTY, threshold: float = THRESHOLD, pre_mask: bool = False
    ) -> dict[str, float | None]:
        """IMACS of each computed map; None where a mask is missing. `pre_mask` is for the reference's alone."""
        before = {name: pre_mask and name != "imacs_g" for name in self.targets}
        found = {name: float(imacs(computed[name], target, penalty, threshold, before[name])) for name, target in self.targets.items()}
        return {name: found.get(name) for name in SCORES}


def plan_scores(trace: Trace, mask: str | None = None, reference_mask: str | None = None, **selection: Any) -> Scoring:
    """Find and check the masks, the trace's own unless others are given, before anything is read.

    Raises   InvalidInput for masks that cannot be meant, UnknownSelection for what the trace does not have
    """
    chosen = choose(trace, Select.of(selection), recipe=selection.get("recipe"))
    row = get_recipe(selection.get("recipe", "i2am"))
    on_reference = has_places(chosen) and row.g2r != "none"
    plain = g2r(trace, **{**selection, "recipe": get_recipe(row, query_mask=False)}) if on_reference else None
    whole = r2g(trace, **selection)
    where = mask or find_mask(trace, "mask", f"mask_{chosen.sample}", "mask")
    used = reference_mask or (find_mask(trace, "reference_mask", *_own_masks(plain)) if plain is not None else None)
    if used is not None and plain is None:
        raise InvalidInput(f"the {chosen.groups[0].name} tokens have no place on a picture, so no mask of it can score them; leave it out")
    maps, targets = {}, {}
    if where is not None:
        pixels = load_mask(trace, where)
        maps["imacs_g"] = whole
        targets["imacs_g"] = fit_mask(whole, pixels)
    if used is not None and plain is not None:
        maps["imacs_r_plain"] = plain
        targets["imacs_r_plain"] = fit_mask(plain, load_mask(trace, used))
        if where is not None:
            maps["imacs_r"] = g2r(trace, **selection, query_mask=pixels)
            targets["imacs_r"] = targets["imacs_r_plain"]
    image = MapFacts.of(plain).image if plain is not None else None
    facts = {"mask": where, "reference_mask": used, **{key: whole.attrs.get(key) for key in ("recipe", "group")}, "image": image}
    note = precision_note(trace, chosen.layers) if MapFacts.of(whole).column_mass_lost else None
    return Scoring(maps, targets, {**facts, "calls": MapFacts.of(whole).calls, "note": note})


def _own_masks(map: xr.DataArray) -> tuple[str, str]:
    return f"{MapFacts.of(map).image}_mask", "reference_mask"


def score(
    trace: Trace,
    mask: str | None = None,
    reference_mask: str | None = None,
    *,
    penalty: float = PENALTY,
    threshold: float = THRESHOLD,
    pre_mask: bool = False,
    **selection: Any,
) -> dict[str, Any]:
    """IMACS of the generated image and of the reference, in one pass over the trace.

    `pre_mask` multiplies maps of the reference by its mask before they are normalised, as the released code does.

    Raises   as `plan_scores`; InvalidInput if there is no mask at all
    """
    scoring = plan_scores(trace, mask, reference_mask, **selection)
    if not scoring.maps:
        which = f"{option('mask')} and {option('reference_mask')}"
        raise InvalidInput(f"{trace.path} holds no masks that can be used; give {which}, pictures of the sizes that `i2am info` shows")
    computed = compute(scoring.maps)[0]  # type: ignore[no-untyped-call]
    scores = scoring.scores(computed, penalty, threshold, pre_mask)
    return {"trace": trace.id, **scores, "penalty": penalty, "threshold": threshold, "pre_mask": pre_mask, **scoring.facts}
