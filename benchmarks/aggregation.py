"""Ways to make one map of the maps of all fifths, layers and heads, and what each is worth against the truth.

Every way is a set of weights (fifth, layer, head). Those that need the truth learn it from half of the pairs and are judged on the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import xarray as xr
from extraction import Finding

from i2am.analyzer.maps.heatmap import heatmap
from i2am.analyzer.methods.recipes import RECIPES
from i2am.analyzer.metrics.overlap import imacs, iou
from i2am.analyzer.metrics.placement import normalize
from i2am.analyzer.metrics.pointing import PLACES, RADIUS, Truth, pck, pointing_error

Kind = Literal["looks", "r2g", "g2r"]
KINDS: Final[tuple[Kind, ...]] = ("looks", "r2g", "g2r")
SELECTED: Final = 6
"""Heads of the selection: as large a share of 28 as 30 are of Stable Diffusion's 128."""
FOLDS: Final = 4
STRENGTHS: Final = tuple(10.0**power for power in range(-5, 2))
"""Of the ridge, in units of the mean square of a feature."""

Weights = dict[Kind, np.ndarray]
"""(fifth, layer, head) of each kind of map."""
Weigh = Callable[[Finding], Weights]
Fit = Callable[[Sequence[Finding]], Weigh]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to aggregate."""

    name: str
    fit: Fit
    """Learn from some pairs how to weigh the maps of another."""
    scaled: bool = False
    """Whether each map is first divided by its mean: G of a coarse layer is larger, as it sums to 1 over fewer positions."""


def pick(fifth: int | None = None, layer: int | None = None, head: int | None = None) -> Fit:
    """Weights that take one fifth, layer or head of all."""

    def weigh(finding: Finding) -> Weights:
        weights = np.zeros(finding.even.shape)
        weights[tuple(slice(None) if at is None else at for at in (fifth, layer, head))] = 1
        return dict.fromkeys(KINDS, weights)

    return lambda findings: weigh


def by_entropy(findings: Sequence[Finding]) -> Weigh:
    """The less even a head's rows are, the more it counts; needs no truth."""
    return lambda finding: dict.fromkeys(KINDS, 1 - finding.even.astype(np.float64))


def by_selection(findings: Sequence[Finding]) -> Weigh:
    """The heads whose patches pointed best in other pairs."""
    scores = np.mean([head_scores(finding) for finding in findings], axis=0)
    chosen = np.zeros(scores.shape)
    chosen.flat[np.argsort(-scores, axis=None, kind="stable")[:SELECTED]] = 1
    return lambda finding: dict.fromkeys(KINDS, np.broadcast_to(chosen, finding.even.shape))


def by_ridge(findings: Sequence[Finding]) -> Weigh:
    """Ridge regression on the truth of other pairs: of where each patch comes from, and of both masks."""
    weights: Weights = {}
    for kind in KINDS:
        moments = [_moments(finding, kind) for finding in findings]
        solved = _solve(moments, _choose_strength(moments)).reshape(findings[0].even.shape[1:])
        weights[kind] = np.broadcast_to(solved, findings[0].even.shape)
    return lambda finding: weights


WAYS: Final = (
    Way("plain mean (I2AM)", pick()),
    Way("mean of maps scaled alike", pick(), scaled=True),
    Way("entropy-weighted", by_entropy, scaled=True),
    Way(f"{SELECTED} heads selected by truth", by_selection, scaled=True),
    Way("ridge regression on truth", by_ridge, scaled=True),
)


def levels(finding: Finding) -> list[Way]:
    """ULAM, then every time group, head and layer by itself."""
    fifths, layers, heads = finding.even.shape
    return [
        Way("ULAM", pick()),
        *(Way(f"TLAM {i + 1} of {fifths}", pick(fifth=i)) for i in range(fifths)),
        *(Way(f"HLAM {i}", pick(head=i)) for i in range(heads)),
        *(Way(f"LLAM {name}", pick(layer=i)) for i, name in enumerate(finding.layers[:layers])),
    ]


def judge_way(way: Way, findings: Sequence[Finding]) -> dict[str, np.ndarray]:
    """Scores of every pair, each judged with weights that were learnt from the other half.

    Dims     -> (pair,) by metric
    """
    halves = (findings[0::2], findings[1::2])
    learnt = [way.fit(half if half else findings) for half in halves]
    scores = [judge_weights(finding, learnt[1 - i % 2](finding), way.scaled) for i, finding in enumerate(findings)]
    return {name: np.array([score[name] for score in scores]) for name in scores[0]}


def judge_weights(finding: Finding, weights: Weights, scaled: bool) -> dict[str, float]:
    """What the maps that some weights make are worth."""
    by_head = weights["looks"].sum(0)
    answers = _scale(finding.answers, 2) if scaled else finding.answers
    return judge_maps(
        finding,
        looks=np.einsum("tlh,tlhpc->pc", weights["looks"], finding.looks),
        answers=np.einsum("lh,lhpyx->pyx", by_head, answers),
        r2g=np.einsum("tlh,tlhyx->yx", weights["r2g"], _scale(finding.r2g, 2) if scaled else finding.r2g),
        g2r=np.einsum("tlh,tlhyx->yx", weights["g2r"], _scale(finding.g2r, 2) if scaled else finding.g2r),
    )


