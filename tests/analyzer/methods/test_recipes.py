"""Every row equals its method, rebuilt step by step in `methods.py`; every field does what it says, in any order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from methods import (
    GENERATED,
    LATENT,
    LAYERS,
    Calls,
    daam,
    g2r_by_head,
    g2r_by_query,
    g2r_i2am,
    method_trace,
    resample,
    sram_by_time,
    synthetic_calls,
)  # fmt: skip

from i2am.analyzer import Recipe, Trace, g2r, get_recipe, imacs, judge, looks, open_trace, r2g, sram, token_map
from i2am.analyzer.evaluation.metric_table import IMACS
from i2am.analyzer.methods.recipes import CHOICES, FIELDS, RECIPES, Axis, read_changes, write
from i2am.schema.errors import InvalidInput, UnknownSelection
from traces import Synthetic

pytestmark = pytest.mark.analyzer

AT = (9, 4)
PAIRS = {"down_blocks.1.attn2": [0, 2], "mid_block.attn2": [1], "up_blocks.0.attn2": [1]}


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return method_trace(tmp_path_factory.mktemp("recipes") / "run.zarr", request.param)


def close(found: Any, truth: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found), truth, rtol=1e-5, atol=1e-5 * np.nanmax(np.abs(truth)))


# Methods


@pytest.mark.parametrize("name", GENERATED)
def test_a_row_equals_its_method_on_the_generated_image(made: Synthetic, name: str) -> None:
    trace, calls = open_trace(made.path), synthetic_calls(made, int(RECIPES[name].branch == "uncond"))
    method = GENERATED[name]
    close(r2g(trace, recipe=name), method(calls, lambda c: c.tokens("reference"), LATENT))
    close(token_map(trace, recipe=name), method(calls, lambda c: c.tokens("text"), LATENT))
    close(token_map(trace, [1, 3], recipe=name), method(calls, lambda c: [1, 3], LATENT))
    each = token_map(trace, [1, 3], keep="token", recipe=name)
    assert each.dims == ("token", "y", "x")
    close(each, np.stack([method(calls, lambda c, k=k: [k], LATENT) for k in (1, 3)]))


def test_selected_heads_equal_daam_over_these_pairs(made: Synthetic) -> None:
    trace, calls = open_trace(made.path), synthetic_calls(made)
    close(token_map(trace, [2], recipe="hrv-selective", heads=PAIRS), daam(calls, lambda c: [2], LATENT, PAIRS, all_layers=True))
    filtered = {name: heads for name, heads in PAIRS.items() if "mid" not in name}
    chosen = token_map(trace, [2], recipe="daam", heads=PAIRS, layers=["down*", "up*"])
    close(chosen, daam(calls, lambda c: [2], LATENT, filtered))
    with pytest.raises(InvalidInput, match="hrv-selective is a mean over chosen heads; choose them with heads="):
        token_map(trace, [2], recipe="hrv-selective")


def test_rows_equal_their_methods_on_the_reference(made: Synthetic) -> None:
    trace, calls = open_trace(made.path), synthetic_calls(made)
    every, mask = np.ones(LATENT), trace.masks()["mask"] / 255
    close(g2r(trace, recipe="i2am"), g2r_i2am(calls, every))
    close(g2r(trace, recipe="i2am-v1"), g2r_i2am(calls, every, "G"))
    close(g2r(trace, recipe="i2am-official"), g2r_by_query(calls, every, (3, 5)))
    close(g2r(trace, recipe="i2am-official-pbe"), g2r_by_query(calls, every, (3, 5)))
    found = g2r(trace, recipe="i2am-custom")
    close(found, g2r_by_query(calls, mask, LATENT))
    assert (found.attrs["query_mask"], found.attrs["recipe"]) == ("mask", "i2am-custom")
    close(g2r(trace, recipe="i2am-custom", query_mask=np.ones(LATENT)), g2r_by_query(calls, every, LATENT))
    by_head = g2r(trace, recipe="i2am-custom", keep="head")
    close(by_head, g2r_by_head(calls, mask, LATENT))
    with pytest.raises(AssertionError):
        close(by_head, g2r(trace, recipe="i2am-custom(pool_positions=no)", keep="head").values)
    close(sram(trace, AT, recipe="i2am-custom"), sram_by_time(calls, AT, LATENT, (3, 5)))  # the reference's own grid
    close(sram(trace, AT, recipe="i2am-custom(sram_target=g2r)"), sram_by_time(calls, AT, LATENT, LATENT))
    close(sram(trace, AT, recipe="i2am-official"), sram_by_time(calls, AT, LATENT, (3, 5)))
    for name in ("daam", "ovam", "prompt-to-prompt", "attention-map-diffusers", "hrv-selective"):
        for ask in (g2r, lambda t, **options: sram(t, AT, **options)):
            with pytest.raises(InvalidInput, match=f"recipe {name} has no maps on the reference"):
                ask(trace, recipe=name)


@pytest.mark.parametrize("changes", [{}, {"before": ("query",)}, {"layers": "sum"}])
@pytest.mark.parametrize("keep", [("head",), ("time", "head")])
def test_pooled_positions_weigh_layers_by_their_size(made: Synthetic, changes: dict[str, Any], keep: tuple[str, ...]) -> None:
    trace, row = open_trace(made.path), get_recipe("i2am-custom", **changes)
    apart = g2r(trace, recipe=get_recipe(row, layers="mean"), keep=(*keep[:-1], "layer", "head")).compute()
    sizes = xr.DataArray([48, 192, 12, 12], dims="layer") if row.layers == "mean" else xr.ones_like(apart["layer"])
    there = apart.notnull()
    wanted = (apart.fillna(0) * sizes).sum("layer") / ((there * sizes).sum("layer") if row.layers == "mean" else 1)
    found = g2r(trace, recipe=row, keep=keep).compute()
    close(found.fillna(0), wanted.fillna(0).transpose(*found.dims).values)


def test_the_warp_blocks_of_the_official_code_are_told_apart(tmp_path: Any) -> None:
    layers = [dataclasses.replace(LAYERS[0], path=f"control_model.warp_flow_blks.{i}.attn2") for i in (3, 4, 5)]
    trace = open_trace(method_trace(tmp_path / "t.zarr", "probabilities", layers=[LAYERS[1], *layers], absent=()).path)
    np.testing.assert_array_equal(g2r(trace, recipe="i2am-official"), g2r(trace, recipe="i2am-official", layers=2))
    np.testing.assert_array_equal(r2g(trace, recipe="i2am-official"), r2g(trace, recipe="i2am-official", layers=0))


def test_time_groups_of_the_paint_by_example_hook_are_means(made: Synthetic) -> None:
    trace = open_trace(made.path)
    mean, total = (r2g(trace, recipe=name, keep=("time", "layer"), time_groups=2) for name in ("i2am-official-pbe", "i2am-official"))
    counts = np.array([[2, 1, 2, 2], [0, 1, 1, 1]])  # of layers 0, 1, 2, 4; steps 0 and 1, then 2
    close(mean.where(mean.notnull(), 0), total.where(total.notnull(), 0).values / np.maximum(counts, 1)[..., None, None])


@pytest.mark.parametrize("name", ["i2am-v1", "i2am(shared_ends=yes)"])
def test_groups_that_share_ends_sum_one_step_more(made: Synthetic, name: str) -> None:
    """v1, Eq. 10: t runs from tau dt to (tau + 1) dt, both included."""
    trace = open_trace(made.path)
    for ask in (r2g, g2r, lambda t, **options: sram(t, AT, **options)):
        each = ask(trace, recipe=name, layers=2, keep="time").values
        found = ask(trace, recipe=name, layers=2, keep="time", time_groups=2)
        close(found, np.stack([each[0] + each[1] + each[2], each[2]]))
        assert (found["first_step"].values.tolist(), found["last_step"].values.tolist()) == ([0, 2], [2, 2])
        close(ask(trace, recipe=name, layers=2), each.sum(0))


# Fields, in any order


def follow(row: Recipe, layers: list[Calls], tokens: Any, keep: tuple[str, ...]) -> np.ndarray:
    """A map of tokens on the generated image, exactly as the row's fields say, one operation after the other."""
    target = {"latent": LATENT, "first": layers[0].layer.grid, "largest": LATENT}[row.target] if isinstance(row.target, str) else row.target
    times = [[step] for step in range(3)] if "time" in keep else [[0, 1, 2]]
    axes = {"time": 0, "head": 1, "token": 2}
    groups = []
    for steps in times:
        done, shares = [], []
        for calls in layers:
            there = [step for step in steps if step in calls.steps]
            values = np.moveaxis((calls.P if row.r2g == "keys" else calls.G)[there][..., tokens], -1, 2)
            reduced = [axis for axis in axes if axis not in keep]
            for axis in (a for a in reduced if a in row.before):
                values = values.sum(axes[axis], keepdims=True)
            if values.shape[-2:] != target:
                values = resample(values, target, row.resize)
                values = np.maximum(values, 0) if row.clamp else values
            for axis in (a for a in reduced if a not in row.before):
                values = values.sum(axes[axis], keepdims=True)
            values = values.sum(0) / (len(tokens) if row.tokens == "mean" else 1)  # a kept step stands alone
            done.append(values[:, 0])
            mean = row.time_groups if "time" in keep else row.time
            heads = calls.layer.heads if row.heads == "mean" and "head" not in keep else 1
            shares.append((len(there) if mean == "mean" else min(len(there), 1)) * heads)
        groups.append(across_layers(row, done, shares, keep))
    return np.stack(groups) if "time" in keep else groups[0]


