"""Several methods' maps of one recording side by side, and how alike they are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Unpack, get_args

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import option
from ..aggregation.request import Direction, request_map
from ..aggregation.selection import Positions, Select, SelectOptions
from ..facts import MapFacts
from ..methods.recipes import RECIPES, Recipe, Weight, get_recipe
from ..metrics.placement import tells_apart
from ..numerics.resize import bring
from ..numerics.statistics import correlations
from ..trace.reader import Trace
from ..trace.views import centres
from .attribution import g2r, r2g, sram, token_map

DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)


def compare(
    trace: Trace,
    recipes: Iterable[str | Recipe] | str | Recipe | None = None,
    *,
    direction: Direction = "r2g",
    at: tuple[int, ...] | None = None,
    tokens: Positions = None,
    weight: Weight | None = None,
    **options: Unpack[SelectOptions],
) -> xr.Dataset:
    """The maps of several recipes on one grid, the finest of theirs, with every pair's correlation over its cells.

    Without recipes, all that can be asked for here and are not the same everywhere by construction; attribute `left_out` says which are
    not, and why, and `constant` which are the same everywhere. What else chooses calls is as for
    the map functions, `keep` excepted; scans that recipes have in common are done once if all is computed together.

    Dims     map (recipe, [frame,] row, column), pearson and spearman (recipe, other); lazy
    Range    correlations in [-1, 1]; NaN with a map that is constant up to rounding, as those of i2am-v1
    Raises   InvalidInput for fewer than two recipes or one that is named twice; as the map functions
    """
    _check(direction, at, tokens, options)
    rows = [get_recipe(row, weight=weight) for row in (RECIPES.values() if recipes is None else _rows(recipes))]
    maps: dict[str, xr.DataArray] = {}
    left_out: list[str] = []
    constant: list[str] = []
    for row in rows:
        try:
            if direction == "r2g" and _is_constant(trace, row, options):
                constant.append(row.label)
                if recipes is None:
                    raise InvalidInput("its R2G is constant: the mean of a softmax over keys over all of those keys")
            maps[row.label] = _ask(trace, row, direction, at, tokens, options)
        except (InvalidInput, UnknownSelection) as error:
            if recipes is not None:
                raise
            left_out.append(f"{row.label}: {error}")
    if not maps:
        raise InvalidInput(f"no recipe can be asked for {direction} of this trace; {left_out[0]}")
    first = next(iter(maps.values()))
    if first.dims[-1] not in ("x", "ref_x"):
        raise InvalidInput(f"the {MapFacts.of(first).group} tokens have no place on a picture, so there are no maps to lay side by side")
    grid = max((map.shape[-2:] for map in maps.values()), key=lambda shape: (math.prod(shape), shape))
    values = da.stack([_brought(map.data, grid) for map in maps.values()])  # type: ignore[no-untyped-call]
    others = [map.attrs for map in maps.values()]
    attrs = {n: v for n, v in first.attrs.items() if all(type(each.get(n)) is type(v) and each[n] == v for each in others)}
    names = np.array(list(maps), object)
    coords = {"recipe": names, "other": names, **{d: centres(n) for d, n in zip(first.dims, values.shape[1:], strict=True)}}
    # In blocks, not as a delayed call: that would optimise its graph by itself, and scan everything again.
    flat = values.reshape(len(maps), -1).rechunk(-1)
    table = flat.map_blocks(correlate, new_axis=2, chunks=((2,), (len(maps),), (len(maps),)), dtype=np.float64)
    variables = {
        "map": (("recipe", *first.dims), values, attrs),
        "pearson": (("recipe", "other"), table[0], {"long_name": "Pearson correlation over cells"}),
        "spearman": (("recipe", "other"), table[1], {"long_name": "Spearman rank correlation over cells"}),
    }
    facts = {"trace": trace.id, "direction": direction, "left_out": left_out, "constant": constant}
    return xr.Dataset(variables, coords, facts)


def correlate(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every pair's correlation, of values and of ranks; NaN with a map that tells nothing apart.

    Dims     (map, ...) -> (2, map, map)
    """
    flat = maps.reshape(len(maps), 1, -1)
    telling = np.where(tells_apart(flat), flat, np.nan)[:, 0]
    return np.stack([correlations(telling), correlations(stats.rankdata(telling, axis=1, nan_policy="propagate"))])


def _rows(recipes: Iterable[str | Recipe] | str | Recipe) -> list[Recipe]:
    rows = [get_recipe(row) for row in ([recipes] if isinstance(recipes, (str, Recipe)) else recipes)]
    labels = [row.label for row in rows]
    if len(rows) < 2:
        raise InvalidInput(f"a comparison needs two recipes or more, got {', '.join(labels) or 'none'}; there are {', '.join(RECIPES)}")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise InvalidInput(f"recipe {twice[0]} is named twice")
    return rows


def _check(direction: str, at: tuple[int, ...] | None, tokens: Positions, options: SelectOptions) -> None:
    if direction not in DIRECTIONS:
        raise InvalidInput(f"there are no maps called {direction!r}; there are {', '.join(DIRECTIONS)}")
    if (at is None) == (direction == "sram"):
        raise InvalidInput(f"{option('at')} is the patch of sram, which needs one, and of nothing else")
    if tokens is not None and direction != "tokens":
        raise InvalidInput(f"{option('tokens')} chooses what maps of tokens are of; compare those with {option('direction', 'tokens')}")
    if unknown := [name for name in options if name in ("keep", "time_groups")]:
        raise InvalidInput(f"a comparison keeps no axis, so it takes no {option(unknown[0])}; compare steps, layers or heads one by one")


def _ask(
    trace: Trace, row: Recipe, direction: Direction, at: tuple[int, ...] | None, tokens: Positions, options: SelectOptions
) -> xr.DataArray:
    if direction == "tokens":
        return token_map(trace, tokens, recipe=row, **options)
    if at is not None:
        return sram(trace, at, recipe=row, **options)
    return (r2g if direction == "r2g" else g2r)(trace, recipe=row, **options)


def _is_constant(trace: Trace, row: Recipe, options: SelectOptions) -> bool:
    """Whether R2G is the same everywhere by construction, whatever the recording."""
    if row.weight != "attention":
        return False
    request = request_map(trace, "r2g", Select.of(options), recipe=row, keep=(), time_groups=None)
    layers = [trace.layers[index] for index in request.chosen.layers]
    return all(
        columns.softmax == "keys" and len(columns.tokens) == len(columns.among or range(layer.call_tokens or layer.tokens))
        for columns, layer in zip(request.columns, layers, strict=True)
    )


def _brought(map: da.Array, grid: tuple[int, ...]) -> da.Array:
    chunks = (*map.chunks[:-2], *((n,) for n in grid))
    found: da.Array = map.map_blocks(bring, grid, "bilinear", chunks=chunks, dtype=np.float64)  # type: ignore[arg-type]
    return found