def judge_maps(finding: Finding, looks: np.ndarray, answers: np.ndarray, r2g: np.ndarray, g2r: np.ndarray) -> dict[str, float]:
    """Every metric of one pair's maps; NaN where there is no map.

    Dims     looks (patch, cell), answers (patch, y, x), r2g and g2r (y, x)
    """
    rows, columns = answers.shape[1:]
    side = int(np.sqrt(looks.shape[1]))
    centres = (finding.place + 0.5) / (rows, columns)
    where = xr.DataArray(looks.reshape(len(looks), 1, side, side), dims=PLACES)
    known = Truth(finding.truth[:, None])
    scores = {
        "pck": float(pck(where, known, RADIUS)),
        "pointing_error": float(pointing_error(where, known)),
        "token_pck": _point(answers, centres),
    }
    for name, map, mask in (("g", r2g, finding.mask), ("r", g2r, finding.reference_mask)):
        there = bool(np.isfinite(map).all())
        scores[f"iou_{name}"] = float(iou(map, mask)) if there else np.nan
        scores[f"imacs_{name}"] = float(imacs(map, mask)) if there else np.nan
    return scores


def head_scores(finding: Finding) -> np.ndarray:
    """PCK of each head.

    Dims     -> (layer, head)
    """
    total = finding.looks.sum(0)
    found = np.empty(total.shape[:2])
    for at in np.ndindex(found.shape):
        side = int(np.sqrt(total.shape[-1]))
        found[at] = _point(total[at].reshape(-1, side, side), finding.truth)
    return found


def _point(pictures: np.ndarray, truth: np.ndarray) -> float:
    """Share of pictures that are brightest near their true place.

    Dims     (patch, y, x), (patch, yx)
    """
    return float(pck(xr.DataArray(pictures[:, None], dims=PLACES), Truth(np.asarray(truth, np.float64)[:, None]), RADIUS))


def _scale(maps: np.ndarray, axes: int) -> np.ndarray:
    return maps / maps.mean(tuple(range(-axes, 0)), keepdims=True)


@dataclass(frozen=True, slots=True)
class _Moments:
    """Sums over the places of one pair that a regression needs; each map and the target about their means."""

    square: np.ndarray
    """(feature, feature)."""
    product: np.ndarray
    """(feature,)."""
    places: int


def _moments(finding: Finding, kind: Kind) -> _Moments:
    maps = _scale(getattr(finding, kind).sum(0), 2) if kind != "looks" else finding.looks.sum(0)
    features = maps.reshape(maps.shape[0] * maps.shape[1], -1).astype(np.float64)
    target = _target(finding, kind).ravel()
    features = features - features.mean(1, keepdims=True)
    return _Moments(features @ features.T / features.shape[1], features @ (target - target.mean()) / features.shape[1], features.shape[1])


def _target(finding: Finding, kind: Kind) -> np.ndarray:
    """What a perfect map would show: the cells near each patch's true place, or the mask."""
    if kind == "looks":
        side = int(np.sqrt(finding.looks.shape[-1]))
        centres = (np.stack(np.divmod(np.arange(side * side), side), -1) + 0.5) / side
        return np.asarray(np.linalg.norm(centres[None] - finding.truth[:, None], axis=-1) <= RADIUS, np.float64)
    mask = finding.mask if kind == "r2g" else finding.reference_mask
    rows, columns = getattr(finding, kind).shape[-2:]
    return np.asarray(mask.reshape(rows, mask.shape[0] // rows, columns, -1).mean((1, 3)))


def _solve(moments: Sequence[_Moments], strength: float) -> np.ndarray:
    square, product = (np.sum([getattr(each, name) for each in moments], axis=0) for name in ("square", "product"))
    return np.asarray(np.linalg.solve(square + strength * np.trace(square) / len(square) * np.eye(len(square)), product))


def _choose_strength(moments: Sequence[_Moments]) -> float:
    """The strength that errs least on pairs it was not fitted to."""
    folds = [list(range(start, len(moments), FOLDS)) for start in range(min(FOLDS, len(moments)))]
    if len(folds) < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    errors = []
    for strength in STRENGTHS:
        error = 0.0
        for fold in folds:
            weights = _solve([each for i, each in enumerate(moments) if i not in fold], strength)
            error += sum(float(weights @ moments[i].square @ weights - 2 * weights @ moments[i].product) for i in fold)
        errors.append(error)
    return STRENGTHS[int(np.argmin(errors))]


def of_recipes(finding: Finding, name: str) -> dict[str, float]:
    """What one recipe's maps of a pair are worth; masks score the picture that the recipe makes of its map."""
    index = list(RECIPES).index(name)
    looks, answers, r2g, g2r = (getattr(finding, f"recipes_{what}")[index] for what in ("looks", "answers", "r2g", "g2r"))
    pictures = {
        direction: _picture(map, direction, name, mask)
        for direction, map, mask in (("r2g", r2g, finding.mask), ("g2r", g2r, finding.reference_mask))
    }
    return judge_maps(finding, looks=looks, answers=answers, **pictures)


def _picture(map: np.ndarray, direction: str, recipe: str, mask: np.ndarray) -> np.ndarray:
    """The recipe's own picture, or the map itself where there is none; of a map that is constant up to rounding, nothing."""
    if not np.isfinite(map).all() or not normalize(map).values.any():
        return map
    labelled = xr.DataArray(map, dims=("y", "x"), attrs={"direction": direction})
    return heatmap(labelled, (mask.shape[0], mask.shape[1]), recipe=recipe, mask=mask if direction == "g2r" else None).values


def selected_daam(findings: Sequence[Finding]) -> np.ndarray:
    """Token pointing of DAAM over the heads that other pairs chose.

    Dims     -> (pair,)
    """
    learnt = [by_selection(half) for half in (findings[0::2], findings[1::2] or findings)]
    found = []
    for i, finding in enumerate(findings):
        weights = learnt[1 - i % 2](finding)["looks"][0]
        rows, columns = finding.shares.shape[-2:]
        found.append(_point(np.einsum("lh,lhpyx->pyx", weights, finding.shares), (finding.place + 0.5) / (rows, columns)))
    return np.array(found)