def across_layers(row: Recipe, maps: list[np.ndarray], shares: list[int], keep: tuple[str, ...]) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        heads = max(len(m) for m in maps)
        padded = np.stack([np.concatenate([m, np.full((heads - len(m), *m.shape[1:]), np.nan)]) for m in maps])
        counts = np.stack([np.where(np.arange(heads) < len(m), s, 0) for m, s in zip(maps, shares, strict=True)])[..., None, None]
        means = np.where(counts > 0, padded / counts, np.nan)
        if "layer" in keep:
            found = means
        elif row.layers == "sum":
            found = np.where((counts > 0).any(0), np.nansum(means, 0), np.nan)
        else:
            found = np.nansum(np.where(counts > 0, padded, 0), 0) / counts.sum(0)
    return found if "head" in keep else found[..., 0, :, :]


REDUCTIONS = st.sampled_from(["sum", "mean"])
CHANGES = st.fixed_dictionaries(
    {
        "r2g": st.sampled_from(["generated", "keys"]),
        **dict.fromkeys(("tokens", "time", "time_groups", "heads", "layers"), REDUCTIONS),
        "before": st.sets(st.sampled_from(["token", "time", "head"])).map(lambda axes: tuple(sorted(axes))),
        "resize": st.sampled_from(["bicubic", "bilinear", "nearest"]),
        "clamp": st.booleans(),
        "target": st.sampled_from(["latent", "first", "largest", (7, 9)]),
    }
)
KEEPS = st.sets(st.sampled_from(["time", "layer", "head"])).map(lambda axes: tuple(a for a in ("time", "layer", "head") if a in axes))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, keep=KEEPS)
def test_any_change_of_a_row_is_followed_literally(made: Synthetic, changes: dict[str, Any], keep: tuple[str, ...]) -> None:
    row, calls = get_recipe("i2am", **changes), synthetic_calls(made)
    close(token_map(open_trace(made.path), [0, 2], keep=keep, recipe=row), follow(row, calls, [0, 2], keep))
    found = r2g(open_trace(made.path), layers=[0, 1], keep=keep, recipe=row)  # these have the same 16 reference tokens
    close(found, follow(row, calls[:2], list(range(5, 21)), keep))


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "hrv-selective"])
def test_keeping_layers_heads_or_tokens_and_reducing_them_equals_not_keeping_them(made: Synthetic, name: str) -> None:
    """Law 4, for every row: what comes after resampling is linear in these axes."""
    trace, row = open_trace(made.path), RECIPES[name]
    whole = token_map(trace, recipe=name).values
    if "token" not in row.before or not row.clamp:
        np.testing.assert_allclose(token_map(trace, recipe=name, keep="token").mean("token"), whole, rtol=1e-6)
    kept = token_map(trace, recipe=name, keep=("layer", "head") if "head" not in row.before or not row.clamp else ("layer",)).compute()
    if row.layers == "sum":
        np.testing.assert_allclose(kept.sum(kept.dims[:-2]), whole, rtol=1e-6)
    elif row.time == "sum":
        weights = kept.pairs / (1 if row.heads == "mean" else kept.pairs)
        np.testing.assert_allclose((kept.fillna(0) * weights).sum(kept.dims[:-2]) / weights.sum(), whole, rtol=1e-6)


