"""From an adapter's few tokens back to the patches they were squeezed out of.

IP-Adapter Plus and SD3's adapter attend to 16 or 64 tokens that a resampler made of all patches of the reference. With the
resampler's attention in the trace, a map over those tokens becomes a map over patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import listed, option
from ..aggregation.selection import find_branch
from ..facts import PLACE, MapFacts, picture_facts
from ..trace.calls import Calls
from ..trace.images import find_image
from ..trace.reader import Trace
from ..trace.views import centres

RESIDUAL: Final = 0.5
"""Share of a token that a block passes on beside its attention: attention and identity count alike."""

Values = NDArray[np.float64]


def token_patches(trace: Trace, group: str, sample: int = 0, branch: int = 0, residual: float = RESIDUAL) -> xr.DataArray:
    """Which patches each token of an adapter was made of, at each step.

    Attention of all blocks is composed as a rollout: means over heads, and of each block `residual` passed on unchanged. It assumes
    that value and feed-forward layers move nothing between tokens, which feed-forward layers obey, and that values do not cancel,
    which nothing guarantees. The learned start of the tokens belongs to no patch and is left out before rows are scaled.

    Dims     (step, token, ref_y, ref_x), computed
    Range    [0, 1]; sums to 1 over patches, less what the encoder's specials (CLS) gave; NaN where the resampler did not run
    Raises   UnknownSelection, InvalidInput
    Source   rollout: Abnar and Zuidema 2020, arXiv 2005.00928, there with a residual of 0.5
    """
    if not 0 <= residual < 1:
        raise InvalidInput(f"the residual is {residual}; expected a share of the token from 0 to below 1")
    indices = _blocks(trace, group)
    patches = trace.layers[indices[0]].groups[0]
    if patches.grid is None:
        raise InvalidInput(f"{trace.layers[indices[0]].name} reads {patches.tokens} tokens without places, so there is nothing to lay out")
    blocks = [Calls.of(trace, index) for index in indices]
    steps = [compose(_attention(blocks, (sample, branch, step)), patches.tokens, residual) for step in range(len(trace.present))]
    placed = np.stack(steps)[..., patches.specials :].reshape(len(steps), -1, *patches.grid)
    coords = {"step": trace.steps["evaluation"], "ref_y": centres(patches.grid[0]), "ref_x": centres(patches.grid[1])}
    attrs = picture_facts(find_image(trace, patches.image or "", ""))
    return xr.DataArray(placed, dims=("step", "token", "ref_y", "ref_x"), coords=coords, attrs=attrs, name="patches")


def carry(trace: Trace, map: xr.DataArray, residual: float = RESIDUAL) -> xr.DataArray:
    """A map over an adapter's tokens (G2R or SRAM) as a map over the reference's patches.

    Each map takes the mean over its own steps of what its tokens were made of: exact where that does not change over steps, as in
    IP-Adapter Plus. SD3's resampler reads the timestep; keep time, one group a step, carry, and sum to be exact there. `residual` is the
    share of a token that each block passes on unchanged.

    Dims     (..., token) -> (..., ref_y, ref_x), float64
    Raises   UnknownSelection, InvalidInput for a map that has no tokens, or others
    """
    if map.dims[-1:] != ("token",):
        raise InvalidInput(
            f"the map has axes {', '.join(str(dim) for dim in map.dims)}; only a map over an adapter's tokens (G2R or SRAM of a token "
            "group without a grid) is carried to patches"
        )
    facts = MapFacts.of(map)
    made_of = token_patches(trace, facts.group or "", facts.sample, find_branch(trace, facts.branch), residual)
    if made_of.sizes["token"] != map.sizes["token"]:
        raise InvalidInput(
            f"the map has {map.sizes['token']} tokens, but the resampler makes {made_of.sizes['token']}; give one reference's map"
        )
    if "time" in map.dims:
        spans = zip(map["first_step"].values, map["last_step"].values, strict=True)
        weights = np.stack([np.nanmean(made_of.values[first : last + 1], axis=0) for first, last in spans])
        operator = xr.DataArray(weights, dims=("time", *made_of.dims[1:]), coords={k: made_of[k] for k in ("ref_y", "ref_x")})
    else:
        operator = made_of.mean("step", skipna=True)
    carried = xr.dot(map.astype(np.float64), operator, dim="token").transpose(*map.dims[:-1], "ref_y", "ref_x")
    kept = {name: value for name, value in map.attrs.items() if name not in PLACE}
    placed: xr.DataArray = carried.assign_attrs({**kept, **made_of.attrs, "residual": residual}).rename(map.name)
    return placed


def compose(attention: Sequence[Values], patches: int, residual: float = RESIDUAL) -> Values:
    """Attention of a resampler's blocks composed, in order.

    Dims     each (token, patches + token), rows summing to 1 -> (token, patches), rows summing to 1
    """
    total = np.zeros((len(attention[0]), patches))
    for block in attention:
        total = residual * total + (1 - residual) * (block[:, :patches] + block[:, patches:] @ total)
    shares: Values = total / total.sum(1, keepdims=True)
    return shares


def _attention(blocks: Sequence[Calls], at: tuple[int, int, int]) -> list[Values]:
    """Mean over heads of each block's P; NaN where a block did not run."""
    found = []
    for calls in blocks:
        shape = (calls.layer.grid[1], calls.layer.tokens)
        if calls.where[at] < 0:
            found.append(np.full(shape, np.nan))
            continue
        found.append(calls.region("probability", at[:2], at[2:])[0].mean(0, dtype=np.float64).reshape(shape))
    return found


def _blocks(trace: Trace, group: str) -> list[int]:
    """The blocks of the resampler that makes a token group, in the order they run."""
    found = [index for index, layer in enumerate(trace.layers) if layer.queries == group]
    if not found:
        names = dict.fromkeys(layer.queries for layer in trace.layers if layer.is_resampler)
        raise UnknownSelection(
            f"the trace holds no resampler of the tokens {group!r}; it holds those of {listed(names)}; only IP-Adapters that squeeze "
            f"patches into tokens have one (Plus, and SD3's), and {option('layers')} must not leave it out when recording"
        )
    return found
