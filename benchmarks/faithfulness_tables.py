"""Tables of which maps follow what happens when something is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
from measure import table

from i2am.analyzer.numerics.ranks import ranks, standardized
from i2am.analyzer.numerics.statistics import bootstrap_mean

WEIGHTS: Final = ("attention", "norm", "contribution", "knock-out")
METHODS: Final = ("i2am-v1", "i2am-official", "i2am-custom")
ROWS: Final = (
    *(("all layers", weight) for weight in WEIGHTS),
    *(("up_blocks.1", weight) for weight in WEIGHTS),
    *((method, "attention") for method in METHODS),
    ("rollout", "attention"),
)
COLUMNS: Final[dict[str, dict[str, Any]]] = {
    "SRAM, keys": {"map": "SRAM", "against": "keys", "masked": False},
    "SRAM, pixels": {"map": "SRAM", "against": "pixels", "masked": False},
    "G2R, keys": {"map": "G2R", "against": "keys", "masked": False},
    "G2R, pixels": {"map": "G2R", "against": "pixels", "masked": False},
    "painted G2R, keys": {"map": "G2R", "against": "keys", "masked": True},
    "painted G2R, pixels": {"map": "G2R", "against": "pixels", "masked": True},
}
"""What is correlated; painted G2R is of positions in the mask."""
PAINTED: Final = "painted G2R, keys"

Pair = dict[str, Any]
"""What `judged` keeps of a pair."""


def report(trained: Sequence[Pair], random: Sequence[Pair], single: Sequence[Pair], curves: Sequence[dict[str, Any]]) -> str:
    """All tables."""
    return "\n".join(
        [
            table("Rank correlation with what is left out", ["layers, or method", "weight", *COLUMNS], _maps(trained, random)),
            table("The same for single keys, 16 x 16 cells", ["layers, or method", "weight", *_key_columns()], _single(single)),
            table(
                "SRAM once more", ["weight", "Pearson, keys", "Pearson, pixels", "own over other patches, keys"], _linear(trained, random)
            ),
            table("Layers", ["layer", *PARTS], _layers(trained)),
            table("Rank correlation with what switching off changes", ["by", "7 layers", "28 heads"], _totals(trained, random)),
            table("Another reference", ["map of", *COLUMNS], _others(trained)),
            table("Curves", ["order of cells", "deletion area ↑", "insertion area ↓"], _curves(curves)),
            table("CLS", ["what", "share"], _cls(trained)),
        ]
    )


def take(pairs: Iterable[Pair], value: str = "spearman", **named: Any) -> list[float]:
    """One number of each pair that has it."""
    rows = ([row for row in pair["scores"] if all(row[name] == wanted for name, wanted in named.items())] for pair in pairs)
    return [row[value] for found in rows for row in found[:1]]


def cell(values: Sequence[float], control: Sequence[float] = ()) -> str:
    """Mean ± half the width of its interval, and in brackets the mean of the control."""
    if not len(values) or np.isnan(values).all():
        return "-"
    found = bootstrap_mean(np.asarray(values))
    beside = f" ({np.nanmean(control):.2f})" if len(control) and not np.isnan(control).all() else ""
    return f"{found.mean:.2f} ±{(found.high - found.low) / 2:.2f}{beside}"


def _maps(trained: Sequence[Pair], random: Sequence[Pair]) -> Iterable[list[str]]:
    for what, weight in ROWS:
        named: dict[str, Any] = {"what": what, "weight": weight, "layer": ""}
        yield [what, weight, *(cell(take(trained, **named, **asked), take(random, **named, **asked)) for asked in COLUMNS.values())]


def _key_columns() -> list[str]:
    return [name for name in COLUMNS if name.endswith("keys")]


def _single(single: Sequence[Pair]) -> Iterable[list[str]]:
    for what, weight in ROWS:
        found = [cell(take(single, what=what, weight=weight, layer="", **COLUMNS[name])) for name in _key_columns()]
        if found[0] != "-":
            yield [what, weight, *found]


def _linear(trained: Sequence[Pair], random: Sequence[Pair]) -> Iterable[list[str]]:
    asked = (("pearson", "keys"), ("pearson", "pixels"), ("own_other", "keys"))
    for weight in WEIGHTS:
        named: dict[str, Any] = {"what": "all layers", "weight": weight, "layer": "", "map": "SRAM"}
        yield [weight, *(cell(*(take(pairs, value, against=against, **named) for pairs in (trained, random))) for value, against in asked)]


PARTS: Final[dict[str, Callable[[Pair, int], float]]] = {
    "switching it off": lambda pair, i: pair["parts"]["silenced"][i],
    "share of the plain mean": lambda pair, i: _share(pair, "attention", i),
    "share of norms": lambda pair, i: _share(pair, "norm", i),
    "share of contributions": lambda pair, i: _share(pair, "contribution", i),
    "PCK, mean of heads": lambda pair, i: float(np.mean(pair["parts"]["pck"][i])),
    "SRAM, keys": lambda pair, i: _of_layer(pair, i, COLUMNS["SRAM, keys"]),
    PAINTED: lambda pair, i: _of_layer(pair, i, COLUMNS[PAINTED]),
}
"""Of each layer; what switching it off changes is a share of what the picture changes without the reference."""


def _share(pair: Pair, name: str, i: int) -> float:
    totals = np.array(pair["parts"][name]).sum(1)
    return float(totals[i] / totals.sum())


def _of_layer(pair: Pair, i: int, asked: dict[str, Any]) -> float:
    [value] = take([pair], what="all layers", weight="attention", layer=pair["parts"]["names"][i], **asked)
    return value


def _layers(trained: Sequence[Pair]) -> Iterable[list[str]]:
    for i, name in enumerate(trained[0]["parts"]["names"]):
        values = [np.array([measure(pair, i) for pair in trained]) for measure in PARTS.values()]
        first = f"{values[0].mean():.5f}"
        yield [name.removeprefix("unet.").removesuffix(".transformer_blocks.0.attn2"), first, *(cell(each) for each in values[1:])]


def _totals(trained: Sequence[Pair], random: Sequence[Pair]) -> Iterable[list[str]]:
    for weight in WEIGHTS:
        named: dict[str, Any] = {"what": "all layers", "weight": weight, "masked": True}
        yield [weight, *(cell(*(take(pairs, against=against, **named) for pairs in (trained, random))) for against in ("layers", "heads"))]
    pointing = [(pair["parts"]["pck"], pair["parts"]["heads"]) for pair in trained]
    layers = [_spearman(np.mean(pck, 1), np.array(pair["parts"]["silenced"])) for (pck, _), pair in zip(pointing, trained, strict=True)]
    yield ["pointing (PCK)", cell(layers), cell([_spearman(np.ravel(pck), np.ravel(heads)) for pck, heads in pointing])]


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    return float(standardized(ranks(first)) @ standardized(ranks(second)))


def _others(trained: Sequence[Pair]) -> Iterable[list[str]]:
    rows = [pair["other"] for pair in trained if "other" in pair]
    for name, value in (("this reference", "spearman"), ("another one", "other")):
        found = []
        for asked in COLUMNS.values():
            recipe = "i2am(query_mask=yes)" if asked["masked"] else "i2am"
            kind = {"map": asked["map"], "against": asked["against"], "recipe": recipe}
            found.append(cell([row[value] for pair in rows for row in pair if all(row[key] == wanted for key, wanted in kind.items())]))
        yield [name, *found]


def _curves(curves: Sequence[dict[str, Any]]) -> Iterable[list[str]]:
    for order in curves[0] if curves else ():
        yield [order, *(cell([pair[order][i] for pair in curves]) for i in range(2))]


def _cls(trained: Sequence[Pair]) -> Iterable[list[str]]:
    names = [name.split("unet.")[-1].removesuffix(".transformer_blocks.0.attn2") for name in trained[0]["parts"]["names"]]
    for i, name in enumerate(names):
        yield [f"attention that CLS takes in {name}", cell([pair["parts"]["cls"]["attention"][i] for pair in trained])]
    dropped = np.mean([pair["parts"]["cls"]["effect"] for pair in trained])
    yield ["what dropping CLS changes, of what losing the reference does", f"{dropped:.4f}"]