def test_specials_may_be_dropped_before_the_softmax(made: Synthetic) -> None:
    trace, calls = open_trace(made.path), synthetic_calls(made)
    alone = [dataclasses.replace(c, P=c.P[..., c.placed()[0]] / c.P[..., c.placed()[0]].sum(-1, keepdims=True)) for c in calls]
    for c in alone:  # what is left are the tokens with a place
        group = dataclasses.replace(c.layer.groups[1], start=0, stop=c.P.shape[-1], specials=0)
        c.layer = dataclasses.replace(c.layer, groups=(group,), tokens=group.stop)
    row = get_recipe("i2am", renormalize=True, specials=False)
    close(g2r(trace, recipe=row), g2r_i2am(alone, np.ones(LATENT)))
    close(sram(trace, AT, recipe=get_recipe(row, skip="mid*", before=("time",))), sram_by_time(alone, AT, LATENT, (3, 5)))
    close(r2g(trace, recipe=get_recipe(row, r2g="keys"), layers=1), np.full(LATENT, 2 / 15))  # what sums to 1 over 15 tokens; two calls
    half = token_map(trace, [1], among=[0, 1], recipe=get_recipe("i2am", r2g="keys"), layers=1)
    pair = calls[1].P[:, :, :, :, :2]
    close(half, np.nansum(pair[..., 1] / pair.sum(-1), 0).mean(0))


