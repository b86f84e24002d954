"""The tables of the study: numbers of the shipped model, and in brackets those of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from aggregation import WAYS, head_scores, judge_way, levels, of_recipes, selected_daam
from checkpoints import QUALITIES, SCORES, Checkpoint, over_checkpoints, over_pairs, quality, within_checkpoints
from extraction import Finding
from measure import table

from i2am.analyzer.methods.recipes import RECIPES
from i2am.analyzer.metrics.overlap import imacs
from i2am.analyzer.numerics.statistics import bootstrap_mean
from i2am.recorder.demo.pairs import Pair
from i2am.recorder.demo.truth import found, painting_error

RESAMPLES: Final = 2000
COLUMNS: Final = {
    "pck": "PCK",
    "pointing_error": "distance",
    "token_pck": "token PCK",
    "iou_g": "IoU R2G",
    "imacs_g": "IMACS R2G",
    "iou_r": "IoU G2R",
    "imacs_r": "IMACS G2R",
}


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that was measured."""

    pairs: list[Pair]
    trained: list[Finding]
    random: list[Finding]
    run: list[Checkpoint]


def report(study: Study) -> str:
    """Every table."""
    parts = [
        summary(study),
        methods(study),
        by_level(study),
        by_way(study),
        *by_head(study),
        by_time(study),
        four_ways(study),
        of_pictures(study),
    ]
    return "\n".join([*parts, *(of_checkpoints(study.run) if study.run else [])])


def summary(study: Study) -> str:
    """What the weights must reach."""
    errors = np.array([painting_error(each.image, pair) for each, pair in zip(study.trained, study.pairs, strict=True)])
    shares = np.array([head_free(each) for each in study.trained]).mean(0)
    best = int(shares.argmax())
    scores = [judge_way(WAYS[0], findings) for findings in (study.trained, study.random)]
    ahead = [int((scores[0][name] > scores[1][name]).sum()) for name in ("imacs_g", "imacs_r")]
    ratio = f"{errors[:, 0].mean() / errors[:, 1].mean():.3f} (median pair {np.median(errors[:, 0] / errors[:, 1]):.3f})"
    guess = float(np.mean([chance(pair) for pair in study.pairs]))
    where = f"{shares[best]:.3f} ({study.trained[0].layers[best]}; chance {guess:.3f})"
    rows: list[tuple[str, str, str]] = [
        ("(a) squared error inside the mask over the mean colour's", "< 0.333", ratio),
        (
            "(b) torso patches found by SRAM, best layer",
            ">= 0.90",
            where,
        ),
        ("(c) pairs with a higher IMACS of R2G than random weights", f"{len(study.pairs)}", f"{ahead[0]}"),
        ("(c) pairs with a higher IMACS of G2R than random weights", f"{len(study.pairs)}", f"{ahead[1]}"),
    ]
    return table("What the model reaches", ("what", "target", "measured"), rows)


def head_free(finding: Finding) -> np.ndarray:
    """PCK of each layer's SRAM, mean over heads and steps.

    Dims     -> (layer,)
    """
    pooled = finding.looks.sum((0, 2))[None, :, None]
    return head_scores(replace(finding, looks=pooled))[:, 0]


def chance(pair: Pair, grid: tuple[int, int] = (16, 16)) -> float:
    """Share that a blind guess among the reference's patches finds."""
    guesses = np.random.default_rng(0).random((16, *grid, grid[0] * grid[1]), np.float32)
    return float(np.mean([np.divide(*found(guess, pair, grid)) for guess in guesses]))


def methods(study: Study) -> str:
    """Every recipe."""
    rows = []
    for name, row in RECIPES.items():
        both = [_columns([of_recipes(finding, name) for finding in findings]) for findings in (study.trained, study.random)]
        if row.choose_heads:
            for scores, findings in zip(both, (study.trained, study.random), strict=True):
                scores["token_pck"] = selected_daam(findings)
        rows.append((name, row.r2g, *_cells(*both)))
    return table("Methods", ("recipe", "softmax of R2G over", *COLUMNS.values()), rows)


def by_level(study: Study) -> str:
    """ULAM, TLAM, HLAM, LLAM of recipe i2am."""
    rows = [(way.name, *_cells(judge_way(way, study.trained), judge_way(way, study.random))) for way in levels(study.trained[0])]
    return table("Levels, recipe i2am", ("level", *COLUMNS.values()), rows)


def by_way(study: Study) -> str:
    """Aggregations."""
    rows = [(way.name, *_cells(judge_way(way, study.trained), judge_way(way, study.random))) for way in WAYS]
    return table("Aggregations, recipe i2am", ("weights of layers and heads", *COLUMNS.values()), rows)


