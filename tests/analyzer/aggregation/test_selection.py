"""What a map is made of: calls left out, positions weighed, tokens and patches chosen, and what cannot be asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import AT, DIRECTIONS, KEEPS, LATENT, LAYERS, ask, assert_close, attribution_trace, oracle, softmaxes

from i2am.analyzer import g2r, open_trace, r2g, sram
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput, UnknownSelection
from i2am.schema.trace import Layer, TokenGroup
from traces import Synthetic, synthetic_trace

pytestmark = pytest.mark.analyzer

ABSENT = {(1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 1)}


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return attribution_trace(tmp_path_factory.mktemp("attribution") / "run.zarr", request.param)


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """Layer 1 is never called, layer 0 not in steps 1 and 2."""
    return synthetic_trace(tmp_path_factory.mktemp("holes") / "run.zarr", layers=LAYERS, steps=4, latent_grid=LATENT, absent=ABSENT)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("keep", KEEPS)
def test_absent_calls_are_left_out(holes: Synthetic, direction: str, keep: tuple[str, ...]) -> None:
    found = ask(open_trace(holes.path), direction, keep=keep)
    assert found.attrs["calls"] == 6
    assert_close(found, oracle(holes, direction, keep))
    if "layer" in keep:
        assert np.isnan(found.sel(layer=1)).all(), "a layer that was never called is absent, not zero"


def test_a_query_mask_weighs_generated_positions(made: Synthetic) -> None:
    trace = open_trace(made.path)
    mask = made.images["mask"][..., 0]
    truth = oracle(made, "g2r", weights=mask / 255)
    assert not np.allclose(truth, oracle(made, "g2r"), rtol=0.1)
    whole = [mask.astype(kind) for kind in (np.int64, np.uint16, np.float32)]
    for given_mask in ("mask", mask, mask > 0, (mask / 255).astype(np.float32), mask[..., None], *whole, (mask > 0).astype(int)):
        assert_close(g2r(trace, query_mask=given_mask), truth)
    small = np.zeros(LATENT)
    small[2:5, 1:3] = 0.5
    assert_close(g2r(trace, query_mask=small), oracle(made, "g2r", weights=small))
    np.testing.assert_allclose(g2r(trace, query_mask=np.ones(LATENT)), g2r(trace), rtol=1e-6)


def test_specials_count_in_r2g_unless_asked_otherwise(made: Synthetic) -> None:
    trace = open_trace(made.path)
    generated = [softmaxes(made, 0)[1][0, 0, step] for step in range(4)]
    truth = sum(g[..., 5:20].mean(-1) for g in generated).mean(0)
    assert_close(r2g(trace, layers="down*", specials=False), truth)


def test_text_tokens_have_no_grid(made: Synthetic) -> None:
    trace = open_trace(made.path)
    found = g2r(trace, group="text", layers=0)
    assert found.dims == ("token",)
    assert_close(found, oracle(made, "g2r", layers=[0], heads=[0, 1], name="text"))
    assert_close(r2g(trace, group="text"), oracle(made, "r2g", layers=[0, 3], heads=[0, 1], name="text"))
    with pytest.raises(InvalidInput, match=r"cannot be laid over each other \(down.attn2: 4 tokens, up.attn2#1: 5 tokens\)"):
        g2r(trace, group="text")


def test_attributes_say_what_a_map_is(made: Synthetic) -> None:
    trace = open_trace(made.path)
    found = g2r(trace, keep=("head", "time"), sample=1, query_mask="mask").attrs
    assert found["direction"] == "g2r"
    assert found["levels"] == "TLAM+HLAM"
    assert found["recipe"] == "i2am"
    assert found["trace"] == trace.id
    assert (found["group"], found["image"], found["image_shape"]) == ("reference", "reference", (30, 50))
    assert "window" not in found
    assert (found["sample"], found["branch"], found["query_mask"]) == (1, "cond", "mask")
    assert r2g(trace, sample=1).attrs["image"] == "generated_1"
    assert r2g(trace).attrs["image_shape"] == (64, 48)
    assert sram(trace, AT).attrs["at"] == AT


def test_a_patch_is_the_cell_that_contains_it(made: Synthetic) -> None:
    """In the 4 x 3 layer four latent patches share a cell."""
    trace = open_trace(made.path)
    maps = [sram(trace, at, layers="mid*").values for at in ((4, 2), (5, 3), (6, 3))]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[1], maps[2])


def test_v1_as_printed_is_constant(made: Synthetic) -> None:
    trace = open_trace(made.path)
    flat = r2g(trace, layers="mid*", recipe="i2am-v1").values
    np.testing.assert_allclose(flat, 4 / 16, rtol=1e-3)
    np.testing.assert_allclose(g2r(trace, layers="mid*", recipe="i2am-v1").values, 4 / 12, rtol=1e-3)
    assert sram(trace, AT, recipe="i2am-v1").attrs["recipe"] == "i2am-v1"


@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda t: r2g(t, keep="depth"), InvalidInput, "cannot keep 'depth'; a map keeps any of time, layer, head"),
    (lambda t: r2g(t, time_groups=2), InvalidInput, "time_groups= splits .* add keep='time'"),
    (lambda t: r2g(t, keep="time", time_groups=2.5), InvalidInput, "2.5 is not a number of time groups; expected a whole number"),
    (lambda t: r2g(t, keep=None), InvalidInput, "cannot keep None"),
    (lambda t: r2g(t, heads=[1.5]), InvalidInput, "1.5 is not a head"),
    (lambda t: r2g(t, heads=1.5), InvalidInput, "1.5 is not a head"),
    (lambda t: r2g(t, heads="x"), InvalidInput, "heads='x' is no choice of heads; write 5"),
    (lambda t: r2g(t, heads=[True, False]), InvalidInput, "mask of heads has 2 values; expected one for each of 3 heads"),
    (lambda t: r2g(t, steps=np.ones(3, bool)), InvalidInput, "mask of steps has 3 values; expected one for each of 4 steps"),
    (lambda t: r2g(t, steps=np.zeros(4, bool)), InvalidInput, "the selection of steps is empty"),
    (lambda t: r2g(t, steps=True), InvalidInput, "True is not a step"),
    (lambda t: r2g(t, steps=slice(None, None, 0)), InvalidInput, "no range of steps"),
    (lambda t: r2g(t, steps=slice("a")), InvalidInput, "no range of steps"),
    (lambda t: r2g(t, sample=0.5), InvalidInput, "0.5 is not a sample"),
    (lambda t: r2g(t, layers=[]), InvalidInput, "the layer selection is empty; the trace has down.attn2"),
    (lambda t: r2g(t, layers=1.5), InvalidInput, "1.5 names no layer"),
    (lambda t: r2g(t, recipe=["i2am"]), InvalidInput, "no recipe"),
    (lambda t: t.probabilities(None), InvalidInput, "None names no layer"),
    (lambda t: t.probabilities(1.5), InvalidInput, "1.5 names no layer"),
    (lambda t: g2r(t, query_mask=np.full(LATENT, np.nan)), InvalidInput, "the query mask has values from nan"),
    (lambda t: g2r(t, query_mask=np.full(LATENT, -1)), InvalidInput, "the query mask has values from -1"),
    (lambda t: g2r(t, query_mask=np.full(LATENT, 256.0)), InvalidInput, "to 256"),
    (lambda t: g2r(t, query_mask=np.full(LATENT, "a")), InvalidInput, "the query mask has dtype"),
    (lambda t: r2g(t, keep="time", time_groups=9), InvalidInput, "9 time groups of 4 steps; expected 1 to 4"),
    (lambda t: r2g(t, keep="time", time_groups=0), InvalidInput, "0 time groups"),
    (lambda t: r2g(t, steps=[4]), UnknownSelection, "no step 4; it has 0 to 3"),
    (lambda t: r2g(t, steps=slice(9, 12)), InvalidInput, "the selection of steps is empty"),
    (lambda t: r2g(t, heads=7), UnknownSelection, "no head 7; it has 0 to 2"),
    (lambda t: r2g(t, sample=2), UnknownSelection, "no sample 2; it has 0 to 1"),
    (lambda t: r2g(t, branch="both"), UnknownSelection, "no branch 'both'; it has cond, uncond"),
    (lambda t: r2g(t, group="garment"), UnknownSelection, "token group 'garment'; there are text, reference"),
    (lambda t: r2g(t, layers="up.attn2#1"), UnknownSelection, "no selected layer sees a reference; .* of text"),
    (lambda t: r2g(t, layers="nope"), UnknownSelection, "no layer of the trace matches 'nope'"),
    (lambda t: r2g(t, recipe="daamm"), InvalidInput, "no recipe 'daamm'; did you mean daam\\? there are i2am, i2am-v1"),
    (lambda t: sram(t, (8, 0)), UnknownSelection, r"no patch \(8, 0\); rows are 0 to 7 from the top, columns 0 to 5"),
    (lambda t: sram(t, (1.5, 0)), InvalidInput, "a patch is"),
    (lambda t: g2r(t, query_mask="cloth"), UnknownSelection, "no mask 'cloth' of the generated image; it has mask"),
    (lambda t: g2r(t, query_mask=np.ones((7, 7))), InvalidInput, r"shape \(7, 7\); expected .* 8 x 6 or 64 x 48"),
    (lambda t: g2r(t, query_mask=np.zeros(LATENT)), InvalidInput, "the query mask is empty"),
])  # fmt: skip
def test_what_cannot_be_asked_is_said_in_one_line(
    made: Synthetic, call: Callable[[Trace], Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call(open_trace(made.path))


@pytest.mark.parametrize("kind", [list, np.array, tuple, iter])
def test_steps_and_heads_are_chosen_by_a_boolean_each(made: Synthetic, kind: Callable[[list[bool]], Any]) -> None:
    trace = open_trace(made.path)
    found = r2g(trace, steps=kind([True, False, False, True]), heads=kind([False, True, False]))
    np.testing.assert_array_equal(found, r2g(trace, steps=[0, 3], heads=1))


def test_two_references_have_to_be_told_apart(tmp_path: Path) -> None:
    groups = (TokenGroup("face", "reference", 0, 4), TokenGroup("style", "reference", 4, 8))
    layer = Layer("a", 0, 2, 8, 0.3, (4, 3), 8, groups)
    trace = open_trace(synthetic_trace(tmp_path / "t.zarr", layers=[layer], steps=1).path)
    with pytest.raises(UnknownSelection, match="2 references, face, style; say which with group="):
        r2g(trace)
    assert g2r(trace, group="style").shape == (4,)