# Rows as values


@pytest.mark.parametrize("name", RECIPES)
def test_a_label_gives_the_row_back(name: str) -> None:
    row = RECIPES[name]
    assert get_recipe(name) is not None
    assert (get_recipe(row.label), row.label) == (row, name)


@settings(max_examples=60)
@given(
    changes=CHANGES,
    more=st.fixed_dictionaries(
        {},
        optional={
            "skip": st.sampled_from(["", "mid*", "*mid*,down*"]),
            "factors": st.sampled_from([(), (4,), (1, 2)]),
            "reference_target": st.sampled_from(["image", (3, 4)]),
            "sram_target": st.sampled_from(["g2r", "latent", (3, 4)]),
            "pool_positions": st.booleans(),
            "threshold": st.floats(0, 0.99),
            "invert": st.booleans(),
            "scale_before": st.sampled_from(["none", "max", "minmax"]),
        },
    ),
    name=st.sampled_from(list(RECIPES)),
)
def test_a_changed_row_s_label_gives_it_back(changes: dict[str, Any], more: dict[str, Any], name: str) -> None:
    row = get_recipe(name, **changes, **more)
    assert get_recipe(row.label) == row
    assert get_recipe(name, **read_changes(f"{f}={write(getattr(row, f))}" for f in FIELDS)) == row


def test_every_choice_of_a_field_is_a_row() -> None:
    for field, allowed in CHOICES.items():
        for value in allowed:
            assert getattr(get_recipe("i2am", **{field: value}), field) == value
    assert set(get_args(Axis)) == {"token", "query", "time", "head"}