def by_head(study: Study) -> list[str]:
    """PCK and evenness of rows of each head alone."""
    sharp = [np.mean([finding.even.mean(0) for finding in findings], axis=0) for findings in (study.trained, study.random)]
    scores = [np.mean([head_scores(finding) for finding in findings], axis=0) for findings in (study.trained, study.random)]
    names, heads = study.trained[0].layers, range(scores[0].shape[1])
    columns = ("layer", "grid", *(f"head {head}" for head in heads))
    grids = ["{}x{}".format(*grid) for grid in study.trained[0].grids]

    def rows(values: Sequence[np.ndarray]) -> list[tuple[str, ...]]:
        return [(name, grids[i], *(f"{values[0][i, h]:.2f} ({values[1][i, h]:.2f})" for h in heads)) for i, name in enumerate(names)]

    return [table("PCK of each head", columns, rows(scores)), table("Evenness of rows of each head", columns, rows(sharp))]


def by_time(study: Study) -> str:
    """PCK of each layer in each fifth of the steps."""
    fifths, layers, _ = study.trained[0].even.shape
    values = np.mean([[[_layer_at(finding, t, i) for t in range(fifths)] for i in range(layers)] for finding in study.trained], axis=0)
    rows = [(name, *(f"{value:.2f}" for value in values[i])) for i, name in enumerate(study.trained[0].layers)]
    return table("PCK of each layer over time, noisiest fifth first", ("layer", *(f"fifth {t + 1}" for t in range(fifths))), rows)


def _layer_at(finding: Finding, fifth: int, layer: int) -> float:
    part = finding.looks[fifth : fifth + 1, layer : layer + 1].sum(2, keepdims=True)
    return float(head_scores(replace(finding, looks=part))[0, 0])


def four_ways(study: Study) -> str:
    """IMACS of G2R as published rows may have been computed."""
    rows = []
    for masked in (True, False):
        for before in (False, True):
            both = []
            for findings in (study.trained, study.random):
                maps = [finding.recipes_g2r[0] if masked else finding.g2r_plain for finding in findings]
                both.append(np.array([float(imacs(m, f.reference_mask, pre_mask=before)) for m, f in zip(maps, findings, strict=True)]))
            ahead = f"{int((both[0] > both[1]).sum())} of {len(both[0])}"
            rows.append(("yes" if masked else "no", "yes" if before else "no", *(_mean(values) for values in both), ahead))
    columns = ("query_mask", "pre_mask", "trained", "random weights", "pairs in which trained is higher")
    return table("IMACS of G2R, four ways", columns, rows)


def of_pictures(study: Study) -> str:
    """Over the pairs of the shipped model: does a score tell which picture is better?"""
    scores = judge_way(WAYS[0], study.trained)
    qualities = _columns([quality(each.image, pair) for each, pair in zip(study.trained, study.pairs, strict=True)])
    rows = []
    for name, title in COLUMNS.items():
        varies = bool(np.ptp(scores[name]) > 0)
        rows.append((title, *(str(over_pairs(scores[name], qualities[of])) if varies else "constant" for of in QUALITIES)))
    return table("Rank correlation over pairs, shipped model", ("score", "with PSNR", "with SSIM"), rows)


def of_checkpoints(run: Sequence[Checkpoint]) -> list[str]:
    """Over a training run."""
    names = (*SCORES, *QUALITIES)
    titles = [_title(name) for name in names]
    rows = [(each.step, *(f"{each.values[name].mean():.3f}" for name in names)) for each in run]
    links = [
        (_title(score), _title(of), str(over_checkpoints(run, score, of)), str(within_checkpoints(run, score, of)))
        for score in SCORES
        for of in QUALITIES
    ]
    return [
        table("A training run", ("optimiser step", *titles), rows),
        table("Rank correlation over the training run", ("score", "with", "means of checkpoints", "pairs within a checkpoint"), links),
    ]


def _title(name: str) -> str:
    return {**COLUMNS, "pck_layer": "PCK, best layer"}.get(name, name.upper())


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _cells(trained: dict[str, np.ndarray], random: dict[str, np.ndarray]) -> list[str]:
    """Mean, half the width of its interval, and the control's mean; a dash where there is no map."""
    found = []
    for name in COLUMNS:
        there = np.isfinite(trained[name])
        found.append(f"{_mean(trained[name])} ({np.nanmean(random[name]):.2f})" if there.any() else "-")
    return found


def _mean(values: np.ndarray) -> str:
    interval = bootstrap_mean(values, resamples=RESAMPLES)
    return f"{interval.mean:.2f} ±{(interval.high - interval.low) / 2:.2f}"
