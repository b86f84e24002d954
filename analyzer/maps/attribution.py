"""R2G, G2R and SRAM: what came from where, over whatever axes are kept.

    R2G   m(x)  = mean over reference tokens r of G[x,r]      which parts of the generated image came from the reference
    G2R   m(r)  = mean over generated positions x of P[x,r]   which parts of the reference were used
    SRAM  m(r)  = P[x0,r]                                     where one patch looked

Maps of calls are summed over time and averaged over (layer, head) pairs, unless the recipe says otherwise. Everything is lazy; maps
that are computed together (`dask.compute(r2g(trace), g2r(trace))`) read each file once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import xarray as xr

from ...schema.errors import InvalidInput
from ...schema.messages import option
from ...schema.selection import Selector
from ..aggregation.build import (
    REFERENCE_DIMS,
    add_exact,
    add_patches,
    add_scans,
    apart,
    exact_lift,
    generated_grid,
    generated_lift,
    placed_tokens,
    places_like,
    reference_shape,
    token_lift,
)
from ..aggregation.reduction import pick_patch, pick_token
from ..aggregation.request import Question, Sources, build_map, question
from ..aggregation.select import Heads, Positions, Select
from ..aggregation.weights import Mask, only_frames, pick_frames, recipe_mask, weighting
from ..inspection.precision import column_mass_lost
from ..methods.recipes import Recipe
from ..trace.images import find_image
from ..trace.reader import Trace
from ..trace.softmax import Columns
from ..trace.views import place_dims


def r2g(
    trace: Trace,
    *,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    steps: Positions = None,
    layers: Selector | Iterable[Selector] | None = None,
    heads: Heads = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
    specials: bool | None = None,
    frames: Positions = None,
    recipe: str | Recipe = "i2am",
) -> xr.DataArray:
    """Reference to generated: which parts of the generated image came from the reference.

    `specials` says whether tokens without a place (CLS) count among the reference's; None leaves it to the recipe. `heads` may name
    them layer by layer: `{"up*": [0, 3], 7: 1}`. `frames` are those of a video's map that are handed out; the softmax runs over all.

    Dims     kept axes in the order time, layer, head, then ([frame,] y, x) on the recipe's grid; lazy, float64
    Range    >= 0; NaN where no call is left to average; attribute `column_mass_lost`: what the encoding took from one column at worst
    Raises   UnknownSelection, InvalidInput
    Source   Park et al., I2AM, ICLR 2025; v1 prints the other softmax axis (Eq. 4)
    """
    select = Select(layers=layers, steps=steps, heads=heads, sample=sample, branch=branch, group=group)
    asked = question(trace, "r2g", select, recipe, keep, time_groups)
    row, target, sources = asked.row, generated_grid(asked), Sources()
    shown = None if frames is None else list(pick_frames(trace, frames))
    for index, tokens, places in asked.layers:
        counted = range(tokens.start if (row.specials if specials is None else specials) else tokens.start + tokens.specials, tokens.stop)
        if not counted:
            raise InvalidInput(
                f"token group {tokens.name} has nothing but specials in layer {trace.layers[index].name}; take {option('specials', True)}"
            )
        grid, alone = places_like(trace.layers[index], target), row.renormalize and row.r2g == "keys"
        if alone or apart(row, "token", grid, target):
            columns = Columns(row.r2g, tuple(counted), tuple(counted) if alone else None)
            add_exact(asked, sources, index, exact_lift(asked, columns, places, "tokens", grid, target))
        else:
            add_scans(asked, sources, index, None, generated_lift(asked, index, counted, places, target))
    image = find_image(trace, f"generated_{asked.chosen.sample}", "generated")
    found = build_map(asked, sources, place_dims(target), target, image, column_mass_lost=lost_columns(asked))
    return found if shown is None else found.isel(frame=shown).assign_attrs(frames=shown)


def g2r(
    trace: Trace,
    *,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    steps: Positions = None,
    layers: Selector | Iterable[Selector] | None = None,
    heads: Heads = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
    query_mask: Mask = None,
    frames: Positions = None,
    recipe: str | Recipe = "i2am",
) -> xr.DataArray:
    """Generated to reference: which parts of the reference were used.

    Specials (CLS) have no place on the reference and are left out. `query_mask` weighs the generated positions: the name of a mask
    in the trace, or an array (y, x) of the generated image's size; None leaves it to the recipe. As published, the sum is divided by
    all positions. In a video the mean runs over all frames, or over `frames` alone, counted on the latent; a mask may have frames too.

    Dims     kept axes in the order time, layer, head, then (ref_y, ref_x), or (token,) if the tokens have no grid; lazy, float64
    Range    >= 0; NaN where no call is left to average
    Raises   UnknownSelection, InvalidInput
    Source   Park et al., I2AM, ICLR 2025; the mask: v1, Eq. 17
    """
    select = Select(layers=layers, steps=steps, heads=heads, sample=sample, branch=branch, group=group)
    asked = question(trace, "g2r", select, recipe, keep, time_groups)
    row, target, sources = asked.row, reference_shape(asked), Sources()
    mask = recipe_mask(trace, asked.chosen.sample, row) if query_mask is None else query_mask
    which, extra = only_frames(trace, asked.chosen.layers, frames, weighting(trace, mask))
    for index, tokens, places in asked.layers:
        counted, alone = placed_tokens(tokens), row.renormalize and row.g2r == "keys"
        positions = math.prod(trace.layers[index].places)
        if alone or apart(row, "query", tokens.grid, (target[0], target[-1])):
            columns = Columns("generated" if row.g2r == "generated" else "keys", tuple(counted), tuple(counted) if alone else None)
            add_exact(asked, sources, index, exact_lift(asked, columns, places, "positions", tokens.grid, target), which, extra)
        else:
            divisor = positions if row.queries == "mean" else 1
            add_scans(asked, sources, index, extra, token_lift(asked, pick_token, (which,), tokens, places, divisor, target))
    attrs: dict[str, object] = {"query_mask": mask if isinstance(mask, str) else "array"} if mask is not None else {}
    attrs |= {} if frames is None else {"frames": list(pick_frames(trace, frames))}
    return _on_reference(asked, sources, target, **attrs)


def sram(
    trace: Trace,
    at: tuple[int, ...],
    *,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    steps: Positions = None,
    layers: Selector | Iterable[Selector] | None = None,
    heads: Heads = None,
    sample: int = 0,
    branch: str | None = None,
    group: str | None = None,
    recipe: str | Recipe = "i2am",
) -> xr.DataArray:
    """Specific-reference attention: where in the reference the patch `at` (row, column on the latent grid) looked.

    A patch of a video is (frame, row, column). In a coarser layer it is the cell that contains the patch. Reads one inner chunk of
    each file.

    Dims     kept axes in the order time, layer, head, then (ref_y, ref_x), or (token,) if the tokens have no grid; lazy, float64
    Range    >= 0; NaN where no call is left to average
    Raises   UnknownSelection, InvalidInput
    Source   Park et al., I2AM, ICLR 2025 (v1: Eq. 16)
    """
    select = Select(layers=layers, steps=steps, heads=heads, sample=sample, branch=branch, group=group)
    asked = question(trace, "sram", select, recipe, keep, time_groups)
    target, sources = reference_shape(asked), Sources()
    for index, tokens, places in asked.layers:
        among = tuple(placed_tokens(tokens)) if asked.row.renormalize and asked.row.g2r == "keys" else None
        add_patches(asked, sources, index, at, among, token_lift(asked, pick_patch, (), tokens, places, 1, target))
    return _on_reference(asked, sources, target, at=tuple(int(i) for i in at))


def lost_columns(asked: Question) -> float:
    """What the encoding took from one column of G at worst; with the softmax over keys maps are made of rows, which are whole."""
    lost = column_mass_lost(asked.trace)
    return max(lost[index] for index in asked.chosen.layers) if asked.row.r2g == "generated" else 0.0


def _on_reference(asked: Question, sources: Sources, target: tuple[int, ...], **attrs: object) -> xr.DataArray:
    image = find_image(asked.trace, asked.chosen.groups[0].image, "reference")
    return build_map(asked, sources, REFERENCE_DIMS if len(target) == 2 else ("token",), target, image, **attrs)