@pytest.mark.parametrize(("call", "words"), [
    (lambda t: r2g(t, recipe="damm"), "there is no recipe 'damm'; did you mean daam\\? there are i2am, .*"),
    (lambda t: r2g(t, recipe=["i2am"]), r"there is no recipe \['i2am'\]"),
    (lambda t: get_recipe("daam", rezise="bilinear"), "no field 'rezise'; did you mean resize\\? it has r2g, .*"),
    (lambda t: get_recipe("daam", name="mine"), "no field 'name'"),
    (lambda t: get_recipe("daam", resize="lanczos"), "recipe daam: resize is 'lanczos'; expected bicubic, bilinear, nearest"),
    (lambda t: get_recipe("daam", heads=3), "heads is 3; expected sum, mean"),
    (lambda t: get_recipe("daam", clamp=1), "clamp is 1; expected True or False"),
    (lambda t: get_recipe("daam", before=("layer",)), "before is .*; expected a tuple of token, query, time, head"),
    (lambda t: get_recipe("daam", before="time"), "expected a tuple"),
    (lambda t: get_recipe("daam", factors=(0,)), "factors is .*; expected a tuple of positive whole numbers"),
    (lambda t: get_recipe("daam", target="biggest"), r"target is 'biggest'; expected latent, largest, first, image or \(rows, columns\)"),
    (lambda t: get_recipe("daam", target=(0, 3)), "target is"),
    (lambda t: get_recipe("daam", target="g2r"), r"target is 'g2r'; expected latent, largest, first, image or"),
    (lambda t: get_recipe("daam", sram_target="own"), r"sram_target is 'own'; expected latent, largest, first, image, g2r or"),
    (lambda t: get_recipe("daam", threshold=1.0), "threshold is 1.0; expected 0 <= threshold < 1"),
    (lambda t: get_recipe("daam", skip=3), "skip is 3; expected text"),
    (lambda t: get_recipe("daam(resize)"), "'resize' changes nothing; write field=value"),
    (lambda t: get_recipe("daam(clamp=perhaps)"), "'perhaps' is no value of the field clamp; expected yes or no"),
    (lambda t: get_recipe("daam(threshold=low)"), "expected a number"),
    (lambda t: get_recipe("daam(factors=1+b)"), "expected whole numbers"),
    (lambda t: r2g(t, recipe=get_recipe("i2am", skip="*")), r"recipe i2am leaves out every layer of the trace: it skips \*; name layers"),
    (lambda t: r2g(t, recipe=get_recipe("i2am", factors=(64,))), "takes those 64 times coarser than the latent"),
    (lambda t: token_map(t, [5]), "no token 5; it has 0 to 4"),
    (lambda t: token_map(t, [2], among=[1]), "token 2 has a map only if it is one of those that the softmax runs over"),
    (lambda t: token_map(t, keep="word"), "cannot keep 'word'"),
    (lambda t: token_map(t, probe="concepts"), "no selected layer has the probe 'concepts'; it was recorded without any"),
    (lambda t: r2g(t, heads={}), "the selection of heads names no layer; the trace has down_blocks.0.attn2"),
    (lambda t: r2g(t, heads={"nope": 0}), "no layer of the trace matches 'nope'"),
    (lambda t: r2g(t, heads={"mid*": [2]}), "no head 2; it has 0 to 1"),
    (lambda t: r2g(t, heads={"mid*": 0}, layers="up*"), "heads= names none of the layers that layers= selects"),
])  # fmt: skip
def test_what_there_is_not_is_said_in_one_line(made: Synthetic, call: Callable[[Trace], Any], words: str) -> None:
    with pytest.raises((InvalidInput, UnknownSelection), match=words):
        call(open_trace(made.path))


# Heads layer by layer


@pytest.mark.parametrize("ask", [r2g, g2r, lambda t, **options: sram(t, AT, **options), token_map])
def test_heads_are_chosen_layer_by_layer(made: Synthetic, ask: Callable[..., Any]) -> None:
    trace = open_trace(made.path)
    kept = ask(trace, recipe="i2am", keep=("layer", "head")).compute()
    pairs = [(0, 1), (1, 0), (1, 2), (4, 2)]
    wanted = np.mean([kept.sel(layer=layer, head=head) for layer, head in pairs], 0)
    heads = {"down_blocks.0.attn2": 1, 1: [0, 2], np.int64(-1): slice(2, 3)}
    found = ask(trace, recipe="i2am", heads=heads)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert (found.attrs["heads"], int(found.pairs)) == ("0:1 1:0,2 4:2", 4)
    apart = ask(trace, recipe="i2am", heads=heads, keep=("layer", "head"))
    assert (apart["layer"].values.tolist(), apart["head"].values.tolist()) == ([0, 1, 4], [0, 1, 2])
    assert apart.notnull().any(apart.dims[2:]).values.tolist() == [[False, True, False], [True, False, True], [False, False, True]]
    every = {i: slice(None) for i in range(5)}
    np.testing.assert_allclose(ask(trace, recipe="i2am", heads=every), ask(trace, recipe="i2am"), rtol=1e-12)


@pytest.mark.parametrize("name", ["i2am", "i2am-official", "i2am-custom"])
def test_looks_are_the_row_s_sram_of_every_patch(made: Synthetic, name: str) -> None:
    trace = open_trace(made.path)
    found = looks(trace, recipe=name)
    for at in ((0, 0), AT, (15, 11)):
        close(found[at], sram(trace, at, recipe=name))


def test_scores_of_all_positions_count_all_positions_whatever_the_recipe(made: Synthetic) -> None:
    trace = open_trace(made.path)
    options: dict[str, Any] = {"recipe": "i2am-custom", "layers": [0, 1, 4]}
    found = {name: float(value) for name, value in judge(trace, IMACS, **options).items()}
    plain = imacs(g2r(trace, query_mask=np.ones(LATENT), **options), trace.masks()["reference_mask"])
    assert found["imacs_r_plain"] == pytest.approx(float(plain), rel=1e-6)
    assert found["imacs_r"] == pytest.approx(float(imacs(g2r(trace, **options), trace.masks()["reference_mask"])), rel=1e-6)
    assert found["imacs_r"] != pytest.approx(found["imacs_r_plain"], rel=1e-3)
