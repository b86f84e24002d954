"""R2G, G2R, SRAM and maps of tokens: what came from where, over whatever axes are kept.

    R2G   m(x)  = mean over reference tokens r of G[x,r]      which parts of the generated image came from the reference
    G2R   m(r)  = mean over generated positions x of P[x,r]   which parts of the reference were used
    SRAM  m(r)  = P[x0,r]                                     where one patch looked
    token m(x)  = P[x,r], mean over some tokens r             where a word, a token of a reference or a probe is attended to

Maps of calls are summed over time and averaged over (layer, head) pairs, unless the recipe says otherwise. Everything is lazy; maps
that are computed together (`dask.compute(r2g(trace), g2r(trace))`) read each file once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import xarray as xr

from ...schema.errors import InvalidInput
from ...schema.selection import Selector
from ..aggregation.build import build_map
from ..aggregation.request import MapRequest, request_map
from ..aggregation.selection import Heads, Positions, Select, pick_positions
from ..aggregation.weights import Mask, only_frames, pick_frames, recipe_mask, weighting
from ..methods.recipes import Recipe, Weight, get_recipe
from ..trace.reader import Trace
from ..trace.softmax import Columns


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
    weight: Weight | None = None,
) -> xr.DataArray:
    """Reference to generated: which parts of the generated image came from the reference.

        trace = open_trace("run.zarr")
        map = r2g(trace, keep=("time", "layer"), time_groups=5, layers="*up_blocks*")
        map.compute().plot(row="time", col="layer", yincrease=False)

    `keep`         axes to keep apart, of time, layer and head; none is one map of everything
    `time_groups`  with time kept, split the steps into so many groups, the noisiest first; None is one for each step
    `steps`        evaluations of the denoiser in order of execution, from 0: 3, [0, 2], slice(0, 10), "::5"; None is all
    `layers`       positions, names, globs ("*up_blocks*") or "re:" and a regular expression, one or several; None leaves it to the recipe
    `heads`        heads from 0, the same in every layer, or layer by layer: {"up*": [0, 3], 7: {1: 0.5}}, 1 at half weight; None is all
    `sample`       which generated image, from 0
    `branch`       guidance branch, cond or uncond; None leaves it to the recipe
    `group`        token group; None is the reference's only one
    `specials`     whether tokens without a place (CLS) count among the reference's; None leaves it to the recipe
    `frames`       those of a video's map that are handed out; the softmax runs over all
    `recipe`       published method, or one with changed fields: "daam", get_recipe("daam", clamp=False)
    `weight`       what softmax values are multiplied by: attention (1), norm, contribution or knock-out; None leaves it to the recipe

    Dims     kept axes in the order time, layer, head, then ([frame,] y, x) on the recipe's grid; lazy, float64
    Range    >= 0, of contributions any; NaN where no call is left to average; attribute `column_mass_lost`: what the encoding took from
             one column at worst
    Raises   UnknownSelection, InvalidInput
    Source   Park et al., I2AM, ICLR 2025; v1 prints the other softmax axis (Eq. 4)
    """
    select = Select(layers=layers, steps=steps, heads=heads, sample=sample, branch=branch, group=group)
    request = request_map(
        trace, "r2g", select, recipe=get_recipe(recipe, weight=weight), keep=keep, time_groups=time_groups, specials=specials
    )
    shown = None if frames is None else list(pick_frames(trace, frames))
    found = build_map(request, column_mass_lost=_lost_columns(request))
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
    weight: Weight | None = None,
) -> xr.DataArray:
    """Generated to reference: which parts of the reference were used. What `r2g` takes too means the same here.

        map = g2r(open_trace("run.zarr"), query_mask="mask")

    Specials (CLS) have no place on the reference and are left out. `query_mask` weighs the generated positions: the name of a mask
    in the trace, or an array (y, x) of the generated image's size; None leaves it to the recipe. As published, the sum is divided by
    all positions. In a video the mean runs over all frames, or over `frames` alone, counted on the latent; a mask may have frames too.

    Dims     kept axes in the order time, layer, head, then (ref_y, ref_x), or (token,) if the tokens have no grid; lazy, float64
    Range    >= 0, of contributions any; NaN where no call is left to average
    Raises   UnknownSelection, InvalidInput
    Source   Park et al., I2AM, ICLR 2025; the mask: v1, Eq. 17
    """
    select = Select(layers=layers, steps=steps, heads=heads, sample=sample, branch=branch, group=group)
    request = request_map(trace, "g2r", select, recipe=get_recipe(recipe, weight=weight), keep=keep, time_groups=time_groups)
    mask = recipe_mask(trace, request.chosen.sample, request.row) if query_mask is None else query_mask
    weights = only_frames(trace, request.chosen.layers, frames, weighting(trace, mask))
    attrs: dict[str, object] = {"query_mask": mask if isinstance(mask, str) else "array"} if mask is not None else {}
    attrs |= {} if frames is None else {"frames": list(pick_frames(trace, frames))}
    return build_map(replace(request, weights=weights), **attrs)


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
    weight: Weight | None = None,
) -> xr.DataArray:
    """Specific-reference attention: where in the reference the patch `at` (row, column on the latent grid) looked.

        map = sram(open_trace("run.zarr"), at=(6, 7))

    What `r2g` takes too means the same here. A patch of a video is (frame, row, column). In a coarser layer it is the cell that contains
    the patch. Reads one inner chunk of each file.

    Dims     kept axes in the order time, layer, head, then (ref_y, ref_x), or (token,) if the tokens have no grid; lazy, float64
    Range    >= 0, of contributions any; NaN where no call is left to average
    Raises   UnknownSelection, InvalidInput
    Source   Park et al., I2AM, ICLR 2025 (v1: Eq. 16)
    """
    select = Select(layers=layers, steps=steps, heads=heads, sample=sample, branch=branch, group=group)
    request = request_map(trace, "sram", select, recipe=get_recipe(recipe, weight=weight), keep=keep, time_groups=time_groups)
    return build_map(replace(request, at=at), at=tuple(int(i) for i in at))


def token_map(
    trace: Trace,
    tokens: Positions = None,
    *,
    group: str | None = None,
    probe: str | None = None,
    among: Positions = None,
    keep: Iterable[str] | str = (),
    time_groups: int | None = None,
    steps: Positions = None,
    layers: Selector | Iterable[Selector] | None = None,
    heads: Heads = None,
    sample: int = 0,
    branch: str | None = None,
    recipe: str | Recipe | None = None,
    weight: Weight | None = None,
) -> xr.DataArray:
    """Where on the generated image some tokens are attended to. What `r2g` takes too means the same here.

        map = token_map(open_trace("run.zarr"), [4, 5], keep="token")

    `tokens` are positions in the group, or in the probe, from 0, specials included: all of them if None. They are reduced as the
    recipe says (daam: mean, as over the pieces of a word) or, with "token" in `keep`, each has a map. `group` is the trace's only text
    if None. With `probe`, the keys are the probe's, which the run never saw, and the softmax over keys runs over its tokens `among`,
    all if None; this needs the queries, hence encoding factors. Without, `among` makes the softmax run over some tokens of the group.
    The recipe is `daam`, or `ovam` for a probe, where none is named.

    Dims     kept axes in the order time, layer, head, token, then ([frame,] y, x) on the recipe's grid; lazy, float64
    Range    >= 0, of contributions any; NaN where no call is left to average
    Raises   UnknownSelection, InvalidInput
    Source   Tang et al., DAAM, ACL 2023; probes: Marcos-Manchon et al., OVAM, CVPR 2024
    """
    axes = (keep,) if isinstance(keep, str) else keep
    each = isinstance(axes, Iterable) and "token" in (axes := tuple(axes))
    kept = tuple(axis for axis in axes if axis != "token") if each else axes
    select = Select(layers=layers, steps=steps, heads=heads, sample=sample, branch=branch, group=group)
    row = get_recipe(recipe or ("ovam" if probe else "daam"), weight=weight)
    request = request_map(trace, "tokens", select, recipe=row, keep=kept, time_groups=time_groups, specials=True, role="text", probe=probe)
    groups = request.chosen.groups
    most = min(there.tokens for there in groups)
    numbers = pick_positions(tokens, most, "token")
    alone = numbers if row.renormalize and among is None and row.r2g == "keys" else None
    over = alone if among is None else pick_positions(among, most, "token")
    if over is not None and (missing := sorted(set(numbers) - set(over))):
        raise InvalidInput(f"token {missing[0]} has a map only if it is one of those that the softmax runs over; add it to among")
    columns = []
    for there in groups:
        beside = tuple(there.start + n for n in (range(there.tokens) if over is None else over))
        own = tuple(there.start + n for n in numbers)
        columns.append(Columns(row.r2g, own, beside if over is not None or probe else None, probe is not None))
    request = replace(request, columns=tuple(columns), each=each)
    facts = {"probe": probe} if probe else {}
    found = build_map(request, column_mass_lost=_lost_columns(request), tokens=list(numbers), **facts)
    return found.assign_coords(token=list(numbers)) if each else found


def _lost_columns(request: MapRequest) -> float:
    """What the encoding took from one column of G at worst; with the softmax over keys maps are made of rows, which are whole."""
    return max(request.trace.lost[index] for index in request.chosen.layers) if request.row.r2g == "generated" else 0.0
