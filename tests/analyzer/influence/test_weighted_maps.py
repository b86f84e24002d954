"""Weighted maps equal a float64 oracle that follows the definitions step by step, in every direction and both encodings."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask
import numpy as np
import pytest
from oracles import AT, DIRECTIONS, Weigh, ask, assert_close, oracle, softmaxes

from i2am.analyzer import RECIPES, available, entropy, g2r, get_recipe, judge, looks, open_trace, r2g, row_entropy, token_map
from i2am.analyzer.influence.calls import weighted_array
from i2am.analyzer.sharing.packing import pack
from i2am.schema.errors import InvalidInput, UnknownSelection
from traces import Synthetic, reference_layer, synthetic_trace, value_norms

pytestmark = pytest.mark.analyzer

FULL = {"values": "full", "value_dim": 5, "output_dim": 6}
LAYERS = (
    reference_layer("down.attn2", (8, 6), heads=2, text=4, **FULL),
    reference_layer("mid.attn2", (4, 3), heads=3, **FULL, gain=0.75),
    reference_layer("up.attn2", (8, 6), heads=2, reference=(2, 3), specials=0, values="full", value_dim=3, output_dim=9),
)
WEIGHTS = ("norm", "contribution", "knock-out")


def weighted_trace(path: Path, encoding: str, **options: object) -> Synthetic:
    return synthetic_trace(
        path, layers=LAYERS, encoding=encoding, steps=4, samples=2, branches=("cond", "uncond"), latent_grid=(8, 6),
        static_keys=False, absent={(1, 0)}, **options,
    )  # type: ignore[arg-type] # fmt: skip


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return weighted_trace(tmp_path_factory.mktemp("weighted") / "run.zarr", request.param)


def given_by(made: Synthetic, layer: int, at: tuple[int, int, int]) -> np.ndarray:
    """u of each token: (head, token, output channel)."""
    value, output = made.value[layer], made.output[layer]
    assert value is not None
    assert output is not None
    return np.stack([made.trace.layers[layer].gain * v.astype(float) @ W.astype(float) for v, W in zip(value[at], output, strict=True)])


def norm(P: np.ndarray, made: Synthetic, layer: int, at: tuple[int, int, int]) -> np.ndarray:
    return value_norms(made, layer)[at][:, None, None, :] * np.ones_like(P)


def contribution(P: np.ndarray, made: Synthetic, layer: int, at: tuple[int, int, int]) -> np.ndarray:
    given = given_by(made, layer, at)
    whole = sum(P[head] @ given[head] for head in range(len(P)))
    return np.stack([whole @ mine.T / np.linalg.norm(whole, axis=-1, keepdims=True) for mine in given])


def knock_out(P: np.ndarray, made: Synthetic, layer: int, at: tuple[int, int, int]) -> np.ndarray:
    """How far the head's output moves when the key is left out and the row is scaled to sum 1 again, over the key's own share of it."""
    given, found = given_by(made, layer, at), np.zeros_like(P)
    share = P / P.sum(-1, keepdims=True)
    for token in range(P.shape[-1]):
        less = share.copy()
        less[..., token] = 0
        less /= less.sum(-1, keepdims=True)
        moved = np.linalg.norm((share - less) @ given[:, None], axis=-1)
        found[..., token] = moved / np.where(share[..., token] > 0, share[..., token], np.inf)
    return found


ORACLES: dict[str, Weigh] = {"norm": norm, "contribution": contribution, "knock-out": knock_out}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_maps_equal_the_oracle(made: Synthetic, direction: str, weight: str) -> None:
    trace, of = open_trace(made.path), {"weigh": ORACLES[weight], "signed": weight == "contribution"}
    whole, kept = (ask(trace, direction, keep=keep, sample=1, branch="uncond", weight=weight) for keep in ((), ("time", "layer", "head")))
    assert_close(whole, oracle(made, direction, at=(1, 1), **of))
    assert_close(kept, oracle(made, direction, ("time", "layer", "head"), at=(1, 1), **of))
    assert whole.attrs["weight"] == weight
    assert "probabilit" not in whole.attrs["units"]


def products(made: Synthetic, layer: int, weight: str, kind: int = 0) -> np.ndarray:
    """P, or with kind 1 G, times the factor: (step, head, y, x, token), NaN where the call is absent."""
    P = softmaxes(made, layer)[0][0, 0]
    factors = np.stack([ORACLES[weight](P[step], made, layer, (0, 0, step)) for step in range(len(P))])
    return softmaxes(made, layer)[kind][0, 0] * factors


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_other_softmax_is_weighted_alike(made: Synthetic, weight: str) -> None:
    trace, other = open_trace(made.path), get_recipe("i2am", r2g="keys", g2r="generated", weight=weight)
    rows, columns = products(made, 2, weight), products(made, 2, weight, 1)
    for direction, truth in {
        "r2g": rows.mean(-1).mean(1).sum(0),
        "g2r": columns.mean((2, 3)).mean(1).sum(0).reshape(2, 3),
        "sram": columns[:, :, AT[0], AT[1]].mean(1).sum(0).reshape(2, 3),
    }.items():
        assert_close(ask(trace, direction, recipe=other, layers=2, sample=0, branch="cond"), truth)


@pytest.mark.parametrize("recipe", ["i2am", "daam", "i2am(renormalize=yes, r2g=keys, clamp=no)"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_maps_of_tokens_are_weighted(made: Synthetic, weight: str, recipe: str) -> None:
    row = get_recipe(recipe, factors=(), skip="")
    found = token_map(open_trace(made.path), [1, 3], layers=0, recipe=row, weight=weight, keep="token")
    truth = products(made, 0, weight, row.r2g == "generated")
    if row.renormalize:
        truth = truth / softmaxes(made, 0)[0][0, 0][..., [1, 3]].sum(-1, keepdims=True)
    truth = np.moveaxis(np.nansum(truth[..., [1, 3]].mean(1), 0), -1, 0)
    assert_close(found, truth)
    assert_close(token_map(open_trace(made.path), [1, 3], layers=0, recipe=row, weight=weight), truth.mean(0))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_looks_are_sram_of_every_patch(made: Synthetic, weight: str) -> None:
    trace = open_trace(made.path)
    for recipe in ("i2am", "i2am(renormalize=yes)", "i2am-official"):
        every = looks(trace, recipe=recipe, weight=weight).compute()
        assert every.attrs["weight"] == weight
        assert_close(every[AT], ask(trace, "sram", recipe=recipe, weight=weight).values)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_packed_traces_and_any_scheduler_give_the_same(tmp_path: Path, weight: str) -> None:
    made = weighted_trace(tmp_path / "run.zarr", "factors")
    pack(made.path, tmp_path / "packed.zarr.zip")
    pair = open_trace(made.path), open_trace(tmp_path / "packed.zarr.zip")
    for direction in DIRECTIONS:
        with dask.config.set(scheduler="synchronous"):
            first = ask(pair[0], direction, weight=weight).values
        np.testing.assert_allclose(ask(pair[1], direction, weight=weight).values, first, rtol=1e-6, atol=1e-9)


def test_attention_is_the_map_as_it_was(made: Synthetic) -> None:
    trace = open_trace(made.path)
    plain, named = r2g(trace), r2g(trace, weight="attention", recipe="i2am(weight=norm)")
    assert named.identical(plain)
    assert named.name == plain.name
    assert dict(named.data.dask).keys() == dict(plain.data.dask).keys()


def test_the_recipe_says_the_weight(made: Synthetic) -> None:
    trace = open_trace(made.path)
    found = r2g(trace, recipe="i2am(weight=knock-out)")
    assert found.attrs["recipe"] == "i2am(weight=knock-out)"
    assert found.identical(r2g(trace, weight="knock-out"))
    assert r2g(trace, weight="contribution").attrs["recipe"] == "i2am(weight=contribution, clamp=no)"
    with pytest.raises(InvalidInput, match="weight is 'norms'; expected attention, norm, contribution, knock-out"):
        r2g(trace, weight="norms")  # type: ignore[arg-type]
    assert all(row.weight == "attention" for row in RECIPES.values())


@pytest.mark.parametrize(
    ("fields", "weight", "says"),
    [
        ({}, "norm", r"layer down.attn2 has no weight norm: it has no values; record them with values='norms'.*weight='attention'"),
        ({"values": "norms"}, "knock-out", r"it has norms of values only; record them with values='full'.*layers.*weight='norm'"),
        ({**FULL, "hidden": 3}, "contribution", r"16 of its 19 keys were kept, and all are needed; record with keys='all'"),
        ({**FULL, "heads": 2, "call_heads": 4, "head_numbers": (1, 2)}, "contribution", r"2 of its 4 heads were kept"),
    ],
)
def test_what_cannot_be_had_is_refused(tmp_path: Path, fields: dict[str, object], weight: str, says: str) -> None:
    made = synthetic_trace(tmp_path / "run.zarr", layers=[reference_layer("down.attn2", (8, 6), **fields)], steps=1)  # type: ignore[arg-type]
    for direction in DIRECTIONS:
        with pytest.raises(UnknownSelection, match=says):
            ask(open_trace(made.path), direction, weight=weight)
    with pytest.raises(UnknownSelection, match=says):
        looks(open_trace(made.path), weight=weight)  # type: ignore[arg-type]


def test_norms_and_some_heads_do_where_they_suffice(tmp_path: Path) -> None:
    layers = [reference_layer("down.attn2", (8, 6), values="norms", hidden=3, heads=2, call_heads=4, head_numbers=(1, 2))]
    made = synthetic_trace(tmp_path / "run.zarr", layers=layers)
    assert_close(ask(open_trace(made.path), "g2r", weight="norm"), oracle(made, "g2r", layers=(0,), heads=(0, 1), weigh=norm))


@pytest.mark.parametrize("weight", ["norm", "contribution", "knock-out"])
def test_rows_have_the_entropy_of_what_their_tokens_give(made: Synthetic, weight: str) -> None:
    rows = np.abs(products(made, 0, weight)[..., 5:])
    shares = rows / rows.sum(-1, keepdims=True)
    truth = np.nanmean(-(shares * np.log(shares)).sum(-1)) / np.log(15)
    assert_close(row_entropy(open_trace(made.path), layers=0, weight=weight), truth)
    assert_close(judge(open_trace(made.path), ["row_entropy"], layers=0, weight=weight)["row_entropy"], truth)


def test_metrics_are_of_weighted_maps(made: Synthetic) -> None:
    trace = open_trace(made.path)
    found = judge(trace, ["entropy_r", "entropy_g", "imacs_r"], weight="knock-out")
    assert float(found["entropy_r"]) == float(entropy(ask(trace, "g2r", weight="knock-out", sample=0, branch="cond")))
    assert float(found["entropy_g"]) == float(entropy(r2g(trace, recipe="i2am(weight=knock-out)")))
    assert found["entropy_r"] != judge(trace, ["entropy_r"])["entropy_r"]
    assert "entropy_r" in available(trace, weight="norm")
    of_signs = available(trace, weight="contribution")
    assert {"imacs_r", "row_entropy"} <= set(of_signs) <= set(available(trace)) - {"entropy_r", "concentration_g"}
    judge(trace, of_signs, weight="contribution")


def test_contributions_of_all_heads_and_tokens_add_up_to_the_length_of_the_output(made: Synthetic) -> None:
    calls = weighted_array(open_trace(made.path), 0, "probability", "contribution").isel(sample=0, branch=0).sum(("head", "token"))
    P = softmaxes(made, 0)[0][0, 0]
    for step in (0, 2, 3):
        whole = np.einsum("hyxr,hro->yxo", P[step], given_by(made, 0, (0, 0, step)))
        assert_close(calls.isel(step=step), np.linalg.norm(whole, axis=-1))


def test_weighted_maps_travel_to_other_processes(made: Synthetic) -> None:
    lazy = g2r(open_trace(made.path), weight="knock-out", layers=0)
    assert pickle.loads(pickle.dumps(lazy)).compute().identical(lazy.compute())
